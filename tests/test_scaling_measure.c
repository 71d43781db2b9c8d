/* test_scaling_measure.c - `effnet scaling --ranks` without ranks: what it reads, what it makes of it, and its model beside it; and how `train
 * --buckets auto` chooses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/bucket_tuner.h"
#include "trainer/run.h"
#include "trainer/scaling/measure.h"

static void same(double got, double want, const char *what)
{
    if (!(fabs(got - want) <= 1e-12 * (fabs(want) + 1e-3))) fail_msg("%s: %.17g, wanted %.17g", what, got, want);
}
#define SAME(got, want) same((got), (want), #got)

/* ---- lines of metrics ------------------------------------------------------------------------------------------------------- */

static char text[1 << 16];

static void begin(void) { text[0] = 0; }
static void add(const char *line) { strcat(text, line); }

static void add_step(int step, const char *loss)
{
    char line[400];
    snprintf(line, sizeof line, "{\"kind\":\"train\",\"step\":%d,\"loss\":%s,\"images_per_s\":%d,\"data_s\":0.25,\"forward_s\":1,\"backward_s\":2,\"bn_comm_s\":null,"
             "\"grad_comm_exposed_s\":0.5,\"optimizer_s\":0.125}\n", step, loss, 100 * step);
    add(line);
}

/* Each cause i takes (i + 1)*steps seconds of the mean rank, half of that of the fastest, twice of the slowest. */
static void add_account(int step, int steps)
{
    char line[200];
    snprintf(line, sizeof line, "{\"kind\":\"account\",\"step\":%d,\"steps\":%d,\"ranks\":3,\"wall_s\":%d,\"wall_s_least\":%d,\"wall_s_most\":%d", step, steps, 60 * steps,
             60 * steps, 60 * steps);
    add(line);
    for (int i = 0; i < EN_COSTS; i++) {
        const double s = (i + 1) * (double)steps;
        snprintf(line, sizeof line, ",\"%s\":%g,\"%s_least\":%g,\"%s_most\":%g", en_cost_key[i], s, en_cost_key[i], s / 2, en_cost_key[i], 2 * s);
        add(line);
    }
    add("}\n");
}

static void steps_behind_the_warm_up_are_taken(void **state)
{
    (void)state;
    en_run_lines l;
    begin();
    for (int i = 1; i <= 2; i++) add_step(i, "5.5");
    add_account(2, 2);
    add("{\"kind\":\"eval\",\"step\":2,\"top1\":0.5}\n");
    for (int i = 3; i <= 5; i++) add_step(i, i == 4 ? "null" : "2.25");
    add_account(5, 3);
    add_step(6, "1");
    add_account(6, 1);
    assert_int_equal(en_run_lines_parse("x", text, 2, &l), EN_OK);
    assert_int_equal(l.n, 4);
    assert_int_equal(l.n_losses, 6);
    assert_int_equal(l.line[0].step, 3);
    SAME(l.line[1].images_per_s, 400);
    SAME(l.line[0].forward_s, 1);
    assert_true(isnan(l.line[0].bn_s) && isnan(l.loss[3]));
    SAME(l.loss[1], 5.5);
    assert_int_equal(l.account.steps, 4);
    assert_int_equal(l.account.ranks, 3);
    for (int i = 0; i < EN_COSTS; i++) {
        SAME(l.account.of[i].mean, 4. * (i + 1));
        SAME(l.account.of[i].low, 2. * (i + 1));
        SAME(l.account.of[i].high, 8. * (i + 1));
    }
    en_count k = { .ranks = 3, .global_batch = 60, .lines = l };
    en_count_figures(&k);
    SAME(k.rate.median, 450);                                     /* of 300, 400, 500, 600 */
    SAME(k.rate.p10, 330);
    SAME(k.rate.p90, 570);
    SAME(k.step.median, (60. / 400 + 60. / 500) / 2);
    SAME(k.part[EN_COST_UPDATE], 7);
    SAME(k.most[EN_COST_UPDATE], 14);
    en_run_lines_free(&l);
}

static void refused(const char *what, int64_t warm)
{
    en_run_lines l;
    if (en_run_lines_parse("the/file", text, warm, &l) != EN_EDATA) fail_msg("%s is taken", what);
    assert_non_null(strstr(en_error_message(), "the/file"));
    assert_null(l.line);
    assert_null(l.loss);
    en_error_clear();
}

static void what_is_no_whole_run_is_refused(void **state)
{
    (void)state;
    begin();
    refused("nothing", 0);
    add_step(1, "1");
    refused("a step without an account", 0);
    add_account(1, 1);
    refused("no step behind the warm-up", 1);
    add_step(3, "1");
    refused("a gap", 0);
    begin(), add_step(1, "1"), add_step(2, "1"), add_account(2, 2);
    refused("an account that holds the warm-up", 1);
    text[strlen(text) - 1] = 0;
    refused("a torn line", 0);
    begin(), add_step(1, "1"), add("{\"kind\":\"account\",\"step\":1,\"steps\":1,\"ranks\":1,\"wall_s\":1}\n");
    refused("an account without causes", 0);
    begin(), add("{\"kind\":\"train\",\"step\":1,\"loss\":1}\n"), add_account(1, 1);
    refused("a step without times", 0);
    begin(), add("{\"kind\":\"train\",\"loss\":1,\"images_per_s\":1,\"forward_s\":1,\"backward_s\":1,\"grad_comm_exposed_s\":1,\"optimizer_s\":1}\n"), add_account(1, 1);
    refused("a step without its number", 0);
    begin(), add("not metrics\n");
    refused("another text", 0);
}

/* ---- sums --------------------------------------------------------------------------------------------------------------------- */

static const char *const sums_text =
    "{\"ranks\":4,\"nodes\":2,\"hosts\":[\"a{\",\"b\"],\"device\":\"cpu\",\"control\":\"mpi\",\"tensor\":\"%s\",\"rows\":["
    "{\"role\":\"control\",\"op\":\"sum_f32\",\"bytes\":1000,\"median_us\":10,\"queued_us\":null,\"wrong\":0},"
    "{\"role\":\"control\",\"op\":\"sum_f32\",\"bytes\":3000,\"median_us\":50,\"queued_us\":null,\"wrong\":0},"
    "{\"role\":\"control\",\"op\":\"broadcast\",\"bytes\":3000,\"median_us\":70,\"wrong\":0},"
    "{\"role\":\"control\",\"op\":\"sum_f64\",\"bytes\":24,\"median_us\":1,\"queued_us\":null,\"wrong\":0},"
    "{\"role\":\"control\",\"op\":\"sum_f64\",\"bytes\":48,\"median_us\":2,\"queued_us\":null,\"wrong\":0}%s],\"fits\":[],\"wrong\":3}\n";

static void sums_are_taken_and_lie_between_what_was_measured(void **state)
{
    (void)state;
    en_measured_sums m;
    bool nccl;
    int64_t wrong;
    snprintf(text, sizeof text, sums_text, "mpi", "");
    assert_int_equal(en_measured_sums_parse("x", text, &m, &nccl, &wrong), EN_OK);
    assert_true(m.ranks == 4 && m.nodes == 2 && m.n_gradients == 2 && m.n_small == 2 && !nccl && wrong == 3);
    SAME(en_measured_seconds(m.gradients, 2, 500), 10e-6);
    SAME(en_measured_seconds(m.gradients, 2, 2000), 30e-6);
    SAME(en_measured_seconds(m.gradients, 2, 6000), 100e-6);
    const en_cluster c = { .comm = EN_NET_MPI, .ranks_per_node = 2, .link_gb_per_s = 1, .nics_per_node = 1, .nic_gb_per_s = 1, .nic_efficiency = 1, .sums = &m, .n_sums = 1 };
    SAME(en_sum_gradients(&c, (en_span_of_ranks){ 4, 2 }, 2000).seconds, 30e-6);
    SAME(en_sum_small(&c, (en_span_of_ranks){ 4, 2 }, 36).seconds, 1.5e-6);
    assert_true(en_sum_small(&c, (en_span_of_ranks){ 2, 1 }, 36).seconds != 1.5e-6);         /* of another number of ranks: by the keys */
    /* where a device sums, its queue's times count, and nobody else's */
    snprintf(text, sizeof text, sums_text, "nccl", ",{\"role\":\"tensor\",\"op\":\"sum_f32\",\"bytes\":1000,\"median_us\":9,\"queued_us\":4,\"wrong\":0},"
             "{\"role\":\"tensor\",\"op\":\"sum_f32\",\"bytes\":2000,\"median_us\":9,\"queued_us\":5,\"wrong\":0},"
             "{\"role\":\"tensor\",\"op\":\"sum_f64\",\"bytes\":8,\"median_us\":9,\"queued_us\":6,\"wrong\":0},"
             "{\"role\":\"tensor\",\"op\":\"sum_f64\",\"bytes\":16,\"median_us\":9,\"queued_us\":7,\"wrong\":0}");
    assert_int_equal(en_measured_sums_parse("x", text, &m, &nccl, &wrong), EN_OK);
    assert_true(nccl && m.n_gradients == 2 && m.n_small == 2);
    SAME(m.gradients[1].seconds, 5e-6);
    assert_int_equal(en_measured_sums_parse("x", "{\"ranks\":2}", &m, &nccl, &wrong), EN_EDATA);
    en_error_clear();
}

/* ---- rounds --------------------------------------------------------------------------------------------------------------------- */

static void rounds_are_one_set_of_steps(void **state)
{
    (void)state;
    en_run_lines a, b;
    begin(), add_step(1, "1"), add_step(2, "2"), add_account(1, 1), add_account(2, 1);
    assert_int_equal(en_run_lines_parse("x", text, 1, &a), EN_OK);
    begin(), add_step(1, "3"), add_step(2, "4"), add_step(3, "5"), add_account(1, 1), add_account(3, 2);
    assert_int_equal(en_run_lines_parse("x", text, 1, &b), EN_OK);
    en_run_lines all = { 0 };
    assert_int_equal(en_run_lines_append(&all, &a), EN_OK);
    assert_int_equal(en_run_lines_append(&all, &b), EN_OK);
    assert_true(!a.line && !b.line && !b.loss);
    assert_true(all.n == 3 && all.n_losses == 2);                          /* each run begins with the same loss: the first says it */
    SAME(all.loss[1], 2);
    SAME(all.line[0].images_per_s, 200);
    SAME(all.line[2].images_per_s, 300);
    assert_int_equal(all.account.steps, 3);
    SAME(all.account.of[2].mean, 3 * 3);
    SAME(all.account.wall.mean, 180);
    en_run_lines_free(&all);
}

static void a_sum_is_what_it_was_in_the_middle_round(void **state)
{
    (void)state;
    const en_measured_sums round[] = {
        { .ranks = 2, .nodes = 2, .n_gradients = 1, .n_small = 1, .gradients = { { 10, 5 } }, .small = { { 1, 0.5 } } },     /* it left one out */
        { .ranks = 2, .nodes = 2, .n_gradients = 2, .n_small = 1, .gradients = { { 10, 9 }, { 20, 16 } }, .small = { { 1, 0.25 } } },
        { .ranks = 2, .nodes = 2, .n_gradients = 2, .n_small = 1, .gradients = { { 10, 7 }, { 20, 12 } }, .small = { { 1, 0.125 } } } };
    en_measured_sums m;
    en_measured_sums_middle(round, 3, &m);
    assert_true(m.ranks == 2 && m.nodes == 2 && m.n_gradients == 2 && m.n_small == 1);
    SAME(m.gradients[0].seconds, 7);
    SAME(m.gradients[1].seconds, 14);
    SAME(m.small[0].seconds, 0.25);
    en_measured_sums_middle(round, 1, &m);
    assert_true(m.n_gradients == 1);
    SAME(m.gradients[0].seconds, 5);
}

/* ---- results ------------------------------------------------------------------------------------------------------------------- */

static void losses_are_compared_in_parts_of_them(void **state)
{
    (void)state;
    const double a[] = { 1, 2.0001, 100.02, NAN }, b[] = { 1, 2, 100, 4 };
    double apart;
    assert_int_equal(en_losses_wrong(a, b, 3, 1e-4, &apart), 1);
    SAME(apart, 2e-4);
    assert_int_equal(en_losses_wrong(a, b, 4, 1e-4, &apart), 2);
    assert_true(isnan(apart));
    assert_int_equal(en_losses_wrong(a, b, 0, 1e-4, &apart), 0);
}

/* ---- a study ------------------------------------------------------------------------------------------------------------------- */

enum { LINES = 5 };

static void fill(en_count *k, double step_s, double loss)
{
    k->state = EN_COUNT_MEASURED;
    k->lines.line = calloc(LINES, sizeof *k->lines.line);
    k->lines.loss = calloc(LINES, sizeof *k->lines.loss);
    k->lines.n = k->lines.n_losses = LINES;
    for (int i = 0; i < LINES; i++) {
        k->lines.line[i] = (en_step_line){ .step = i + 1, .images_per_s = (double)k->global_batch / step_s, .forward_s = 0.2 * step_s, .backward_s = 0.5 * step_s,
                                           .update_s = 0.1 * step_s };
        k->lines.loss[i] = loss;
    }
    k->lines.account = (en_account_report){ .steps = LINES, .ranks = k->ranks };
    k->lines.account.of[EN_COST_FORWARD].mean = 0.2 * step_s * LINES;
    k->lines.account.of[EN_COST_BACKWARD].mean = 0.5 * step_s * LINES;
    en_count_figures(k);
}

static en_study *study_of(const en_options *o, int cores)
{
    en_study *s = calloc(1, sizeof *s);
    *s = (en_study){ .o = o, .counts = 3, .images = 8, .steps = LINES, .threads = 1, .cores = cores, .one_machine = true };
    for (int i = 0; i < 3; i++) s->count[i] = (en_count){ .ranks = 1 << i, .passes = 1, .micro_batch = 8, .global_batch = 8 << i };
    fill(&s->count[0], 1, 2);
    fill(&s->count[1], 1.25, 2);
    s->count[2].state = EN_COUNT_FAILED;
    assert_int_equal(en_model_from_options(o, 10, 1, &s->model), EN_OK);
    return s;
}

static void close_study(en_study *s)
{
    for (int i = 0; i < s->counts; i++) {
        en_count *k = &s->count[i];
        en_run_lines_free(&k->lines);
        for (int rank = 0; k->alone && rank < k->ranks; rank++) en_run_lines_free(&k->alone[rank]);
        free(k->alone);
        free(k->met);
    }
    en_model_free(s->model);
    free(s);
}

static en_options options(const char *more)
{
    static char words[16][40];
    static char *argv[17];
    int argc = 0;
    snprintf(text, sizeof text, "effnet scaling --ranks=1,2,4 --width=0.25 --depth=0.5 --image-size=32 %s", more);
    for (char *p = strtok(text, " "); p; p = strtok(NULL, " ")) {
        assert_true(argc < 16);
        snprintf(words[argc], sizeof words[0], "%s", p);
        argv[argc] = words[argc];
        argc++;
    }
    en_options o;
    bool help;
    assert_int_equal(en_options_parse(EN_SCALING, argc, argv, 2, &o, &help), EN_OK);
    return o;
}

static void sums_of(en_count *k, double small_s, double large_s)
{
    k->sums = (en_measured_sums){ .ranks = k->ranks, .nodes = 1, .n_gradients = 2, .n_small = 2, .gradients = { { 1, large_s }, { 1e9, large_s } },
                                  .small = { { 1, small_s }, { 1e9, small_s } } };
}

static void speed_up_is_against_the_smallest(void **state)
{
    (void)state;
    const en_options o = options("--strong --global-batch=8");
    en_study *s = study_of(&o, 4);
    s->count[1].lines.loss[3] *= 1.01;
    en_study_compare(s);
    assert_ptr_equal(s->base, &s->count[0]);
    SAME(s->count[1].speedup, 2 / 1.25);
    SAME(s->count[1].efficiency, 1 / 1.25);
    assert_true(s->count[0].checked == 0 && s->count[1].checked == LINES && s->count[1].wrong == 1);
    SAME(s->count[1].apart, 0.01);
    s->count[0].state = EN_COUNT_FAILED;
    en_study_compare(s);
    assert_ptr_equal(s->base, &s->count[1]);
    SAME(s->count[1].efficiency, 1);
    close_study(s);
}

/* What is compared is the same training on all counts: the runs themselves, or a short one. */
static void what_is_compared_is_the_same_training(void **state)
{
    (void)state;
    static const struct { const char *options; int ranks[3]; bool apart; int64_t images; } cases[] = {
        { "--strong --global-batch=8", { 1, 2, 4 }, false, 0 },
        { "--strong --global-batch=8 --bn-group=all", { 1, 2, 4 }, false, 0 },
        { "--strong --global-batch=8 --bn-group=1", { 1, 2, 4 }, true, 16 },                    /* groups are of other images on each count */
        { "--strong --global-batch=8 --bn-group=node", { 1, 2, 4 }, true, 16 },
        { "", { 1, 2, 4 }, true, 16 },
        { "--bn-group=4i", { 1, 3, 7 }, true, 21 },
        { "", { 13, 17, 19 }, true, 0 } };                                                      /* 4199 */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const en_options o = options(cases[i].options);
        en_study *s = study_of(&o, 4);
        for (int k = 0; k < 3; k++) s->count[k].ranks = cases[i].ranks[k];
        en_study_choose_comparison(s);
        assert_int_equal(s->apart, cases[i].apart);
        assert_int_equal(s->check_images, cases[i].images);
        assert_int_equal(s->not_compared[0] != 0, s->apart && cases[i].images == 0);
        if (s->not_compared[0]) {                                                              /* that is said, and no failure */
            en_study_compare(s);
            assert_true(s->count[1].checked == 0 && s->count[1].wrong == 0 && !s->count[1].why[0]);
        }
        close_study(s);
    }
}

/* The looser bound is for runs that were of bf16, and for no short run: those are of fp32. */
static void bounds_are_those_of_what_ran(void **state)
{
    (void)state;
    static const char header[] = "net, 32 px: 1 M parameters, 10 classes\n  data        x: 8 training images, bf16\n  device      %s\n  library     x, bf16\n";
    snprintf(text, sizeof text, header, "cpu (avx512), fp32, 1 thread");
    assert_false(en_log_says_bf16(text));
    snprintf(text, sizeof text, header, "cuda (sm_90), bf16");
    assert_true(en_log_says_bf16(text));
    assert_false(en_log_says_bf16("nothing"));
    static const char *const options_of[] = { "--strong --global-batch=8 --device=cuda", "--strong --global-batch=8", "--device=cuda",
                                              "--strong --global-batch=8 --bn-group=1 --device=cuda" };
    for (size_t i = 0; i < sizeof options_of / sizeof *options_of; i++) {
        const en_options o = options(options_of[i]);
        en_study *s = study_of(&o, 4);
        en_study_choose_comparison(s);
        SAME(en_loss_tolerance(s), 1e-4);
        s->count[1].bf16 = true;
        SAME(en_loss_tolerance(s), i < 2 ? 1e-2 : 1e-4);
        close_study(s);
    }
}

/* The base is met; sums that cost nothing cost nothing; each batch norm and the last bucket are waited for; cores that are shared halve the speed. */
static void the_model_begins_from_the_smallest_run(void **state)
{
    (void)state;
    const en_options o = options("");
    en_study *s = study_of(&o, 2);
    en_study_compare(s);
    sums_of(&s->count[1], 0, 0);
    assert_int_equal(en_study_predict(s), EN_OK);
    assert_true(s->count[0].predicted && s->count[1].predicted && !s->count[2].predicted);
    SAME(s->count[0].model.step_s, 1);
    SAME(s->count[1].model.step_s, 1);
    SAME(s->count[1].model.forward_s, 0.2);
    SAME(s->count[1].model.backward_s, 0.5);
    sums_of(&s->count[1], 1e-3, 0);
    assert_int_equal(en_study_predict(s), EN_OK);
    SAME(s->count[1].model.step_s, 1 + 1e-3 * (s->count[1].model.bn_sums + 2));           /* and roll call and tally */
    sums_of(&s->count[1], 0, 0.125);                                                           /* two buckets, nothing hides them on one machine */
    assert_int_equal(en_study_predict(s), EN_OK);
    SAME(s->count[1].model.step_s, 1 + 0.125 * s->count[1].model.buckets);
    s->cores = 1;
    sums_of(&s->count[1], 0, 0);
    assert_int_equal(en_study_predict(s), EN_OK);
    SAME(s->count[0].model.step_s, 1);
    SAME(s->count[1].model.step_s, 2);
    s->count[1].sums.n_gradients = 0;                                                          /* sums were not measured: nothing is said */
    assert_int_equal(en_study_predict(s), EN_OK);
    assert_false(s->count[1].predicted);
    close_study(s);
}

/* By hand: two ranks, three steps of two gaps.  Each is as long as its slowest in each gap, and none is shorter than any rank's own. */
static void gaps_are_put_together(void **state)
{
    (void)state;
    const double gaps[2][3][2] = { { { 1, 2 }, { 5, 1 }, { 3, 3 } }, { { 2, 1 }, { 1, 5 }, { 3, 2 } } }, want[] = { 4, 10, 6 };
    double out[3];
    en_put_together(&gaps[0][0][0], 2, 3, 2, out);
    for (int i = 0; i < 3; i++) SAME(out[i], want[i]);
    en_put_together(&gaps[1][0][0], 1, 3, 2, out);
    SAME(out[1], 6);
}

static void meetings_are_read_behind_the_warm_up(void **state)
{
    (void)state;
    static const char *const wrong[] = { "", "step,second\n1,2\n", "step,seconds\n2,1\n", "step,seconds\n1,0.5", "step,seconds\n1,\n", "step,seconds\n1,-1\n", "step,seconds\n1,nan\n",
                                         "step,seconds\n1,1\n1,1\n", "step,seconds\n1;1\n" };
    double *v = NULL;
    int n = 0;
    assert_int_equal(en_meetings_parse("x", "step,seconds\n1,9\n2,0.5\n3,0.25\n", 1, &v, &n), EN_OK);
    assert_int_equal(en_meetings_parse("x", "step,seconds\n1,9\n2,0.125\n", 1, &v, &n), EN_OK);      /* another round's behind them */
    assert_true(n == 3 && v[0] == 0.5 && v[1] == 0.25 && v[2] == 0.125);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(en_meetings_parse("x", wrong[i], 0, &v, &n), EN_EDATA);
        en_error_clear();
    }
    free(v);
}

/* Ranks that trained each by itself, the later ones slower. */
static void alone(en_count *k, double first_s, double more_s)
{
    k->alone = calloc((size_t)k->ranks, sizeof *k->alone);
    for (int rank = 0; rank < k->ranks; rank++) {
        const double step_s = first_s + rank * more_s;
        en_run_lines *l = &k->alone[rank];
        l->line = calloc(LINES, sizeof *l->line);
        l->n = LINES;
        for (int i = 0; i < LINES; i++)
            l->line[i] = (en_step_line){ .step = i + 1, .images_per_s = (double)k->micro_batch / step_s, .forward_s = 0.3 * step_s, .backward_s = 0.4 * step_s,
                                         .bn_s = 0, .update_s = 0.1 * step_s };
    }
    assert_int_equal(en_count_alone(k), EN_OK);
}

/* What as many ranks take without sums stands for all that they share: the slowest of them, and no formula of cores beside it. */
static void ranks_without_sums_are_what_a_prediction_begins_from(void **state)
{
    (void)state;
    const en_options o = options("");
    en_study *s = study_of(&o, 1);
    en_count *k = &s->count[1];
    en_study_compare(s);
    sums_of(k, 0, 0);
    alone(k, 1.25, 0.25);
    assert_true(k->alone_rank == 1 && k->alone_step_s == 1.5);
    assert_int_equal(en_study_predict(s), EN_OK);
    SAME(s->count[0].model.step_s, 1);
    SAME(k->model.step_s, 1.5);                                                             /* 2 from one rank and its one core */
    SAME(k->predicted_p10_s, 1.5);
    const double met[LINES] = { 1.25, 1.3, 1.1, 1.4, 1.35 };                                     /* of forward and backward, which are 1.05 of the slowest */
    k->met = malloc(sizeof met);
    k->n_met = LINES;
    memcpy(k->met, met, sizeof met);
    s->cores = 2;
    assert_int_equal(en_count_alone(k), EN_OK);
    assert_int_equal(en_study_predict(s), EN_OK);
    SAME(k->model.forward_s, 1.3 * 0.3 / 0.7);
    SAME(k->model.step_s, 1.3 + 0.45);
    SAME(k->predicted_p10_s, 1.1 + 0.4 * 0.15 + 0.45);
    s->cores = 1;                                                                               /* they take turns: who is off the core delays nobody */
    assert_int_equal(en_study_predict(s), EN_OK);
    SAME(k->model.step_s, 1.5);
    s->cores = 2;
    const en_options apart = options("--bn-group=1");
    s->o = &apart;
    assert_int_equal(en_study_predict(s), EN_OK);
    SAME(k->model.step_s, 1.5);
    s->o = &o;
    assert_true(k->met[2] == 1.1);                                                               /* in their order still */
    k->n_met = 0;
    assert_int_equal(en_study_predict(s), EN_OK);
    SAME(k->model.forward_s, 0.45);
    SAME(k->model.backward_s, 0.6);
    SAME(k->model.update_s, 0.15);
    sums_of(k, 1e-3, 0.125);
    assert_int_equal(en_study_predict(s), EN_OK);
    SAME(k->model.step_s, 1.5 + 1e-3 * (k->model.bn_sums + 2) + 0.125 * k->model.buckets);
    s->count[0].state = EN_COUNT_FAILED;                                                        /* the smallest, too; and those of whom nothing is known begin there */
    fill(&s->count[2], 4, 2);
    en_study_compare(s);
    assert_ptr_equal(s->base, k);
    sums_of(k, 0, 0);
    sums_of(&s->count[2], 0, 0);
    s->cores = 2;
    assert_int_equal(en_study_predict(s), EN_OK);
    SAME(k->model.step_s, 1.5);
    SAME(s->count[2].model.step_s, 3);                                                      /* 4 ranks on 2 cores */
    k->alone[1].n = 0;                                                                          /* what it wrote is not seen here */
    assert_int_equal(en_count_alone(k), EN_OK);
    assert_true(k->alone_rank == 0 && k->alone_step_s == 1.25);
    close_study(s);
}

/* What is drawn for each rank and step is what changes from one step to the next: 1 % to and fro here.  A machine that slows down is not that. */
static void jitter_is_from_step_to_step(void **state)
{
    (void)state;
    const en_options o = options("");
    en_study *s = study_of(&o, 2);
    en_count *k = &s->count[0];
    for (int i = 0; i < LINES; i++) k->lines.line[i].forward_s = 0.2, k->lines.line[i].backward_s = 0.5 + (i % 2 ? 0.007 : 0);
    en_study_compare(s);
    sums_of(&s->count[1], 0, 0);
    assert_int_equal(en_study_predict(s), EN_OK);
    const double jitter = 0.007 / 0.6745 / sqrt(2) / 0.7, computing = s->count[1].model.forward_s + s->count[1].model.backward_s + s->count[1].model.update_s;
    SAME(s->count[1].model.straggler_s, jitter * computing * en_expected_largest(2));
    /* the p10 of five numbers, of which three are the least, is that; the rest of the step is what it was */
    SAME(s->count[1].predicted_p10_s, s->count[0].step.p10);
    assert_true(s->count[1].model.step_s > s->count[1].predicted_p10_s);
    for (int i = 0; i < LINES; i++) k->lines.line[i].backward_s = i < 2 ? 0.4 : 0.5;             /* one step to another speed, 3 of 4 do not differ */
    assert_int_equal(en_study_predict(s), EN_OK);
    SAME(s->count[1].model.straggler_s, 0);
    close_study(s);
}

/* A base of two ranks, of whose 1.25 s forward takes 0.25, backward 0.625, the update 0.125. */
static en_study *study_of_two(const en_options *o)
{
    en_study *s = study_of(o, 4);
    s->count[0].state = EN_COUNT_FAILED;
    en_study_compare(s);
    assert_ptr_equal(s->base, &s->count[1]);
    sums_of(&s->count[1], 0, 0);
    return s;
}

/* A line's own seconds of batch norm go; where it has none, their share in the account does.  One step that hung makes a mean of the account, not
 * of the lines. */
static void batch_norm_of_a_base_is_taken_out_of_its_lines(void **state)
{
    (void)state;
    const en_options o = options("");
    en_study *s = study_of_two(&o);
    en_count *k = s->base;
    k->part[EN_COST_BN_FORWARD] = 3;
    for (int i = 0; i < LINES; i++) k->lines.line[i].bn_s = 0.1;
    assert_int_equal(en_study_predict(s), EN_OK);
    SAME(k->model.forward_s, (0.875 - 0.1) * 2 / 7);
    SAME(k->model.backward_s, (0.875 - 0.1) * 5 / 7);
    SAME(k->model.step_s, 1.25 - 0.1);                                                     /* sums of batch norm cost nothing here */
    k->part[EN_COST_BN_FORWARD] = 0.2, k->part[EN_COST_BN_BACKWARD] = 0.3, k->part[EN_COST_FORWARD] = 0.3, k->part[EN_COST_BACKWARD] = 0.7;
    for (int i = 0; i < LINES; i++) k->lines.line[i].bn_s = NAN;
    assert_int_equal(en_study_predict(s), EN_OK);
    SAME(k->model.forward_s, 0.875 * 1 / 1.5 * 0.3);
    SAME(k->model.backward_s, 0.875 * 1 / 1.5 * 0.7);
    SAME(k->model.step_s, 1.25 - 0.875 * 0.5 / 1.5);
    for (int i = 0; i < LINES; i++) k->lines.line[i].bn_s = 1;                                  /* more than both: nothing can be said */
    assert_int_equal(en_study_predict(s), EN_ENOTSUP);
    assert_non_null(strstr(en_error_message(), "is not known apart from sums of batch norm"));
    en_error_clear();
    close_study(s);
}

/* The roll call is in the rest of its step, the sum of running statistics in its update: both once. */
static void small_sums_of_a_base_are_not_added_again(void **state)
{
    (void)state;
    const en_options o = options("--bn-group=1");
    en_study *s = study_of_two(&o);
    en_count *k = s->base;
    sums_of(k, 1e-3, 0.025);
    assert_int_equal(en_study_predict(s), EN_OK);
    SAME(k->model.update_s, 0.125 - 0.025);
    SAME(k->model.data_s, 0.25 - 1e-3);
    SAME(k->model.other_s, 2e-3 + 0.025);
    SAME(k->model.step_s, 1.25 + 1e-3 + 0.025 * k->model.buckets);                         /* the lines have no tally and no gradients */
    sums_of(k, 1, 1);
    assert_int_equal(en_study_predict(s), EN_OK);
    assert_true(k->model.update_s == 0 && k->model.data_s == 0);
    close_study(s);
}

static void sums_of_any_count_may_be_a_device_s(void **state)
{
    (void)state;
    en_study *s = calloc(1, sizeof *s);
    assert_non_null(s);
    s->counts = 3;
    assert_false(en_study_nccl(s));
    s->count[1].nccl = true;                                                                   /* the largest failed */
    assert_true(en_study_nccl(s));
    free(s);
}

/* ---- bucket sizes ----------------------------------------------------------------------------------------------------------------- */

static void sizes_that_cut_alike_are_tried_once(void **state)
{
    (void)state;
    en_bucket_tuner t;
    en_tuner_open(&t, 1 << 17, en_buckets_usual(true, 2), 1);                                 /* half a MiB: one bucket, however it is cut */
    assert_int_equal(t.sizes, 0);
    en_tuner_open(&t, (size_t)8 << 18, en_buckets_usual(true, 2), 1);                         /* 8 MiB: 1 + 6 + 1, or 6 in 3 of 2 */
    assert_int_equal(t.sizes, 2);
    assert_true(t.bytes[0] == (size_t)25 << 20 && t.bytes[1] == (size_t)2 << 20);
    en_tuner_open(&t, (size_t)300 << 18, en_buckets_usual(true, 2), 1);
    assert_int_equal(t.sizes, EN_TUNER_SIZES);
}

static void the_least_of_the_steps_that_count_decides(void **state)
{
    (void)state;
    en_bucket_tuner t;
    en_tuner_open(&t, (size_t)8 << 18, en_buckets_usual(true, 2), 2);
    static const double seconds[] = { 0.1, 0.1, 7, 5, 6, /* the other size */ 0.2, 0.2, 9, 4, 9 };
    for (int i = 0; i < 10; i++) {
        const en_tuner_word word = en_tuner_step(&t, seconds[i]);
        assert_int_equal(word, i == 4 ? EN_TUNER_NEXT : i == 9 ? EN_TUNER_CHOOSE : EN_TUNER_SAME);
    }
    SAME(t.seconds[0], 5);
    SAME(t.seconds[1], 4);
    assert_int_equal(en_tuner_best(&t, t.seconds), 1);
    assert_int_equal(en_tuner_best(&t, (double[EN_TUNER_SIZES]){ 3, 3 }), 0);    /* equal: the larger */
    size_t bytes = 5;
    bool tries;
    assert_int_equal(en_buckets_asked("auto", &bytes, &tries), EN_OK);
    assert_true(tries && bytes == 5);
    assert_int_equal(en_buckets_asked("7", &bytes, &tries), EN_OK);
    assert_true(!tries && bytes == (size_t)7 << 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_that_cut_alike_are_tried_once),
        cmocka_unit_test(the_least_of_the_steps_that_count_decides),
        cmocka_unit_test(steps_behind_the_warm_up_are_taken),
        cmocka_unit_test(what_is_no_whole_run_is_refused),
        cmocka_unit_test(sums_are_taken_and_lie_between_what_was_measured),
        cmocka_unit_test(rounds_are_one_set_of_steps),
        cmocka_unit_test(a_sum_is_what_it_was_in_the_middle_round),
        cmocka_unit_test(gaps_are_put_together),
        cmocka_unit_test(meetings_are_read_behind_the_warm_up),
        cmocka_unit_test(ranks_without_sums_are_what_a_prediction_begins_from),
        cmocka_unit_test(jitter_is_from_step_to_step),
        cmocka_unit_test(losses_are_compared_in_parts_of_them),
        cmocka_unit_test(speed_up_is_against_the_smallest),
        cmocka_unit_test(what_is_compared_is_the_same_training),
        cmocka_unit_test(bounds_are_those_of_what_ran),
        cmocka_unit_test(the_model_begins_from_the_smallest_run),
        cmocka_unit_test(batch_norm_of_a_base_is_taken_out_of_its_lines),
        cmocka_unit_test(small_sums_of_a_base_are_not_added_again),
        cmocka_unit_test(sums_of_any_count_may_be_a_device_s),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
