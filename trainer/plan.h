/* plan.h - where each tensor lies: every buffer of a step is known before the first one.
 *
 * A buffer is a size and the interval of times in which it is alive; time is the index of a pass group (stem, block 0, ...,
 * head, and back).  Buffers whose intervals meet must not overlap in memory; others may share it.  So what backward needs
 * only for a moment lies where the activations of later blocks, already consumed, lay. */
#ifndef EN_PLAN_H
#define EN_PLAN_H

#include "kernels/kernels.h"

typedef struct { char name[40]; size_t bytes; int first, last; size_t offset; } en_plan_buffer;   /* times inclusive */

typedef struct { en_plan_buffer *buffer; int n, capacity; size_t bytes; } en_plan;

int       en_plan_add(en_plan *p, size_t bytes, int first, int last, const char *fmt, ...) __attribute__((format(printf, 5, 6)));
                                               /* index of the buffer, -1 without memory (en_plan_place reports it)      */
en_status en_plan_place(en_plan *p);           /* gives every buffer its offset (4 KiB aligned) and p->bytes; greedy,    */
                                               /* largest first, at the lowest free offset                              */
en_status en_plan_check(const en_plan *p);     /* EN_EINVAL naming two buffers that are alive together and overlap       */
void      en_plan_free(en_plan *p);

#endif
