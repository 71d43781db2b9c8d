/* fixture_operands.c - what passes take besides plain tensors: batch norm, operands and gradients that are formed on load, each on the
 * host, as bounded values and on a variant's device. */
#include "fixture_inside.h"

/* ---- batch norm, operands and gradients on load ------------------------------------------------------------------- */

host_bn *bn_make(int64_t c, int64_t logical)
{
    host_bn *h = mem(sizeof *h);
    *h = (host_bn){ .c = c, .logical = logical, .eps = 1e-3f, .momentum = 0.01f };
    float **all[] = { &h->gamma, &h->beta, &h->running_mean, &h->running_var, &h->mean, &h->rstd, &h->scale, &h->shift, &h->ga, &h->gb, &h->gc };
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) *all[k] = random_floats(1, c, logical);
    for (int64_t i = 0; i < logical; i++) {
        if (now.exact) {                                        /* integers; products of two of them and a sum stay small */
            h->scale[i] = (float)(1 + below(2));
            h->ga[i] = (float)(1 + below(2));
            h->gb[i] = (float)(below(3) - 1);
        } else {
            h->running_var[i] = 1.5f + h->running_var[i];
            h->rstd[i] = 1.5f + h->rstd[i];
            h->scale[i] = copysignf(0.5f + fabsf(h->scale[i]), h->scale[i]);
        }
    }
    return h;
}

en_bn bn_up(variant *v, const host_bn *h)
{
    const int64_t c = h->c;
#define F(field) .field = (float *)UP_F(v, h->field, c)
    return (en_bn){ .c = c, .eps = h->eps, .momentum = h->momentum, .unbiased_running = h->unbiased,
                    F(gamma), F(beta), F(running_mean), F(running_var), F(mean), F(rstd), F(scale), F(shift), F(ga), F(gb), F(gc),
                    .dgamma = OUT_F(v, c), .dbeta = OUT_F(v, c),
                    .local = out(v, (2 * c + 1) * (int64_t)sizeof(double)), .total = out(v, (2 * c + 1) * (int64_t)sizeof(double)) };
#undef F
}

host_operand operand_make(int64_t rows, int64_t c, int64_t logical, bool with_bn, en_act act)
{
    return (host_operand){ .y = random_rows(rows, c, logical), .bn = with_bn ? bn_make(c, logical) : NULL, .act = act, .rows = rows, .c = c };
}

bounded operand_raw(const host_operand *x)
{
    bounded z = exactly(x->y, x->rows * x->c);
    if (x->bn)
        for (int64_t i = 0; i < z.n; i++) {
            const double s = (double)x->bn->scale[i % x->c] * z.v[i], t = x->bn->shift[i % x->c];
            z.v[i] = s + t;
            z.e[i] = rounding(2) * (fabs(s) + fabs(t));
        }
    return z;
}

bounded operand_value(const host_operand *x) { return activated(x->act, operand_raw(x)); }
bounded operand_slope(const host_operand *x) { return slope(x->act, operand_raw(x)); }

en_operand operand_up(variant *v, const host_operand *x, en_bn *bn)
{
    if (x->bn) *bn = bn_up(v, x->bn);
    return (en_operand){ .y = up_a(v, x->y, x->rows * x->c), .bn = x->bn ? bn : NULL, .act = x->act };
}

float *drops(int64_t n, bool wanted)
{
    float *drop = wanted ? mem_f(n) : NULL;
    for (int64_t b = 0; wanted && b < n; b++) drop[b] = b % 2 ? (is_exact() ? 2.f : 1.25f) : 0.f;
    return drop;
}

host_grad grad_make(int64_t n, int64_t hw, int64_t c, int64_t logical, int kind)
{
    static const en_act acts[] = { EN_ACT_SILU, EN_ACT_SILU, EN_ACT_RELU, EN_ACT_RELU6 };           /* by shape */
    const en_act act = kind == POOLED || (kind >= GATED && !now.exact) ? acts[(n * hw + c / 8) % 4] : EN_ACT_NONE;
    host_grad d = { .of = operand_make(n * hw, c, logical, true, act), .n = n, .hw = hw };
    d.gated = kind >= GATED;
    if (kind == GATED) d.gate = random_floats(n, c, logical), d.dgate = random_floats(n, c, logical);
    if (kind == POOLED) d.dpooled = random_floats(n, c, logical);
    else d.stored = random_rows(n * hw, c, logical);
    if (kind == DROP) {
        d.drop = mem_f(n);                                      /* the first image dropped, the others by chance */
        for (int64_t b = 1; b < n; b++) d.drop[b] = b == 1 || below(2) ? 2.f : 0.f;
    }
    return d;
}

bounded dropped(bounded x, const float *drop, int64_t n, int64_t hw, int64_t c)
{
    if (!drop) return x;
    float *wide = mem_f(n * c);
    for (int64_t i = 0; i < n * c; i++) wide[i] = drop[i / c];
    return scaled_rows(x, hw, c, exactly(wide, n * c));
}

bounded spread_rows(bounded x, int64_t rows_per, int64_t c)
{
    bounded wide = fresh(x.n * rows_per);
    wide.inexact = x.inexact;
    for (int64_t i = 0; i < wide.n; i++) {
        const int64_t k = i / c / rows_per * c + i % c;
        wide.v[i] = x.v[k], wide.e[i] = x.e[k];
        carry(&wide, i, x, k, 1);
    }
    return wide;
}

bounded grad_dz(const host_grad *d)
{
    const int64_t c = d->of.c;
    if (d->stored) {
        bounded dz = exactly(d->stored, d->n * d->hw * c);
        if (d->gate) dz = plus(scaled_rows(dz, d->hw, c, exactly(d->gate, d->n * c)), spread_rows(exactly(d->dgate, d->n * c), d->hw, c));
        if (d->gated) return d->of.act == EN_ACT_NONE ? dz : times(dz, operand_slope(&d->of));
        return dropped(dz, d->drop, d->n, d->hw, c);
    }
    bounded dp = exactly(d->dpooled, d->n * c);
    for (int64_t i = 0; i < dp.n; i++) dp.v[i] /= (double)d->hw, dp.e[i] = 2 * UNIT * fabs(dp.v[i]);
    return scaled_rows(operand_slope(&d->of), d->hw, c, dp);
}

bounded grad_dy(const host_grad *d)
{
    bounded dz = grad_dz(d), dy = fresh(dz.n);
    const host_bn *bn = d->of.bn;
    for (int64_t i = 0; i < dz.n; i++) {
        const int64_t k = i % d->of.c;
        const double a = (double)bn->ga[k] * dz.v[i], b = (double)bn->gb[k] * d->of.y[i], c = bn->gc[k];
        dy.v[i] = a + b + c;
        carry(&dy, i, dz, i, bn->ga[k]);
        dy.e[i] = fabs(bn->ga[k]) * dz.e[i] + rounding(3) * (fabs(a) + fabs(b) + fabs(c));
    }
    return dy;
}

en_grad grad_up(variant *v, const host_grad *d, en_bn *bn)
{
    const int64_t c = d->of.c;
    *bn = bn_up(v, d->of.bn);
    return (en_grad){ .stored = up_a(v, d->stored, d->n * d->hw * c), .drop = UP_F(v, d->drop, d->n), .dpooled = UP_F(v, d->dpooled, d->n * c),
                      .act = d->of.act, .gated = d->gated, .gate = UP_F(v, d->gate, d->n * c), .dgate = UP_F(v, d->dgate, d->n * c),
                      .y = up_a(v, d->of.y, d->n * d->hw * c), .bn = bn, .hw = d->hw };
}

bounded forward_sums(const host_bn *h, const float *y, int64_t rows)
{
    const int64_t c = h->c;
    const double gamma = rounding((double)rows + 3);            /* the sum, the subtraction, the square */
    bounded want = fresh(2 * c + 1);
    for (int64_t i = 0; i < rows * c; i++) {
        const double t = (double)y[i] - h->running_mean[i % c];
        want.v[i % c] += t;
        want.e[i % c] += gamma * fabs(t);
        want.v[c + i % c] += t * t;
        want.e[c + i % c] += gamma * t * t;
    }
    want.v[2 * c] = (double)rows;
    return want;
}

void check_forward_sums(variant *v, const en_bn *bn, const host_bn *h, const float *y, int64_t rows)
{
    check_sums(v, "bn->local", DOWN_D(v, bn->local, 2 * h->c + 1), forward_sums(h, y, rows), h->c, h->logical);
}

void check_backward_sums(variant *v, const en_bn *bn, const host_bn *h, bounded dz, const float *y, int64_t rows)
{
    const int64_t c = h->c;
    const double gamma = rounding((double)rows + 3);
    bounded want = fresh(2 * c);
    for (int64_t i = 0; i < rows * c; i++) {
        const double t = (double)y[i] - h->mean[i % c];
        want.v[i % c] += dz.v[i];
        want.e[i % c] += gamma * fabs(dz.v[i]) + dz.e[i];
        carry(&want, i % c, dz, i, 1);
        want.v[c + i % c] += dz.v[i] * t;
        want.e[c + i % c] += gamma * fabs(dz.v[i] * t) + dz.e[i] * fabs(t);
        carry(&want, c + i % c, dz, i, t);
    }
    check_sums(v, "bn->local", DOWN_D(v, bn->local, 2 * c), want, c, h->logical);
}
