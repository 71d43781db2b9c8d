/* bench/comm_values.c - numbers to add up, whose sum every rank knows without asking. */
#include "trainer/bench/comm.h"

enum { WEIGHTS = 1024, MOST_A = 20, MOST_B = 8, SUM_BITS = 23 };       /* each of the two summands stays below 2^23 */

static double weight_of(int rank) { return rank % WEIGHTS + 1; }

static int bits_below(double limit, int most)                          /* the largest k <= most with 2^k <= limit */
{
    int k = 0;
    while (k < most && (double)(2u << k) <= limit) k++;
    return k;
}

comm_values comm_values_of(int ranks)
{
    comm_values v = { .ranks = ranks };
    for (int r = 0; r < ranks; r++) v.weights += weight_of(r);
    v.a_bits = bits_below((double)(1 << SUM_BITS) / ranks, MOST_A);
    v.b_bits = bits_below((double)(1 << SUM_BITS) / v.weights, MOST_B);
    return v;
}

/* 0 <= a < 2^a_bits, 1 <= b <= 2^b_bits: the upper and the lower bits of a hash of the place */
typedef struct { float a, b; } drawn;

static inline drawn draw(const comm_values *v, uint32_t salt, size_t at)
{
    uint32_t x = (uint32_t)at * 0x9e3779b1u + salt * 0x85ebca77u;
    x ^= x >> 15;
    x *= 0x2c1b3c6du;
    x ^= x >> 12;
    x *= 0x297a2d39u;
    x ^= x >> 15;
    return (drawn){ (float)(int)(x >> (32 - v->a_bits)), (float)(int)((x & ((1u << v->b_bits) - 1)) + 1) };
}

#define FILL(name, type)                                                                                                    \
    void name(const comm_values *v, int rank, uint32_t salt, size_t at, size_t n, type *out)                                \
    {                                                                                                                       \
        const type weight = (type)weight_of(rank);                                                                          \
        for (size_t i = 0; i < n; i++) {                                                                                    \
            const drawn d = draw(v, salt, at + i);                                                                          \
            out[i] = (type)d.a + weight * (type)d.b;                                                                        \
        }                                                                                                                   \
    }
#define WRONG(name, type)                                                                                                   \
    int64_t name(const comm_values *v, uint32_t salt, size_t at, size_t n, const type *sum)                                 \
    {                                                                                                                       \
        const type ranks = (type)v->ranks, weights = (type)v->weights;                                                      \
        int64_t wrong = 0;                                                                                                  \
        for (size_t i = 0; i < n; i++) {                                                                                    \
            const drawn d = draw(v, salt, at + i);                                                                          \
            wrong += !(sum[i] == ranks * (type)d.a + weights * (type)d.b);              /* a NaN is wrong too */            \
        }                                                                                                                   \
        return wrong;                                                                                                       \
    }
FILL(comm_fill_f32, float)
FILL(comm_fill_f64, double)
WRONG(comm_wrong_f32, float)
WRONG(comm_wrong_f64, double)
