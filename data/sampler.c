/* sampler.c - the order of the samples, as a function.
 *
 * An epoch is a permutation of 0..N-1.  Computing it instead of storing it gives random access (any rank, any worker, any
 * resumed run asks for position p and needs nobody else), O(1) memory, and a shuffle that is global rather than one of a
 * buffer.  The permutation is a Feistel network on b = ceil(log2 N) bits,
 *
 *     odd rounds   low  ^= F(round, high)        even rounds  high ^= F(round, low)
 *
 * each round of which is its own inverse whatever F is, with F = Philox keyed by the seed, counted by epoch, round and the
 * other half.  2^b may exceed N, so a value outside is permuted again until it falls inside ("cycle walking", Black and
 * Rogaway, CT-RSA 2002): a permutation of the larger set, restricted to its cycles' members in the smaller one, is a
 * permutation of that.  2^b < 2N, so under two walks are expected.
 *
 * Luby and Rackoff need four rounds for halves too large to enumerate; ours may be a few bits, where rounds are what mixes,
 * so there are eight: 8 * 20 ns * 2 a sample, some ten-thousandth of decoding it. */
#include "data.h"

#include <inttypes.h>

enum { ROUNDS = 8 };

static uint64_t permute(uint64_t seed, uint64_t epoch, int bits, uint64_t x)
{
    const int low_bits = bits / 2, high_bits = bits - low_bits;
    uint64_t low = x & ((1ull << low_bits) - 1), high = x >> low_bits;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        en_rng f = en_rng_at(seed, EN_RNG_ORDER, epoch, round & 1 ? high : low, round);
        const uint64_t word = en_rng_u32(&f);
        if (round & 1) low  ^= word & ((1ull << low_bits) - 1);
        else           high ^= word & ((1ull << high_bits) - 1);
    }
    return high << low_bits | low;
}

int64_t en_sampler_at(uint64_t seed, int64_t samples, int64_t position, int64_t *epoch)
{
    const int64_t e = position / samples;
    if (epoch) *epoch = e;
    uint64_t x = (uint64_t)(position % samples);
    if (samples == 1) return 0;
    const int bits = 64 - __builtin_clzll((uint64_t)samples - 1);      /* 2^(bits-1) < samples <= 2^bits */
    do x = permute(seed, (uint64_t)e, bits, x); while (x >= (uint64_t)samples);
    return (int64_t)x;
}

/* part i of n things in `parts` contiguous parts whose sizes differ by at most one */
static int64_t part_begin(int64_t n, int64_t i, int64_t parts) { return (int64_t)((__int128)n * i / parts); }

void en_shard_range(const en_shard *s, int64_t step, int64_t micro, int64_t *first, int64_t *count)
{
    const int64_t begin = part_begin(s->global_batch, micro, s->accum);
    const int64_t n = part_begin(s->global_batch, micro + 1, s->accum) - begin;
    const int64_t from = part_begin(n, s->rank, s->world_size);
    *first = step * s->global_batch + begin + from;
    *count = part_begin(n, s->rank + 1, s->world_size) - from;
}

int64_t en_shard_images(const en_shard *s, int64_t micro)
{
    return part_begin(s->global_batch, micro + 1, s->accum) - part_begin(s->global_batch, micro, s->accum);
}

int64_t en_shard_max(const en_shard *s)        /* some part is as large as the mean rounded up, none is larger */
{
    const int64_t micro = (s->global_batch - 1) / s->accum + 1;
    return (micro - 1) / s->world_size + 1;
}
