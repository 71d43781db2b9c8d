/* noise.c - dropout and stochastic depth: masks of 0 and 1/keep, functions of the counters alone (rng.h). */
#include "backend.h"

en_status cpu_drop_path_masks(en_backend *be, const en_now *now, int64_t layers, int64_t n, const float *keep, float *mask)
{
    (void)be;
    for (int64_t l = 0; l < layers; l++)
        for (int64_t i = 0; i < n; i++) {
            en_rng r = en_rng_at(now->seed, EN_RNG_DROP_PATH, (uint64_t)now->step, (uint64_t)(now->first + i), (uint32_t)l);
            mask[l * n + i] = keep[l] >= 1 ? 1.f : en_rng_uniform(&r) < keep[l] ? 1.f / keep[l] : 0.f;
        }
    return EN_OK;
}

en_status cpu_dropout_mask(en_backend *be, const en_now *now, int64_t n, int64_t c, int64_t logical, float keep, float *mask)
{
    (void)be;
    for (int64_t i = 0; i < n; i++) {
        en_rng r = en_rng_at(now->seed, EN_RNG_DROPOUT, (uint64_t)now->step, (uint64_t)(now->first + i), 0);
        for (int64_t j = 0; j < c; j++) mask[i * c + j] = j >= logical ? 0.f : en_rng_uniform(&r) < keep ? 1.f / keep : 0.f;
    }
    return EN_OK;
}

en_status cpu_note(en_backend *be, const en_now *now, double *tally)
{
    (void)be;
    tally[EN_TALLY_FAILED] += now->failed;
    return EN_OK;
}
