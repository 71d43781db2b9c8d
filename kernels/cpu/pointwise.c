/* pointwise.c - 1x1 convolutions: plain GEMMs on the rows of NHWC.  Backward forms a block of dy in L2 and uses it twice,
 * for the data gradient and for the weight gradient, so that dz and y are read from memory once. */
#include "gemm.h"
#include "passes.h"

en_status cpu_pointwise_forward(en_backend *be, int64_t rows, int64_t ci, int64_t co, const void *x, const float *wt, void *y, en_bn *bn)
{
    CPU_ALIGNED(ci);
    CPU_ALIGNED(co);
    CPU_FITS(be, packed, ci * co);
    CPU_FITS(be, stats, 2 * co);
    cpu_engine *e = engine(be);
    if (rows > 0) ISA(pack)(be, ci, co, wt, false, e->packed);
    FOR_EACH_LANE(be, l) {
        double *stats = e->lane[l].stats;
        memset(stats, 0, (size_t)(2 * co) * sizeof *stats);
        const gemm_epilogue sums = { .shift = bn ? bn->running_mean : NULL, .stats = bn ? stats : NULL,
                                     .stream = outlives_caches(y, rows * co) };
        const cpu_range r = lane_rows(rows, l, be->lanes);
        for (int64_t row = r.first, m; row < r.last; row += m) {
            m = min64(BLOCK_ROWS, r.last - row);
            ISA(gemm_block)(m, co, ci, (const float *)x + row * ci, ci, e->packed, (float *)y + row * co, co, &sums);
        }
    }
    collect_stats(be, bn);
    if (bn) bn->local[2 * co] = (double)rows;
    return EN_OK;
}

en_status cpu_pointwise_backward(en_backend *be, int64_t rows, int64_t ci, int64_t co, const void *x, const float *wt, const en_grad *dy,
                             const void *add, void *dx, float *dwt)
{
    CPU_ALIGNED(ci);
    CPU_ALIGNED(co);
    CPU_FITS(be, packed, ci * co);
    CPU_FITS(be, wgrad, ci * co);
    CPU_FITS(be, block, BLOCK_ROWS * co);
    if (rows == 0) return EN_OK;
    cpu_engine *e = engine(be);
    ISA(pack)(be, co, ci, wt, true, e->packed);
    FOR_EACH_LANE(be, l) {
        struct cpu_lane *me = &e->lane[l];
        memset(me->wgrad, 0, (size_t)(ci * co) * sizeof(float));
        const cpu_range r = lane_rows(rows, l, be->lanes);
        for (int64_t row = r.first, m; row < r.last; row += m) {
            m = min64(BLOCK_ROWS, r.last - row);
            const gemm_epilogue plus = { .add = add ? (const float *)add + row * ci : NULL, .ldadd = ci };
            form_gradient(dy, row, m, co, me->block_a);
            ISA(gemm_block)(m, ci, co, me->block_a, co, e->packed, (float *)dx + row * ci, ci, &plus);
            ISA(gemm_wgrad)(m, ci, co, (const float *)x + row * ci, ci, me->block_a, co, me->wgrad);
        }
    }
    ISA(collect_wgrad)(be, ci * co, dwt);
    return EN_OK;
}
