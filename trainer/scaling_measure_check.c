/* scaling_measure_check.c - figures of what was measured, and whether the rank counts computed the same.
 *
 * Equal global batches are equal steps but for the order in which float sums are taken.  tests/test_program_ranks.c measures what that
 * makes of the losses: 7e-6 over 20 steps at --lr 0.0003, which is held to 1e-4 there and here.  At the default rate such a difference
 * grows threefold a step, so runs that are compared train at 0.0003, and 20 steps of them are compared.  Activations in bf16 round at
 * 2^-9, and a rounding that falls the other way is one of 2^-8: 1e-2 there. */
#include "trainer/scaling_measure.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

double en_loss_tolerance(const en_options *o)
{
    return strcmp(o->precision, "bf16") == 0 || (strcmp(o->precision, "auto") == 0 && strcmp(o->device, "cuda") == 0) ? 1e-2 : 1e-4;
}

int64_t en_losses_wrong(const double *a, const double *b, int n, double tolerance, double *apart)
{
    int64_t wrong = 0;
    *apart = 0;
    for (int i = 0; i < n; i++) {
        const double d = fabs(a[i] - b[i]) / fabs(b[i]);
        if (!(d <= tolerance)) wrong++;                     /* a loss that is no number, too */
        if (!(d <= *apart)) *apart = d;
    }
    return wrong;
}

void en_count_figures(en_count *k)
{
    const en_run_lines *l = &k->lines;
    double *v = malloc((size_t)l->n * sizeof *v);
    k->rate = k->step = (comm_spread){ NAN, NAN, NAN };
    for (int i = 0; v && i < l->n; i++) v[i] = l->line[i].images_per_s;
    if (v) k->rate = comm_spread_of(v, l->n);
    for (int i = 0; v && i < l->n; i++) v[i] = (double)k->global_batch / l->line[i].images_per_s;
    if (v) k->step = comm_spread_of(v, l->n);
    free(v);
    for (int i = 0; i < EN_COSTS; i++) {
        k->part[i] = l->account.of[i].mean / (double)l->account.steps;
        k->least[i] = l->account.of[i].low / (double)l->account.steps;
        k->most[i] = l->account.of[i].high / (double)l->account.steps;
    }
}

static void check_results(const en_study *s, en_count *k)
{
    const bool strong = s->o->strong;
    const double *mine = strong ? k->lines.loss : k->check, *first = strong ? s->base->lines.loss : s->base->check;
    const int a = strong ? k->lines.n_losses : k->n_check, b = strong ? s->base->lines.n_losses : s->base->n_check, both = a < b ? a : b;
    k->checked = k == s->base ? 0 : both < EN_COMPARED_STEPS ? both : EN_COMPARED_STEPS;
    k->wrong = k->checked > 0 ? en_losses_wrong(mine, first, (int)k->checked, en_loss_tolerance(s->o), &k->apart) : 0;
}

bool en_study_nccl(const en_study *s)
{
    for (int i = 0; i < s->counts; i++)
        if (s->count[i].nccl) return true;
    return false;
}

void en_study_compare(en_study *s)
{
    s->base = NULL;
    for (int i = 0; i < s->counts; i++) {
        en_count *k = &s->count[i];
        if (k->state != EN_COUNT_MEASURED) continue;
        if (!s->base) s->base = k;
        k->speedup = k->rate.median / s->base->rate.median;
        k->efficiency = k->speedup * s->base->ranks / k->ranks;
        check_results(s, k);
    }
}
