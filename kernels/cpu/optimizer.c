/* optimizer.c - the optimizers, with the moving average of the weights in the same sweep: each arena is read, and all but the
 * gradients are written, once a step.  Before it goes a sweep over the gradients alone: a step counts only if the sum of their
 * squares is finite, and then it is too late to find out on the way.
 *
 * What they share is `sweep`: it walks the segments in pieces that stay in L1, gives each piece to the optimizer's rule, and does the
 * rest while the piece is there.  A rule is a plain loop over a piece, which the compiler vectorises.  Lanes share out the pieces of a
 * segment; their sums are added in lane order. */
#include "passes.h"

#include <math.h>

enum { PIECE = 4096 };

typedef struct { const float *grad; float *w, *first, *second, *ema; } arenas;      /* first, second: accumulators, NULL: none */
typedef struct { int64_t segment, n; float decay; const float *grad; float *w, *first, *second; } piece;
typedef void piece_rule(const void *settings, const piece *p);

/* What a step may change the weights by: a rank that failed, a loss or a gradient that is not a number, leave them as they are. */
static bool step_counts(const double *tally)
{
    return !(tally[EN_TALLY_FAILED] > 0) && isfinite(tally[EN_TALLY_LOSS]) && isfinite(tally[EN_TALLY_GRAD_SQUARE]);
}

static double squares_of(const float *x, int64_t n)    /* a scalar sum would not be vectorised: its order is its meaning */
{
    vd q = { 0 };
    double sum = 0;
    int64_t i = 0;
    for (; i + VW <= n; i += VW) {
        const vd v = __builtin_convertvector(ld(x + i), vd);
        q += v * v;
    }
    for (; i < n; i++) sum += (double)x[i] * x[i];
    for (i = 0; i < VW; i++) sum += q[i];
    return sum;
}

static void average(const float *restrict x, float *restrict shadow, int64_t n, float step)
{
    for (int64_t i = 0; i < n; i++) shadow[i] -= step * (shadow[i] - x[i]);
}

/* tally[GRAD_SQUARE] =: what every optimizer does first */
static void sum_squares(en_backend *be, const en_segment *segments, int64_t n_segments, const float *grad, double *tally)
{
    FOR_EACH_LANE(be, l) {
        double squares = 0;
        for (int64_t k = 0; k < n_segments; k++) {
            const cpu_range pieces = lane_range((segments[k].elems + PIECE - 1) / PIECE, l, be->lanes);
            for (int64_t c = pieces.first; c < pieces.last; c++)
                squares += squares_of(grad + segments[k].offset + c * PIECE, min64(PIECE, segments[k].elems - c * PIECE));
        }
        engine(be)->lane[l].stats[0] = squares;
    }
    double sum = 0;
    for (int l = 0; l < be->lanes; l++) sum += engine(be)->lane[l].stats[0];
    tally[EN_TALLY_GRAD_SQUARE] = sum;
}

static void sweep(en_backend *be, const en_segment *segments, int64_t n_segments, const arenas *a, const en_now *now, float weight_decay,
                  piece_rule *rule, const void *settings, const double *tally)
{
    const float step = 1.f - now->ema_decay;
    if (!step_counts(tally)) return;
    FOR_EACH_LANE(be, l)
        for (int64_t k = 0; k < n_segments; k++) {
            const cpu_range pieces = lane_range((segments[k].elems + PIECE - 1) / PIECE, l, be->lanes);
            for (int64_t c = pieces.first; c < pieces.last; c++) {
                const int64_t at = segments[k].offset + c * PIECE;
                const piece p = { .segment = k, .n = min64(PIECE, segments[k].elems - c * PIECE), .decay = segments[k].decay ? weight_decay : 0.f,
                                  .grad = a->grad + at, .w = a->w + at, .first = a->first ? a->first + at : NULL,
                                  .second = a->second ? a->second + at : NULL };
                rule(settings, &p);
                if (a->ema) average(p.w, a->ema + at, p.n, step);
            }
        }
}

/* ---- RMSProp ------------------------------------------------------------------------------------------------------------ */

typedef struct { float lr, keep, momentum, eps; } rmsprop;

static void rmsprop_piece(const void *settings, const piece *p)
{
    const rmsprop s = *(const rmsprop *)settings;
    const float *restrict grad = p->grad;
    float *restrict w = p->w, *restrict ms = p->first, *restrict mom = p->second;
    const float decay = p->decay;
    for (int64_t i = 0; i < p->n; i++) {
        const float g = grad[i] + decay * w[i];
        const float m = ms[i] + (g * g - ms[i]) * s.keep;
        const float v = s.momentum * mom[i] + s.lr * g / sqrtf(m + s.eps);
        ms[i] = m;
        mom[i] = v;
        w[i] -= v;
    }
}

en_status cpu_rmsprop_update(en_backend *be, const en_rmsprop *h, const en_now *now, const en_segment *segments, int64_t n_segments, float *w,
                             const float *grad, float *ms, float *mom, float *ema, double *tally)
{
    EN_REQUIRE(ms && mom, EN_EINVAL, "RMSProp without its accumulators");
    const rmsprop s = { now->lr, 1.f - h->rho, h->momentum, h->eps };
    sum_squares(be, segments, n_segments, grad, tally);
    sweep(be, segments, n_segments, &(arenas){ grad, w, ms, mom, ema }, now, h->weight_decay, rmsprop_piece, &s, tally);
    return EN_OK;
}

/* ---- SGD ---------------------------------------------------------------------------------------------------------------- */

typedef struct { float lr, momentum; } sgd;

static void sgd_plain_piece(const void *settings, const piece *p)
{
    const sgd s = *(const sgd *)settings;
    const float *restrict grad = p->grad;
    float *restrict w = p->w;
    const float decay = p->decay;
    for (int64_t i = 0; i < p->n; i++) w[i] -= s.lr * (grad[i] + decay * w[i]);
}

static void sgd_momentum_piece(const void *settings, const piece *p)
{
    const sgd s = *(const sgd *)settings;
    const float *restrict grad = p->grad;
    float *restrict w = p->w, *restrict mom = p->first;
    const float decay = p->decay;
    for (int64_t i = 0; i < p->n; i++) {
        const float v = s.momentum * mom[i] + (grad[i] + decay * w[i]);
        mom[i] = v;
        w[i] -= s.lr * v;
    }
}

static void sgd_nesterov_piece(const void *settings, const piece *p)
{
    const sgd s = *(const sgd *)settings;
    const float *restrict grad = p->grad;
    float *restrict w = p->w, *restrict mom = p->first;
    const float decay = p->decay;
    for (int64_t i = 0; i < p->n; i++) {
        const float g = grad[i] + decay * w[i], v = s.momentum * mom[i] + g;
        mom[i] = v;
        w[i] -= s.lr * (g + s.momentum * v);
    }
}

en_status cpu_sgd_update(en_backend *be, const en_sgd *h, const en_now *now, const en_segment *segments, int64_t n_segments, float *w,
                         const float *grad, float *mom, float *ema, double *tally)
{
    EN_REQUIRE(mom || h->momentum == 0, EN_EINVAL, "SGD with momentum %g without its accumulator", (double)h->momentum);
    EN_REQUIRE(h->momentum != 0 || !h->nesterov, EN_EINVAL, "Nesterov's momentum without a momentum");
    const sgd s = { now->lr, h->momentum };
    sum_squares(be, segments, n_segments, grad, tally);
    sweep(be, segments, n_segments, &(arenas){ grad, w, h->momentum != 0 ? mom : NULL, NULL, ema }, now, h->weight_decay,
          h->momentum == 0 ? sgd_plain_piece : h->nesterov ? sgd_nesterov_piece : sgd_momentum_piece, &s, tally);
    return EN_OK;
}

/* ---- LARS --------------------------------------------------------------------------------------------------------------- */

typedef struct { float momentum; bool nesterov; const double *rate; } lars;

static void lars_piece(const void *settings, const piece *p)
{
    const lars s = *(const lars *)settings;
    const float *restrict grad = p->grad;
    float *restrict w = p->w, *restrict mom = p->first;
    const float decay = p->decay, rate = (float)s.rate[p->segment], momentum = s.momentum;
    if (s.nesterov)
        for (int64_t i = 0; i < p->n; i++) {
            const float g = rate * (grad[i] + decay * w[i]), v = momentum * mom[i] + g;
            mom[i] = v;
            w[i] -= g + momentum * v;
        }
    else
        for (int64_t i = 0; i < p->n; i++) {
            const float v = momentum * mom[i] + rate * (grad[i] + decay * w[i]);
            mom[i] = v;
            w[i] -= v;
        }
}

/* Room for the two sums of each lane and for the rate, of every segment. */
static en_status room_for_norms(en_backend *be, int64_t n_segments)
{
    cpu_engine *e = engine(be);
    const size_t need = (size_t)n_segments * (2 * (size_t)be->lanes + 1);
    if (need <= e->norms_size) return EN_OK;
    double *more = realloc(e->norms, need * sizeof *more);
    EN_REQUIRE(more, EN_ENOMEM, "no memory for the norms of %lld tensors", (long long)n_segments);
    e->norms = more;
    e->norms_size = need;
    return EN_OK;
}

/* rate[segment] =, by the norms of its weights and gradients; they lie behind it, two a lane. */
static void rates_by_norms(en_backend *be, const en_lars *h, float lr, const en_segment *segments, int64_t n_segments, const float *w,
                           const float *grad, double *rate)
{
    const int lanes = be->lanes;
    double *sums = rate + n_segments;
    FOR_EACH_LANE(be, l)
        for (int64_t k = 0; k < n_segments; k++) {
            const cpu_range pieces = lane_range((segments[k].elems + PIECE - 1) / PIECE, l, lanes);
            double *mine = sums + 2 * (k * lanes + l);
            mine[0] = mine[1] = 0;
            for (int64_t c = pieces.first; c < pieces.last && segments[k].adapt; c++) {
                const int64_t at = segments[k].offset + c * PIECE, n = min64(PIECE, segments[k].elems - c * PIECE);
                mine[0] += squares_of(w + at, n);
                mine[1] += squares_of(grad + at, n);
            }
        }
    for (int64_t k = 0; k < n_segments; k++) {
        double squares[2] = { 0, 0 };
        for (int l = 0; l < lanes; l++)
            for (int i = 0; i < 2; i++) squares[i] += sums[2 * (k * lanes + l) + i];
        const double wn = sqrt(squares[0]), gn = sqrt(squares[1]), decay = segments[k].decay ? (double)h->weight_decay : 0;
        rate[k] = lr;
        if (wn > 0 && gn > 0) rate[k] *= (double)h->trust * wn / (gn + decay * wn + (double)h->eps);
    }
}

en_status cpu_lars_update(en_backend *be, const en_lars *h, const en_now *now, const en_segment *segments, int64_t n_segments, float *w,
                          const float *grad, float *mom, float *ema, double *tally)
{
    EN_REQUIRE(mom, EN_EINVAL, "LARS without its accumulator");
    EN_TRY(room_for_norms(be, n_segments), "LARS");
    const lars s = { h->momentum, h->nesterov, engine(be)->norms };
    sum_squares(be, segments, n_segments, grad, tally);
    if (step_counts(tally)) rates_by_norms(be, h, now->lr, segments, n_segments, w, grad, engine(be)->norms);
    sweep(be, segments, n_segments, &(arenas){ grad, w, mom, NULL, ema }, now, h->weight_decay, lars_piece, &s, tally);
    return EN_OK;
}

/* ---- AdamW -------------------------------------------------------------------------------------------------------------- */

typedef struct { float lr, step, keep1, keep2, root, eps; } adamw;     /* step = lr/(1 - beta1^t), root = 1/sqrt(1 - beta2^t) */

static void adamw_piece(const void *settings, const piece *p)
{
    const adamw s = *(const adamw *)settings;
    const float *restrict grad = p->grad;
    float *restrict w = p->w, *restrict m = p->first, *restrict v = p->second;
    const float shrink = s.lr * p->decay;
    for (int64_t i = 0; i < p->n; i++) {
        const float g = grad[i];
        const float mean = m[i] + (g - m[i]) * s.keep1;
        const float square = v[i] + (g * g - v[i]) * s.keep2;
        m[i] = mean;
        v[i] = square;
        w[i] = (w[i] - shrink * w[i]) - s.step * mean / (sqrtf(square) * s.root + s.eps);
    }
}

en_status cpu_adamw_update(en_backend *be, const en_adamw *h, const en_now *now, const en_segment *segments, int64_t n_segments, float *w,
                           const float *grad, float *m, float *v, float *ema, int64_t *updates, double *tally)
{
    EN_REQUIRE(m && v && updates, EN_EINVAL, "AdamW without its accumulators or its count of updates");
    const double t = (double)(*updates + 1);
    const adamw s = { .lr = now->lr, .step = (float)((double)now->lr / (1 - pow(h->beta1, t))), .keep1 = (float)(1 - h->beta1),
                      .keep2 = (float)(1 - h->beta2), .root = (float)(1 / sqrt(1 - pow(h->beta2, t))), .eps = h->eps };
    sum_squares(be, segments, n_segments, grad, tally);
    if (step_counts(tally)) ++*updates;
    sweep(be, segments, n_segments, &(arenas){ grad, w, m, v, ema }, now, h->weight_decay, adamw_piece, &s, tally);
    return EN_OK;
}

/* ------------------------------------------------------------------------------------------------------------------------- */

en_status cpu_ema_update(en_backend *be, const en_now *now, int64_t elems, const float *x, float *shadow, const double *tally)
{
    (void)be;
    if (step_counts(tally)) average(x, shadow, elems, 1.f - now->ema_decay);
    return EN_OK;
}
