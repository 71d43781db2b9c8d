/* scaling/measure.c - `effnet scaling --ranks 1,2,4`: the same training on several numbers of ranks, measured.
 *
 * For each number, smallest first, --rounds times: a run of --warm-steps steps and its share of --steps that saves nothing but its metrics; where these runs are not
 * the same training (scaling/measure_check.c says when), a short one that is, so that results can be compared; and the two halves that a prediction is
 * made from: the ranks without sums, each training by itself (`effnet train --alone`), and the sums without training (`effnet bench comm`).  That all
 * ranks of a run hold the same weights each run checks itself (--compare-every).
 *
 * Pictures are drawn, kept decoded after the warm-up, and not augmented, unless --data says which: what is measured is the step. */
#define _GNU_SOURCE
#include "trainer/scaling/measure.h"

#include "kernels/cuda/footprint.h"
#include "trainer/run.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DEFAULT_IMAGES = 32, DEFAULT_STEPS = 100, CHECK_STEPS = 4, QUICK = 20 };

/* ---- options ------------------------------------------------------------------------------------------------------------------ */

static int by_ranks(const void *a, const void *b) { return ((const en_count *)a)->ranks - ((const en_count *)b)->ranks; }

static en_status read_counts(const char *text, en_study *s)
{
    for (const char *p = text; ; p++) {
        char *end;
        errno = 0;
        const long v = *p >= '0' && *p <= '9' ? strtol(p, &end, 10) : 0;
        EN_REQUIRE(v >= 1 && v <= COMM_MOST_RANKS && errno == 0 && (*end == ',' || !*end), EN_EUSAGE,
                   "--ranks '%s': use whole numbers from 1 to %d with commas between, 1,2,4", text, COMM_MOST_RANKS);
        for (int i = 0; i < s->counts; i++) EN_REQUIRE(s->count[i].ranks != v, EN_EUSAGE, "--ranks '%s': %ld stands there twice", text, v);
        EN_REQUIRE(s->counts < EN_MOST_COUNTS, EN_EUSAGE, "--ranks: more than %d numbers", EN_MOST_COUNTS);
        s->count[s->counts++].ranks = (int)v;
        if (!*(p = end)) break;
    }
    qsort(s->count, (size_t)s->counts, sizeof *s->count, by_ranks);
    return EN_OK;
}

/* The same number of passes on all, since batch norm is over the images of one. */
static en_status share_out(en_study *s)
{
    const en_options *o = s->o;
    int64_t passes = 1;
    if (o->strong && o->micro_batch > 0) {
        const int64_t mine = (o->global_batch + s->count[0].ranks - 1) / s->count[0].ranks;
        passes = (mine + o->micro_batch - 1) / o->micro_batch;
    }
    for (int i = 0; i < s->counts; i++) {
        en_count *k = &s->count[i];
        k->passes = passes;
        k->global_batch = o->strong ? o->global_batch : s->images * k->ranks;
        EN_REQUIRE(k->global_batch % (k->ranks * passes) == 0, EN_EUSAGE, "--global-batch %" PRId64 " is not shared out evenly over %d ranks in %" PRId64 " pass%s; "
                   "choose another, or other --ranks", k->global_batch, k->ranks, passes, passes == 1 ? "" : "es");
        k->micro_batch = k->global_batch / k->ranks / passes;
    }
    return EN_OK;
}

static en_status check_options(en_study *s)
{
    const en_options *o = s->o;
    int world;
    en_launch_rank(&world);
    EN_REQUIRE(world == 1, EN_EUSAGE, "effnet scaling starts the ranks itself: call it without a launcher");
    EN_REQUIRE(!(o->weak && o->strong), EN_EUSAGE, "--weak and --strong: choose one");
    EN_REQUIRE(!o->strong || o->global_batch > 0, EN_EUSAGE, "--strong keeps the images of a step: how many? --global-batch 256");
    EN_REQUIRE(o->strong || o->global_batch == 0, EN_EUSAGE, "--global-batch is for --strong; with --weak every rank takes --micro-batch images");
    EN_REQUIRE(!o->hosts[0] || access(o->hosts, R_OK) == 0, EN_EUSAGE, "--hosts %s cannot be read: %s; it is a hostfile of mpirun, a line `name slots=8` a host",
               o->hosts, strerror(errno));
    EN_REQUIRE(strlen(o->run) < EN_PATH - 256 && strlen(o->folder) < EN_PATH - 256, EN_EUSAGE, "--run or --folder is longer than a path can be");
    EN_TRY(read_counts(o->ranks, s), "reading the options");
    s->images = o->micro_batch > 0 ? o->micro_batch : DEFAULT_IMAGES;
    s->steps = ((o->steps > 0 ? o->steps : DEFAULT_STEPS) + o->rounds - 1) / o->rounds;
    s->warm = o->warm_steps;
    return share_out(s);
}

/* As launch/run finds it: no hostfile, no allocation of several machines. */
static bool one_machine(const en_options *o)
{
    const char *nodes = getenv("SLURM_JOB_NUM_NODES"), *open4 = getenv("OMPI_MCA_orte_default_hostfile"), *open5 = getenv("PRTE_MCA_prte_default_hostfile");
    return !o->hosts[0] && !(getenv("SLURM_JOB_ID") && nodes && strcmp(nodes, "1") != 0) && !(open4 && *open4) && !(open5 && *open5);
}

/* Runs on other machines see a shared folder, where this one's /tmp is not. */
static en_status open_folder(en_study *s)
{
    const char *tmp = getenv("TMPDIR");
    if (s->o->run[0]) {
        snprintf(s->folder, sizeof s->folder, "%s", s->o->run);
        return en_make_folder(s->folder, "--run");
    }
    if (s->one_machine) snprintf(s->folder, sizeof s->folder, "%.3000s/effnet-scaling.XXXXXX", tmp && *tmp ? tmp : "/tmp");
    else snprintf(s->folder, sizeof s->folder, "effnet-scaling.XXXXXX");
    EN_REQUIRE(mkdtemp(s->folder), EN_EIO, "%s cannot be made: %s; --run says where logs and metrics go", s->folder, strerror(errno));
    s->folder_is_ours = true;
    return EN_OK;
}

static en_status open_study(en_study *s)
{
    EN_TRY(check_options(s), "reading the options");
    EN_TRY(en_find_starter(s), "looking for a launcher");
    s->cores = en_cores_allowed();
    s->one_machine = one_machine(s->o);
    const int most = s->cores / s->count[s->counts - 1].ranks;
    en_study_choose_comparison(s);
    s->threads = s->o->threads > 0 ? (int)s->o->threads : !s->one_machine ? 0 : most > 0 ? most : 1;
    return open_folder(s);
}

/* ---- jobs --------------------------------------------------------------------------------------------------------------------- */

static void add_given(const en_study *s, const char *const *fields, size_t n, en_args *a)
{
    char value[512];
    for (size_t i = 0; i < n; i++) {
        if (!en_option_given(s->o, fields[i]) || !en_option_text(s->o, fields[i], value, sizeof value)) continue;
        en_args_add(a, "--%s=%s", fields[i], value);
        for (char *p = a->arg[a->n - 1]; *p && *p != '='; p++)
            if (*p == '_') *p = '-';
    }
    if (s->threads > 0) en_args_add(a, "--threads=%d", s->threads);
}

static void add_model(const en_study *s, en_args *a)
{
    static const char *const fields[] = { "model", "width", "depth", "resolution", "phi", "alpha", "beta", "gamma", "image_size", "device", "comm", "lanes" };
    add_given(s, fields, sizeof fields / sizeof *fields, a);
}

/* A training on so many ranks that sum. */
typedef struct { int ranks; int64_t global_batch, passes, warm, steps; } job;

static void add_training(const en_study *s, const job *j, const char *folder, en_args *a)
{
    char workers[32];
    en_args_add(a, "train");
    add_model(s, a);
    if (en_option_given(s->o, "workers") && en_option_text(s->o, "workers", workers, sizeof workers)) en_args_add(a, "--workers=%s", workers);
    if (en_option_given(s->o, "bucket_mib")) en_args_add(a, "--buckets=%" PRId64, s->o->bucket_mib);
    if (s->o->data[0]) {
        en_args_add(a, "--data=%s", s->o->data);
    } else {
        en_args_add(a, "--data=synthetic:%" PRId64, 2 * j->global_batch);
        en_args_add(a, "--cache=memory");
        en_args_add(a, "--augment=none");
    }
    en_args_add(a, "--global-batch=%" PRId64, j->global_batch);
    en_args_add(a, "--micro-batch=%" PRId64, j->global_batch / j->ranks / j->passes);
    en_args_add(a, "--steps=%" PRId64, j->warm + j->steps);
    en_args_add(a, "--account-after=%" PRId64, j->warm);
    en_args_add(a, "--compare-every=%" PRId64, j->warm + j->steps - 1);
    en_args_add(a, "--lr=0.0003");
    en_args_add(a, "--metrics=%s", folder);
}

static en_status read_lines(const char *metrics, int64_t warm, en_run_lines *lines)
{
    char *text = NULL;
    EN_TRY(en_text_read(metrics, &text), "what the run wrote");
    const en_status status = en_run_lines_parse(metrics, text, warm, lines);
    free(text);
    return status;
}

static en_status run_training(const en_study *s, const en_count *k, const en_args *a, const char *name, int64_t warm, en_run_lines *lines)
{
    char folder[EN_PATH + 64], log[EN_PATH + 128], metrics[EN_PATH + 128];
    snprintf(folder, sizeof folder, "%s/%s-%d", s->folder, name, k->ranks);
    snprintf(log, sizeof log, "%s/log", folder);
    snprintf(metrics, sizeof metrics, "%s/metrics.jsonl", folder);
    unlink(metrics);                                        /* of a study before */
    EN_TRY(en_make_folder(folder, "--run"), "a run's folder");
    EN_TRY(en_start_ranks(s, k->ranks, a, NULL, log), "%s", log);
    return read_lines(metrics, warm, lines);
}

/* What the run said of itself; NULL: it cannot be read. */
static char *log_of(const en_study *s, const en_count *k)
{
    char path[EN_PATH + 64], *text = NULL;
    snprintf(path, sizeof path, "%s/run-%d/log", s->folder, k->ranks);
    if (en_text_read(path, &text) != EN_OK) en_error_clear();
    return text;
}

/* "run" of the first round, then "run-round2", ...; logs and metrics are in the folder NAME-RANKS. */
static const char *name_of(const char *what, int round, char out[64])
{
    if (round == 0) snprintf(out, 64, "%s", what);
    else snprintf(out, 64, "%s-round%d", what, round + 1);
    return out;
}

static en_status measure(const en_study *s, en_count *k, int round)
{
    en_args a = { 0 };
    en_run_lines lines = { 0 };
    char folder[EN_PATH + 128], name[64];
    const job j = { .ranks = k->ranks, .global_batch = k->global_batch, .passes = k->passes, .warm = s->warm, .steps = s->steps };
    snprintf(folder, sizeof folder, "%s/%s-%d", s->folder, name_of("run", round, name), k->ranks);
    add_training(s, &j, folder, &a);
    if (en_option_given(s->o, "bn_group")) en_args_add(&a, "--bn-group=%s", s->o->bn_group);
    if (en_option_given(s->o, "precision")) en_args_add(&a, "--precision=%s", s->o->precision);
    en_status status = run_training(s, k, &a, name, s->warm, &lines);
    en_args_free(&a);
    if (status == EN_OK) status = en_run_lines_append(&k->lines, &lines);
    en_run_lines_free(&lines);
    EN_TRY(status, "measuring");
    k->state = EN_COUNT_MEASURED;
    en_count_figures(k);
    char *log = log_of(s, k);
    k->bf16 = log && en_log_says_bf16(log);
    free(log);
    return EN_OK;
}

/* The same passes on the same ranks, and nobody waits for anybody. */
static en_status measure_alone(const en_study *s, en_count *k, int round)
{
    en_args a = { 0 };
    char folder[EN_PATH + 128], path[EN_PATH + 256], name[64];
    const job j = { .ranks = 1, .global_batch = k->global_batch / k->ranks, .passes = k->passes, .warm = s->warm, .steps = s->steps };
    if (!k->alone) k->alone = calloc((size_t)k->ranks, sizeof *k->alone);
    EN_REQUIRE(k->alone, EN_ENOMEM, "no memory for %d ranks", k->ranks);
    snprintf(folder, sizeof folder, "%s/%s-%d", s->folder, name_of("alone", round, name), k->ranks);
    en_remove_folder(folder);                               /* of a study before */
    EN_TRY(en_make_folder(folder, "--run"), "a run's folder");
    add_training(s, &j, folder, &a);
    en_args_add(&a, "--alone");
    if (en_option_given(s->o, "precision")) en_args_add(&a, "--precision=%s", s->o->precision);
    snprintf(path, sizeof path, "%s/log", folder);
    en_status status = en_start_ranks(s, k->ranks, &a, NULL, path);
    en_args_free(&a);
    EN_TRY(status, "%s", path);
    for (int rank = 0; rank < k->ranks; rank++) {
        en_run_lines lines = { 0 };
        snprintf(path, sizeof path, "%s/rank-%d/metrics.jsonl", folder, rank);
        if (rank > 0 && access(path, R_OK) != 0) continue;  /* on the disk of another machine: the slowest of those that are seen */
        status = read_lines(path, s->warm, &lines);
        if (status == EN_OK) status = en_run_lines_append(&k->alone[rank], &lines);
        en_run_lines_free(&lines);
        EN_TRY(status, "rank %d by itself", rank);
    }
    snprintf(path, sizeof path, "%s/meetings.csv", folder);
    if (access(path, R_OK) == 0) {                          /* not on devices */
        char *text = NULL;
        EN_TRY(en_text_read(path, &text), "what the run wrote");
        status = en_meetings_parse(path, text, s->warm, &k->met, &k->n_met);
        free(text);
        EN_TRY(status, "ranks by themselves");
    }
    return en_count_alone(k);
}

/* A few steps of equal global batches, in fp32, normalised over all ranks whatever --bn-group says: groups of ranks are other images on each
 * rank count. */
static en_status check(const en_study *s, en_count *k)
{
    en_args a = { 0 };
    en_run_lines lines = { 0 };
    char folder[EN_PATH + 64];
    const job j = { .ranks = k->ranks, .global_batch = s->check_images, .passes = 1, .warm = 1, .steps = CHECK_STEPS - 1 };
    snprintf(folder, sizeof folder, "%s/check-%d", s->folder, k->ranks);
    add_training(s, &j, folder, &a);
    en_args_add(&a, "--precision=fp32");
    const en_status status = run_training(s, k, &a, "check", 1, &lines);
    en_args_free(&a);
    if (status == EN_OK) k->check = lines.loss, k->n_check = lines.n_losses, lines.loss = NULL;
    en_run_lines_free(&lines);
    EN_TRY(status, "comparing results");
    return EN_OK;
}

static en_status measure_sums(const en_study *s, en_count *k, int round)
{
    en_args a = { 0 };
    char out[EN_PATH + 128], log[EN_PATH + 128], name[64], *text = NULL;
    int64_t wrong = 0;
    if (!k->round) k->round = calloc(EN_MOST_ROUNDS, sizeof *k->round);
    EN_REQUIRE(k->round, EN_ENOMEM, "no memory for sums");
    snprintf(out, sizeof out, "%s/%s-%d.json", s->folder, name_of("comm", round, name), k->ranks);
    snprintf(log, sizeof log, "%s/%s-%d.log", s->folder, name, k->ranks);
    en_args_add(&a, "bench");
    en_args_add(&a, "comm");
    en_args_add(&a, "--json");
    add_model(s, &a);
    en_args_add(&a, "--sizes=%s", s->o->sizes[0] ? s->o->sizes : "4k,32k,128k,512k,1m,2m,4m,8m,16m,64m");
    if (s->steps < QUICK) en_args_add(&a, "--steps=%" PRId64, s->steps);
    en_status status = en_start_ranks(s, k->ranks, &a, out, log);
    en_args_free(&a);
    EN_TRY(status, "%s", log);
    EN_TRY(en_text_read(out, &text), "the sums");
    status = en_measured_sums_parse(out, text, &k->round[k->rounds], &k->nccl, &wrong);
    free(text);
    EN_TRY(status, "the sums");
    k->sums_wrong += wrong;
    en_measured_sums_middle(k->round, ++k->rounds, &k->sums);
    return EN_OK;
}

/* ---- all of it ------------------------------------------------------------------------------------------------------------------ */

/* A step that failed is a count's affair; the others go on. */
static void note(en_study *s, en_count *k, const char *what, en_status status)
{
    if (status == EN_OK) return;
    snprintf(k->why, sizeof k->why, "%s", en_error_message());
    if (en_stop_requested()) s->stopped = true;
    else fprintf(stderr, "effnet: %d rank%s, %s: %s\n", k->ranks, k->ranks == 1 ? "" : "s", what, en_error_message());
    en_error_clear();
}

static void say(const en_count *k, const char *what)
{
    fprintf(stderr, "effnet: %d rank%s: %s\n", k->ranks, k->ranks == 1 ? "" : "s", what);
}

static void measure_round(en_study *s, int round)
{
    char text[160], of[48] = "";
    for (int i = 0; i < s->counts && !s->stopped; i++) {
        en_count *k = &s->count[i];
        if (k->state == EN_COUNT_FAILED || k->why[0]) continue;
        if (round == 0 && s->one_machine && k->ranks * (s->threads > 0 ? s->threads : 1) > s->cores)
            fprintf(stderr, "effnet: %d ranks of %d thread%s on %d cores take turns: what is measured is not what as many cores would do\n", k->ranks, s->threads,
                    s->threads == 1 ? "" : "s", s->cores);
        if (s->o->rounds > 1) snprintf(of, sizeof of, "round %d of %" PRId64 ": ", round + 1, s->o->rounds);
        snprintf(text, sizeof text, "%s%" PRId64 " steps of %" PRId64 " images after %" PRId64 " to warm up", of, s->steps, k->global_batch, s->warm);
        say(k, text);
        note(s, k, "the run", measure(s, k, round));
        if (k->state != EN_COUNT_MEASURED) k->state = s->stopped ? EN_COUNT_PENDING : EN_COUNT_FAILED;
        if (k->state != EN_COUNT_MEASURED) continue;
        if (s->check_images > 0 && round == 0) note(s, k, "the run that results are compared by", check(s, k));
        if (k->ranks > 1 && !s->stopped) say(k, "the ranks without sums");
        if (k->ranks > 1 && !s->stopped) note(s, k, "ranks without sums", measure_alone(s, k, round));
        if (k->ranks > 1 && !s->stopped) say(k, "sums by themselves");
        if (k->ranks > 1 && !s->stopped) note(s, k, "sums", measure_sums(s, k, round));
    }
}

static void measure_all(en_study *s)
{
    for (int round = 0; round < s->o->rounds && !s->stopped; round++) measure_round(s, round);
}

/* "..., 10 classes" of the smallest run's first lines: what the model is like is decided by the images. */
static int classes_of(const en_study *s)
{
    char *text = log_of(s, s->base), *at;
    int classes = 0;
    for (at = text ? strstr(text, " classes\n") : NULL; at && at > text && at[-1] >= '0' && at[-1] <= '9'; at--) continue;
    if (at) classes = atoi(at);
    free(text);
    return classes;
}

static void open_model(en_study *s)
{
    en_backend *planner = NULL;
    const en_backend_config config = { .threads = 1, .precision = EN_PRECISION_AUTO };
    en_status status = en_study_nccl(s) ? en_cuda_plan_open(&config, &planner) : en_backend_open("cpu", &config, &planner);
    if (status == EN_OK) status = en_model_from_options(s->o, classes_of(s), planner->channel_align, &s->model);
    en_backend_close(planner);
    if (status == EN_OK) status = en_study_predict(s);
    if (status == EN_OK) return;
    snprintf(s->no_model, sizeof s->no_model, "%s", en_error_message());
    en_error_clear();
}

static bool all_well(const en_study *s)
{
    for (int i = 0; i < s->counts; i++) {
        const en_count *k = &s->count[i];
        if (k->state != EN_COUNT_MEASURED || k->why[0] || k->wrong > 0 || k->sums_wrong > 0) return false;
    }
    return true;
}

static void close_study(en_study *s)
{
    for (int i = 0; i < s->counts; i++) {
        en_run_lines_free(&s->count[i].lines);
        for (int rank = 0; s->count[i].alone && rank < s->count[i].ranks; rank++) en_run_lines_free(&s->count[i].alone[rank]);
        free(s->count[i].alone);
        free(s->count[i].met);
        free(s->count[i].check);
        free(s->count[i].round);
    }
    en_model_free(s->model);
    if (!s->folder_is_ours) return;
    if (all_well(s) || s->stopped) en_remove_folder(s->folder);
    else fprintf(stderr, "effnet: logs and metrics are kept in %s\n", s->folder);
}

en_status en_scaling_measure(const en_options *o)
{
    en_status status = EN_OK;
    en_study *s = calloc(1, sizeof *s);
    EN_REQUIRE(s, EN_ENOMEM, "no memory for a study");
    s->o = o;
    EN_TRY_OUT(open_study(s), "preparing");
    en_stop_on_signals();
    measure_all(s);
    en_study_compare(s);
    if (s->base) {
        open_model(s);
        if (o->json) en_study_print_json(s);
        else en_study_print(s);
        if (o->folder[0]) EN_TRY_OUT(en_study_write(s, o->folder), "--folder %s", o->folder);
    }
    EN_REQUIRE_OUT(!s->stopped, EN_ENOTSUP, "stopped on request; %s", s->base ? "what was measured stands above" : "nothing was measured");
    EN_REQUIRE_OUT(all_well(s), EN_ENOTSUP, "not everything was measured, or results differ: see above");
out:
    close_study(s);
    free(s);
    return status;
}
