/* test_kernels_residual.c - the end of a block and its way back, the activation itself, and memory. */
#include "fixture.h"

#include <float.h>
#include <stdlib.h>

/* drop, a skip, the skip's batch norm and activation (a bit each); y always comes from a convolution with batch norm, and
 * what has no batch norm is a block's output, which has no activation either */
enum { DROPS = 1, SKIP = 2, SKIP_BN = 4, SKIP_ACT = 8, EVERYTHING = 16 };

static void forward_case(bool exact, int64_t n, int64_t hw, int64_t c, int with)
{
    if (exact || !(with & SKIP_BN)) with &= ~SKIP_ACT;
    if (!problem(exact, "residual forward n%dhw%dc%d%s%s%s%s", (int)n, (int)hw, (int)c, with & DROPS ? " drop" : "",
                 with & SKIP ? " skip" : "", with & SKIP_BN ? " skip bn" : "", with & SKIP_ACT ? " skip act" : "")) return;
    if (!affordable(4 * n * hw * phys(c))) return;
    if (with & DROPS && n == 1 && !(with & SKIP)) expect_zeros();   /* the only image is dropped */
    const int64_t cp = phys(c), rows = n * hw, size = rows * cp;
    const host_operand y = operand_make(rows, cp, c, true, EN_ACT_NONE);
    const host_operand x = operand_make(rows, cp, c, with & SKIP_BN, !(with & SKIP_ACT) ? EN_ACT_NONE : exact || c % 3 ? EN_ACT_RELU : EN_ACT_SILU);
    const float *drop = drops(n, with & DROPS);
    bounded o = dropped(operand_raw(&y), drop, n, hw, cp);
    if (with & SKIP) o = plus(o, operand_value(&x));
    o = stored(o);
    for (variant *v = first(4 * size); v; v = next(v)) {
        en_bn y_bn, x_bn;
        const en_operand y_up = operand_up(v, &y, &y_bn), x_up = operand_up(v, &x, &x_bn);
        void *o_dev = out_a(v, size);
        RUN(v, v->be->ops->residual_forward(v->be, n, hw, cp, &y_up, UP_F(v, drop, n), with & SKIP ? &x_up : NULL, o_dev));
        check(v, "o", down_a(v, o_dev, size), o, cp, c);
    }
}

static void forward_is_within_the_rounding_bound(void **state)
{
    (void)state;
    for (int k = 0; k < n_mbconv_rows; k++) forward_case(k % 2, 3, 49, mbconv_rows[k].co, (k % 3 ? DROPS : 0) | (k % 4 ? SKIP : 0));
    static const int hw[] = { 1, 3, 13, 113, 225 };
    for (int with = 0; with < EVERYTHING; with++)
        for (int k = 0; k < 5; k++) {
            forward_case(false, 4, hw[k], (int[]){ 8, 16, 24, 100 }[(k + with) % 4], with);
            forward_case(true, k % 2 ? 1 : 5, hw[k], (int[]){ 16, 40, 1 }[(k + with) % 3], with);
        }
    verdict();
}

static void backward_case(int64_t n, int64_t hw, int64_t c, bool with_drop, double mean)
{
    for (int exact = 0; exact < 2; exact++) {
        if (!problem(exact, "residual backward n%dhw%dc%d%s mean%g", (int)n, (int)hw, (int)c, with_drop ? " drop" : "", mean)) continue;
        if (!affordable(4 * n * hw * phys(c))) continue;
        if (with_drop && n == 1) expect_zeros();
        const int64_t cp = phys(c), rows = n * hw, size = rows * cp;
        const host_operand y = operand_make(rows, cp, c, true, EN_ACT_NONE);
        float *g = random_rows(rows, cp, c);
        for (int64_t i = 0; i < size; i++)
            if (i % cp < c) y.y[i] += (float)mean;
        storable(y.y, size);
        for (int64_t i = 0; i < c; i++) y.bn->mean[i] += (float)mean;
        const float *drop = drops(n, with_drop);
        const bounded dz = dropped(exactly(g, size), drop, n, hw, cp);
        for (variant *v = first(4 * size); v; v = next(v)) {
            reserve(v, &(en_conv_geom){ .n = n, .h = hw, .w = 1, .c = cp, .oh = hw, .ow = 1, .oc = cp });
            en_bn bn;
            const en_operand y_up = operand_up(v, &y, &bn);
            RUN(v, v->be->ops->residual_backward(v->be, n, hw, cp, up_a(v, g, size), UP_F(v, drop, n), y_up.y, &bn));
            check_backward_sums(v, &bn, y.bn, dz, y.y, rows);
        }
    }
}

static void backward_leaves_the_sums_of_the_batch_norm(void **state)
{
    (void)state;
    for (int k = 0; k < n_mbconv_rows; k++) backward_case(3, 49, mbconv_rows[k].co, k % 2, 0);
    static const int hw[] = { 1, 2, 13, 113, 225, 1000 };
    for (int k = 0; k < 6; k++)
        for (int drop = 0; drop < 2; drop++)
            for (int64_t n = 1; n < 8; n += 3) backward_case(n, hw[k], (int[]){ 8, 24, 100 }[k % 3], drop, k % 2 ? 100 : 0);
    verdict();
}

/* o = silu(x): the skip's activation, with nothing else in the sum, shows the sigmoid of each instruction set.  Every
 * exponent from 2^-30 to 2^6 and both signs; |silu| falls to x*exp(x), so far down the bound is absolute: u*exp(-80). */
static void the_sigmoid_is_as_accurate_as_the_bounds_of_all_passes_assume(void **state)
{
    (void)state;
    if (problem(false, "silu sweep")) {
        expect_zeros();
        const int64_t c = 16, rows = fitting(4000, 4 * c), size = rows * c;
        host_operand y = operand_make(rows, c, c, true, EN_ACT_NONE), x = operand_make(rows, c, c, true, EN_ACT_SILU);
        memset(y.y, 0, (size_t)size * sizeof *y.y);
        for (int64_t i = 0; i < c; i++) y.bn->scale[i] = 1, y.bn->shift[i] = 0, x.bn->scale[i] = 1, x.bn->shift[i] = 0;
        for (int64_t i = 0; i < size; i++) x.y[i] = (float)(uniform() * ldexp(1, below(37) - 30));
        for (int i = 0; i < 2001 && i < size; i++) x.y[i] = (float)(i - 1000) * 0.02f;
        storable(x.y, size);
        bounded o = operand_value(&x);
        for (int64_t i = 0; i < size; i++) o.e[i] = fabs(o.v[i]) * (SIGMOID_ERROR + 2 * UNIT) + 1e-40;   /* x is exact: scale 1, shift 0 */
        o = stored(o);
        for (variant *v = first(0); v; v = next(v)) {
            en_bn y_bn, x_bn;
            const en_operand y_up = operand_up(v, &y, &y_bn), x_up = operand_up(v, &x, &x_bn);
            void *o_dev = out_a(v, size);
            RUN(v, v->be->ops->residual_forward(v->be, 1, rows, c, &y_up, NULL, &x_up, o_dev));
            check(v, "silu", down_a(v, o_dev, size), o, c, c);
        }
    }
    verdict();
}

/* A diverged run must show: NaN stays NaN, infinities do not turn into something finite.  Far out silu is x or 0, but for
 * a sigmoid that ends at the smallest normal number. */
static void the_sigmoid_passes_on_what_is_not_finite(void **state)
{
    (void)state;
    static const float in[16] = { NAN, INFINITY, -1e30f, 1e30f, -88, -89, -104, -1000, 88, 89, 104, 1000, -FLT_MAX, FLT_MAX, 0.f, -0.f };
    if (problem(false, "silu extremes")) {
        host_operand y = operand_make(1, 16, 16, true, EN_ACT_NONE), x = operand_make(1, 16, 16, true, EN_ACT_SILU);
        for (int64_t i = 0; i < 16; i++) y.y[i] = 0, y.bn->scale[i] = 1, y.bn->shift[i] = 0, x.bn->scale[i] = 1, x.bn->shift[i] = 0, x.y[i] = in[i];
        for (int i = 1; i < 16; i++)
            if (isfinite(in[i])) x.y[i] = fabsf(in[i]) < FLT_MAX ? storable(&x.y[i], 1)[0] : copysignf(0x1.FEp127f, in[i]);
        for (variant *v = first(0); v; v = next(v)) {
            en_bn y_bn, x_bn;
            const en_operand y_up = operand_up(v, &y, &y_bn), x_up = operand_up(v, &x, &x_bn);
            void *o_dev = out_a(v, 16);
            RUN(v, v->be->ops->residual_forward(v->be, 1, 1, 16, &y_up, NULL, &x_up, o_dev));
            const float *o = down_a(v, o_dev, 16);
            if (!isnan(o[0])) failed("[%s] silu(NaN) = %g", v->name, (double)o[0]);
            if (isfinite(o[1])) failed("[%s] silu(inf) = %g", v->name, (double)o[1]);
            for (int i = 2; i < 16; i++) {
                const double at = x.y[i], want = at > 0 ? at : at < -80 ? 0 : oracle_act(EN_ACT_SILU, at);
                if (!(fabs((double)o[i] - want) <= (bf16(v) ? STORED_UNIT : 1e-5) * fabs(want) + 0x1.1p-126 * fabs(at) + 1e-28)) failed("[%s] silu(%g) = %g", v->name, (double)in[i], (double)o[i]);
            }
        }
    }
    verdict();
}

static void an_empty_shard_writes_zero_sums_and_nothing_else(void **state)
{
    (void)state;
    if (problem(true, "residual n0")) {
        expect_zeros();
        const host_operand y = operand_make(0, 32, 24, true, EN_ACT_NONE);
        for (variant *v = first(0); v; v = next(v)) {
            en_bn bn;
            const en_operand y_up = operand_up(v, &y, &bn);
            RUN(v, v->be->ops->residual_forward(v->be, 0, 9, 32, &y_up, OUT_F(v, 0), &y_up, out_a(v, 0)));
            RUN(v, v->be->ops->residual_backward(v->be, 0, 9, 32, out_a(v, 0), NULL, y_up.y, &bn));
            check_backward_sums(v, &bn, y.bn, exactly(NULL, 0), NULL, 0);
        }
    }
    verdict();
}

static void memory_is_aligned_zeroed_and_copied_faithfully(void **state)
{
    (void)state;
    if (problem(true, "memory"))
        for (variant *v = first(0); v; v = next(v))
            for (size_t bytes = 0; bytes < (5u << 20); bytes = bytes * 7 + 1) {
                uint8_t *host = mem(bytes), *back = mem(bytes);
                void *p = NULL;
                RUN(v, v->be->ops->alloc(v->be, bytes, &p));
                if ((uintptr_t)p % 64) failed("%p is not aligned", p);
                memset(back, 1, bytes);
                RUN(v, v->be->ops->download(v->be, back, p, bytes));
                if (bytes && memcmp(back, host, bytes)) failed("%d bytes are not zeroed", (int)bytes);
                for (size_t i = 0; i < bytes; i++) host[i] = (uint8_t)(i * 31 + 7);
                RUN(v, v->be->ops->upload(v->be, p, host, bytes));
                RUN(v, v->be->ops->download(v->be, back, p, bytes));
                if (bytes && memcmp(back, host, bytes)) failed("%d bytes came back changed", (int)bytes);
                if (bytes > 8) {                                /* a copy that is not of all, read before `p` changes below */
                    void *q = NULL;
                    RUN(v, v->be->ops->alloc(v->be, bytes, &q));
                    RUN(v, v->be->ops->copy(v->be, (uint8_t *)q + 4, (uint8_t *)p + 4, bytes - 8));
                    RUN(v, v->be->ops->download(v->be, back, q, bytes));
                    for (size_t i = 0; i < bytes; i++)
                        if (back[i] != (i < 4 || i >= bytes - 4 ? 0 : host[i])) { failed("copy of %d bytes: byte %d", (int)bytes, (int)i); break; }
                    v->be->ops->free(v->be, q);
                }
                if (bytes > 8) {                                /* all but the ends */
                    RUN(v, v->be->ops->zero(v->be, (uint8_t *)p + 4, bytes - 8));
                    RUN(v, v->be->ops->download(v->be, back, p, bytes));
                    for (size_t i = 0; i < bytes; i++)
                        if (back[i] != (i < 4 || i >= bytes - 4 ? host[i] : 0)) { failed("zero of %d bytes: byte %d", (int)bytes, (int)i); break; }
                }
                v->be->ops->free(v->be, p);
            }
    verdict();
}

static void unknown_devices_and_instruction_sets_are_refused(void **state)
{
    (void)state;
    en_backend *be = (en_backend *)state;
    en_error_clear();
    assert_int_equal(en_backend_open("abacus", &(en_backend_config){ 0 }, &be), EN_ENOTSUP);
    assert_null(be);
    assert_true(*en_error_text());
    if (!getenv("EN_ISA")) {
        be = (en_backend *)state;
        assert_int_equal(en_backend_open("cpu", &(en_backend_config){ .isa = "mmx" }, &be), EN_ENOTSUP);
        assert_null(be);
    }
    en_error_clear();
    assert_int_equal(en_backend_open("cpu", &(en_backend_config){ .threads = 2 }, &be), EN_OK);
    assert_true(be->lanes == 2 && be->threads == 2 && be->channel_align > 0);
    en_backend_close(be);
    en_backend_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_is_within_the_rounding_bound),
        cmocka_unit_test(backward_leaves_the_sums_of_the_batch_norm),
        cmocka_unit_test(the_sigmoid_is_as_accurate_as_the_bounds_of_all_passes_assume),
        cmocka_unit_test(the_sigmoid_passes_on_what_is_not_finite),
        cmocka_unit_test(an_empty_shard_writes_zero_sums_and_nothing_else),
        cmocka_unit_test(memory_is_aligned_zeroed_and_copied_faithfully),
        cmocka_unit_test(unknown_devices_and_instruction_sets_are_refused),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
