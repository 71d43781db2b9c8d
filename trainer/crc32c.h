/* crc32c.h - the Castagnoli CRC (RFC 3720, appendix B.4): polynomial 0x1EDC6F41, reflected, all ones in and out.
 *
 * crc32c("123456789") = 0xE3069283.  Every burst of up to 32 bits in one dataset is found for sure, anything else but for
 * one case in 2^32. */
#ifndef EN_CRC32C_H
#define EN_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Goes on from `crc` (0 to begin): en_crc32c(en_crc32c(0, a, n), b, m) is the CRC of a followed by b.  Uses the
 * processor's instruction (SSE4.2) where it has one, about 8 GB/s on a core, else en_crc32c_table. */
uint32_t en_crc32c(uint32_t crc, const void *bytes, size_t n);
uint32_t en_crc32c_table(uint32_t crc, const void *bytes, size_t n);   /* the same anywhere, about 1.5 GB/s */

#endif
