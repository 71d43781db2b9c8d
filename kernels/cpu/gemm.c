#include "gemm.h"

#if defined(__AVX512F__)
enum { MR = 14, WK = 8, WN = 3 };       /* 28 accumulators + 2 + 1 of 32 registers; 24 + 3 + 1                     */
#elif defined(__aarch64__)
enum { MR = 8, WK = 8, WN = 2 };
#else
enum { MR = 6, WK = 4, WN = 3 };        /* 12 + 2 + 1 of 16 registers; 12 + 3 + 1                                  */
#endif
enum { NR = 2 * VW };

/* ---- packing: panels of NR columns (the last may have VW), each k rows of its width ------------------------------- */

void ISA(pack)(en_backend *be, int64_t k, int64_t n, const float *w, bool transposed, float *out)
{
    ISA(pack_rows)(be, k, n, w, transposed, 0, k, out);
}

void ISA(pack_rows)(en_backend *be, int64_t k, int64_t n, const float *w, bool transposed, int64_t k0, int64_t total, float *out)
{
    const int64_t panels = (n + NR - 1) / NR;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (be->threads > 1 && k * n > 4096)
    for (int64_t p = 0; p < panels; p++) {
        const int64_t width = min64(NR, n - p * NR);
        float *o = out + p * NR * total + k0 * width;
        if (!transposed) {
            for (int64_t i = 0; i < k; i++)
                for (int64_t j = 0; j < width; j += VW) st(o + i * width + j, ld(w + i * n + p * NR + j));
        } else {                        /* 16 x 16 squares: both sides stay in L1 */
            for (int64_t i0 = 0; i0 < k; i0 += 16)
                for (int64_t j = 0; j < width; j++) {
                    const float *src = w + (p * NR + j) * k + i0;
                    for (int64_t i = 0; i < min64(16, k - i0); i++) o[(i0 + i) * width + j] = src[i];
                }
        }
    }
}

/* ---- C = A*B ----------------------------------------------------------------------------------------------------- */

enum { PLAIN, STATS, ADD, STATS_STREAM };

INLINE void tile(int rows, int nv, int mode, const gemm_walk *walk, const float *a, int64_t lda, const float *b, float *c, int64_t ldc,
                 const float *extra, int64_t ldextra, float *sums, int64_t square)
{
    vf acc[MR][2];
    UNROLL for (int i = 0; i < rows; i++)
        for (int j = 0; j < nv; j++) acc[i][j] = (vf){ 0 };
    const int64_t k = walk->k;
    for (int64_t s = walk->segments; s > 0; s--, a += walk->a_segment, b += k * VW * nv)
        for (int64_t p = 0; p < k; p++) {
            const vf b0 = ld(b + p * VW * nv), b1 = nv > 1 ? ld(b + p * VW * nv + VW) : b0;
            UNROLL for (int i = 0; i < rows; i++) {
                const float x = a[i * lda + p];
                acc[i][0] += x * b0;
                if (nv > 1) acc[i][1] += x * b1;
            }
        }
    for (int j = 0; j < nv; j++) {
        if (mode == STATS || mode == STATS_STREAM) {
            const vf s = ld(extra + j * VW);
            vf s0 = { 0 }, s1 = { 0 };
            UNROLL for (int i = 0; i < rows; i++) {
                const vf v = acc[i][j] - s;
                s0 += v;
                s1 += v * v;
                if (mode == STATS_STREAM) st_stream(c + i * ldc + j * VW, acc[i][j]);
                else st(c + i * ldc + j * VW, acc[i][j]);
            }
            st(sums + j * VW, ld(sums + j * VW) + s0);
            st(sums + square + j * VW, ld(sums + square + j * VW) + s1);
        } else {
            UNROLL for (int i = 0; i < rows; i++)
                st(c + i * ldc + j * VW, mode == ADD ? acc[i][j] + ld(extra + i * ldextra + j * VW) : acc[i][j]);
        }
    }
}

typedef void tile_fn(const gemm_walk *, const float *, int64_t, const float *, float *, int64_t, const float *, int64_t, float *, int64_t);
#define TILE(rows, nv, mode)                                                                                            \
    static __attribute__((noinline)) void tile_##rows##_##nv##_##mode(const gemm_walk *walk, const float *a, int64_t lda, const float *b, \
        float *c, int64_t ldc, const float *extra, int64_t ldextra, float *sums, int64_t square)                        \
    { tile(rows, nv, mode, walk, a, lda, b, c, ldc, extra, ldextra, sums, square); }
#define TILES(rows) TILE(rows, 1, 0) TILE(rows, 1, 1) TILE(rows, 1, 2) TILE(rows, 2, 0) TILE(rows, 2, 1) TILE(rows, 2, 2) \
    TILE(rows, 1, 3) TILE(rows, 2, 3)
#define ROW(rows) { { tile_##rows##_1_0, tile_##rows##_1_1, tile_##rows##_1_2, tile_##rows##_1_3 }, { tile_##rows##_2_0, tile_##rows##_2_1, tile_##rows##_2_2, tile_##rows##_2_3 } }
TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6)
#if defined(__AVX512F__)
TILES(7) TILES(8) TILES(9) TILES(10) TILES(11) TILES(12) TILES(13) TILES(14)
static tile_fn *const tiles[MR + 1][2][4] = { { { 0 } }, ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6), ROW(7), ROW(8), ROW(9),
                                              ROW(10), ROW(11), ROW(12), ROW(13), ROW(14) };
#elif defined(__aarch64__)
TILES(7) TILES(8)
static tile_fn *const tiles[MR + 1][2][4] = { { { 0 } }, ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6), ROW(7), ROW(8) };
#else
static tile_fn *const tiles[MR + 1][2][4] = { { { 0 } }, ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6) };
#endif

void ISA(gemm_block)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *packed, float *c, int64_t ldc,
                     const gemm_epilogue *e)
{
    ISA(gemm_walk_block)(&(gemm_walk){ .k = k, .segments = 1, .outer = 1 }, m, n, a, lda, packed, c, ldc, e);
}

void ISA(gemm_walk_block)(const gemm_walk *walk, int64_t m, int64_t n, const float *a, int64_t lda, const float *packed, float *c, int64_t ldc,
                          const gemm_epilogue *e)
{
    const int mode = e && e->stats ? (e->stream ? STATS_STREAM : STATS) : e && e->add ? ADD : PLAIN;
    const bool sums_wanted = e && e->stats;
    for (int64_t p = 0; p < n; p += NR, packed += walk->segments * walk->k * NR) {
        const int nv = n - p > VW ? 2 : 1;
        float sums[2 * NR] = { 0 };     /* float over these rows, then double */
        for (int64_t q = 0; q < walk->outer; q++) {
            const float *aq = a + q * walk->a_outer, *add = mode == ADD ? e->add + q * walk->c_outer + p : NULL;
            float *cq = c + q * walk->c_outer + p;
            for (int64_t i = 0; i < m;) {
                const int64_t left = m - i;                        /* two middling tiles rather than a full and a sliver */
                const int64_t rows = left >= 2 * MR || left == MR ? MR : left > MR ? (left + 1) / 2 : left;
                const float *extra = sums_wanted ? e->shift + p : mode == ADD ? add + i * e->ldadd : NULL;
                tiles[rows][nv - 1][mode](walk, aq + i * lda, lda, packed, cq + i * ldc, ldc, extra, mode == ADD ? e->ldadd : 0, sums, NR);
                i += rows;
            }
        }
        if (sums_wanted)
            for (int j = 0; j < nv * VW; j += VW) {
                add_f64(e->stats + p + j, ld(sums + j));
                add_f64(e->stats + n + p + j, ld(sums + NR + j));
            }
    }
    if (mode == STATS_STREAM) stream_fence();
}

/* ---- D += X^T Y -------------------------------------------------------------------------------------------------- */

typedef struct { int64_t outer, x_outer, y_outer, m, ldx, ldy, ldd; } wgrad_walk;

INLINE void wtile(int nv, const wgrad_walk *w, const float *x, const float *y, float *d)
{
    const int64_t ldx = w->ldx, ldy = w->ldy, ldd = w->ldd;
    vf acc[WK][WN];
    UNROLL for (int i = 0; i < WK; i++)
        for (int j = 0; j < nv; j++) acc[i][j] = (vf){ 0 };
    for (int64_t q = 0; q < w->outer; q++) {
        const float *xr = x + q * w->x_outer, *yr = y + q * w->y_outer;
        for (int64_t r = w->m; r > 0; r--, xr += ldx, yr += ldy) {
            vf b[WN];
            UNROLL for (int j = 0; j < nv; j++) b[j] = ld(yr + j * VW);
            UNROLL for (int i = 0; i < WK; i++) {
                const float s = xr[i];
                UNROLL for (int j = 0; j < nv; j++) acc[i][j] += s * b[j];
            }
        }
    }
    UNROLL for (int i = 0; i < WK; i++)
        for (int j = 0; j < nv; j++) st(d + i * ldd + j * VW, ld(d + i * ldd + j * VW) + acc[i][j]);
}
#define WTILE(nv)                                                                                                       \
    static __attribute__((noinline)) void wtile_##nv(const wgrad_walk *w, const float *x, const float *y, float *d) \
    { wtile(nv, w, x, y, d); }
WTILE(1) WTILE(2)
#if !defined(__aarch64__)
WTILE(3)
#endif

void ISA(gemm_wgrad)(int64_t m, int64_t k, int64_t n, const float *x, int64_t ldx, const float *y, int64_t ldy, float *d)
{
    ISA(gemm_walk_wgrad)(1, 0, 0, m, k, n, x, ldx, y, ldy, d);
}

void ISA(gemm_walk_wgrad)(int64_t outer, int64_t x_outer, int64_t y_outer, int64_t m, int64_t k, int64_t n, const float *x, int64_t ldx,
                          const float *y, int64_t ldy, float *d)
{
    const wgrad_walk w = { outer, x_outer, y_outer, m, ldx, ldy, n };
    for (int64_t j = 0; j < n;) {
        const int64_t vectors = (n - j) / VW;
        const int nv = vectors >= WN && vectors != WN + 1 ? WN : vectors >= 2 ? 2 : 1;     /* 4 = 2 + 2, not 3 + 1 */
        for (int64_t i = 0; i < k; i += WK) {
#if !defined(__aarch64__)
            if (nv == 3) { wtile_3(&w, x + i, y + j, d + i * n + j); continue; }
#endif
            (nv == 2 ? wtile_2 : wtile_1)(&w, x + i, y + j, d + i * n + j);
        }
        j += nv * VW;
    }
}

void ISA(collect_wgrad)(en_backend *be, int64_t elems, float *dst)
{
    const cpu_engine *e = engine(be);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (be->threads > 1 && elems > 16384)
    for (int64_t i = 0; i < elems; i += VW) {          /* elems is a multiple of 16 */
        vf s = ld(dst + i);
        for (int l = 0; l < be->lanes; l++) s += ld(e->lane[l].wgrad + i);
        st(dst + i, s);
    }
}
