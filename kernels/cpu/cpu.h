/* cpu.h - what the files of the CPU backend share.
 *
 * Work is cut into `lanes` fixed contiguous parts; thread t carries the lanes t, t+threads, ...  A lane has scratch memory
 * of its own (blocks that stay in its core's L2) and its own partial sums; partial sums are added in lane order.  So the
 * bits of a pass depend on the number of lanes and not on how many threads there are. */
#ifndef EN_CPU_H
#define EN_CPU_H

#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

/* A block of rows stays in L2; 14 rows are a register tile with AVX-512.  Lanes share rows out in units of ROW_UNIT. */
enum { CHANNEL_ALIGN = 16, ROW_UNIT = 14, BLOCK_ROWS = 8 * ROW_UNIT, STREAM_MIB = 8 };

typedef struct {
    size_t packed, wgrad, block, rows, stats, image;   /* floats (stats: doubles) per buffer; see reserve in backend.c */
} cpu_sizes;

typedef struct {
    cpu_sizes size;
    float  *packed;                       /* weights of the pass at hand, in panels                              */
    float  *per_image;                    /* (n, c) twice: what squeeze-and-excitation leaves for its weights    */
    struct cpu_lane {
        float  *block_a, *block_b;        /* BLOCK_ROWS x channels                                               */
        float  *rows;                     /* depthwise: ring of rows; stem: unfolded rows                        */
        float  *wgrad;                    /* partial weight gradient                                             */
        double *stats;                    /* 4c partial sums, and 4c floats: row_sums                            */
    } *lane;
    void *memory;
    double *norms; size_t norms_size;     /* of lars_update, doubles: taken when it first sees so many segments     */
    double marked[EN_MARKS];              /* seconds */
} cpu_engine;

static inline cpu_engine *engine(en_backend *be) { return be->impl; }
static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* Lane l of L has [first, last) of `count` units. */
typedef struct { int64_t first, last; } cpu_range;
static inline cpu_range lane_range(int64_t count, int lane, int lanes)
{
    return (cpu_range){ count * lane / lanes, count * (lane + 1) / lanes };
}

/* The same for rows of a GEMM: whole register tiles, except at the end. */
static inline cpu_range lane_rows(int64_t rows, int lane, int lanes)
{
    const cpu_range u = lane_range((rows + ROW_UNIT - 1) / ROW_UNIT, lane, lanes);
    return (cpu_range){ min64(u.first * ROW_UNIT, rows), min64(u.last * ROW_UNIT, rows) };
}

/* for every lane, in parallel:  FOR_EACH_LANE(be, l) { ... struct cpu_lane *me = &engine(be)->lane[l]; ... } */
#define CPU_PRAGMA(x) _Pragma(#x)
#define FOR_EACH_LANE(be, l)                                                                                            \
    CPU_PRAGMA(omp parallel for num_threads((be)->threads) schedule(static, 1) if ((be)->threads > 1))                  \
    for (int l = 0; l < (be)->lanes; l++)

/* Whether a tensor is too large to be found in a cache by the pass that reads it. */
static inline bool outlives_caches(const void *p, int64_t elems)
{
    return (uintptr_t)p % 64 == 0 && (size_t)elems * sizeof(float) > (size_t)STREAM_MIB << 20;
}

/* bn->local = sums over lanes of their stats, from `at` on, in lane order; bn NULL: nothing */
static inline void collect_stats_at(en_backend *be, en_bn *bn, int64_t at)
{
    if (!bn) return;
    for (int64_t i = 0; i < 2 * bn->c; i++) {
        double s = 0;
        for (int l = 0; l < be->lanes; l++) s += engine(be)->lane[l].stats[at + i];
        bn->local[i] = s;
    }
}
static inline void collect_stats(en_backend *be, en_bn *bn) { collect_stats_at(be, bn, 0); }

/* 4c floats behind 4c stats, for a sweep over rows as they lie: some rows are summed here, then in double.  A sweep down the rows, a vector of
 * channels at a time, keeps its sums in registers and is slower by a factor of three: nothing in it can be fetched ahead. */
static inline float *row_sums(double *stats, int64_t c) { return (float *)(void *)(stats + 4 * c); }

/* Scratch that `reserve` did not foresee is our own mistake. */
#define CPU_FITS(be, buffer, need)                                                                                      \
    EN_REQUIRE((size_t)(need) <= engine(be)->size.buffer, EN_EINVAL, "scratch '" #buffer "' holds %zu, this shape needs %zu", \
               engine(be)->size.buffer, (size_t)(need))
#define CPU_ALIGNED(c) EN_REQUIRE((c) > 0 && (c) % CHANNEL_ALIGN == 0, EN_EINVAL, "%lld channels: not a multiple of %d", (long long)(c), CHANNEL_ALIGN)

#endif
