/* fixture_bounds.c - values with the error that an answer may have, and the verdict on what came.  fixture.h derives the bounds. */
#include "fixture_inside.h"

/* ---- bounded values ------------------------------------------------------------------------------------------------- */

double rounding(double m) { return fmin(m * UNIT / (1 - m * UNIT), expm1(10 * sqrt(m) * UNIT + m * UNIT * UNIT)); }

bounded fresh(int64_t n) { return (bounded){ .v = mem_d(n), .e = mem_d(n), .x = mem_d(n), .s = mem_d(n), .q = mem_d(n), .n = n }; }

bounded exactly(const float *x, int64_t n)
{
    bounded b = fresh(n);
    for (int64_t i = 0; i < n; i++) b.v[i] = x[i];
    return b;
}

static double *magnitude(const double *x, int64_t n)
{
    double *a = mem_d(n);
    for (int64_t i = 0; i < n; i++) a[i] = fabs(x[i]);
    return a;
}

static bool nonzero(const double *x, int64_t n) { for (int64_t i = 0; i < n; i++) if (x[i] != 0) return true; return false; }

void carry(bounded *to, int64_t i, bounded from, int64_t j, double by)
{
    to->x[i] += fabs(by) * from.x[j];
    to->s[i] += fabs(by) * from.s[j];
    to->q[i] += fabs(by) * from.q[j];
}

static bounded copied(bounded x)
{
    bounded b = fresh(x.n);
    b.inexact = x.inexact;
    for (int64_t i = 0; i < x.n; i++) b.v[i] = x.v[i], b.e[i] = x.e[i], carry(&b, i, x, i, 1);
    return b;
}

bounded stored(bounded x)
{
    if (!some_bf16) return x;
    bounded b = copied(x);
    for (int64_t i = 0; i < x.n; i++) {
        const bool known = now.exact && !x.inexact && x.s[i] == 0;      /* which rounding this is */
        const double by = known ? fabs(x.v[i] - (double)as_bf16((float)x.v[i])) : STORED_UNIT * (fabs(x.v[i]) + x.e[i] + x.x[i] + x.s[i]);
        b.s[i] += by;
        b.q[i] = hypot(b.q[i], by);
    }
    return b;
}

bounded either(bounded a, bounded b)
{
    bounded w = copied(a);
    w.inexact |= b.inexact;
    for (int64_t i = 0; i < a.n; i++)
        w.e[i] = fmax(a.e[i], b.e[i]), w.x[i] = fmax(a.x[i], b.x[i]), w.s[i] = fmax(a.s[i], b.s[i]), w.q[i] = fmax(a.q[i], b.q[i]);
    return w;
}

static double *squared(const double *x, int64_t n)
{
    double *s = mem_d(n);
    for (int64_t i = 0; i < n; i++) s[i] = x[i] * x[i];
    return s;
}

/* Adds to b what the errors of one factor make of it, f(l, r) being the sums of that error with the other's magnitude:
 * el, er name the arrays of errors, of which one is the magnitude in truth. */
static void add_sums(double *to, oracle_bilinear *f, const en_conv_geom *g, const double *l, const double *r, int64_t n, bool root, double by)
{
    double *part = mem_d(n);
    f(g, l, r, part);
    for (int64_t i = 0; i < n; i++) to[i] = root ? hypot(to[i], sqrt(part[i]) * by) : to[i] + part[i] * by;
}

bounded bilinear(oracle_bilinear *f, const en_conv_geom *g, bounded l, bounded r, int64_t n_out, int64_t m)
{
    bounded b = fresh(n_out);
    f(g, l.v, r.v, b.v);
    const double *al = magnitude(l.v, l.n), *ar = magnitude(r.v, r.n), more = 1 + 2 * STORED_UNIT;       /* the other factor is off too */
    if (some_bf16) {
        if (nonzero(l.x, l.n)) add_sums(b.x, f, g, l.x, ar, n_out, false, 1);
        if (nonzero(r.x, r.n)) add_sums(b.x, f, g, al, r.x, n_out, false, 1);
        if (nonzero(l.s, l.n)) add_sums(b.s, f, g, l.s, ar, n_out, false, more), add_sums(b.q, f, g, squared(l.q, l.n), squared(ar, r.n), n_out, true, more);
        if (nonzero(r.s, r.n)) add_sums(b.s, f, g, al, r.s, n_out, false, more), add_sums(b.q, f, g, squared(al, l.n), squared(r.q, r.n), n_out, true, more);
    }
    if (now.exact) return b;
    add_sums(b.e, f, g, al, ar, n_out, false, rounding((double)m));
    if (nonzero(l.e, l.n)) add_sums(b.e, f, g, l.e, ar, n_out, false, 1);
    if (nonzero(r.e, r.n)) add_sums(b.e, f, g, al, r.e, n_out, false, 1);
    return b;
}

bounded times(bounded a, bounded b)
{
    bounded p = fresh(a.n);
    for (int64_t i = 0; i < a.n; i++) {
        p.v[i] = a.v[i] * b.v[i];
        p.e[i] = fabs(a.v[i]) * b.e[i] + a.e[i] * fabs(b.v[i]) + a.e[i] * b.e[i] + UNIT * fabs(p.v[i]);
        carry(&p, i, a, i, fabs(b.v[i]) + b.e[i] + b.x[i] + b.s[i]);
        carry(&p, i, b, i, fabs(a.v[i]) + a.e[i]);
    }
    return p;
}

bounded plus(bounded a, bounded b)
{
    bounded s = fresh(a.n);
    for (int64_t i = 0; i < a.n; i++) {
        s.v[i] = a.v[i] + b.v[i];
        s.e[i] = a.e[i] + b.e[i] + UNIT * (fabs(s.v[i]) + a.e[i] + b.e[i]);
        carry(&s, i, a, i, 1), carry(&s, i, b, i, 1);
    }
    return s;
}

bounded accumulated(bounded a, const float *start, int64_t m)
{
    bounded s = fresh(a.n);
    const double gamma = rounding((double)m + 1);
    s.inexact = a.inexact;
    for (int64_t i = 0; i < a.n; i++) {
        s.v[i] = a.v[i] + start[i];
        s.e[i] = a.e[i] + UNIT * fabs(a.v[i]) + gamma * fabs(start[i]);
        carry(&s, i, a, i, 1);
    }
    return s;
}

#define WORSE_SIGMOID (some_bf16 ? SIGMOID_ERROR_STORED - SIGMOID_ERROR : 0)

/* silu = z*sigma: |silu''| <= 1/2 bounds what a wrong z does beyond first order.  ReLU moves no two values apart and rounds none. */
bounded activated(en_act act, bounded z)
{
    if (act == EN_ACT_NONE) return z;
    bounded a = act == EN_ACT_SILU ? fresh(z.n) : copied(z);
    for (int64_t i = 0; act != EN_ACT_SILU && i < z.n; i++) a.v[i] = oracle_act(act, z.v[i]), a.e[i] = z.e[i];
    if (act != EN_ACT_SILU) return a;
    for (int64_t i = 0; i < z.n; i++) {
        const double d = fabs(oracle_dact(act, z.v[i]));
        a.v[i] = oracle_act(act, z.v[i]);
        a.e[i] = d * z.e[i] + 0.25 * z.e[i] * z.e[i] + (SIGMOID_ERROR + 2 * UNIT) * fabs(a.v[i]);
        a.x[i] = WORSE_SIGMOID * fabs(a.v[i]);
        carry(&a, i, z, i, d + 0.25 * (z.s[i] + z.x[i] + 2 * z.e[i]));
    }
    return a;
}

/* silu' = sigma*(1 + z*(1-sigma)); its derivative by sigma is 1 + z*(1-sigma) - z*sigma.  The slope of ReLU is known but where z
 * may lie on either side of a bend. */
bounded slope(en_act act, bounded z)
{
    bounded a = fresh(z.n);
    for (int64_t i = 0; act >= EN_ACT_RELU && i < z.n; i++) {
        const double off = z.e[i] + z.x[i] + z.s[i];
        a.v[i] = oracle_dact(act, z.v[i]);
        a.e[i] = off > 0 && (fabs(z.v[i]) <= off || (act == EN_ACT_RELU6 && fabs(z.v[i] - 6) <= off)) ? 1 : 0;
    }
    if (act >= EN_ACT_RELU) return a;
    for (int64_t i = 0; i < z.n; i++) {
        const double s = oracle_sigmoid(z.v[i]), az = fabs(z.v[i]);
        a.v[i] = oracle_dact(act, z.v[i]);
        if (act == EN_ACT_NONE) continue;
        a.e[i] = 0.5 * z.e[i] + SIGMOID_ERROR * s * (1 + az) + 4 * UNIT * s * (1 + az);
        a.x[i] = WORSE_SIGMOID * s * (1 + az);
        carry(&a, i, z, i, 0.5);
    }
    return a;
}

bounded sigmoid(bounded z)
{
    bounded a = fresh(z.n);
    for (int64_t i = 0; i < z.n; i++) {
        a.v[i] = oracle_sigmoid(z.v[i]);
        a.e[i] = a.v[i] * (1 - a.v[i]) * z.e[i] + 0.05 * z.e[i] * z.e[i] + SIGMOID_ERROR * a.v[i];      /* |sigma''| < 0.1 */
        a.x[i] = WORSE_SIGMOID * a.v[i];
        carry(&a, i, z, i, a.v[i] * (1 - a.v[i]) + 0.05 * (z.s[i] + z.x[i] + 2 * z.e[i]));
    }
    return a;
}

bounded scaled_rows(bounded x, int64_t rows_per, int64_t c, bounded by)
{
    bounded wide = fresh(x.n);
    for (int64_t i = 0; i < x.n; i++) {
        const int64_t k = i / c / rows_per * c + i % c;
        wide.v[i] = by.v[k];
        wide.e[i] = by.e[k];
        carry(&wide, i, by, k, 1);
    }
    return times(x, wide);
}

bounded pooled_rows(bounded x, int64_t n, int64_t hw, int64_t c)
{
    bounded p = fresh(n * c);
    double *part = mem_d(n * c), *square = mem_d(n * c);
    oracle_pool(n, hw, c, x.v, p.v);
    oracle_pool(n, hw, c, magnitude(x.v, x.n), p.e);
    oracle_pool(n, hw, c, x.e, part);
    oracle_pool(n, hw, c, x.x, p.x);
    oracle_pool(n, hw, c, x.s, p.s);
    oracle_pool(n, hw, c, squared(x.q, x.n), square);
    for (int64_t i = 0; i < p.n; i++) {
        p.e[i] = rounding((double)hw + 2) * p.e[i] + part[i];
        p.q[i] = sqrt(square[i] / (double)hw);
    }
    return p;
}

/* ---- verdicts ------------------------------------------------------------------------------------------------------- */

/* Bounds that are WIDE compared with the answers prove nothing.  They widen where one pass strings several long sums
 * together, as if all roundings conspired; that they do not is a bound of its own: the tensor as a whole may be off by
 * TOGETHER of its norm, which a few roundings of size u*sqrt(m), m < 4000, and SIGMOID_ERROR stay well below.  With bf16
 * a tail of 8 deviations, each about STORED_UNIT / 2, is wide by itself; the whole is off by a few such deviations. */
#define WIDE            0.05
#define WIDE_STORED     0.2
#define TOGETHER        2e-5
#define TOGETHER_STORED 0x1p-7
#define TAIL            8.0

/* An exact problem's sums are exact in float as long as they stay below 2^24; its sums of squares may not. */
static double allowed(const variant *v, bounded want, int64_t i)
{
    return (now.exact && !want.inexact && fabs(want.v[i]) < 0x1p23 ? 0 : want.e[i]) +
           (bf16(v) ? want.x[i] + fmin(want.s[i], TAIL * want.q[i]) : 0);
}

static void judge(const variant *v, const char *what, const float *got_f, const double *got_d, bounded want, int64_t c, int64_t logical)
{
    int64_t bad = 0, worst = -1, zeros = 0, counted = 0, row_zeros = 0, row_counted = 0;
    const bool rounded = bf16(v) && nonzero(want.s, want.n);
    const double wide = rounded ? WIDE_STORED : WIDE, together = rounded ? TOGETHER_STORED : TOGETHER;
    const int64_t few = rounded ? 64 : 8;                       /* of which one sum that cancels may be most */
    double excess = 0, sum_e = 0, sum_v = 0, square_off = 0, square_v = 0;
    for (int64_t i = 0; i < want.n; i++) {
        const double got = got_f ? (double)got_f[i] : got_d[i], bound = allowed(v, want, i), off = fabs(got - want.v[i]);
        if (!(off <= bound)) {
            const double x = isnan(off) ? INFINITY : off / (bound + 1e-300);
            bad++;
            if (worst < 0 || x > excess) worst = i, excess = x;
        }
        if (i % c == 0) row_counted = row_zeros = 0;
        if (i % c < logical) row_counted++, row_zeros += want.v[i] == 0;
        if ((i % c == c - 1 || i == want.n - 1) && row_zeros < row_counted) counted += row_counted, zeros += row_zeros;
        sum_e += bound;
        sum_v += fabs(want.v[i]);
        square_off += off * off;
        square_v += want.v[i] * want.v[i];
    }
    if (bad)
        failed("[%s] %s: %d of %d wrong, the worst at (%d,%d): got %.9g want %.9g bound %.3g", v->name,
               what, (int)bad, (int)want.n, (int)(worst / c), (int)(worst % c), got_f ? (double)got_f[worst] : got_d[worst], want.v[worst],
               allowed(v, want, worst));
    if (!bad && want.n / c * logical > few && square_off > together * together * square_v)
        failed("[%s] %s: each element within its bound, all together %.3g off", v->name, what,
               sqrt(square_off / square_v));
    if (now.zeros || want.n / c * logical <= few || logical == 0) return;      /* rows of padding alone are not counted */
    if (counted == 0 || (double)zeros > 0.75 * (double)counted) failed("MISTRUSTED: %d of the %d answers in %s are zero", (int)zeros, (int)counted, what);
    if (sum_e > wide * sum_v) failed("MISTRUSTED: the bounds of %s are %.2g of its answers on [%s]", what, sum_e / sum_v, v->name);
}

void check(const variant *v, const char *what, const float *got, bounded want, int64_t c, int64_t logical)       { judge(v, what, got, NULL, want, c, logical); }
void check_sums(const variant *v, const char *what, const double *got, bounded want, int64_t c, int64_t logical) { judge(v, what, NULL, got, want, c, logical); }

void check_same(const variant *v, const char *what, const void *got, const void *want, int64_t bytes)
{
    if (memcmp(got, want, (size_t)bytes)) failed("[%s] %s changed", v->name, what);
}
