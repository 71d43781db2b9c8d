/* faults.c - jobs that survive: faults on purpose, one after the other, and one table.
 *
 *     tests/faults                     each kind once                                           (what ctest runs)
 *     tests/faults --count 200         the long form: about a quarter of an hour on two idle cores; nice is fine
 *     tests/faults --seed 7 --only 31  one of them again
 *     tests/faults --kind kill --count 10      --on 4      kinds and layouts are named in the table
 *     tests/faults --count 200 --minutes 10    as many of them as begin within that time
 *     tests/faults --figures           what a checkpoint costs the steps beside it
 *
 * A trial is a run of 16 steps with a fault in it, which must end in time, with the right code, with a message that says what
 * happened; then the same command again until it is done.  The oracle is the run that nobody disturbed: parameters, optimizer and
 * averages of the last checkpoint must have its bits, and every step must be in the metrics once, with its loss.
 * Kinds, layouts and sections come by turns, steps and ranks from the seed: trial k of a seed is the same in every form.
 * Nothing depends on how fast the machine is, but the figures. */
#include "faults.h"

#include <math.h>
#include <unistd.h>

const layout layouts[LAYOUTS] = { [ONE] = { "1", 1, 0 }, [TWO] = { "2", 2, 0 }, [FOUR] = { "4", 4, 0 }, [NODES] = { "2 nodes", 2, 2 } };

static trial trials[MOST_TRIALS];
static int n_trials;
static struct { const char *self; long count, seed, only, minutes; const char *kind, *on; bool figures; } asked = { .seed = 1, .only = -1 };
static double began_at;
static const void *base;                       /* what is handed out before the first trial stays                          */

/* ---- the plan --------------------------------------------------------------------------------------------------------------- */

/* Kinds by turns; layouts too, from another one on for each kind, so that few trials show all of them. */
static void plan(trial *t, int number, bool have_nodes)
{
    const int k = number % n_kinds, turn = number / n_kinds;
    *t = (trial){ .number = number, .turn = turn, .kind = &kinds[k], .fault_at = NAN, .to_exit = NAN, .to_checkpoint = NAN };
    const int on = kinds[k].on & (have_nodes ? ~0 : ~(1 << NODES));
    int all = 0, of[LAYOUTS];
    for (int i = 0; i < LAYOUTS; i++)
        if (on >> i & 1) of[all++] = i;
    t->on = all ? &layouts[of[(turn + k) % all]] : NULL;
    t->variant = all ? turn / all + of[(turn + k) % all] : 0;
    t->random = (uint64_t)asked.seed * 1000003u + (uint64_t)number;
}

/* Asked by trying: namespaces may be had, and yet not all that mpirun does in them. */
static bool can_have_nodes(void)
{
    if (system(EN_CLUSTER " --nodes 2 -- " EN_RUN_SCRIPT " -n 2 true >/dev/null 2>&1") == 0) return true;
    printf("faults: two nodes are left out, this machine or this user cannot have them: %s --nodes 2 -- %s -n 2 true\n", EN_CLUSTER, EN_RUN_SCRIPT);
    return false;
}

/* ---- one trial --------------------------------------------------------------------------------------------------------------- */

static void go(void **state)
{
    trial *t = *state;
    if (asked.minutes && now_s() - began_at > 60 * (double)asked.minutes) skip();
    if (!base) {
        pictures();
        base = remembered();
    }
    forget_since(base);
    snprintf(t->dir, sizeof t->dir, "%s", at("%03d-%s-on-%d%s", t->number, t->kind->name, t->on->ranks, t->on->nodes ? "-nodes" : ""));
    t->kind->go(t);
    t->done = true;
    shell("rm -rf %s", t->dir);
    for (int i = 0; i < t->n_codes; i++) printf("%s%d", i ? ", " : "             exit code ", t->codes[i]);
    printf(t->restarts ? ", then %d start%s" : "", t->restarts, t->restarts == 1 ? "" : "s");
    if (!isnan(t->to_exit)) printf("; %.2f s to the exit", t->to_exit);
    if (!isnan(t->to_checkpoint)) printf(", %.2f s to the checkpoint", t->to_checkpoint);
    printf("\n");
    fflush(stdout);
}

static int repeat(void **state)
{
    const trial *t = *state;
    abandon_all();
    if (t->began && !t->done) fprintf(stderr, "again: %s --seed %ld --only %d\n", asked.self, asked.seed, t->number);
    return 0;
}

/* ---- the table ----------------------------------------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct { int n, failed, restarts, same, n_codes, code[64], exits, saves; double exit_s[MOST_TRIALS], save_s[MOST_TRIALS]; } row;

static void add(row *r, const trial *t)
{
    r->n++;
    r->failed += !t->done;
    r->restarts += t->restarts;
    r->same += t->same_bits;
    if (!isnan(t->to_exit)) r->exit_s[r->exits++] = t->to_exit;
    if (!isnan(t->to_checkpoint)) r->save_s[r->saves++] = t->to_checkpoint;
    for (int i = 0; i < t->n_codes; i++) {
        bool seen = false;
        for (int k = 0; k < r->n_codes; k++) seen |= r->code[k] == t->codes[i];
        if (!seen && r->n_codes < 64) r->code[r->n_codes++] = t->codes[i];
    }
}

static void print_row(row *r, const char *name, const char *on, const char *what)
{
    char codes[64] = "", figure[3][16] = { "-", "-", "-" };
    for (int i = 0; i < r->n_codes; i++) snprintf(codes + strlen(codes), sizeof codes - strlen(codes), "%s%d", i ? "," : "", r->code[i]);
    qsort(r->exit_s, (size_t)r->exits, sizeof *r->exit_s, by_size);
    qsort(r->save_s, (size_t)r->saves, sizeof *r->save_s, by_size);
    if (r->exits) snprintf(figure[0], 16, "%.2f", r->exit_s[r->exits / 2]), snprintf(figure[1], 16, "%.2f", r->exit_s[r->exits - 1]);
    if (r->saves) snprintf(figure[2], 16, "%.2f", r->save_s[r->saves / 2]);
    printf("%-8s %-8s %4d  %-12s %8s %8s %10s %8d  %-6s %s\n", name, on, r->n, codes, figure[0], figure[1], figure[2], r->restarts,
           r->same == r->n ? "yes" : "NO", what);
}

static int print_table(void)
{
    static row r, all;
    printf("\n%-8s %-8s %4s  %-12s %17s %10s %8s  %-6s\n", "", "", "", "exit", "fault to exit, s", "to file, s", "", "same");
    printf("%-8s %-8s %4s  %-12s %8s %8s %10s %8s  %-6s\n", "kind", "ranks", "n", "codes", "median", "worst", "median", "restarts", "bits");
    for (int k = 0; k < n_kinds; k++) {
        const char *what = kinds[k].what;
        for (int l = 0; l < LAYOUTS; l++) {
            memset(&r, 0, sizeof r);
            for (int i = 0; i < n_trials; i++)
                if (trials[i].began && trials[i].kind == &kinds[k] && trials[i].on == &layouts[l]) add(&r, &trials[i]);
            if (r.n) print_row(&r, kinds[k].name, layouts[l].name, what), what = "";
        }
    }
    for (int i = 0; i < n_trials; i++)
        if (trials[i].began) add(&all, &trials[i]);
    print_row(&all, "all", "", "");
    printf("%d faults, %d failures (seed %ld)\n", all.n, all.failed, asked.seed);
    return all.failed;
}

/* ---- main ---------------------------------------------------------------------------------------------------------------------- */

static int usage(FILE *f)
{
    fprintf(f, "usage: faults [--count N] [--seed S] [--only K] [--kind NAME] [--on 1|2|4|nodes] [--minutes M] [--figures]\n");
    return 2;
}

static bool read_arguments(int argc, char **argv)
{
    asked.self = argv[0];
    began_at = now_s();
    for (int i = 1; i < argc; i++) {
        char *end = "";
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--figures") == 0) {
            asked.figures = true;
            continue;
        }
        if (!*value) return false;
        if (strcmp(argv[i], "--count") == 0) asked.count = strtol(value, &end, 10);
        else if (strcmp(argv[i], "--seed") == 0) asked.seed = strtol(value, &end, 10);
        else if (strcmp(argv[i], "--only") == 0) asked.only = strtol(value, &end, 10);
        else if (strcmp(argv[i], "--minutes") == 0) asked.minutes = strtol(value, &end, 10);
        else if (strcmp(argv[i], "--kind") == 0) asked.kind = value;
        else if (strcmp(argv[i], "--on") == 0) asked.on = strcmp(value, "nodes") == 0 ? "2 nodes" : value;
        else return false;
        if (*end) return false;
        i++;
    }
    return asked.count > 0 && asked.count <= MOST_TRIALS && asked.only < MOST_TRIALS;
}

int main(int argc, char **argv)
{
    static struct CMUnitTest tests[MOST_TRIALS];
    static char names[MOST_TRIALS][64];
    asked.count = n_kinds;
    if (!read_arguments(argc, argv)) return usage(stderr);
    if (asked.figures) {
        const struct CMUnitTest one[] = { cmocka_unit_test(figures) };
        return program_main("faults", one, 1);
    }
    const bool have_nodes = can_have_nodes();
    for (int number = asked.only < 0 ? 0 : (int)asked.only; n_trials < asked.count && number < 100 * MOST_TRIALS; number++) {
        trial *t = &trials[n_trials];
        plan(t, number, have_nodes);
        if (t->on && (!asked.kind || strcmp(asked.kind, t->kind->name) == 0) && (!asked.on || strcmp(asked.on, t->on->name) == 0)) {
            snprintf(names[n_trials], sizeof names[0], "%d: %s on %s", number, t->kind->name, t->on->name);
            tests[n_trials] = (struct CMUnitTest){ .name = names[n_trials], .test_func = go, .teardown_func = repeat, .initial_state = t };
            n_trials++;
        }
        if (asked.only >= 0) break;
    }
    if (n_trials == 0) return usage(stderr);
    printf("faults: %d of them, seed %ld\n", n_trials, asked.seed);
    const int failed = program_main("faults", tests, (size_t)n_trials);
    return print_table() + failed > 0;
}
