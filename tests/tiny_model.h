/* tiny_model.h - the smallest model that has everything a checkpoint must keep, and snapshots of it that know their step. */
#ifndef EN_TEST_TINY_MODEL_H
#define EN_TEST_TINY_MODEL_H

#include <stdint.h>
#include <string.h>

#include "trainer/checkpoint/checkpoint.h"

/* ---- models ---------------------------------------------------------------------------------------------------------- */

/* Four tensors with every kind of padding: channels 6 of 8, transposed, kernel taps, a vector; and two of statistics. */
static inline en_model tiny_model(void)
{
    static en_tensor tensors[] = {
        { .name = "conv_stem.weight", .ndim = 4, .shape = { 6, 3, 3, 3 }, .stride = { 1, 8, 72, 24 }, .offset = 64, .elems = 224 },
        { .name = "bn1.weight", .ndim = 1, .shape = { 6 }, .stride = { 1 }, .offset = 48, .elems = 16 },
        { .name = "bn1.running_mean", .ndim = 1, .shape = { 6 }, .stride = { 1 }, .arena = EN_ARENA_STATS, .offset = 0, .elems = 16 },
        { .name = "bn1.running_var", .ndim = 1, .shape = { 6 }, .stride = { 1 }, .arena = EN_ARENA_STATS, .offset = 16, .elems = 16 },
        { .name = "classifier.weight", .ndim = 2, .shape = { 3, 5 }, .stride = { 1, 4 }, .offset = 16, .elems = 32 },
        { .name = "classifier.bias", .ndim = 1, .shape = { 3 }, .stride = { 1 }, .offset = 0, .elems = 16 },
    };
    static en_model_row row = { .name = "efficientnet_tiny" };
    return (en_model){ .name = "efficientnet_tiny", .row = &row, .width = 1, .depth = 1.1, .resolution = 32, .classes = 3,
                       .normalise = EN_NORMALISE_IMAGENET, .eval_crop = EN_EVAL_CROP_REFERENCE,
                       .dropout = 0.2f, .drop_path = 0.25f, .tensors = tensors, .n_tensors = 6,
                       .param_elems = 64 + 224, .stat_elems = 32 };
}

static const char *const slots[] = { "ms", "mom" };
static char *const tiny_classes[] = { "cat", "dog", "K\xc3\xa4uzchen" };

/* ---- snapshots -------------------------------------------------------------------------------------------------------- */

static inline uint32_t mixed(uint64_t a, uint64_t b)            /* splitmix64 of (a, b)                                  */
{
    uint64_t z = a * 0x9E3779B97F4A7C15u + b * 0xD1B54A32D192ED03u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (uint32_t)(z ^ z >> 31);
}

/* Any bits whatever, NaN payloads and denormals among them, and garbage in the padding. */
static inline void fill_arena(float *arena, int64_t n, uint64_t key)
{
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = mixed(key, (uint64_t)i);
        memcpy(&arena[i], &bits, 4);
    }
}

static inline void fill(en_snapshot *s, int64_t step)
{
    const en_model *m = s->model;
    const uint64_t key = 16 * (uint64_t)step;
    fill_arena(s->params, m->param_elems, key);
    fill_arena(s->stats, m->stat_elems, key + 1);
    if (s->ema_params) fill_arena(s->ema_params, m->param_elems, key + 2);
    if (s->ema_params) fill_arena(s->ema_stats, m->stat_elems, key + 3);
    for (int i = 0; i < s->n_slots; i++) fill_arena(s->slot[i], m->param_elems, key + 4 + (uint64_t)i);
    s->state = (en_run_state){ .step = step, .epoch = step / 7, .position = 256 * step, .ema_updates = step, .seed = UINT64_MAX - 5,
                               .global_batch = 256, .samples = 1281167, .lanes = 12, .accum = 3, .world_size = 17, .evaluation_owed = step % 2, .best_top1 = 0.125, .seconds = 1.5 * (double)step };
}

#endif
