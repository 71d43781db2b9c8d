/* rng.h - randomness without state: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).
 *
 * A draw is a function of (seed, purpose, when, sample, layer, index): the same on every backend, thread count, rank
 * count and after every resume.  A checkpoint therefore holds no generator state, only the step. */
#ifndef EN_RNG_H
#define EN_RNG_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {          /* what the draw is for; part of the counter, so no two purposes share a stream */
    EN_RNG_INIT = 1,    /* initialisers:     when 0,     sample = element / 4, layer = tensor index    */
    EN_RNG_ORDER,       /* epoch permutation: when = epoch                                             */
    EN_RNG_CROP,        /* crop and flip:    when = epoch, sample = sample id                          */
    EN_RNG_DROPOUT,     /* when = step,      sample = position within the global batch                 */
    EN_RNG_DROP_PATH,   /* when = step,      sample = position within the global batch, layer = block  */
    EN_RNG_REPLACE,     /* stand-in for an undecodable sample: when = epoch, sample = sample id        */
    EN_RNG_SYNTH,       /* made-up datasets and benchmark inputs                                       */
    EN_RNG_TEST,
    EN_RNG_AUGMENT,     /* policy and erasing: when = epoch, sample = sample id                        */
    EN_RNG_MIX          /* mixup and cutmix:   when = epoch, sample = sample id                        */
} en_rng_purpose;

typedef struct { uint32_t key[2], counter[4], word[4]; int left; } en_rng;

/* One Philox block: out = philox(counter, key). */
void en_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* counter = { block, sample (low 32), sample (high 8) : purpose (8) : layer (16), when }; key = seed.
 * Needs sample < 2^40, layer < 2^16, when < 2^32. */
en_rng   en_rng_at(uint64_t seed, en_rng_purpose purpose, uint64_t when, uint64_t sample, uint32_t layer);
uint32_t en_rng_u32(en_rng *r);
float    en_rng_uniform(en_rng *r);               /* [0, 1), 24 bits                                        */
uint32_t en_rng_below(en_rng *r, uint32_t n);     /* uniform on 0..n-1, unbiased (Lemire 2019); n > 0       */
float    en_rng_normal(en_rng *r);                /* N(0, 1), Box-Muller; uses two words                    */

#ifdef __cplusplus
}
#endif

#endif
