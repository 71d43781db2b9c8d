/* init.c - initial values (the reference's efficientnet_model.py; spec 1.8).
 *
 *     convolutions, SE's too   N(0, 2/(k*k*fan)), not truncated; fan = output channels, depthwise: 1
 *     classifier               uniform on +-1/sqrt(classes)
 *     biases, beta, mean       0             gamma, var   1
 *
 * A value is a function of (seed, tensor, element): four neighbouring elements share one counter of the generator.  The
 * element is the logical one in timm's order, so that the weights do not depend on alignment or on the machine. */
#include "trainer/model.h"

#include <string.h>

enum { PER_COUNTER = 4 };

/* Draws come in timm's order; the place follows from the strides. */
static void draw(const en_tensor *t, uint64_t seed, uint32_t index, float *arena)
{
    const int64_t n = en_tensor_count(t);
    int64_t size[4] = { 1, 1, 1, 1 }, stride[4] = { 0 }, i[4] = { 0 };
    for (int d = 0; d < t->ndim; d++) {
        size[d] = t->shape[d];
        stride[d] = t->stride[d];
    }
    en_rng r = { .left = 0 };
    for (int64_t e = 0; e < n; e++) {
        if (e % PER_COUNTER == 0) r = en_rng_at(seed, EN_RNG_INIT, 0, (uint64_t)(e / PER_COUNTER), index);
        const float value = t->init == EN_INIT_CONV_NORMAL ? t->init_scale * en_rng_normal(&r)
                                                           : t->init_scale * (2 * en_rng_uniform(&r) - 1);
        arena[t->offset + i[0] * stride[0] + i[1] * stride[1] + i[2] * stride[2] + i[3] * stride[3]] = value;
        for (int d = 3; d >= 0 && ++i[d] == size[d]; d--) i[d] = 0;
    }
}

void en_model_init(const en_model *m, uint64_t seed, float *params, float *stats)
{
    memset(params, 0, (size_t)m->param_elems * sizeof *params);
    memset(stats, 0, (size_t)m->stat_elems * sizeof *stats);
    for (int i = 0; i < m->n_tensors; i++) {
        const en_tensor *t = &m->tensors[i];
        float *arena = t->arena == EN_ARENA_PARAMS ? params : stats;
        switch (t->init) {
        case EN_INIT_ZERO: break;
        case EN_INIT_ONE:
            for (int64_t c = 0; c < t->shape[0]; c++) arena[t->offset + c] = 1;
            break;
        case EN_INIT_CONV_NORMAL:
        case EN_INIT_DENSE_UNIFORM: draw(t, seed, (uint32_t)i, arena); break;
        }
    }
}
