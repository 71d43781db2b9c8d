/* trial.c - starting a trial's run, again and again, and what is known of it afterwards. */
#include "faults.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* 200 images in steps of 8: 25 steps an epoch.  Dropout, stochastic depth, crops, flips and averaging are on, as by default. */
#define TRAIN "train --width 0.25 --depth 0.5 --image-size 32 --global-batch 8 --lr 0.001 --threads 1"

const char *pictures(void) { return drawn("--train-per-class 20 --val-per-class 2 --synth-size 48"); }

uint64_t draw(trial *t, uint64_t below)        /* splitmix64 */
{
    uint64_t x = t->random += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (x ^ (x >> 31)) % below;
}

double wall_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- one start -------------------------------------------------------------------------------------------------------------- */

static job *start_in(const layout *on, const char *dir, const char *inject, const char *script, const char *more)
{
    how h = { .ranks = on->ranks, .script = script, .seconds = 120 };
    if (on->nodes) h.within = textf("%s --nodes %d --per-node %d --dir %s --", EN_CLUSTER, on->nodes, on->ranks / on->nodes, at("cluster"));
    return start(h, TRAIN " --steps %d --checkpoint-every %d --eval-every %d --data %s --run %s %s%s %s", STEPS, SAVE_EVERY, EVALUATE_EVERY,
                 pictures(), dir, *inject ? "--inject " : "", inject, more ? more : "");
}

job *begin(trial *t, const char *script)
{
    t->began = true;
    return start_in(t->on, t->dir, t->inject, script, t->more);
}

/* When the newest fault of injected.txt came, NAN: none did. */
static double injected_at(const trial *t)
{
    const char *path = textf("%s/injected.txt", t->dir);
    char *rest, *text = exists(path) ? read_file(path, NULL) : NULL;
    double newest = NAN;
    for (char *l = text ? strtok_r(text, "\n", &rest) : NULL; l; l = strtok_r(NULL, "\n", &rest)) newest = atof(strchr(l, ' ') + 1);
    return newest;
}

outcome *ended(trial *t, job *j)
{
    outcome *o = finish(j);
    const double now = wall_clock();
    if (isnan(t->fault_at)) t->fault_at = injected_at(t);
    if (t->n_codes < MOST_CODES) t->codes[t->n_codes++] = o->code;
    if (isnan(t->to_exit) && o->code != 0) t->to_exit = now - t->fault_at;
    return o;
}

outcome *first_start(trial *t, int code)
{
    outcome *o = ended(t, begin(t, ""));
    expect_code(o, code);
    return o;
}

void until_done(trial *t, int also)
{
    t->more = NULL;
    for (int i = 0; i < 4; i++) {
        outcome *o = finish(begin(t, ""));
        t->restarts++;
        if (o->code == 0) return;
        if (t->n_codes < MOST_CODES) t->codes[t->n_codes++] = o->code;
        if (o->code != also) FAIL_RUN(o, "exit code %d of a start after the fault", o->code);
    }
    fail_msg("four starts after the fault, and it is not done");
}

/* ---- what was said ---------------------------------------------------------------------------------------------------------- */

const char *said(const outcome *o)
{
    char *text = (char *)textf("%s", o->err), *to = text;
    for (const char *l = text; *l;) {
        const size_t n = strcspn(l, "\n") + (l[strcspn(l, "\n")] == '\n');
        const char *mark = strstr(l, "--inject ");
        if (!mark || mark > l + n) {
            memmove(to, l, n);
            to += n;
        }
        l += n;
    }
    *to = 0;
    return text;
}

void must_say(const outcome *o, const char *what)
{
    if (!strstr(said(o), what) && !strstr(o->out, what)) FAIL_RUN(o, "it does not say '%s'", what);
}

/* ---- the undisturbed run ------------------------------------------------------------------------------------------------------ */

static const char *undisturbed(const layout *on, const char *inject)
{
    const char *dir = at("undisturbed-%d-%d%s%s", on->ranks, on->nodes, *inject ? "-" : "", inject);
    if (exists(checkpoint_of(dir, STEPS))) return dir;
    outcome *o = finish(start_in(on, dir, inject, "", NULL));
    expect_code(o, 0);
    return dir;
}

/* What the metrics say of each step's loss, as text; behind them, what is wrong with the steps, or NULL. */
static char **losses(const char *dir)
{
    static char *nothing[2][STEPS + 1], **list = nothing[0];
    list = list == nothing[0] ? nothing[1] : nothing[0];
    memset(list, 0, sizeof nothing[0]);
    char *rest, *text = read_file(textf("%s/metrics.jsonl", dir), NULL);
    for (char *l = strtok_r(text, "\n", &rest); l; l = strtok_r(NULL, "\n", &rest)) {
        char *loss = strstr(l, "\"loss\":");
        if (!loss || !strstr(l, "\"kind\":\"train\"")) continue;
        const int step = (int)number_in(l, "step");
        if (step < 1 || step > STEPS || list[step - 1]) list[STEPS] = (char *)textf("step %d is in %s/metrics.jsonl once more", step, dir);
        else list[step - 1] = (char *)textf("%.*s", (int)strcspn(loss + 7, ",}"), loss + 7);
    }
    return list;
}

int last_step(const char *dir)
{
    if (!exists(textf("%s/metrics.jsonl", dir))) return 0;
    char **list = losses(dir);
    for (int i = STEPS; i > 0; i--)
        if (list[i - 1]) return i;
    return 0;
}

void as_undisturbed(trial *t, const char *inject)
{
    const char *dir = undisturbed(t->on, inject);
    is_whole(checkpoint_of(t->dir, STEPS), STEPS);
    same_bits(checkpoint_of(t->dir, STEPS), checkpoint_of(dir, STEPS));
    t->same_bits = true;
    char **x = losses(t->dir), **y = losses(dir);
    for (int i = 0; i < STEPS; i++)
        if (!x[i] || !y[i] || strcmp(x[i], y[i]) != 0)
            fail_msg("the metrics of step %d: loss %s; undisturbed: %s", i + 1, x[i] ? x[i] : "-", y[i] ? y[i] : "-");
    if (x[STEPS]) fail_msg("%s", x[STEPS]);
}

/* ---- processes ---------------------------------------------------------------------------------------------------------------- */

static bool is_named(int pid, const char *names)
{
    char path[64], name[64] = "", padded[256], wanted[80];
    snprintf(path, sizeof path, "/proc/%d/comm", pid);
    FILE *f = fopen(path, "r");
    if (f && !fgets(name, sizeof name, f)) name[0] = 0;
    if (f) fclose(f);
    name[strcspn(name, "\n")] = 0;
    snprintf(padded, sizeof padded, " %s ", names);
    snprintf(wanted, sizeof wanted, " %s ", name);
    return name[0] && strstr(padded, wanted);
}

int processes(int root, const char *names, int *pids, int most)
{
    int children[128], n = 0;
    const int all = children_of(root, children, 128);
    for (int i = 0; i < all && n < most; i++) {
        if (is_named(children[i], names)) pids[n++] = children[i];
        n += processes(children[i], names, pids + n, most - n);
    }
    return n;
}

int process_of_rank(int root, int rank)
{
    int pids[64];
    const char *program = strrchr(EN_PROGRAM, '/') + 1, *const names[] = { "OMPI_COMM_WORLD_RANK", "PMIX_RANK" };
    const int n = processes(root, program, pids, 64);
    for (int i = 0; i < n; i++) {
        size_t bytes;
        const char *path = textf("/proc/%d/environ", pids[i]);
        if (access(path, R_OK) != 0) continue;
        const char *text = read_file(path, &bytes);
        for (const char *p = text; p < text + bytes; p += strlen(p) + 1)
            for (int k = 0; k < 2; k++)
                if (strncmp(p, names[k], strlen(names[k])) == 0 && p[strlen(names[k])] == '=' && atoi(p + strlen(names[k]) + 1) == rank)
                    return pids[i];
    }
    return 0;
}

int process_with(int root, const char *name, const char *words)
{
    int pids[64];
    const int n = processes(root, name, pids, 64);
    for (int i = 0; i < n; i++) {
        size_t bytes;
        const char *path = textf("/proc/%d/cmdline", pids[i]);
        char *text = access(path, R_OK) == 0 ? read_file(path, &bytes) : NULL;
        for (size_t k = 0; text && k < bytes; k++)
            if (!text[k]) text[k] = ' ';
        if (text && strstr(text, words)) return pids[i];
    }
    return 0;
}

void limit_files(int pid, int64_t bytes)
{
    struct rlimit now;
    if (pid <= 0 || prlimit(pid, RLIMIT_FSIZE, NULL, &now) != 0) return;
    now.rlim_cur = bytes < 0 ? now.rlim_max : (rlim_t)bytes;
    prlimit(pid, RLIMIT_FSIZE, &now, NULL);
}

/* ---- disks -------------------------------------------------------------------------------------------------------------------- */

/* Mounts are made in a world of our own, seen by the runs and nobody else. */
static bool own_mounts(void)
{
    static int made = -1;
    if (made < 0) made = unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
    return made;
}

bool small_disk(const char *path, int64_t bytes)
{
    make_folders(path);
    return own_mounts() && mount("tmpfs", path, "tmpfs", 0, textf("size=%" PRId64, bytes)) == 0;
}

bool resize_disk(const char *path, int64_t bytes) { return mount("tmpfs", path, "tmpfs", MS_REMOUNT, textf("size=%" PRId64, bytes)) == 0; }
void no_disk(const char *path)                    { umount2(path, MNT_DETACH); }
