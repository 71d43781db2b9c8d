/* scaling/measure_rounds.c - one set of figures of several rounds.
 *
 * A machine that others use too is faster in one minute than in the next, and two numbers of ranks that were measured one after the other then
 * differ by the weather.  With --rounds each number is measured so many times, in turn, and what counts is the median over all of it: steps are
 * put one behind the other, and each size of a sum is what it was in the middle one of the rounds. */
#include "trainer/scaling/measure.h"
#include "trainer/sorted.h"

#include <stdlib.h>
#include <string.h>

en_status en_run_lines_append(en_run_lines *to, en_run_lines *more)
{
    if (to->n == 0) {
        *to = *more;
        *more = (en_run_lines){ 0 };
        return EN_OK;
    }
    en_step_line *line = realloc(to->line, (size_t)(to->n + more->n) * sizeof *line);
    EN_REQUIRE(line, EN_ENOMEM, "no memory for %d steps", to->n + more->n);
    memcpy(line + to->n, more->line, (size_t)more->n * sizeof *line);
    to->line = line;
    to->n += more->n;
    to->account.steps += more->account.steps;
    for (int i = 0; i <= EN_COSTS; i++) {
        en_spread *a = i < EN_COSTS ? &to->account.of[i] : &to->account.wall;
        const en_spread *b = i < EN_COSTS ? &more->account.of[i] : &more->account.wall;
        a->mean += b->mean, a->low += b->low, a->high += b->high;
    }
    en_run_lines_free(more);
    return EN_OK;
}

en_status en_count_alone(en_count *k)
{
    k->alone_step_s = 0;
    for (int rank = 0; rank < k->ranks; rank++) {
        const en_run_lines *l = &k->alone[rank];
        if (l->n == 0) continue;
        double *v = malloc((size_t)l->n * sizeof *v);
        EN_REQUIRE(v, EN_ENOMEM, "no memory for %d steps", l->n);
        for (int i = 0; i < l->n; i++) v[i] = en_line_step_s(&l->line[i], k->global_batch / k->ranks);
        const double median = comm_spread_of(v, l->n).median;
        free(v);
        if (median > k->alone_step_s) k->alone_step_s = median, k->alone_rank = rank;
    }
    if (k->n_met == 0) return EN_OK;
    double *v = malloc((size_t)k->n_met * sizeof *v);
    EN_REQUIRE(v, EN_ENOMEM, "no memory for %d steps", k->n_met);
    memcpy(v, k->met, (size_t)k->n_met * sizeof *v);
    k->meeting = comm_spread_of(v, k->n_met);
    free(v);
    return EN_OK;
}

/* One size in the middle of the rounds; rounds that left it out, as too slow, have no say. */
static double middle(const en_measured_sums *round, int rounds, bool gradients, double bytes)
{
    double v[EN_MOST_ROUNDS];
    size_t n = 0;
    for (int r = 0; r < rounds; r++) {
        const en_measured_sum *sum = gradients ? round[r].gradients : round[r].small;
        const int sums = gradients ? round[r].n_gradients : round[r].n_small;
        for (int i = 0; i < sums; i++)
            if (sum[i].bytes == bytes) v[n++] = sum[i].seconds;
    }
    en_sort(v, n);
    return en_quantile(v, n, 0.5);
}

void en_measured_sums_middle(const en_measured_sums *round, int rounds, en_measured_sums *out)
{
    *out = (en_measured_sums){ 0 };
    for (int r = 0; r < rounds; r++)                        /* the round that has most sizes says which */
        if (round[r].n_gradients > out->n_gradients || (round[r].n_gradients == out->n_gradients && round[r].n_small > out->n_small)) *out = round[r];
    for (int i = 0; i < out->n_gradients; i++) out->gradients[i].seconds = middle(round, rounds, true, out->gradients[i].bytes);
    for (int i = 0; i < out->n_small; i++) out->small[i].seconds = middle(round, rounds, false, out->small[i].bytes);
}
