/* test_metrics.c - RUN/metrics.jsonl: whole lines, valid JSON, each step once whatever happened before. */
#include "test_checkpoint.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "trainer/metrics.h"

static en_train_record record(int64_t step)
{
    return (en_train_record){ .step = step, .epoch = (double)step / 4, .loss = 2.5, .lr = 0.016, .images_per_s = 1234.5, .data_s = 0.25,
                              .forward_s = 1e-9, .backward_s = 0.5, .bn_comm_s = 0, .grad_comm_exposed_s = 1, .optimizer_s = 2, .grad_norm = 3,
                              .read_s = 0.5, .decode_s = 4, .resize_s = 0.125, .augment_s = 1, .rss_bytes = 123456789012, .straggler_s = 0.5, .slowest_rank = 3,
                              .stage = { .size = 171, .magnitude = 6.5, .mixup = -1, .cutmix = -1, .dropout = 0 } };
}

static const char *line(int64_t step)
{
    static char texts[32][512];
    static int next;
    char *text = texts[next++ % 32];
    snprintf(text, sizeof texts[0], "{\"kind\":\"train\",\"step\":%" PRId64 ",\"epoch\":%g,\"loss\":2.5,\"lr\":0.016,\"images_per_s\":1234.5,"
             "\"data_s\":0.25,\"forward_s\":1e-09,\"backward_s\":0.5,\"bn_comm_s\":0,\"grad_comm_exposed_s\":1,\"optimizer_s\":2,"
             "\"grad_norm\":3,\"read_s\":0.5,\"decode_s\":4,\"resize_s\":0.125,\"augment_s\":1,\"rss_bytes\":123456789012,\"skipped\":0,\"straggler_s\":0.5,\"slowest_rank\":3,\"image_size\":171,"
             "\"magnitude\":6.5,\"dropout\":0}\n", step, (double)step / 4);
    return text;
}

static void a_checkpoint_says_what_it_kept_the_step_from(void **state)
{
    (void)state;
    en_metrics *m;
    size_t n;
    OK(en_metrics_open(folder, -1, &m));
    OK(en_metrics_checkpoint(m, &(en_checkpoint_record){ .step = 7, .wait_s = 0.25, .snapshot_s = 0.5, .best = true }));
    en_metrics_close(m);
    char *text = slurp(path("metrics.jsonl"), &n);
    assert_string_equal(text, "{\"kind\":\"checkpoint\",\"step\":7,\"wait_s\":0.25,\"snapshot_s\":0.5,\"best\":1}\n");
    free(text);
    OK(en_metrics_open(folder, 6, &m));        /* going on from step 6: step 7 is saved again */
    en_metrics_close(m);
    text = slurp(path("metrics.jsonl"), &n);
    assert_int_equal(n, 0);
    free(text);
}

static void holds(const char *want)
{
    size_t n;
    char *text = slurp(path("metrics.jsonl"), &n);
    assert_string_equal(text, want);
    assert_int_equal(n, strlen(want));
    free(text);
}

static void write_steps(int64_t resume, int64_t from, int64_t to)
{
    en_metrics *m;
    OK(en_metrics_open(folder, resume, &m));
    for (int64_t step = from; step <= to; step++) {
        const en_train_record r = record(step);
        OK(en_metrics_train(m, &r));
    }
    en_metrics_close(m);
}

static const char *lines(int64_t from, int64_t to)
{
    static char text[8192];
    text[0] = '\0';
    for (int64_t step = from; step <= to; step++) strcat(text, line(step));
    return text;
}

static void lines_are_as_documented(void **state)
{
    (void)state;
    en_metrics *m;
    write_steps(-1, 1, 2);
    OK(en_metrics_open(folder, 2, &m));
    OK(en_metrics_eval(m, &(en_eval_record){ .step = 2, .epoch = 0.5, .top1 = 0.125, .top5 = 1, .loss = 2, .images = 50000, .weights = "ema" }));
    en_metrics_close(m);
    en_metrics_close(NULL);
    char want[4096];
    snprintf(want, sizeof want, "%s{\"kind\":\"eval\",\"step\":2,\"epoch\":0.5,\"top1\":0.125,\"top5\":1,\"loss\":2,\"images\":50000,\"weights\":\"ema\"}\n", lines(1, 2));
    holds(want);
}

static void what_is_no_number_is_null_and_text_is_escaped(void **state)
{
    (void)state;
    en_metrics *m;
    OK(en_metrics_open(folder, -1, &m));
    OK(en_metrics_eval(m, &(en_eval_record){ .step = INT64_MAX, .epoch = NAN, .top1 = INFINITY, .top5 = -INFINITY, .loss = -1.7976931348623157e308,
                                             .weights = "a\"b\\c\n" }));
    OK(en_metrics_eval(m, &(en_eval_record){ .epoch = 1.0 / 3, .loss = 5e-324, .weights = NULL }));
    en_metrics_close(m);
    holds("{\"kind\":\"eval\",\"step\":9223372036854775807,\"epoch\":null,\"top1\":null,\"top5\":null,\"loss\":-1.79769313e+308,\"images\":0,\"weights\":\"a\\\"b\\\\c\\u000a\"}\n"
          "{\"kind\":\"eval\",\"step\":0,\"epoch\":0.333333333,\"top1\":0,\"top5\":0,\"loss\":4.94065646e-324,\"images\":0,\"weights\":\"\"}\n");
}

static void a_decimal_comma_does_not_reach_the_file(void **state)
{
    (void)state;
    if (!setlocale(LC_NUMERIC, "de_DE.UTF-8") && !setlocale(LC_NUMERIC, "fr_FR.UTF-8")) skip();
    write_steps(-1, 1, 1);
    setlocale(LC_NUMERIC, "C");
    holds(lines(1, 1));
}

static void a_resumed_run_has_each_step_once(void **state)
{
    (void)state;
    write_steps(-1, 1, 9);
    write_steps(6, 7, 8);                                      /* from the checkpoint of step 6                         */
    holds(lines(1, 8));
    write_steps(8, 9, 9);                                      /* nothing to drop                                       */
    holds(lines(1, 9));
    write_steps(0, 1, 2);                                      /* all the way back                                      */
    holds(lines(1, 2));
    write_steps(-1, 1, 1);
    holds(lines(1, 1));
    assert_false(exists(path("metrics.jsonl.tmp")));
}

static void a_torn_line_is_dropped_wherever_it_was_torn(void **state)
{
    (void)state;
    char torn[4096];
    const size_t n = strlen(line(3));
    for (size_t length = 0; length < n; length++) {
        snprintf(torn, sizeof torn, "%s%.*s", lines(1, 2), (int)length, line(3));
        spill(path("metrics.jsonl"), torn, strlen(torn));
        write_steps(5, 6, 6);
        char want[4096];
        snprintf(want, sizeof want, "%s", lines(1, 2));
        strcat(want, line(6));
        holds(want);
    }
}

static void what_is_not_ours_stays_and_zeros_of_a_power_cut_go(void **state)
{
    (void)state;
    char text[4096] = "{\"note\":\"by hand\"}\n\n";
    size_t n = strlen(text);
    memcpy(text + n, "\0\0\0\0\n", 5);
    n += 5;
    n += (size_t)sprintf(text + n, "{\"kind\" : \"train\", \"step\" : 7, \"other\":1}\n{\"step\":8}\n");
    spill(path("metrics.jsonl"), text, n);
    en_metrics *m;
    OK(en_metrics_open(folder, 7, &m));
    en_metrics_close(m);
    holds("{\"note\":\"by hand\"}\n\n{\"kind\" : \"train\", \"step\" : 7, \"other\":1}\n");
}

static void a_folder_that_cannot_be_written(void **state)
{
    (void)state;
    en_metrics *m;
    REFUSED(EN_EIO, en_metrics_open(path("none"), -1, &m), "No such file or directory");
    assert_null(m);
    mkdir(path("metrics.jsonl"), 0777);
    REFUSED(EN_EIO, en_metrics_open(folder, -1, &m), "directory");
}

static void a_full_disk_leaves_no_half_line(void **state)
{
    (void)state;                                               /* the limit cuts a line in two; SIGXFSZ ignored         */
    fflush(NULL);
    const pid_t pid = fork();
    if (pid == 0) {
        en_metrics *m;
        signal(SIGXFSZ, SIG_IGN);
        const rlim_t room = 2 * strlen(line(1)) + 40;
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){ room, RLIM_INFINITY });
        if (en_metrics_open(folder, -1, &m) != EN_OK) _exit(1);
        const en_train_record r[] = { record(1), record(2), record(3), record(4) };
        if (en_metrics_train(m, &r[0]) != EN_OK || en_metrics_train(m, &r[1]) != EN_OK) _exit(2);
        if (en_metrics_train(m, &r[2]) != EN_EIO) _exit(3);
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){ RLIM_INFINITY, RLIM_INFINITY });
        if (en_metrics_train(m, &r[3]) != EN_OK) _exit(4);     /* there is room again                                   */
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    char want[4096];
    snprintf(want, sizeof want, "%s", lines(1, 2));
    strcat(want, line(4));
    holds(want);
}

static void killed_while_writing_at_most_the_last_line_is_torn(void **state)
{
    (void)state;
    int64_t last = 0, most = 0;
    for (int kill_number = 0; kill_number < 20; kill_number++) {
        fflush(NULL);
        const pid_t pid = fork();
        if (pid == 0) {
            en_metrics *m;
            if (en_metrics_open(folder, last, &m) != EN_OK) _exit(1);
            for (int64_t step = last + 1;; step++) {
                const en_train_record r = record(step);
                if (en_metrics_train(m, &r) != EN_OK) _exit(2);
            }
        }
        usleep(300 + mixed(3, (uint64_t)kill_number) % 3000);
        kill(pid, SIGKILL);
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
        if (!exists(path("metrics.jsonl"))) continue;
        en_metrics *m;
        OK(en_metrics_open(folder, INT64_MAX, &m));
        en_metrics_close(m);
        FILE *f = fopen(path("metrics.jsonl"), "r");
        char text[1024];
        for (last = 0; fgets(text, sizeof text, f); last++)
            if (strcmp(text, line(last + 1))) fail_msg("line %" PRId64 " is %s", last + 1, text);
        fclose(f);
        if (last > most) most = last;
        last /= 2;                                             /* the checkpoint was half way back                      */
    }
    assert_true(most > 1);
}

#define IN_A_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_A_FOLDER(lines_are_as_documented),
        IN_A_FOLDER(what_is_no_number_is_null_and_text_is_escaped),
        IN_A_FOLDER(a_decimal_comma_does_not_reach_the_file),
        IN_A_FOLDER(a_resumed_run_has_each_step_once),
        IN_A_FOLDER(a_torn_line_is_dropped_wherever_it_was_torn),
        IN_A_FOLDER(what_is_not_ours_stays_and_zeros_of_a_power_cut_go),
        IN_A_FOLDER(a_folder_that_cannot_be_written),
        IN_A_FOLDER(a_full_disk_leaves_no_half_line),
        IN_A_FOLDER(a_checkpoint_says_what_it_kept_the_step_from),
        IN_A_FOLDER(killed_while_writing_at_most_the_last_line_is_torn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
