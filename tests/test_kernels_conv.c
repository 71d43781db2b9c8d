/* test_kernels_conv.c - dense convolutions of act(bn(x)), forward and backward. */
#include "fixture.h"

enum { NO_ADD, ADD, ADD_IN_PLACE };
typedef struct { int64_t n, h, w, c, oc; int kernel, stride; bool bn; en_act act; int add, kind; } shape;

static const char *const acts[] = { [EN_ACT_NONE] = " no act", [EN_ACT_SILU] = "", [EN_ACT_RELU] = " relu", [EN_ACT_RELU6] = " relu6" };
static const char *const kinds[] = { "", " drop", " pooled", " gated", " ungated" }, *const adds[] = { "", " add", " add in place" };

/* Integers stay integers under ReLU, not under SiLU. */
static shape as_exact(shape s, bool exact)
{
    if (exact && s.act == EN_ACT_SILU) s.act = EN_ACT_NONE;
    return s;
}

static en_conv_geom geom_of(const shape *s, const en_conv_geom *given)
{
    en_conv_geom g = given ? *given : oracle_same(s->n, s->h, s->w, phys(s->c), phys(s->oc), s->kernel, s->stride);
    g.dense = true;
    return g;
}

static bool named(const char *pass, const shape *s, bool exact, const en_conv_geom *g)
{
    return problem(exact, "conv %s n%dh%dw%dc%doc%dk%ds%dp%doh%dow%d%s%s%s%s", pass, (int)s->n, (int)s->h, (int)s->w, (int)s->c, (int)s->oc, s->kernel,
                   s->stride, g->pad, (int)g->oh, (int)g->ow, s->bn ? "" : " no bn", acts[s->act], kinds[s->kind], adds[s->add]);
}

/* (k,k,c,oc) with zeros where c or oc are there for alignment alone */
static float *weights(const en_conv_geom *g, const shape *s)
{
    const int64_t taps = (int64_t)g->kernel * g->kernel;
    float *wt = random_rows(taps * g->c, g->oc, s->oc);
    for (int64_t t = 0; t < taps; t++) memset(wt + (t * g->c + s->c) * g->oc, 0, (size_t)((g->c - s->c) * g->oc) * sizeof *wt);
    return wt;
}

/* Multiply-adds, as many as a device makes of them that has tiles of 128 x 64 and takes 32 channels at a time. */
static int64_t work_of(const en_conv_geom *g)
{
    const int64_t rows = g->n * g->oh * g->ow, taps = (int64_t)g->kernel * g->kernel;
#ifdef EN_TEST_CUDA
    return taps * ((rows + 127) / 128 * 128) * ((g->c + 31) / 32 * 32) * ((g->oc + 63) / 64 * 64) / 4;
#else
    return taps * rows * g->c * g->oc;
#endif
}

/* What the products read: on cuda u goes through memory, in the type of activations. */
static bounded input_of(const host_operand *x) { return x->bn ? stored(operand_value(x)) : operand_value(x); }

static void forward_case(shape s, bool exact, const en_conv_geom *given)
{
    s = as_exact(s, exact);
    s.add = s.kind = 0;
    const en_conv_geom g = geom_of(&s, given);
    const int64_t taps = (int64_t)g.kernel * g.kernel, ny = g.n * g.oh * g.ow * g.oc, work = work_of(&g), nw = taps * g.c * g.oc;
    if (!named("forward", &s, exact, &g) || !affordable(work)) return;
    const host_operand x = operand_make(g.n * g.h * g.w, g.c, s.c, s.bn, s.act);
    const float *wt = weights(&g, &s);
    const host_bn *h = bn_make(g.oc, s.oc);
    if (given) expect_zeros();                                  /* windows that meet little or nothing of the image */
    const bounded y = stored(bilinear(oracle_conv, &g, input_of(&x), exactly(wt, nw), ny, taps * s.c));
    for (variant *v = first(work); v; v = next(v)) {
        reserve(v, &g);
        workspace(v, EN_WORK_CONV, &g);
        en_bn x_bn, bn = bn_up(v, h);
        const en_operand operand = operand_up(v, &x, &x_bn);
        void *y_dev = out_a(v, ny);
        RUN(v, v->be->ops->conv_forward(v->be, &g, &operand, UP_F(v, wt, nw), y_dev, &bn));
        const float *got = down_a(v, y_dev, ny);
        check(v, "y", got, y, g.oc, s.oc);
        check_forward_sums(v, &bn, h, got, g.n * g.oh * g.ow);
        void *again = out_a(v, ny);                             /* evaluation wants no sums */
        RUN(v, v->be->ops->conv_forward(v->be, &g, &operand, UP_F(v, wt, nw), again, NULL));
        check_same(v, "y without sums", down_a(v, again, ny), got, ny * (int64_t)sizeof *got);
    }
}

static void backward_case(shape s, bool exact, const en_conv_geom *given)
{
    s = as_exact(s, exact);
    if (s.kind == POOLED && exact) s.kind = PLAIN;              /* a pooled gradient is divided by hw */
    const en_conv_geom g = geom_of(&s, given);
    const int64_t taps = (int64_t)g.kernel * g.kernel, rows = g.n * g.oh * g.ow, nx = g.n * g.h * g.w * g.c, nw = taps * g.c * g.oc, work = 2 * work_of(&g);
    if (!named("backward", &s, exact, &g) || !affordable(work)) return;
    const host_operand x = operand_make(g.n * g.h * g.w, g.c, s.c, s.bn, s.act);
    const float *wt = weights(&g, &s), *start = weights(&g, &s), *skip_grad = random_rows(g.n * g.h * g.w, g.c, s.c);
    const host_grad d = grad_make(g.n, g.oh * g.ow, g.oc, s.oc, s.kind);
    if (given || s.kernel < s.stride || s.act == EN_ACT_RELU6) expect_zeros();      /* pixels that no window meets; slopes of zero */
    const bounded dy = stored(grad_dy(&d));
    const bounded dwt = accumulated(bilinear(oracle_conv_dwt, &g, input_of(&x), dy, nw, rows), start, rows);
    bounded dx = bilinear(oracle_conv_dx, &g, dy, exactly(wt, nw), nx, taps * s.oc);
    if (s.add) dx = accumulated(dx, skip_grad, taps * s.oc);
    if (s.act != EN_ACT_NONE) dx = times(dx, operand_slope(&x));
    dx = stored(dx);
    for (variant *v = first(work); v; v = next(v)) {
        if (s.kind >= GATED && !v->be->gated) continue;
        reserve(v, &g);
        workspace(v, EN_WORK_CONV, &g);
        en_bn x_bn = { 0 }, grad_bn;
        const en_operand operand = operand_up(v, &x, &x_bn);
        const en_grad grad = grad_up(v, &d, &grad_bn);
        void *dx_dev = s.add == ADD_IN_PLACE ? both_a(v, skip_grad, nx) : out_a(v, nx);
        const void *add = s.add == ADD_IN_PLACE ? dx_dev : s.add ? up_a(v, skip_grad, nx) : NULL;
        float *dwt_dev = BOTH_F(v, start, nw);
        RUN(v, v->be->ops->conv_backward(v->be, &g, &operand, UP_F(v, wt, nw), &grad, add, dx_dev, dwt_dev, s.bn ? &x_bn : NULL));
        const float *got = down_a(v, dx_dev, nx);
        check(v, "dx", got, dx, g.c, s.c);
        check(v, "dwt", DOWN_F(v, dwt_dev, nw), dwt, g.oc, s.oc);
        if (s.bn) check_backward_sums(v, &x_bn, x.bn, exactly(got, nx), x.y, g.n * g.h * g.w);
    }
}

/* The forms of a gradient take turns; the last two come from se_project_backward of a backend that is gated. */
static int kind_of(size_t k) { return (int)(k % (some_gated() ? 5 : 3)); }

/* As EfficientNetV2 (fused MBConv: plain input of a block, both strides) and ResNet-50 (1x1 with stride 2, 3x3 after ReLU) have
 * them, on small sides and fewer channels. */
static void each_case(void (*run)(shape, bool, const en_conv_geom *))
{
    static const shape shapes[] = {
        { .n = 2, .h = 11, .w = 11, .c = 24, .oc = 24, .kernel = 3, .stride = 1, .add = ADD },
        { .n = 2, .h = 12, .w = 12, .c = 24, .oc = 96, .kernel = 3, .stride = 2 },
        { .n = 1, .h = 9, .w = 9, .c = 48, .oc = 192, .kernel = 3, .stride = 1, .add = ADD_IN_PLACE },
        { .n = 1, .h = 7, .w = 7, .c = 64, .oc = 256, .kernel = 3, .stride = 2 },
        { .n = 3, .h = 8, .w = 8, .c = 24, .oc = 16, .kernel = 3, .stride = 1, .bn = true, .act = EN_ACT_SILU },
        { .n = 2, .h = 14, .w = 14, .c = 64, .oc = 64, .kernel = 3, .stride = 1, .bn = true, .act = EN_ACT_RELU },
        { .n = 2, .h = 8, .w = 8, .c = 64, .oc = 64, .kernel = 3, .stride = 2, .bn = true, .act = EN_ACT_RELU },
        { .n = 2, .h = 8, .w = 8, .c = 64, .oc = 128, .kernel = 1, .stride = 2 },
        { .n = 2, .h = 7, .w = 9, .c = 24, .oc = 40, .kernel = 1, .stride = 2, .add = ADD },
        { .n = 1, .h = 9, .w = 8, .c = 64, .oc = 64, .kernel = 1, .stride = 2, .add = ADD_IN_PLACE },
        { .n = 2, .h = 7, .w = 7, .c = 64, .oc = 32, .kernel = 1, .stride = 1, .bn = true, .act = EN_ACT_RELU },
        { .n = 2, .h = 7, .w = 7, .c = 32, .oc = 16, .kernel = 1, .stride = 1, .bn = true, .act = EN_ACT_RELU6 } };
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
        shape s = shapes[k];
        s.kind = kind_of(k);
        run(s, k % 2, NULL);
        if (s.bn || s.kernel < s.stride) run(s, !(k % 2), NULL);
    }
}

static void forward_is_within_the_rounding_bound_at_shapes_of_the_models(void **state)  { (void)state; each_case(forward_case); verdict(); }
static void backward_is_within_the_rounding_bound_at_shapes_of_the_models(void **state) { (void)state; each_case(backward_case); verdict(); }

/* Sides of 1 and 2: kernels larger than the image; odd and even sides with stride 2, where SAME is lopsided; h != w; channels
 * that are no multiple of the alignment; each activation; more rows than a block takes. */
static void each_odd_case(void (*run)(shape, bool, const en_conv_geom *))
{
    static const int sides[][2] = { { 1, 1 }, { 2, 1 }, { 2, 2 }, { 3, 5 }, { 1, 9 }, { 7, 4 }, { 13, 5 }, { 6, 21 }, { 40, 3 } };
    size_t turn = 0;
    for (int kernel = 1; kernel <= 7; kernel += 2)
        for (int stride = 1; stride <= 2; stride++)
            for (size_t k = 0; k < sizeof sides / sizeof *sides; k++, turn++) {
                if (kernel == 5 && turn % 3) continue;
                const shape s = { .n = k % 3 ? 1 : 3, .h = sides[k][0], .w = sides[k][1], .c = (int[]){ 16, 8, 24 }[turn % 3], .oc = (int[]){ 8, 40, 16, 24 }[turn % 4],
                                  .kernel = kernel, .stride = stride, .bn = turn % 5 != 1,
                                  .act = turn % 5 == 1 ? EN_ACT_NONE : (en_act[]){ EN_ACT_SILU, EN_ACT_RELU, EN_ACT_NONE, EN_ACT_RELU6 }[turn % 4],
                                  .add = (int)(turn % 3), .kind = kind_of(turn) };
                run(s, turn % 2, NULL);
            }
}

static void forward_handles_odd_shapes(void **state)  { (void)state; each_odd_case(forward_case); verdict(); }
static void backward_handles_odd_shapes(void **state) { (void)state; each_odd_case(backward_case); verdict(); }

/* pad, oh and ow are the caller's: symmetric padding, none, and more zeros below than above. */
static void each_padding(void (*run)(shape, bool, const en_conv_geom *))
{
    for (int kernel = 1; kernel <= 7; kernel += kernel == 3 ? 4 : 2)
        for (int stride = 1; stride <= 2; stride++)
            for (int pad = 0; pad < kernel; pad += kernel == 7 ? 3 : 1)
                for (int below_too = 0; below_too < 2; below_too++) {
                    const int64_t h = 8, w = 9, c = 16, oc = 32, extra = below_too ? kernel - 1 : 0;
                    const en_conv_geom g = { .n = 2, .h = h, .w = w, .c = c, .oc = oc, .kernel = kernel, .stride = stride, .pad = pad,
                                             .oh = (h + pad + extra - kernel) / stride + 1, .ow = (w + pad + extra - kernel) / stride + 1 };
                    const shape s = { .n = 2, .h = h, .w = w, .c = c, .oc = oc, .kernel = kernel, .stride = stride, .bn = true, .act = EN_ACT_SILU };
                    run(s, (pad + below_too) % 2, &g);
                }
}

static void forward_takes_any_padding(void **state)  { (void)state; each_padding(forward_case); verdict(); }
static void backward_takes_any_padding(void **state) { (void)state; each_padding(backward_case); verdict(); }

static void an_empty_shard_writes_zero_sums_and_nothing_else(void **state)
{
    (void)state;
    if (problem(true, "conv n0")) {
        expect_zeros();
        const int64_t c = 48, oc = 32, nw = 9 * c * oc;
        en_conv_geom g = oracle_same(0, 7, 7, c, oc, 3, 2);
        g.dense = true;
        const host_operand x = operand_make(0, c, 40, true, EN_ACT_SILU);
        const host_bn *h = bn_make(oc, oc);
        const host_grad d = grad_make(0, 16, oc, oc, PLAIN);
        const float *wt = random_rows(9 * c, oc, oc);
        for (variant *v = first(0); v; v = next(v)) {
            reserve(v, &g);
            en_bn x_bn, grad_bn, bn = bn_up(v, h);
            const en_operand operand = operand_up(v, &x, &x_bn);
            const en_grad grad = grad_up(v, &d, &grad_bn);
            float *dwt = BOTH_F(v, wt, nw);
            RUN(v, v->be->ops->conv_forward(v->be, &g, &operand, UP_F(v, wt, nw), out_a(v, 0), &bn));
            check_forward_sums(v, &bn, h, NULL, 0);
            RUN(v, v->be->ops->conv_backward(v->be, &g, &operand, UP_F(v, wt, nw), &grad, NULL, out_a(v, 0), dwt, &x_bn));
            check_backward_sums(v, &x_bn, x.bn, exactly(NULL, 0), NULL, 0);
            check_same(v, "dwt", DOWN_F(v, dwt, nw), wt, nw * (int64_t)sizeof *wt);
        }
    }
    verdict();
}

static void what_the_table_does_not_offer_is_refused_and_nothing_is_written(void **state)
{
    (void)state;
    static const struct { const char *what; int kernel, stride, pad; int64_t oh, c; bool act; } wrong[] = {
        { "kernel 2", 2, 1, 0, 5, 16, false }, { "kernel 9", 9, 1, 4, 5, 16, false }, { "stride 3", 3, 3, 1, 2, 16, false }, { "pad 3", 3, 1, 3, 5, 16, false },
        { "a window that misses", 3, 1, 1, 9, 16, false }, { "12 channels", 3, 1, 1, 5, 12, false }, { "act without bn", 3, 1, 1, 5, 16, true } };
    for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
        if (!problem(false, "conv refuses %s", wrong[k].what)) continue;
        const int64_t c = wrong[k].c, oh = wrong[k].oh, nx = 25 * c, ny = oh * oh * 16, nw = wrong[k].kernel * wrong[k].kernel * c * 16;
        const en_conv_geom g = { .n = 1, .h = 5, .w = 5, .c = c, .oh = oh, .ow = oh, .oc = 16, .kernel = wrong[k].kernel, .stride = wrong[k].stride,
                                 .pad = wrong[k].pad, .dense = true };
        const host_operand x = operand_make(25, c, c, false, wrong[k].act ? EN_ACT_SILU : EN_ACT_NONE);
        const host_grad d = grad_make(1, oh * oh, 16, 16, PLAIN);
        const float *wt = random_rows(nw / 16, 16, 16);
        for (variant *v = first(0); v; v = next(v)) {
            reserve(v, &(en_conv_geom){ .n = 1, .h = 9, .w = 9, .c = 16, .oh = 9, .ow = 9, .oc = 16, .kernel = 7, .stride = 1, .pad = 3, .dense = true });
            en_bn x_bn = { 0 }, grad_bn;
            const en_operand operand = operand_up(v, &x, &x_bn);
            const en_grad grad = grad_up(v, &d, &grad_bn);
            void *y = out_a(v, ny), *dx = out_a(v, nx);
            float *dwt = BOTH_F(v, wt, nw);
            const en_status f = v->be->ops->conv_forward(v->be, &g, &operand, UP_F(v, wt, nw), y, NULL);
            const en_status b = v->be->ops->conv_backward(v->be, &g, &operand, UP_F(v, wt, nw), &grad, NULL, dx, dwt, NULL);
            const float *y_got = down_a(v, y, ny), *dx_got = down_a(v, dx, nx);
            if (f != EN_EINVAL || b != EN_EINVAL) failed("[%s] not refused", v->name);
            for (int64_t i = 0; i < ny; i++) if (!isnan(y_got[i])) { failed("[%s] y is written", v->name); break; }
            for (int64_t i = 0; i < nx; i++) if (!isnan(dx_got[i])) { failed("[%s] dx is written", v->name); break; }
            check_same(v, "dwt", DOWN_F(v, dwt, nw), wt, nw * (int64_t)sizeof *wt);
            en_error_clear();
        }
    }
    verdict();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_is_within_the_rounding_bound_at_shapes_of_the_models),
        cmocka_unit_test(backward_is_within_the_rounding_bound_at_shapes_of_the_models),
        cmocka_unit_test(forward_handles_odd_shapes),
        cmocka_unit_test(backward_handles_odd_shapes),
        cmocka_unit_test(forward_takes_any_padding),
        cmocka_unit_test(backward_takes_any_padding),
        cmocka_unit_test(an_empty_shard_writes_zero_sums_and_nothing_else),
        cmocka_unit_test(what_the_table_does_not_offer_is_refused_and_nothing_is_written),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
