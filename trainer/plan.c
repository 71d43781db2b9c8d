#include "trainer/plan.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = 4096 };

int en_plan_add(en_plan *p, size_t bytes, int first, int last, const char *fmt, ...)
{
    if (p->n == p->capacity) {
        const int capacity = p->capacity ? 2 * p->capacity : 64;
        en_plan_buffer *grown = realloc(p->buffer, (size_t)capacity * sizeof *grown);
        if (!grown) { p->capacity = -1; return -1; }
        p->buffer = grown;
        p->capacity = capacity;
    }
    if (p->capacity < 0) return -1;
    en_plan_buffer *b = &p->buffer[p->n];
    *b = (en_plan_buffer){ .bytes = (bytes + PAGE - 1) / PAGE * PAGE, .first = first, .last = last };
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(b->name, sizeof b->name, fmt, ap);
    va_end(ap);
    return p->n++;
}

static bool meet(const en_plan_buffer *a, const en_plan_buffer *b) { return a->first <= b->last && b->first <= a->last; }

static int by_size(const void *a, const void *b)          /* largest first; equal sizes in order of time, for stable plans */
{
    const en_plan_buffer *x = *(en_plan_buffer *const *)a, *y = *(en_plan_buffer *const *)b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return (x->first > y->first) - (x->first < y->first);
}

static int by_offset(const void *a, const void *b)
{
    const en_plan_buffer *x = *(en_plan_buffer *const *)a, *y = *(en_plan_buffer *const *)b;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

en_status en_plan_place(en_plan *p)
{
    EN_REQUIRE(p->capacity >= 0, EN_ENOMEM, "no memory for a plan of %d buffers", p->n);
    en_plan_buffer **order = malloc(2 * (size_t)(p->n + 1) * sizeof *order), **near = order + p->n + 1;
    EN_REQUIRE(order, EN_ENOMEM, "no memory for a plan of %d buffers", p->n);
    for (int i = 0; i < p->n; i++) order[i] = &p->buffer[i];
    qsort(order, (size_t)p->n, sizeof *order, by_size);
    p->bytes = 0;
    for (int i = 0; i < p->n; i++) {
        int n_near = 0;                                    /* placed already, and alive at the same time */
        for (int j = 0; j < i; j++)
            if (meet(order[i], order[j])) near[n_near++] = order[j];
        qsort(near, (size_t)n_near, sizeof *near, by_offset);
        size_t at = 0;
        for (int j = 0; j < n_near; j++) {
            if (at + order[i]->bytes <= near[j]->offset) break;
            if (near[j]->offset + near[j]->bytes > at) at = near[j]->offset + near[j]->bytes;
        }
        order[i]->offset = at;
        if (at + order[i]->bytes > p->bytes) p->bytes = at + order[i]->bytes;
    }
    free(order);
    return en_plan_check(p);
}

en_status en_plan_check(const en_plan *p)
{
    for (int i = 0; i < p->n; i++)
        for (int j = 0; j < i; j++) {
            const en_plan_buffer *a = &p->buffer[i], *b = &p->buffer[j];
            EN_REQUIRE(!meet(a, b) || a->offset + a->bytes <= b->offset || b->offset + b->bytes <= a->offset || !a->bytes || !b->bytes,
                       EN_EINVAL, "%s and %s are alive together and overlap", a->name, b->name);
        }
    return EN_OK;
}

void en_plan_free(en_plan *p)
{
    free(p->buffer);
    *p = (en_plan){ 0 };
}
