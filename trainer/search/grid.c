/* search/grid.c - the candidates of a search.
 *
 * Twice the multiply-adds can be spent on depth (alpha times), on width (multiply-adds grow by beta^2) or on resolution (gamma^2):
 *
 *     alpha * beta^2 * gamma^2 = 2,     alpha, beta, gamma >= 1          arXiv:1905.11946, equation 3 with phi = 1
 *
 * A grid meets this nowhere exactly, so a candidate is what comes near.  Depth, channels and sides are rounded, so two candidates may be
 * the same network. */
#include "trainer/search/search.h"
#include "trainer/sorted.h"

#include "trainer/commands.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_CANDIDATES = 1000 };
#define UNTIL_ENOUGH INT64_C(1000000000000)                  /* steps that no budget of time reaches */

static double rounded(double v) { return round(v * 1e6) / 1e6; }

/* A number or FROM:TO:STEP up to the comma. */
static en_status take_part(const char *option, const char *text, const char **end, double value[], int *n)
{
    double part[3];
    int parts = 0;
    for (const char *p = text; ; p = *end + 1) {
        char *e;
        part[parts] = strtod(p, &e);
        EN_REQUIRE(e != p && isfinite(part[parts]) && (*e == ':' || *e == ',' || !*e), EN_EUSAGE, "--%s '%s': give numbers, as in 1,1.1,1.2, or FROM:TO:STEP, as in "
                   "1:1.4:0.05", option, text);
        *end = e, parts++;
        if (*e != ':' || parts == 3) break;
    }
    EN_REQUIRE(parts != 2 && **end != ':', EN_EUSAGE, "--%s '%s': a range is FROM:TO:STEP, as in 1:1.4:0.05", option, text);
    const double to = parts == 3 ? part[1] : part[0], step = parts == 3 ? part[2] : 1;
    EN_REQUIRE(part[0] >= 1 && to <= 4, EN_EUSAGE, "--%s %g is out of range: factors are 1 to 4", option, part[0] >= 1 ? to : part[0]);
    EN_REQUIRE(to >= part[0] && step > 0, EN_EUSAGE, "--%s '%s': a range goes upwards, as 1:1.4:0.05", option, text);
    const double steps = floor((to - part[0] + 1e-9) / step);           /* sums of steps end near TO, not at it */
    EN_REQUIRE(steps + *n < EN_GRID_VALUES, EN_EUSAGE, "--%s '%s' are more than %d values: take a larger step", option, text, EN_GRID_VALUES);
    for (int i = 0; i <= (int)steps; i++) value[(*n)++] = rounded(part[0] + i * step);
    return EN_OK;
}

en_status en_grid_values(const char *option, const char *text, double value[EN_GRID_VALUES], int *n)
{
    *n = 0;
    for (const char *p = text; ; p++) {
        EN_TRY(take_part(option, p, &p, value, n), "--%s", option);
        if (!*p) break;
    }
    en_sort(value, (size_t)*n);
    int kept = 0;
    for (int i = 0; i < *n; i++)
        if (i == 0 || value[i] != value[kept - 1]) value[kept++] = value[i];
    *n = kept;
    return EN_OK;
}

en_options en_candidate_options(const en_options *o, const en_candidate *c, const char *run)
{
    en_options t = *o;
    t.command = EN_TRAIN;
    t.phi = 1, t.alpha = c->alpha, t.beta = c->beta, t.gamma = c->gamma;
    t.run = run;
    if (o->budget.unit == EN_SPAN_STEPS) t.steps = (int64_t)o->budget.count;
    if (o->budget.unit == EN_SPAN_EPOCHS) t.epochs = o->budget.count;
    if (o->budget.unit == EN_SPAN_SECONDS) t.steps = UNTIL_ENOUGH;       /* the desk ends it */
    t.stop_after = (en_span){ 0 };
    return t;
}

en_status en_grid_make(const en_options *o, en_grid *g)
{
    double alpha[EN_GRID_VALUES], beta[EN_GRID_VALUES], gamma[EN_GRID_VALUES];
    int na, nb, nc;
    *g = (en_grid){ 0 };
    EN_TRY(en_grid_values("alphas", o->alphas, alpha, &na), "the grid");
    EN_TRY(en_grid_values("betas", o->betas, beta, &nb), "the grid");
    EN_TRY(en_grid_values("gammas", o->gammas, gamma, &nc), "the grid");
    g->c = calloc(MOST_CANDIDATES, sizeof *g->c);
    EN_REQUIRE(g->c, EN_ENOMEM, "no memory for candidates");
    g->grid = (int64_t)na * nb * nc;
    int64_t n = 0;
    en_candidate nearest = { .product = INFINITY };
    for (int64_t i = 0; i < g->grid; i++) {
        en_candidate c = { .alpha = alpha[i / nc / nb], .beta = beta[i / nc % nb], .gamma = gamma[i % nc] };
        c.product = c.alpha * c.beta * c.beta * c.gamma * c.gamma;
        snprintf(c.name, sizeof c.name, "a%.7g-b%.7g-g%.7g", c.alpha, c.beta, c.gamma);
        if (fabs(c.product - 2) < fabs(nearest.product - 2)) nearest = c;
        if (fabs(c.product - 2) > o->tolerance + 1e-9) continue;
        if (n < MOST_CANDIDATES) g->c[n] = c;
        n++;
    }
    g->n = (int)(n < MOST_CANDIDATES ? n : MOST_CANDIDATES);
    en_status status = EN_OK;
    EN_REQUIRE_OUT(n > 0, EN_EUSAGE, "none of %lld points of the grid has a product alpha * beta^2 * gamma^2 within %g of 2; the nearest is %.4g, of alpha %g, beta %g, "
                   "gamma %g: give more values, or a larger --tolerance", (long long)g->grid, o->tolerance, nearest.product, nearest.alpha, nearest.beta, nearest.gamma);
    EN_REQUIRE_OUT(n <= MOST_CANDIDATES, EN_EUSAGE, "%lld candidates are within --tolerance %g of 2, more than the %d that a search takes: give fewer values, or a "
                   "smaller --tolerance", (long long)n, o->tolerance, MOST_CANDIDATES);
out:
    if (status != EN_OK) en_grid_free(g);
    return status;
}

en_status en_grid_measure(const en_options *o, int classes, en_grid *g)
{
    for (int i = 0; i < g->n; i++) {
        en_candidate *c = &g->c[i];
        const en_options t = en_candidate_options(o, c, "");
        en_model *m;
        const en_status s = en_model_from_options(&t, classes, 1, &m);
        if (s == EN_OK) {
            c->side = m->resolution, c->params = m->params_trainable, c->macs = m->macs;
            en_model_free(m);
            continue;
        }
        c->result.outcome = EN_FAILED;
        snprintf(c->result.reason, sizeof c->result.reason, "%s", en_error_message());
        en_error_clear();
    }
    for (int i = 0; i < g->n; i++)
        if (g->c[i].result.outcome != EN_FAILED) return EN_OK;
    return en_raise(EN_EUSAGE, __FILE__, __LINE__, __func__, "no candidate can be trained; the first: %s", g->c[0].result.reason);
}

void en_grid_free(en_grid *g)
{
    free(g->c);
    *g = (en_grid){ 0 };
}
