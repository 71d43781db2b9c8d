#include "optimizer_help.h"

const optimizer optimizers[] = {
    { "rmsprop", RMSPROP, .rmsprop = { .rho = 0.9f, .momentum = 0.9f, .eps = 1e-3f, .weight_decay = 1e-5f } },
    { "rmsprop heavy", RMSPROP, .rmsprop = { .rho = 0.5f, .momentum = 0.3f, .eps = 0.1f, .weight_decay = 0.1f } },
    { "sgd", SGD, .sgd = { .momentum = 0.9f, .weight_decay = 1e-4f } },
    { "sgd nesterov", SGD, .sgd = { .momentum = 0.7f, .nesterov = true, .weight_decay = 0.1f } },
    { "sgd plain", SGD, .sgd = { .weight_decay = 0.1f } },
    { "lars", LARS, .lars = { .momentum = 0.9f, .trust = 0.001f, .weight_decay = 1e-5f } },
    { "lars nesterov", LARS, .lars = { .momentum = 0.7f, .nesterov = true, .trust = 0.5f, .eps = 0.5f, .weight_decay = 0.3f } },
    { "adamw", ADAMW, .adamw = { .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8f, .weight_decay = 0.01f } },
    { "adamw heavy", ADAMW, .adamw = { .beta1 = 0.5, .beta2 = 0.75, .eps = 0.1f, .weight_decay = 0.5f } },
};
const int n_optimizers = sizeof optimizers / sizeof *optimizers;

int optimizer_slots(const optimizer *o) { return o->kind == RMSPROP || o->kind == ADAMW ? 2 : o->kind == SGD && o->sgd.momentum == 0 ? 0 : 1; }

/* The accumulator that holds squares, -1: none. */
static int squares_slot(const optimizer *o) { return o->kind == RMSPROP ? 0 : o->kind == ADAMW ? 1 : -1; }

host_arenas arenas_make(const optimizer *o, int64_t elems)
{
    const int squares = squares_slot(o), slots = optimizer_slots(o);
    host_arenas a = { .w = random_floats(elems, 1, 1), .grad = random_floats(elems, 1, 1) };
    for (int k = 0; k < slots; k++) a.slot[k] = random_floats(elems, 1, 1);
    a.ema = random_floats(elems, 1, 1);
    for (int k = 0; k < slots; k++)
        for (int64_t i = 0; i < elems; i++) a.slot[k][i] = k == squares ? 0.001f + fabsf(a.slot[k][i]) : a.slot[k][i] * 0.1f;
    return a;
}

host_arenas arenas_new(const optimizer *o, const float *w, int64_t elems)
{
    host_arenas a = { .w = mem_f(elems), .grad = mem_f(elems), .slot = { mem_f(elems), mem_f(elems) }, .ema = mem_f(elems) };
    memcpy(a.w, w, (size_t)elems * sizeof *w);
    memcpy(a.ema, w, (size_t)elems * sizeof *w);
    for (int64_t i = 0; o->kind == RMSPROP && i < elems; i++) a.slot[0][i] = 1;
    return a;
}

/* ---- what must come out --------------------------------------------------------------------------------------------------- */

expected expect(const host_arenas *a, int64_t elems)
{
    expected x = { .w = exactly(a->w, elems), .ema = exactly(a->ema, elems) };
    for (int k = 0; k < 2; k++) x.slot[k] = a->slot[k] ? exactly(a->slot[k], elems) : fresh(elems);
    return x;
}

/* One parameter of a step: the values before and after, the errors before (of w and the accumulators) and after. */
typedef struct { double grad, lr, decay, trust, trust_error; oracle_state old, new; double w, slot[2]; } parameter;

static void rmsprop_errors(const en_rmsprop *h, parameter *p)
{
    const double rho = (double)h->rho, mu = (double)h->momentum, g = fabs(p->grad) + p->decay * fabs(p->old.w), eg = p->decay * p->w + 2 * UNIT * g;
    const double inside = p->new.slot[0] + (double)h->eps, step = p->lr * g / sqrt(inside);
    p->slot[0] = rho * p->slot[0] + 2 * g * eg * (1 - rho) + 4 * UNIT * (g * g + p->old.slot[0]);
    p->slot[1] = mu * p->slot[1] + step * (0.5 * p->slot[0] / inside + 8 * UNIT) + p->lr * p->decay * p->w / sqrt(inside)
               + 3 * UNIT * fabs(p->old.slot[1]);
    p->w += p->slot[1] + UNIT * fabs(p->new.w);
}

static void sgd_errors(const en_sgd *h, parameter *p)
{
    const double mu = (double)h->momentum, g = fabs(p->grad) + p->decay * fabs(p->old.w), eg = p->decay * p->w + 2 * UNIT * g;
    p->slot[0] = mu * p->slot[0] + eg + 2 * UNIT * (mu * fabs(p->old.slot[0]) + g);
    double step = fabs(p->new.slot[0]), error = p->slot[0];
    if (h->nesterov) {
        error = eg + mu * p->slot[0] + 2 * UNIT * (g + mu * step);
        step = g + mu * step;
    }
    p->w += p->lr * (error + 2 * UNIT * step) + UNIT * fabs(p->new.w);
}

static void lars_errors(const en_lars *h, parameter *p)
{
    const double mu = (double)h->momentum, g = fabs(p->grad) + p->decay * fabs(p->old.w), eg = p->decay * p->w + 2 * UNIT * g;
    const double rate = p->lr * p->trust, step = rate * g, es = rate * eg + p->lr * p->trust_error * g + 4 * UNIT * step;
    p->slot[0] = mu * p->slot[0] + es + 2 * UNIT * (mu * fabs(p->old.slot[0]) + step);
    double error = p->slot[0];
    if (h->nesterov) error = es + mu * p->slot[0] + 2 * UNIT * (step + mu * fabs(p->new.slot[0]));
    p->w += error + UNIT * fabs(p->new.w);
}

static void adamw_errors(const en_adamw *h, int64_t t, parameter *p)
{
    const double k1 = 1 - h->beta1, k2 = 1 - h->beta2, g = fabs(p->grad), rate = p->lr / (1 - pow(h->beta1, (double)t)),
                 root = 1 / sqrt(1 - pow(h->beta2, (double)t));
    p->slot[0] = h->beta1 * p->slot[0] + 4 * UNIT * k1 * (g + fabs(p->old.slot[0])) + UNIT * fabs(p->new.slot[0]);
    p->slot[1] = h->beta2 * p->slot[1] + 5 * UNIT * k2 * (g * g + p->old.slot[1]) + UNIT * p->new.slot[1];
    const double deviation = sqrt(p->new.slot[1]), below = root * deviation + (double)h->eps, step = rate * fabs(p->new.slot[0]) / below;
    const double wrong = deviation > 0 ? root * 0.5 * p->slot[1] / deviation : 0;
    p->w += p->lr * p->decay * p->w + 4 * UNIT * fabs(p->old.w) + rate * p->slot[0] / below + step * (wrong / below + 8 * UNIT)
          + UNIT * fabs(p->new.w);
}

static void expect_parameter(const optimizer *o, const en_now *now, bool decay, parameter *p, int64_t t)
{
    switch (o->kind) {
    case RMSPROP: p->new = oracle_rmsprop(&o->rmsprop, now, decay, p->grad, p->old); break;
    case SGD:     p->new = oracle_sgd(&o->sgd, now, decay, p->grad, p->old); break;
    case LARS:    p->new = oracle_lars(&o->lars, now, decay, p->trust, p->grad, p->old); break;
    case ADAMW:   p->new = oracle_adamw(&o->adamw, now, decay, t, p->grad, p->old); break;
    }
    switch (o->kind) {
    case RMSPROP: rmsprop_errors(&o->rmsprop, p); break;
    case SGD:     sgd_errors(&o->sgd, p); break;
    case LARS:    lars_errors(&o->lars, p); break;
    case ADAMW:   adamw_errors(&o->adamw, t, p); break;
    }
}

/* Norms are sums in double: what is wrong with the ratio is what was wrong with the weights, and its constants. */
static void expect_trust(const en_lars *h, const en_segment *s, const float *grad, const expected *x, parameter *p)
{
    double w = 0, g = 0, e = 0;
    for (int64_t i = s->offset; i < s->offset + s->elems; i++)
        w += x->w.v[i] * x->w.v[i], g += (double)grad[i] * (double)grad[i], e += x->w.e[i] * x->w.e[i];
    p->trust = s->adapt ? oracle_trust(h, s->decay, sqrt(w), sqrt(g)) : 1;
    p->trust_error = p->trust * ((s->adapt && w > 0 ? 2 * sqrt(e / w) : 0) + 4 * UNIT);
}

static double decay_of(const optimizer *o)
{
    return (double)(o->kind == RMSPROP ? o->rmsprop.weight_decay : o->kind == SGD ? o->sgd.weight_decay : o->kind == LARS ? o->lars.weight_decay
                                                                                                       : o->adamw.weight_decay);
}

void expect_step(const optimizer *o, const en_now *now, const en_segment *segments, int n_segments, const float *grad, expected *x)
{
    const double keep = (double)now->ema_decay;
    x->updates++, x->squares = 0, x->summed = 0;
    for (int s = 0; s < n_segments; s++) {
        parameter p = { .lr = (double)now->lr, .decay = segments[s].decay ? decay_of(o) : 0 };
        if (o->kind == LARS) expect_trust(&o->lars, &segments[s], grad, x, &p);
        for (int64_t i = segments[s].offset; i < segments[s].offset + segments[s].elems; i++) {
            p.grad = (double)grad[i];
            p.old = (oracle_state){ x->w.v[i], { x->slot[0].v[i], x->slot[1].v[i] }, x->ema.v[i] };
            p.w = x->w.e[i], p.slot[0] = x->slot[0].e[i], p.slot[1] = x->slot[1].e[i];
            expect_parameter(o, now, segments[s].decay, &p, x->updates);
            x->ema.e[i] = keep * x->ema.e[i] + 2 * p.w * (1 - keep) + UNIT * fabs(p.new.ema)
                        + 4 * UNIT * (1 - keep) * (fabs(p.old.ema) + fabs(p.new.w));
            x->w.v[i] = p.new.w, x->w.e[i] = p.w, x->ema.v[i] = p.new.ema;
            for (int k = 0; k < 2; k++) x->slot[k].v[i] = p.new.slot[k], x->slot[k].e[i] = p.slot[k];
            x->squares += p.grad * p.grad;
            x->summed++;
        }
    }
}

/* ---- on a device ------------------------------------------------------------------------------------------------------------ */

device_arenas arenas_up(variant *v, const optimizer *o, const host_arenas *a, int64_t elems, bool ema, const double *tally)
{
    device_arenas d = { .w = BOTH_F(v, a->w, elems), .ema = ema ? BOTH_F(v, a->ema, elems) : NULL };
    for (int k = 0; k < optimizer_slots(o); k++) d.slot[k] = BOTH_F(v, a->slot[k], elems);
    d.updates = both(v, mem(sizeof(int64_t)), sizeof(int64_t));
    d.tally = both(v, tally ? tally : mem_d(EN_TALLY), EN_TALLY * sizeof(double));
    return d;
}

en_status update(variant *v, const optimizer *o, const en_now *now, const en_segment *segments, int64_t n_segments, const float *grad,
                 const device_arenas *d)
{
    const struct en_backend_ops *ops = v->be->ops;
    switch (o->kind) {
    case RMSPROP: return ops->rmsprop_update(v->be, &o->rmsprop, now, segments, n_segments, d->w, grad, d->slot[0], d->slot[1], d->ema, d->tally);
    case SGD:     return ops->sgd_update(v->be, &o->sgd, now, segments, n_segments, d->w, grad, d->slot[0], d->ema, d->tally);
    case LARS:    return ops->lars_update(v->be, &o->lars, now, segments, n_segments, d->w, grad, d->slot[0], d->ema, d->tally);
    case ADAMW:   return ops->adamw_update(v->be, &o->adamw, now, segments, n_segments, d->w, grad, d->slot[0], d->slot[1], d->ema, d->updates,
                                           d->tally);
    }
    return EN_EINVAL;
}

void check_arenas(variant *v, const optimizer *o, const device_arenas *d, const expected *x, int64_t elems, bool ema)
{
    check(v, "w", DOWN_F(v, d->w, elems), x->w, elems, elems);
    for (int k = 0; k < optimizer_slots(o); k++)
        check(v, k ? "accumulator 1" : "accumulator 0", DOWN_F(v, d->slot[k], elems), x->slot[k], elems, elems);
    if (ema) check(v, "ema", DOWN_F(v, d->ema, elems), x->ema, elems, elems);
    const double *sums = DOWN_D(v, d->tally, EN_TALLY), got = sums[EN_TALLY_GRAD_SQUARE];
    if (!(fabs(got - x->squares) <= rounding((double)x->summed + 2) * x->squares))
        failed("[%s] sum of squares %.9g want %.9g", v->name, got, x->squares);
    for (int i = 0; i < EN_TALLY_SUMS; i++) if (sums[i] != 0) failed("[%s] tally[%d] became %g", v->name, i, sums[i]);
    const int64_t updates = *(const int64_t *)down(v, d->updates, sizeof updates), want = o->kind == ADAMW ? x->updates : 0;
    if (updates != want) failed("[%s] %d updates were counted, %d made", v->name, (int)updates, (int)want);
}
