/* search/search.c - `effnet search`: a grid of candidates, each trained for the same budget, ranked by validation top-1 (search/search.h).
 *
 * The world is split into groups of --candidate-ranks; each trains one candidate at a time (search/desk.c).  A candidate is what
 * `effnet train --phi 1 --alpha A --beta B --gamma C` trains, and RUN/<candidate> is its run. */
#define _GNU_SOURCE
#include "trainer/search/search.h"

#include "comm/watch.h"
#include "data/data.h"
#include "trainer/commands.h"
#include "trainer/run.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- before anything is trained, on rank 0 ---------------------------------------------------------------------------------- */

static en_status check(const en_options *o)
{
    const bool by_time = o->budget.unit == EN_SPAN_SECONDS;
    EN_REQUIRE(o->budget.count > 0, EN_EUSAGE, "--budget: for how long is each candidate trained? Steps (400), epochs (5e) or time (10m)");
    EN_REQUIRE(o->run[0], EN_EUSAGE, "--run DIR: where shall the candidates' checkpoints and the ranking go?");
    EN_REQUIRE(strlen(o->run) < 3800, EN_EUSAGE, "--run is longer than a path can be");
    EN_REQUIRE(!o->stop_after.count || o->stop_after.unit == EN_SPAN_SECONDS, EN_EUSAGE, "--stop-after stops a whole search: give a time, as 3h50m");
    EN_REQUIRE(!by_time || strcmp(o->lr_schedule, "exponential") == 0 || strcmp(o->lr_schedule, "constant") == 0, EN_EUSAGE, "--lr-schedule %s ends with the last step, which "
               "a --budget of time does not know: give steps or epochs", o->lr_schedule);
    EN_REQUIRE(strcmp(o->recipe, "finetune") != 0, EN_EUSAGE, "--recipe finetune begins with the weights of another network, and candidates are trained from scratch: leave it out, "
               "or choose another recipe");
    return EN_OK;
}

static en_status open_folder(const en_options *o, int *lock)
{
    char path[4096];
    EN_TRY(en_make_folder(o->run, "--run"), "the search's folder");
    snprintf(path, sizeof path, "%s/search.lock", o->run);
    *lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    EN_REQUIRE(*lock >= 0, EN_EIO, "%s cannot be written: %s; choose another --run", path, strerror(errno));
    EN_REQUIRE(en_take_lock(*lock, o->run), EN_EUSAGE, "another search is in %s; choose another --run, or wait for it", o->run);
    return EN_OK;
}

/* Classes and number of the training images, and whether there is something to rank by. */
static en_status look_at_images(const en_options *o, int *classes, int64_t *samples)
{
    en_dataset *train = NULL, *val = NULL;
    EN_REQUIRE(o->data[0], EN_EUSAGE, "which images? --data DIR (DIR/train/<class>/..., DIR/val/<class>/...)");
    en_watch_at(EN_STARTUP, "listing the images");
    EN_TRY(en_dataset_open(o->data, "train", NULL, &train), "opening the training images");
    *classes = train->classes;
    *samples = train->samples;
    en_status status = EN_OK;
    EN_REQUIRE_OUT(o->val[0] || en_dataset_has(o->data, "val"), EN_EDATA, "%s has no validation images, and candidates are ranked by them: give it a folder val, or --val", o->data);
    EN_TRY_OUT(en_dataset_open(o->val[0] ? o->val : o->data, "val", train, &val), "opening the validation images");
    EN_REQUIRE_OUT(val->samples > 0, EN_EDATA, "%s has no validation images, and candidates are ranked by them", val->source);
out:
    en_dataset_close(train);
    en_dataset_close(val);
    return status;
}

static en_status prepare(en_search *s, en_options *o, int *lock)
{
    int classes;
    int64_t samples;
    EN_TRY(check(o), "checking the options");
    EN_TRY(look_at_images(o, &classes, &samples), "looking at the images");
    EN_TRY(en_grid_measure(o, classes, s->grid), "the candidates");
    EN_TRY(open_folder(o, lock), "opening the search's folder");
    if (!o->global_batch && en_search_begun(o->run)) o->global_batch = en_search_recall(o->run, "global-batch");       /* not of today's number of ranks */
    if (o->global_batch <= 0) o->global_batch = en_default_batch(o->candidate_ranks, samples);
    EN_TRY(en_search_keep_options(o), "going on");                                            /* last: nothing refuses them any more */
    for (int i = 0; i < s->grid->n; i++) {
        en_candidate *c = &s->grid->c[i];
        char folder[4096], why[300];
        snprintf(folder, sizeof folder, "%s/%s", o->run, c->name);
        if (c->result.outcome == EN_OPEN) en_result_read(folder, c, why);
        else why[0] = 0;
        if (why[0]) fprintf(stderr, "effnet: %s\n", why);
    }
    return EN_OK;
}

static void announce(const en_search *s, const en_options *o)
{
    const en_grid *g = s->grid;
    FILE *f = s->out;
    char budget[48];
    int known = 0;
    for (int i = 0; i < g->n; i++) known += g->c[i].result.outcome != EN_OPEN;
    const int left = s->world->world_size - s->groups * s->group_ranks;
    en_span_write(&o->budget, budget, sizeof budget);
    fprintf(f, "search in %s\n  candidates  %d of a grid of %" PRId64 ": alpha * beta^2 * gamma^2 within %g of 2; %d known already\n", o->run, g->n, g->grid, o->tolerance, known);
    const bool by_time = o->budget.unit == EN_SPAN_SECONDS;
    fprintf(f, "  each        trained for %s%s, %" PRId64 " images a step%s\n", budget, o->budget.unit == EN_SPAN_STEPS ? " steps" : by_time ? " of steps" : " (epochs)", o->global_batch,
            by_time ? ": how many that are depends on the machine, so the ranking does, too" : "");
    if (strcmp(o->recipe, "efficientnetv2") == 0) fprintf(f, "  recipe      efficientnetv2, trained without its stages: every candidate sees images of its full size throughout\n");
    fprintf(f, "  side by side %d group%s of %d rank%s", s->groups, s->groups == 1 ? "" : "s", s->group_ranks, s->group_ranks == 1 ? "" : "s");
    if (left > 0) fprintf(f, "; %d rank%s left over: --candidate-ranks does not divide %d", left, left == 1 ? " is" : "s are", s->world->world_size);
    if (s->groups > g->n - known && g->n > known) fprintf(f, "; %d candidate%s to train: a larger --candidate-ranks would use all", g->n - known, g->n - known == 1 ? " is" : "s are");
    fprintf(f, "\n");
    fflush(f);
}

/* ---- the command -------------------------------------------------------------------------------------------------------------- */

static en_status split(en_search *s, en_comm **group)
{
    en_comm *w = s->world;
    s->group_ranks = (int)(s->o->candidate_ranks < w->world_size ? s->o->candidate_ranks : w->world_size);
    s->groups = w->world_size / s->group_ranks;
    EN_REQUIRE(s->o->candidate_ranks <= w->world_size, EN_EUSAGE, "--candidate-ranks %" PRId64 ", but there %s %d rank%s: start more, or give fewer", s->o->candidate_ranks,
               w->world_size == 1 ? "is" : "are", w->world_size, w->world_size == 1 ? "" : "s");
    EN_TRY(w->ops->split(w, w->rank / s->group_ranks, group), "making groups of ranks");
    EN_REQUIRE(!s->o->cache[0] || s->groups == 1 || w->local_size == (*group)->local_size, EN_EUSAGE, "--cache keeps the images once for each candidate under way, and several "
               "would be on host %s: leave it out, or give a --candidate-ranks of all %d ranks there", w->host, w->local_size);
    (*group)->local_rank = w->local_rank;                    /* cores, memory and GPUs are shared with the other groups of this host */
    (*group)->local_size = w->local_size;
    if (w->rank < s->groups * s->group_ranks) s->group = *group;
    return EN_OK;
}

/* Candidates are written by the first rank of each group, and known to rank 0: --run is one folder for all.  A network file system may take
 * some seconds to show what another machine has just written. */
static en_status check_one_folder(const en_search *s)
{
    char path[4096];
    if (!s->group || s->group->rank > 0) return EN_OK;
    snprintf(path, sizeof path, "%s/search.txt", s->o->run);
    for (const double until = en_seconds() + 10; access(path, R_OK) != 0;) {
        EN_REQUIRE(en_seconds() < until, EN_EDATA, "host %s does not see %s, which rank 0 has written: --run of a search is one folder that all ranks share, on a network "
                   "file system where they are on several machines", s->world->host, path);
        nanosleep(&(struct timespec){ .tv_nsec = 100000000 }, NULL);
    }
    return EN_OK;
}

static en_status finish(const en_search *s, const en_options *o, en_status status)
{
    const en_grid *g = s->grid;
    int known = 0, done = 0;
    for (int i = 0; i < g->n; i++) known += g->c[i].result.outcome != EN_OPEN, done += g->c[i].result.outcome == EN_DONE;
    EN_TRY(en_search_write(o, g), "writing the ranking");
    if (status == EN_ESTOPPED) {
        fprintf(s->out, "stopped on request: %d of %d candidates are known; the same command goes on\n", known, g->n);
    } else {
        en_search_print(o, g, s->out);
        fprintf(s->out, "in %s: search.csv, search.json, search.svg, and a folder for each candidate\n", o->run);
    }
    if (o->json) en_search_print_json(o, g, stdout);
    errno = 0;
    const bool written = fflush(s->out) == 0 && !ferror(s->out);
    EN_REQUIRE(written, EN_EIO, "standard output cannot be written: %s; the ranking is in %s", strerror(errno ? errno : EIO), o->run);
    EN_REQUIRE(status == EN_ESTOPPED || done > 0, EN_EDIVERGED, "all %d candidates failed; the first: %s", g->n, g->c[0].result.reason);
    return EN_OK;
}

static en_status search(const en_options *asked, en_comm *world)
{
    en_options o = *asked;
    en_grid grid = { 0 };
    en_search s = { .o = &o, .world = world, .grid = &grid, .out = asked->json ? stderr : NULL };
    en_comm *group = NULL;
    int lock = -1;
    const bool root = world->rank == 0;
    en_status status = EN_OK;
    EN_TRY_OUT(en_agree(world, en_grid_make(&o, &grid)), "the grid");
    EN_TRY_OUT(en_check_same_options(world, asked), "comparing the options of the ranks");
    EN_TRY_OUT(en_agree(world, split(&s, &group)), "groups");
    EN_TRY_OUT(en_agree(world, root ? prepare(&s, &o, &lock) : EN_OK), "starting");
    EN_TRY_OUT(en_agree(world, check_one_folder(&s)), "looking for the search's folder");
    EN_TRY_OUT(world->ops->broadcast(world, &o.global_batch, sizeof o.global_batch, 0), "sharing the global batch");
    if (root && !s.out) {                                    /* standard output is the candidates' logs' while rank 0 trains */
        const int fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
        s.out = fd >= 0 ? fdopen(fd, "w") : NULL;
    }
    EN_TRY_OUT(en_agree(world, !root || s.out ? EN_OK : en_raise(EN_EIO, __FILE__, __LINE__, __func__, "standard output: %s", strerror(errno))), "starting");
    if (root) announce(&s, &o);
    status = en_search_work(&s);
    if (status != EN_OK && status != EN_ESTOPPED) {          /* the other groups do not know, and go on until they are ended */
        if (en_report_hushed()) sleep(1);
        en_report_error(world, status);
        en_comm_abort(world, en_status_exit_code(status));
    }
    const bool stopped = status == EN_ESTOPPED;
    EN_TRY_OUT(en_agree(world, root ? finish(&s, &o, status) : EN_OK), "ending the search");
    if (stopped) status = EN_ESTOPPED;
out:
    if (root && s.out && s.out != stderr) fclose(s.out);
    if (group) group->ops->close(group);
    if (lock >= 0) close(lock);
    en_grid_free(&grid);
    return status;
}

static en_status list(const en_options *o)
{
    en_grid g;
    int classes = 0, world_size;
    int64_t samples;
    if (en_launch_rank(&world_size) > 0) return EN_OK;
    EN_TRY(en_grid_make(o, &g), "the grid");
    en_status status = EN_OK;
    if (o->data[0]) EN_TRY_OUT(look_at_images(o, &classes, &samples), "looking at the images");
    EN_TRY_OUT(en_grid_measure(o, classes, &g), "the candidates");
    en_search_list(o, &g);
out:
    en_grid_free(&g);
    return status;
}

en_status en_command_search(const en_options *o)
{
    en_comm *world = NULL;
    if (o->list) return list(o);
    EN_TRY(en_watch_as_asked(o, o->run[0] ? "the same command goes on" : NULL), "starting");
    EN_TRY(en_comm_open(&world), "starting the ranks");
    en_stop_on_signals();
    setenv("EFFNET_LIVE", "0", 1);                           /* what candidates print goes to files */
    const en_status s = search(o, world);
    if (s != EN_OK && s != EN_ESTOPPED) en_report_error(world, s);
    en_comm_close(world);
    return s;
}
