/* nearest.h - "did you mean": which of a list of names is closest to what was typed. */
#ifndef EN_NEAREST_H
#define EN_NEAREST_H

#include <stddef.h>

/* Edits (insert, delete, replace, swap neighbours: Damerau 1964, restricted) that turn `a` into `b`; case and the
 * difference between '-' and '_' are free.  Names longer than 63 characters count as far from everything. */
int en_edit_distance(const char *a, const char *b);

/* Keeps the best of the names shown to it; start from { .typed = what the user wrote }. */
typedef struct { const char *typed; const char *best; int distance; } en_nearest;
void        en_nearest_offer(en_nearest *n, const char *name);
const char *en_nearest_best(const en_nearest *n);   /* NULL when nothing offered looks like a misspelling of `typed` */

#endif
