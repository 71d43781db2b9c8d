/* conv.h - how a dense convolution is cut on the cpu: for conv.c, and for `reserve`, which takes its memory. */
#ifndef EN_CPU_CONV_H
#define EN_CPU_CONV_H

#include "cpu.h"

/* `rows` rows of output are made at a time, of which backward counts `all`: those that x reaches, be they in y or below it.
 * A slab of x holds u_rows rows of u_width positions; one of dy d_rows rows of d_width positions, ring-1 of them before its own. */
typedef struct { int64_t rows, all, ring, u_rows, u_width, d_rows, d_width; } conv_cut;

static inline conv_cut cut_conv(const en_conv_geom *g)
{
    const int64_t k = g->kernel, s = g->stride;
    conv_cut c = { .ring = (k + s - 1) / s };
    c.all = max64(g->oh, (g->h - 1 + g->pad) / s + 1);
    c.rows = max64(1, min64((BLOCK_ROWS + g->ow - 1) / max64(g->ow, 1), c.all));
    c.u_rows = (c.rows - 1) * s + k;
    c.u_width = max64((g->ow - 1) * s + k, g->pad + g->w);
    c.d_rows = c.rows + c.ring - 1;
    c.d_width = max64((g->w - 1 + g->pad) / s, g->ow - 1) + c.ring;
    return c;
}

static inline int64_t conv_u_floats(const conv_cut *c, const en_conv_geom *g) { return c->u_rows * c->u_width * g->c; }
static inline int64_t conv_d_floats(const conv_cut *c, const en_conv_geom *g) { return c->d_rows * c->d_width * g->oc; }

#endif
