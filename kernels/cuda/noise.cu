/* noise.cu - dropout, stochastic depth, and what a rank has to say.
 *
 * A mask is a function of counters alone (rng.h): Philox4x32-10 is a few integer multiplications without state, so each
 * thread computes the very block of four words that the host would, and the bits are those of every other backend.  Step
 * and seed are read from device memory: a recorded step is replayed with other ones. */
#include "passes.h"

enum { THREADS = 256 };

struct philox_block { unsigned word[4]; };

/* Block `block` of the stream that en_rng_at(seed, purpose, when, sample, layer) begins (rng.c: counter and rounds). */
EN_DEVICE philox_block philox(uint64_t seed, unsigned purpose, int64_t when, int64_t sample, unsigned layer, unsigned block)
{
    unsigned c0 = block, c1 = (unsigned)sample, c2 = (unsigned)(sample >> 32) << 24 | purpose << 16 | (layer & 0xffffu), c3 = (unsigned)when;
    unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (unsigned)(p1 >> 32) ^ c1 ^ k0;
        c2 = (unsigned)(p0 >> 32) ^ c3 ^ k1;
        c1 = (unsigned)p1;
        c3 = (unsigned)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return { { c0, c1, c2, c3 } };
}
EN_DEVICE float uniform(unsigned word) { return (float)(word >> 8) * 0x1p-24f; }    /* en_rng_uniform: 24 bits, exact */

/* grid ceil(layers*n / THREADS): one thread a value, the first word of its stream.  Threads beyond the last leave. */
static __global__ void __launch_bounds__(THREADS)
drop_path_kernel(const en_now *now, int64_t layers, int64_t n, const float *__restrict__ keep, float *__restrict__ mask)
{
    const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= layers * n) return;
    const int64_t layer = at / n, image = at % n;
    const float k = keep[layer];
    const philox_block b = philox(now->seed, EN_RNG_DROP_PATH, now->step, now->first + image, (unsigned)layer, 0);
    mask[at] = k >= 1.f ? 1.f : uniform(b.word[0]) < k ? 1.f / k : 0.f;
}

/* grid ceil(n*c/4 / THREADS): one thread a Philox block, four channels of an image, one store of 16 bytes; c % 8 == 0.
 * Bytes: the mask once. */
static __global__ void __launch_bounds__(THREADS)
dropout_kernel(const en_now *now, int64_t n, int64_t c, int64_t logical, float keep, float *__restrict__ mask)
{
    const int64_t quad = (int64_t)blockIdx.x * THREADS + threadIdx.x, quads = c / 4;
    if (quad >= n * quads) return;
    const int64_t image = quad / quads, block = quad % quads;
    const philox_block b = philox(now->seed, EN_RNG_DROPOUT, now->step, now->first + image, 0, (unsigned)block);
    const float scale = 1.f / keep;
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = block * 4 + i < logical && uniform(b.word[i]) < keep ? scale : 0.f;
    ((float4 *)mask)[quad] = make_float4(v[0], v[1], v[2], v[3]);
}

static __global__ void note_kernel(const en_now *now, double *tally)
{
    tally[EN_TALLY_FAILED] += now->failed;
}

en_status cuda_drop_path_masks(en_backend *be, const en_now *now, int64_t layers, int64_t n, const float *keep, float *mask)
{
    if (layers == 0 || n == 0) return EN_OK;
    drop_path_kernel<<<(unsigned)ceil_div(layers * n, THREADS), THREADS, 0, engine(be)->compute>>>(now, layers, n, keep, mask);
    CU_LAUNCHED("masks of %lld layers for %lld images", (long long)layers, (long long)n);
    return EN_OK;
}

en_status cuda_dropout_mask(en_backend *be, const en_now *now, int64_t n, int64_t c, int64_t logical, float keep, float *mask)
{
    CU_CHANNELS(c);
    if (n == 0) return EN_OK;
    dropout_kernel<<<(unsigned)ceil_div(n * c / 4, THREADS), THREADS, 0, engine(be)->compute>>>(now, n, c, logical, keep, mask);
    CU_LAUNCHED("mask of %lld channels for %lld images", (long long)c, (long long)n);
    return EN_OK;
}

en_status cuda_note(en_backend *be, const en_now *now, double *tally)
{
    note_kernel<<<1, 1, 0, engine(be)->compute>>>(now, tally);
    CU_LAUNCHED("note");
    return EN_OK;
}
