/* stem.c - the dense k x k convolution of the image: output rows are unfolded (im2col) a block at a time into L2 and
 * multiplied as any other rows.  An unfolded row is k*k*3 floats, zero-filled to a multiple of 8 for the weight gradient. */
#include "gemm.h"
#include "passes.h"

static int64_t unfolded(const en_conv_geom *g) { return ((int64_t)g->kernel * g->kernel * 3 + 7) / 8 * 8; }

/* out (rows, ld): the windows of output positions [row, row + rows), flat over (n, oh, ow) */
static void unfold(const en_conv_geom *g, const en_pixels *image, int64_t row, int64_t rows, int64_t ld, float *out)
{
    const int k = g->kernel;
    float scale[3], shift[3];
    for (int d = 0; d < 3 && image->u8; d++) scale[d] = 1.f / image->std[d], shift[d] = -image->mean[d] / image->std[d];
    for (int64_t r = row; r < row + rows; r++, out += ld) {
        const int64_t n = r / (g->oh * g->ow), i0 = r / g->ow % g->oh * g->stride - g->pad, j0 = r % g->ow * g->stride - g->pad;
        memset(out, 0, (size_t)ld * sizeof *out);
        const int64_t from = max64(0, -j0), to = min64(k, g->w - j0);      /* columns of the window inside the image */
        for (int a = 0; a < k; a++) {
            const int64_t i = i0 + a;
            if (i < 0 || i >= g->h || from >= to) continue;
            const int64_t at = ((n * g->h + i) * g->w + j0 + from) * 3, count = (to - from) * 3;
            float *o = out + (a * k + from) * 3;
            if (!image->u8) memcpy(o, (const float *)image->data + at, (size_t)count * sizeof *o);
            else for (int64_t q = 0; q < count; q++) o[q] = (float)((const uint8_t *)image->data)[at + q] * scale[q % 3] + shift[q % 3];
        }
    }
}

en_status cpu_stem_forward(en_backend *be, const en_conv_geom *g, const en_pixels *image, const float *wt, void *y, en_bn *bn)
{
    EN_REQUIRE(g->c == 3, EN_EINVAL, "the stem reads 3 channels, not %lld", (long long)g->c);
    CPU_ALIGNED(g->oc);
    const int64_t k = (int64_t)g->kernel * g->kernel * 3, ld_u = unfolded(g), rows = g->n * g->oh * g->ow;
    CPU_FITS(be, packed, k * g->oc);
    CPU_FITS(be, rows, BLOCK_ROWS * ld_u);
    CPU_FITS(be, stats, 2 * g->oc);
    cpu_engine *e = engine(be);
    ISA(pack)(be, k, g->oc, wt, false, e->packed);
    FOR_EACH_LANE(be, l) {
        struct cpu_lane *me = &e->lane[l];
        memset(me->stats, 0, (size_t)(2 * g->oc) * sizeof(double));
        const gemm_epilogue sums = { .shift = bn ? bn->running_mean : NULL, .stats = bn ? me->stats : NULL,
                                     .stream = outlives_caches(y, rows * g->oc) };
        const cpu_range r = lane_rows(rows, l, be->lanes);
        for (int64_t row = r.first, m; row < r.last; row += m) {
            m = min64(BLOCK_ROWS, r.last - row);
            unfold(g, image, row, m, ld_u, me->rows);
            ISA(gemm_block)(m, g->oc, k, me->rows, ld_u, e->packed, (float *)y + row * g->oc, g->oc, &sums);
        }
    }
    collect_stats(be, bn);
    if (bn) bn->local[2 * g->oc] = (double)rows;
    return EN_OK;
}

en_status cpu_stem_backward(en_backend *be, const en_conv_geom *g, const en_pixels *image, const en_grad *dy, float *dwt)
{
    EN_REQUIRE(g->c == 3, EN_EINVAL, "the stem reads 3 channels, not %lld", (long long)g->c);
    CPU_ALIGNED(g->oc);
    const int64_t k = (int64_t)g->kernel * g->kernel * 3, ld_u = unfolded(g), rows = g->n * g->oh * g->ow;
    CPU_FITS(be, wgrad, ld_u * g->oc);
    CPU_FITS(be, rows, BLOCK_ROWS * ld_u);
    CPU_FITS(be, block, BLOCK_ROWS * g->oc);
    if (rows == 0) return EN_OK;
    cpu_engine *e = engine(be);
    FOR_EACH_LANE(be, l) {
        struct cpu_lane *me = &e->lane[l];
        memset(me->wgrad, 0, (size_t)(ld_u * g->oc) * sizeof(float));
        const cpu_range r = lane_rows(rows, l, be->lanes);
        for (int64_t row = r.first, m; row < r.last; row += m) {
            m = min64(BLOCK_ROWS, r.last - row);
            unfold(g, image, row, m, ld_u, me->rows);
            form_gradient(dy, row, m, g->oc, me->block_a);
            ISA(gemm_wgrad)(m, ld_u, g->oc, me->rows, ld_u, me->block_a, g->oc, me->wgrad);
        }
    }
    ISA(collect_wgrad)(be, k * g->oc, dwt);     /* the zero-filled rows beyond k stay behind */
    return EN_OK;
}
