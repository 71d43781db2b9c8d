/* test_program_hostile.c - files that want to do harm, one by one through `predict` and all together in a training folder.
 *
 * HOSTILE/EXPECTED.tsv says of each file whether it is a picture that must be decoded ("decode") or must be refused
 * ("reject", "warn": a decoder would go on with a wrong picture, "other": a format that is not ours). */
#define _GNU_SOURCE
#include "program.h"

#include <math.h>

#define HOSTILE EN_TEST_DATA "/hostile"
#define SMALL   "--width 0.25 --depth 0.5 --image-size 32 --threads 1"

enum { MOST = 256, CLASSES = 4 };
typedef struct { const char *path, *name; bool good, hidden; } expected;    /* path below HOSTILE, and its last part */

static expected table[MOST];
static size_t n_table;

static void read_table(void)
{
    if (!exists(HOSTILE "/EXPECTED.tsv")) {
        print_message("    %s is not there: it is no part of the repository; -DEN_TEST_DATA=DIR names another place\n", HOSTILE "/EXPECTED.tsv");
        skip();
    }
    if (n_table) return;
    char *rest, *text = read_file(HOSTILE "/EXPECTED.tsv", NULL);
    strtok_r(text, "\n", &rest);                 /* the header */
    for (char *l; (l = strtok_r(NULL, "\n", &rest));) {
        expected *e = &table[n_table++];
        assert_true(n_table < MOST);
        char *tab = strchr(l, '\t');
        assert_non_null(tab);
        *tab = 0;
        e->path = l;
        e->name = strrchr(l, '/') ? strrchr(l, '/') + 1 : l;
        e->good = strncmp(tab + 1, "decode\t", 7) == 0;
        e->hidden = e->name[0] == '.' || strcmp(e->name, "Thumbs.db") == 0;
    }
    assert_true(n_table > 50);
}

static const char *where(const expected *e) { return textf(HOSTILE "/%s", e->path); }

static const char *trained(void)
{
    static const char *made;
    if (!made) {
        run(0, 0, "synth %s --synth-classes %d --train-per-class 10 --val-per-class 0 --synth-size 48", at("data"), CLASSES);
        run(0, 0, "train " SMALL " --global-batch 10 --steps 4 --checkpoint-every 0 --data %s --run %s", at("data"), at("run"));
        made = checkpoint_of(at("run"), 4);
    }
    return made;
}

static void each_file_through_predict(void **state)
{
    (void)state;
    read_table();
    int good = 0;
    long largest = 0;
    const char *worst = "";
    for (size_t i = 0; i < n_table; i++) {
        const expected *e = &table[i];
        outcome *o = run_how((how){ .operand = where(e), .seconds = 20 }, "predict --checkpoint %s --threads 1 --json --top 100", trained());
        expect_code(o, e->good ? 0 : 3);
        if (o->max_rss_kib > largest) largest = o->max_rss_kib, worst = e->path;
        if (!e->good) {
            if (!strstr(o->err, e->path)) FAIL_RUN(o, "the file is not named");
            assert_int_equal(number_in(o->out, "refused"), 1);
            continue;
        }
        double sum = 0;
        int classes = 0;
        for (const char *p = o->out; (p = strstr(p, "\"probability\":")); p++, classes++) {
            const double x = number_in(p, "probability");
            if (!(x >= 0 && x <= 1)) FAIL_RUN(o, "a probability of %g", x);
            sum += x;
        }
        if (classes != CLASSES || !(fabs(sum - 1) < 1e-5)) FAIL_RUN(o, "%d probabilities that add up to %.7f", classes, sum);
        good++;
    }
    print_message("    %d pictures, %zu refused; most memory %ld MiB (%s)\n", good, n_table - (size_t)good, largest / 1024, worst);
    if (!SANITIZED && largest > 256 * 1024) fail_msg("%s took %ld MiB", worst, largest / 1024);
}

static void one_bad_file_does_not_spoil_the_others(void **state)
{
    (void)state;
    read_table();
    outcome *o = run(3, 0, "predict --checkpoint %s --threads 1 --json " HOSTILE "/odd/base.jpg " HOSTILE "/broken/text.jpg " HOSTILE "/odd/rgb8.png", trained());
    if (count(o->out, "\"file\":") != 2 || number_in(o->out, "refused") != 1) FAIL_RUN(o, "not two of three");
    o = run(3, 2, "predict --checkpoint %s --threads 1 " HOSTILE "/broken/text.jpg", trained());       /* one rank speaks */
    says_once(o, "effnet: bad data: " HOSTILE "/broken/text.jpg");
}

/* ---- all of them in a training folder ------------------------------------------------------------------------------------------ */

static const char *folder_of_all(int *files, int *bad)
{
    *files = *bad = 0;
    for (int c = 0; c < CLASSES; c++) make_folders(at("all/train/class%d", c));
    for (size_t i = 0; i < n_table; i++) {
        copy_file(where(&table[i]), at("all/train/class%zu/%s", i % CLASSES, table[i].name));
        if (table[i].hidden) continue;           /* left out by their names */
        ++*files;
        *bad += !table[i].good;
    }
    return at("all");
}

static void all_of_them_where_all_may_be_bad(void **state)
{
    (void)state;
    read_table();
    int files, bad;
    const char *dir = folder_of_all(&files, &bad);
    for (int ranks = 0; ranks <= 2; ranks += 2) {                /* a step is an epoch: the first meets every file */
        outcome *o = run(0, ranks, "train " SMALL " --global-batch %d --uneven --steps 2 --max-bad 1.0 --checkpoint-every 0 --data %s --run %s", files, dir, at("all-%d", ranks));
        for (size_t i = 0; i < n_table; i++) {
            const char *name = textf("/class%zu/%s", i % CLASSES, table[i].name);
            const int named = count(o->err, name);
            if (table[i].good || table[i].hidden ? named != 0 : named < 1 || named > (ranks ? ranks : 1)) FAIL_RUN(o, "%s is named %d times", name, named);
        }
        size_t n;
        const metric *m = metrics(at("all-%d", ranks), "train", &n);
        assert_int_equal(n, 2);
        if (!isfinite(m[0].loss) || !isfinite(m[1].loss)) FAIL_RUN(o, "losses %s, %s", m[0].text, m[1].text);
    }
    print_message("    %d files, %d of them bad\n", files, bad);
}

static void all_of_them_are_too_many(void **state)
{
    (void)state;
    read_table();
    int files, bad;
    const char *dir = folder_of_all(&files, &bad);
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        outcome *o = run(3, ranks, "train " SMALL " --global-batch %d --uneven --steps 2 --checkpoint-every 0 --data %s --run %s", files, dir, at("many-%d", ranks));
        says_once(o, "files cannot be used, and --max-bad 0.01 allows 1:");
        if (count(strstr(o->err, "cannot be used"), "/class") < 10) FAIL_RUN(o, "no list");
        assert_int_equal(newest_checkpoint(at("many-%d", ranks)), -1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_file_through_predict),
        cmocka_unit_test(one_bad_file_does_not_spoil_the_others),
        cmocka_unit_test(all_of_them_where_all_may_be_bad),
        cmocka_unit_test(all_of_them_are_too_many),
    };
    return program_main("program_hostile", tests, sizeof tests / sizeof *tests);
}
