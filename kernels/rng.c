#include "rng.h"

#include <math.h>

/* Philox4x32-10: ten rounds of two 32x32 -> 64 multiplications; constants from the SC11 paper, table 2. */
void en_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0; out[1] = c1; out[2] = c2; out[3] = c3;
}

en_rng en_rng_at(uint64_t seed, en_rng_purpose purpose, uint64_t when, uint64_t sample, uint32_t layer)
{
    return (en_rng){
        .key = { (uint32_t)seed, (uint32_t)(seed >> 32) },
        .counter = { 0, (uint32_t)sample, (uint32_t)(sample >> 32) << 24 | (uint32_t)purpose << 16 | (layer & 0xffffu), (uint32_t)when },
        .left = 0,
    };
}

uint32_t en_rng_u32(en_rng *r)
{
    if (r->left == 0) {
        en_philox(r->counter, r->key, r->word);
        r->counter[0]++;
        r->left = 4;
    }
    return r->word[4 - r->left--];
}

float en_rng_uniform(en_rng *r) { return (float)(en_rng_u32(r) >> 8) * 0x1p-24f; }

uint32_t en_rng_below(en_rng *r, uint32_t n)
{
    uint64_t m = (uint64_t)en_rng_u32(r) * n;
    if ((uint32_t)m < n)
        for (const uint32_t threshold = -n % n; (uint32_t)m < threshold;) m = (uint64_t)en_rng_u32(r) * n;
    return (uint32_t)(m >> 32);
}

float en_rng_normal(en_rng *r)
{
    const double u = ((double)en_rng_u32(r) + 0.5) * 0x1p-32, v = (double)en_rng_u32(r) * 0x1p-32;
    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}
