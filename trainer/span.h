/* span.h - a stretch of training as people say it: "100" steps, "2e" epochs, "90s", "15m", "3h50m", "1h30m20s"; "0" never. */
#ifndef EN_SPAN_H
#define EN_SPAN_H

#include <stdbool.h>
#include <stddef.h>

typedef struct { enum { EN_SPAN_STEPS, EN_SPAN_EPOCHS, EN_SPAN_SECONDS } unit; double count; } en_span;  /* count 0: never */

/* Whole steps; epochs and their parts ("0.5e"); hours, minutes, seconds in this order, each once at most, and only the last of
 * them with a fraction ("1.5h").  False: none of these, *out is not written. */
bool en_span_read(const char *text, en_span *out);

/* What en_span_read reads back to the same bits: "100", "2e", "1h30m20s".  `size` 48 always suffices. */
void en_span_write(const en_span *s, char *out, size_t size);

/* What somebody may have meant who wrote "15min", "3:50", "1d", "2 epochs" or "1h30", in the form above; false: no idea. */
bool en_span_guess(const char *text, char *out, size_t size);

#endif
