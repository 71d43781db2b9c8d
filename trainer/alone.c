/* alone.c - `effnet train --alone`: every rank trains by itself, and what they would wait for each other is found without a sum.
 *
 * With synchronised batch norm all ranks meet some hundred times a step, and go on when the last one is there.  So the computing of a step is
 *
 *     sum over gaps j of  max over ranks r of  gap[r][j]          a gap: from one such sum to the next
 *
 * and not the maximum of the ranks' sums.  Where ranks are disturbed in turn, by an interrupt here and a daemon there, the first is larger: each
 * delay is everybody's (Petrini, Kerbyson, Pakin: The Case of the Missing Supercomputer Performance, 2003).  Ranks that train by themselves, at
 * the same time on the same machines, note their gaps; rank 0 puts them together behind the last step:
 *
 *     DIR/meetings.csv      step, seconds as above, of all passes of the step          (DIR: --metrics)
 *     DIR/rank-R/           metrics.jsonl of rank R
 *
 * On a device that queues its passes the host does not see gaps, and there are no meetings. */
#include "comm/watch.h"
#include "trainer/bench/comm.h"
#include "trainer/commands.h"
#include "trainer/run.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_GAPS = 1 << 26 };                /* of all ranks: rank 0 has room for them                                  */

typedef struct {
    en_gaps gaps;                            /* of the first steps, one behind the other; s owned                       */
    int64_t most;                            /* how many of them at most                                                */
    int64_t steps, a_step, passes;           /* noted; gaps of each, -1: steps differ, as with stages; passes of each   */
    bool    full;
} notebook;

/* Before the first step, and after each. */
static en_status look(void *context, const en_run *run, bool *enough)
{
    notebook *b = context;
    *enough = false;
    EN_REQUIRE(!run->metrics_fail, EN_EIO, "its metrics cannot be written, and nothing else is left of a rank by itself: is the disk full?");
    if (run->t.be->captures || b->full) return EN_OK;
    const int64_t n = b->gaps.n - b->steps * b->a_step;
    if (run->t.state.step > 0 && b->a_step >= 0) {
        if (b->steps++ == 0) b->a_step = b->gaps.n;
        else if (n != b->a_step) b->a_step = -1;
    }
    b->passes = run->t.shard.accum;
    b->full = b->a_step < 0 || (b->steps + 1) * b->a_step > b->most;
    en_net_keep_gaps(run->t.net, b->full ? NULL : &b->gaps);             /* each stage has a net of its own */
    return EN_OK;
}

void en_put_together(const double *gaps, int ranks, int64_t steps, int64_t a_step, double *out)
{
    for (int64_t i = 0; i < steps; i++) {
        out[i] = 0;
        for (int64_t j = 0; j < a_step; j++) {
            double longest = 0;
            for (int r = 0; r < ranks; r++) longest = fmax(longest, gaps[(r * steps + i) * a_step + j]);
            out[i] += longest;
        }
    }
}

static en_status write_meetings(const char *folder, const double *met, int64_t steps)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/meetings.csv", folder);
    FILE *f = fopen(path, "w");
    EN_REQUIRE(f, EN_EIO, "%s cannot be written: %s; choose another --metrics", path, strerror(errno));
    fprintf(f, "step,seconds\n");
    for (int64_t i = 0; i < steps; i++) fprintf(f, "%" PRId64 ",%.9g\n", i + 1, met[i]);
    const bool bad = ferror(f);
    EN_REQUIRE((fclose(f) == 0) & !bad, EN_EIO, "%s cannot be written: %s; choose another --metrics", path, strerror(errno));
    return EN_OK;
}

/* Medians over the steps: of the fastest and the slowest rank by itself, and of all together. */
static en_status tell(const en_comm *world, const notebook *b, const double *all, double *met, const char *folder)
{
    double least = INFINITY, most = 0;
    double *own = malloc((size_t)b->steps * sizeof *own);
    EN_REQUIRE(own, EN_ENOMEM, "no memory for %" PRId64 " steps", b->steps);
    en_put_together(all, world->world_size, b->steps, b->a_step, met);
    for (int r = 0; r < world->world_size; r++) {
        en_put_together(all + r * b->steps * b->a_step, 1, b->steps, b->a_step, own);
        const double median = comm_spread_of(own, (int)b->steps).median;
        least = fmin(least, median), most = fmax(most, median);
    }
    free(own);
    const en_status status = folder[0] ? write_meetings(folder, met, b->steps) : EN_OK;
    printf("forward and backward of a step: %.1f to %.1f ms, each rank by itself; %.1f ms, if they waited for each other at each of %" PRId64 " sums (medians of %" PRId64 " steps)\n",
           1e3 * least, 1e3 * most, 1e3 * comm_spread_of(met, (int)b->steps).median, b->a_step - b->passes, b->steps);
    return status;
}

/* Collective.  Nothing where the ranks did not do the same. */
static en_status meet(en_comm *world, const notebook *b, const char *folder)
{
    en_status status = EN_OK;
    const double steps = (double)b->steps, a_step = (double)b->a_step, ranks = world->world_size, mine[4] = { steps, steps * steps, a_step, a_step * a_step };
    double all[4], *gaps = NULL;
    EN_TRY(world->ops->sum_f64(world, mine, all, 4), "meeting");
    if (all[0] <= 0 || all[2] <= 0 || ranks * all[1] != all[0] * all[0] || ranks * all[3] != all[2] * all[2]) return EN_OK;    /* numbers that are not all the same */
    const size_t n = (size_t)(b->steps * b->a_step);
    if (world->rank == 0) gaps = malloc((n * (size_t)world->world_size + (size_t)b->steps) * sizeof *gaps);
    EN_TRY_OUT(en_agree(world, world->rank == 0 && !gaps ? en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory for the steps of %d ranks", world->world_size) : EN_OK), "meeting");
    EN_TRY_OUT(world->ops->gather(world, b->gaps.s, n * sizeof *gaps, gaps, 0), "meeting");
    EN_TRY_OUT(en_agree(world, world->rank == 0 ? tell(world, b, gaps, gaps + n * (size_t)world->world_size, folder) : EN_OK), "meeting");
out:
    free(gaps);
    return status;
}

static en_status check(const en_options *o, const en_comm *world)
{
    EN_REQUIRE(!o->run[0], EN_EUSAGE, "--alone measures ranks, each of which trains by itself, and saves nothing: leave --run out, or --alone; --metrics DIR writes what they measure");
    EN_REQUIRE(!o->dump[0], EN_EUSAGE, "--dump compares with another framework: run it on one rank, without --alone");
    EN_REQUIRE(!o->cache[0] || world->local_size == 1 || strncmp(o->data, "synthetic", 9) == 0, EN_EUSAGE, "--cache would keep the images once for each of %d ranks on host %s: "
               "leave it out with --alone", world->local_size, world->host);
    EN_REQUIRE(strlen(o->metrics) < 4000, EN_EUSAGE, "--metrics is longer than a path can be");
    return EN_OK;
}

en_status en_train_alone(const en_options *asked, en_comm *world)
{
    char folder[4096];
    en_options o = *asked;
    en_comm *own = NULL;
    notebook b = { .most = MOST_GAPS / world->world_size };
    en_training part = { .context = &b, .look = look };
    EN_TRY(en_agree(world, check(&o, world)), "reading the options");
    snprintf(folder, sizeof folder, "%.4000s/rank-%d", o.metrics, world->rank);
    EN_TRY(world->ops->split(world, world->rank, &own), "parting the ranks");
    own->local_rank = world->local_rank;                   /* cores and GPUs are shared out with the others of this host; ranks that share a GPU each plan all of it */
    own->local_size = world->local_size;
    if (world->rank > 0 && !freopen("/dev/null", "w", stdout)) clearerr(stdout);       /* they would all say the same */
    if (world->world_size > 1) en_watch_apart();
    en_status s = EN_OK;
    if (o.metrics[0]) {
        o.metrics = folder;
        s = en_make_folder(folder, "--metrics");
    }
    if (s == EN_OK) s = en_train(&o, own, &part);
    if (s != EN_OK && world->world_size > 1) {             /* the others would train on */
        en_report_error(world, s);
        en_comm_abort(world, en_status_exit_code(s));
    }
    if (s == EN_OK) s = meet(world, &b, asked->metrics);
    free(b.gaps.s);
    en_comm_close(own);
    return s;
}
