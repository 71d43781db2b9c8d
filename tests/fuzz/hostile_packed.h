/* hostile_packed.h - any bytes as a packed file that HDF5 itself finds nothing wrong with.
 *
 * Bytes mutated in an HDF5 file end at HDF5's checksums.  So the input is taken for a list of changes to a sound packed file, and HDF5
 * writes the result with checksums, ours included: what is wrong with it, only the reader can find.  No input is refused,
 * an empty one is the sound file. */
#ifndef EN_TESTS_FUZZ_HOSTILE_PACKED_H
#define EN_TESTS_FUZZ_HOSTILE_PACKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Writes the file to fd, an empty file that `path` leads to, too.  *sound: nothing was changed.  false: HDF5 did not want to. */
bool hostile_packed(const uint8_t *data, size_t size, int fd, const char *path, bool *sound);

enum { HOSTILE_SAMPLES = 5, HOSTILE_BYTES = 60 };              /* of the sound file: sample i is 10 + i bytes (two of them i) */

#endif
