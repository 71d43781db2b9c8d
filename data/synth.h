/* synth.h - made-up pictures: en_synth_write stores them, the "synthetic" dataset makes them as they are read. */
#ifndef EN_DATA_SYNTH_H
#define EN_DATA_SYNTH_H

#include "data.h"

enum { EN_SYNTH_CLASSES = 10 };
extern const char *const en_synth_names[EN_SYNTH_CLASSES];   /* in byte order */

/* rgb (size, size, 3) = picture number `picture` of `class`; a function of (seed, class, picture, size). */
void en_synth_draw(int class, int size, uint64_t seed, uint64_t picture, uint8_t *rgb);

/* The same as a JPEG of quality 90 into *buf, grown with realloc; *n bytes. */
en_status en_synth_jpeg(int class, int size, uint64_t seed, uint64_t picture, uint8_t **buf, size_t *capacity, size_t *n);

/* Opens "synthetic" or "synthetic:N"; `what` is all of it. */
en_status en_synthetic_open(const char *what, const char *split, const en_dataset *classes_like, en_dataset **out);

#endif
