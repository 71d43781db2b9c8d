/* activation.c - back through an activation that ends a block: what its batch norm and its convolution read is stored. */
#include "passes.h"

#include <string.h>

en_status cpu_activation_backward(en_backend *be, int64_t n, int64_t hw, int64_t c, const void *g, const float *drop, const en_operand *y, void *dz,
                                  en_bn *bn)
{
    CPU_ALIGNED(c);
    CPU_FITS(be, stats, 2 * c);
    EN_REQUIRE(y->bn, EN_EINVAL, "an activation without batch norm is not gone back through");
    FOR_EACH_LANE(be, l) {
        double *stats = engine(be)->lane[l].stats;
        memset(stats, 0, (size_t)(2 * c) * sizeof *stats);
        const cpu_range r = lane_range(n * hw, l, be->lanes);
        for (int64_t i0 = r.first; i0 < r.last; i0 += 64) {          /* 64 rows in float, then double */
            const int64_t i1 = min64(i0 + 64, r.last);
            for (int64_t j = 0; j < c; j += VW) {
                const vf mean = ld(bn->mean + j), scale = ld(y->bn->scale + j), shift = ld(y->bn->shift + j);
                vf s0 = { 0 }, s1 = { 0 }, u;
                for (int64_t i = i0; i < i1; i++) {
                    const vf v = ld((const float *)y->y + i * c + j);
                    vf d = ld((const float *)g + i * c + j);
                    if (drop) d *= drop[i / hw];
                    d *= act_slope(v * scale + shift, &u, y->act);
                    st((float *)dz + i * c + j, d);
                    s0 += d;
                    s1 += d * (v - mean);
                }
                add_f64(stats + j, s0);
                add_f64(stats + c + j, s1);
            }
        }
    }
    collect_stats(be, bn);
    return EN_OK;
}
