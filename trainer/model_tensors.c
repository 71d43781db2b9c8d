/* model_tensors.c - the tensors of a model: names, logical shapes, initial values, and how they lie in the arenas.
 *
 * The tensors are added in the order of timm's state dict, which is the order of forward.  Backward finishes gradients in
 * exactly the reverse of it, so the arena of parameters is laid out from the last tensor to the first, and
 * `every gradient of what follows block b is final` is one number: the offset at which block b's tensors begin.
 *
 * Physical layouts, *_p = channels rounded up to channel_align; what exists only for alignment is zero and stays zero:
 *
 *     tensor                timm's shape        in the arena            logical (o,i,a,b) lies at
 *     convolution           (O,I,k,k)           (k,k,I_p,O_p)           o + O_p*(i + I_p*(b + k*a))      the stem: I_p = 3
 *       1x1                 (O,I,1,1)           (I_p,O_p)               o + O_p*i
 *     depthwise             (C,1,k,k)           (k,k,C_p)               o + C_p*(b + k*a)
 *     SE reduce             (q,C,1,1)           (q,C_p)                 i + C_p*o
 *     SE expand             (C,q,1,1)           (q,C_p)                 o + C_p*i
 *     classifier            (classes,I)         (I_p,classes_p)         o + classes_p*i
 *     vectors               (C)                 (C_p), SE's (q): (q)    o
 */
#include "trainer/model_build.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ELEMS_ALIGN = 16 };

static int add(en_builder *b, en_key key, const char *part, en_tensor t)
{
    en_model *m = b->m;
    if (b->full) return 0;
    if (m->n_tensors == b->capacity) {
        const int capacity = b->capacity ? 2 * b->capacity : 256;
        en_tensor *grown = realloc(m->tensors, (size_t)capacity * sizeof *grown);
        if (!grown) return b->full = true, 0;
        m->tensors = grown;
        b->capacity = capacity;
    }
    snprintf(t.name, sizeof t.name, "%s%s%s.%s", key.prefix, *key.prefix ? "." : "", key.layer, part);
    t.elems = (t.elems + ELEMS_ALIGN - 1) / ELEMS_ALIGN * ELEMS_ALIGN;
    m->tensors[m->n_tensors] = t;
    if (t.arena == EN_ARENA_PARAMS) m->params_trainable += en_tensor_count(&t);
    else m->params_bn_stats += en_tensor_count(&t);
    return m->n_tensors++;
}

static int add_weight(en_builder *b, en_key key, en_tensor t, int64_t positions)
{
    b->m->macs += positions * en_tensor_count(&t);
    t.arena = EN_ARENA_PARAMS;
    t.decay = true;
    return add(b, key, "weight", t);
}

/* std = sqrt(2 / (k*k*fan)): the reference's conv_kernel_initializer, fan = output channels (depthwise: multiplier 1).  For
 * what is not depthwise that is also He's, arXiv:1502.01852 over the outputs, with which torchvision begins a ResNet. */
static float conv_std(int k, int64_t fan) { return (float)sqrt(2.0 / ((double)k * k * (double)fan)); }

int en_add_conv(en_builder *b, en_key key, int k, int64_t ci, int64_t co, int64_t ci_p, int64_t co_p, int64_t positions)
{
    const en_tensor t = { .ndim = 4, .shape = { co, ci, k, k }, .stride = { 1, co_p, k > 1 ? k * ci_p * co_p : 0, k > 1 ? ci_p * co_p : 0 },
                          .elems = k * k * ci_p * co_p, .init = EN_INIT_CONV_NORMAL, .init_scale = conv_std(k, co) };
    return add_weight(b, key, t, positions);
}

int en_add_depthwise(en_builder *b, en_key key, int k, int64_t c, int64_t c_p, int64_t positions)
{
    const en_tensor t = { .ndim = 4, .shape = { c, 1, k, k }, .stride = { 1, 0, k * c_p, c_p }, .elems = k * k * c_p,
                          .init = EN_INIT_CONV_NORMAL, .init_scale = conv_std(k, 1) };
    return add_weight(b, key, t, positions);
}

int en_add_se_reduce(en_builder *b, en_key key, int64_t q, int64_t c, int64_t c_p)
{
    const en_tensor t = { .ndim = 4, .shape = { q, c, 1, 1 }, .stride = { c_p, 1, 0, 0 }, .elems = q * c_p,
                          .init = EN_INIT_CONV_NORMAL, .init_scale = conv_std(1, q) };
    return add_weight(b, key, t, 1);
}

int en_add_se_expand(en_builder *b, en_key key, int64_t q, int64_t c, int64_t c_p)
{
    const en_tensor t = { .ndim = 4, .shape = { c, q, 1, 1 }, .stride = { 1, c_p, 0, 0 }, .elems = q * c_p,
                          .init = EN_INIT_CONV_NORMAL, .init_scale = conv_std(1, c) };
    return add_weight(b, key, t, 1);
}

/* Uniform on +-1/sqrt(classes): the reference scales by fan-out, not fan-in. */
int en_add_classifier(en_builder *b, en_key key, int64_t ci, int64_t classes, int64_t ci_p, int64_t classes_p)
{
    const en_tensor t = { .ndim = 2, .shape = { classes, ci }, .stride = { 1, classes_p }, .elems = ci_p * classes_p,
                          .init = EN_INIT_DENSE_UNIFORM, .init_scale = (float)(1.0 / sqrt((double)classes)) };
    return add_weight(b, key, t, 1);
}

int en_add_bias(en_builder *b, en_key key, int64_t c, int64_t c_p)
{
    const en_tensor t = { .ndim = 1, .shape = { c }, .stride = { 1 }, .arena = EN_ARENA_PARAMS, .elems = c_p, .decay = b->arch->decay_biases,
                          .init = EN_INIT_ZERO };
    return add(b, key, "bias", t);
}

en_bn_ref en_add_bn(en_builder *b, en_key key, int64_t c, int64_t c_p)
{
    static const struct { const char *name; en_arena arena; en_init init; } part[4] = {
        { "weight",       EN_ARENA_PARAMS, EN_INIT_ONE },   { "bias",        EN_ARENA_PARAMS, EN_INIT_ZERO },
        { "running_mean", EN_ARENA_STATS,  EN_INIT_ZERO },  { "running_var", EN_ARENA_STATS,  EN_INIT_ONE } };
    int index[4];
    for (int i = 0; i < 4; i++)
        index[i] = add(b, key, part[i].name,
                       (en_tensor){ .ndim = 1, .shape = { c }, .stride = { 1 }, .arena = part[i].arena, .elems = c_p, .init = part[i].init });
    return (en_bn_ref){ .c = c, .c_phys = c_p, .gamma = index[0], .beta = index[1], .mean = index[2], .var = index[3] };
}

void en_lay_out(en_model *m)
{
    for (int i = m->n_tensors - 1; i >= 0; i--) {
        en_tensor *t = &m->tensors[i];
        int64_t *end = t->arena == EN_ARENA_PARAMS ? &m->param_elems : &m->stat_elems;
        t->offset = *end;
        *end += t->elems;
    }
}

/* ---- logical <-> physical ----------------------------------------------------------------------------------------- */

int64_t en_tensor_count(const en_tensor *t)
{
    int64_t n = 1;
    for (int d = 0; d < t->ndim; d++) n *= t->shape[d];
    return n;
}

/* Runs `statement` for every logical element: `at` its number, `place` its place in the arena. */
#define FOR_EACH_ELEMENT(t, at, place, statement)                                                                        \
    do {                                                                                                                 \
        const int64_t n1_ = (t)->ndim > 1 ? (t)->shape[1] : 1, n2_ = (t)->ndim > 2 ? (t)->shape[2] : 1,                  \
                      n3_ = (t)->ndim > 3 ? (t)->shape[3] : 1;                                                           \
        int64_t at = 0;                                                                                                  \
        for (int64_t i0_ = 0; i0_ < (t)->shape[0]; i0_++)                                                                \
            for (int64_t i1_ = 0; i1_ < n1_; i1_++)                                                                      \
                for (int64_t i2_ = 0; i2_ < n2_; i2_++)                                                                  \
                    for (int64_t i3_ = 0; i3_ < n3_; i3_++, at++) {                                                      \
                        const int64_t place = (t)->offset + i0_ * (t)->stride[0] + i1_ * (t)->stride[1]                  \
                                            + i2_ * (t)->stride[2] + i3_ * (t)->stride[3];                               \
                        statement;                                                                                       \
                    }                                                                                                    \
    } while (0)

void en_tensor_gather(const en_tensor *t, const float *arena, float *logical)
{
    FOR_EACH_ELEMENT(t, at, place, logical[at] = arena[place]);
}

void en_tensor_scatter(const en_tensor *t, const float *logical, float *arena)
{
    memset(arena + t->offset, 0, (size_t)t->elems * sizeof *arena);
    FOR_EACH_ELEMENT(t, at, place, arena[place] = logical[at]);
}
