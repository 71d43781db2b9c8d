/* hostile_checkpoint.h - any bytes as a checkpoint that HDF5 itself finds nothing wrong with.
 *
 * The input is a list of changes to a sound checkpoint of tests/tiny_model.h, one that en_checkpoint_write has written.  HDF5 makes
 * them, and checksums of HDF5 and of ours are right unless they are what is changed.  No input is refused, an empty one is the sound
 * file. */
#ifndef EN_TESTS_FUZZ_HOSTILE_CHECKPOINT_H
#define EN_TESTS_FUZZ_HOSTILE_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Changes `path`, a sound checkpoint, in place.  raw: bytes behind HDF5's back, too, with its checksums made right. */
void hostile_checkpoint(const uint8_t *data, size_t size, const char *path, bool raw);

#endif
