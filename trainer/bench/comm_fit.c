/* bench/comm_fit.c - from times to a latency and a bandwidth.
 *
 *     seconds(x) = alpha + x/beta = alpha*(1 + e^u * x/largest x)            x: bus bytes
 *
 * Times reach from microseconds to seconds, so errors are counted in parts, as differences of logarithms; and on a machine that others use too
 * some times are far too long, so what is least is the sum of the differences themselves, not of their squares, which would follow those.
 * For a given u the best log alpha is the median of what is left for it, and what remains is the least over one number, which is looked
 * for on a grid and then between its neighbours.  Both ends of the grid mean something: at the lower one the size makes no difference (beta is infinite),
 * at the upper one there is no latency.
 *
 * MPI sends small messages at once and asks before it sends large ones, so that latency and bandwidth are not the same over all sizes:
 * two pieces then fit better than one, cut where the differences of both together are least. */
#include "trainer/bench/comm.h"
#include "trainer/sorted.h"

#include <math.h>
#include <stdlib.h>

comm_spread comm_spread_of(double *v, int n)
{
    if (n < 1) return (comm_spread){ NAN, NAN, NAN };
    en_sort(v, (size_t)n);
    return (comm_spread){ .median = en_quantile(v, (size_t)n, 0.5), .p10 = en_quantile(v, (size_t)n, 0.1), .p90 = en_quantile(v, (size_t)n, 0.9) };
}

/* ---- the fit ----------------------------------------------------------------------------------------------------------------- */

static const double u_least = -12, u_most = 24, u_step = 0.25;         /* e^-12: the largest message takes 6 millionths longer than none */

typedef struct { const double *x, *t; int n; double *left; } points;   /* left: room for n */

/* The sum of differences at u, and the alpha that makes it so small. */
static double differences(const points *p, double u, double *alpha)
{
    const double q = exp(u) / p->x[p->n - 1];
    double sum = 0;
    for (int i = 0; i < p->n; i++) p->left[i] = log(p->t[i]) - log1p(q * p->x[i]);
    en_sort(p->left, (size_t)p->n);
    const double middle = en_quantile(p->left, (size_t)p->n, 0.5);
    for (int i = 0; i < p->n; i++) sum += fabs(p->left[i] - middle);
    *alpha = exp(middle);
    return sum;
}

static double piece_of(const points *p, comm_piece *out)
{
    double alpha, best = u_least, least = differences(p, u_least, &alpha);
    for (double u = u_least; u <= u_most; u += u_step) {
        const double s = differences(p, u, &alpha);
        if (s < least) least = s, best = u;
    }
    double low = fmax(best - u_step, u_least), high = fmin(best + u_step, u_most);
    for (int i = 0; i < 60; i++) {                                      /* golden section: a factor 0.618 a round */
        const double golden = 0.6180339887498949, a = high - golden * (high - low), b = low + golden * (high - low);
        if (differences(p, a, &alpha) < differences(p, b, &alpha)) high = b;
        else low = a;
    }
    const double u = (low + high) / 2, s = differences(p, u, &alpha), largest = p->x[p->n - 1];
    const bool flat = u < u_least + 1e-6;
    *out = (comm_piece){ .alpha_s = alpha, .bytes_per_s = flat ? INFINITY : largest / (alpha * exp(u)), .up_to = INFINITY };
    for (int i = 0; i < p->n; i++) {
        const double e = fabs((out->alpha_s + p->x[i] / out->bytes_per_s) / p->t[i] - 1);
        if (e >= out->error) out->error = e, out->error_at = p->x[i];
        out->usual_error += e / p->n;
    }
    return s;
}

static comm_fit fit_of(const points *all)
{
    const double *x = all->x, *t = all->t;
    const int n = all->n;
    comm_fit f = { .points = n, .pieces = 1 };
    const double one = piece_of(all, &f.piece[0]);
    if (f.piece[0].error <= 0.1) return f;
    double least = INFINITY;
    comm_piece two[COMM_PIECES] = { 0 };
    for (int k = COMM_PIECE_POINTS; k + COMM_PIECE_POINTS <= n; k++) {
        const points left = { x, t, k, all->left }, right = { x + k, t + k, n - k, all->left };
        comm_piece a, b;
        const double s = piece_of(&left, &a) + piece_of(&right, &b);
        if (s >= least) continue;
        least = s;
        a.up_to = sqrt(x[k - 1] * x[k]);
        two[0] = a, two[1] = b;
    }
    if (least > 0.5 * one) return f;
    f.pieces = COMM_PIECES;
    f.piece[0] = two[0], f.piece[1] = two[1];
    return f;
}

comm_fit comm_fit_of(const double *bus_bytes, const double *seconds, int n)
{
    comm_fit f = { .points = n };
    if (n < 2 || bus_bytes[n - 1] <= 0) return f;
    points all = { bus_bytes, seconds, n, malloc((size_t)n * sizeof *all.left) };
    if (!all.left) return f;
    f = fit_of(&all);
    free(all.left);
    return f;
}

double comm_fit_seconds(const comm_fit *f, double bus_bytes)
{
    if (f->pieces == 0) return NAN;
    int k = 0;
    while (k + 1 < f->pieces && bus_bytes > f->piece[k].up_to) k++;
    return f->piece[k].alpha_s + bus_bytes / f->piece[k].bytes_per_s;
}
