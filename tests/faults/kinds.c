/* kinds.c - what goes wrong, and what a job must make of it: the code it ends with, what it says, and that it goes on. */
#include "faults.h"

#include "comm/watch.h"

#include <math.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ANY = 1 << ONE | 1 << TWO | 1 << FOUR | 1 << NODES, SEVERAL = ANY & ~(1 << ONE), ON_NODES = 1 << NODES };

/* Every section in turn; "" is the beginning of a step. */
static const char *const sections[] = { "", "start-up", "data", "forward", "backward", "update", "device", "checkpoint", "evaluation", "output",
                                        "collective", "ending" };
enum { SECTIONS = sizeof sections / sizeof *sections };
_Static_assert(SECTIONS == EN_SECTIONS + 1, "all sections of comm/watch.h");

/* Saves come after steps 3, 6, 9, 12, 15, 16 and evaluations after 7, 14, 16: from step 4 to 10 there is one behind and one ahead. */
static int some_step(trial *t) { return 4 + (int)draw(t, 7); }
static int some_rank(trial *t) { return (int)draw(t, (uint64_t)t->on->ranks); }

static void __attribute__((format(printf, 2, 3))) describe(trial *t, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(t->what, sizeof t->what, fmt, ap);
    va_end(ap);
    printf("             %s\n", t->what);
}

/* --inject KIND@rank:step:section, the section by turns; a single rank meets nobody, and rank 0 alone has output. */
static const char *inject_somewhere(trial *t, const char *what, int rank)
{
    const char *section = sections[t->turn % SECTIONS];
    if (rank > 0 && strcmp(section, "output") == 0) section = "data";
    if (t->on->ranks == 1 && strcmp(section, "collective") == 0) section = "forward";
    const bool early = strcmp(section, "start-up") == 0;
    snprintf(t->inject, sizeof t->inject, "%s@%d:%d%s%s", what, rank, early ? 0 : some_step(t), *section ? ":" : "", section);
    describe(t, "--inject %s", t->inject);
    return section;
}

/* The start with the fault, which ends with `code`, and what it needs to be done: by hand, or every third time by launch/run. */
static const outcome *dies_and_goes_on(trial *t, int code)
{
    if (t->turn % 3 != 2) {
        const outcome *o = first_start(t, code);
        until_done(t, 0);
        return o;
    }
    const outcome *o = finish(begin(t, "--restarts 2 --restart-pause 0"));
    expect_code(o, 0);
    must_say(o, textf("run: ended with %d (", code));
    t->codes[t->n_codes++] = code;
    t->restarts += count(o->err, "; starting again");
    return o;
}

/* ---- ranks ------------------------------------------------------------------------------------------------------------------ */

static void killed(trial *t)
{
    const int rank = some_rank(t);
    inject_somewhere(t, "kill", rank);
    const outcome *o = dies_and_goes_on(t, 137);
    must_say(o, textf("process rank %d ", rank));
    must_say(o, "signal 9");
    as_undisturbed(t, "");
}

/* The job ends, and one line names the rank, its host and where it stands; of a process that is stopped nobody knows more than that it
 * is silent, or, soon after the start, that it could not be asked. */
static void never_comes_back(trial *t, const char *what, bool knows)
{
    const int rank = some_rank(t);
    t->more = SANITIZED ? "--stall-timeout 20s" : "--stall-timeout 5s";
    const char *section = inject_somewhere(t, what, rank), *line;
    const outcome *o = first_start(t, 5);
    const bool outside = strcmp(section, "collective") != 0;                   /* at its door it is still where it was  */
    line = textf("rank %d on host %s", rank, t->on->nodes ? textf("node%d (", 1 + rank * t->on->nodes / t->on->ranks) : "");
    must_say(o, line);
    if (count(said(o), "effnet: rank ") != 1) FAIL_RUN(o, "not one line says so, but %d", count(said(o), "effnet: rank "));
    if (knows) must_say(o, textf("stands in %s", !outside ? "" : *section ? section : "data"));
    until_done(t, 0);
    as_undisturbed(t, "");
}

static void stalled(trial *t) { never_comes_back(t, "stall", true); }
static void frozen(trial *t)  { never_comes_back(t, "freeze", false); }

static void slow(trial *t)
{
    snprintf(t->inject, sizeof t->inject, "slow=0.1s@%d:%d", some_rank(t), some_step(t));
    describe(t, "--inject %s", t->inject);
    first_start(t, 0);
    as_undisturbed(t, "");
}

/* Four ranks have a majority, two have not.  Found by the next save, or by the comparison before it. */
static void bit_flipped(trial *t)
{
    const int rank = some_rank(t);
    if (t->turn % 2) t->more = "--compare-every 2";
    snprintf(t->inject, sizeof t->inject, "flip@%d:%d", rank, some_step(t));
    describe(t, "--inject %s %s", t->inject, t->more ? t->more : "");
    const outcome *o = dies_and_goes_on(t, 5);
    must_say(o, t->on->ranks > 2 ? textf("rank %d on host ", rank) : "no majority to tell which");
    must_say(o, t->on->ranks > 2 ? "holds other parameters than " : "hold different parameters after step ");
    as_undisturbed(t, "");
}

/* ---- numbers that are none ------------------------------------------------------------------------------------------------------ */

/* The step is skipped on all ranks alike, so it is the same which of them had it; and a death later on changes nothing. */
static void not_a_number(trial *t)
{
    const int rank = some_rank(t), step = 4 + (int)draw(t, 2), other = (rank + 1) % t->on->ranks;
    const char *where = t->variant % 2 ? ":backward" : "";
    snprintf(t->inject, sizeof t->inject, "nan@%d:%d%s", rank, step, where);
    const char *reference = textf("nan@%d:%d%s", other, step, where);
    if (t->turn % 3 != 1) {
        describe(t, "--inject %s", t->inject);
        must_say(first_start(t, 0), textf("step %d is skipped: ", step));
    } else {                                   /* the checkpoint of step 6 is on disk when that of step 9 is begun */
        snprintf(t->inject + strlen(t->inject), sizeof t->inject - strlen(t->inject), ",kill@%d:%d", some_rank(t), 10 + (int)draw(t, 4));
        describe(t, "--inject %s", t->inject);
        must_say(first_start(t, 137), textf("step %d is skipped: ", step));
        until_done(t, 0);
    }
    as_undisturbed(t, reference);
}

/* Two skipped steps in a row are too many here: the run ends, and goes on from before them. */
static void diverged(trial *t)
{
    snprintf(t->inject, sizeof t->inject, "nan@%d:4,nan@%d:5%s", some_rank(t), some_rank(t), t->variant % 2 ? ":backward" : "");
    t->more = "--max-skipped 1";
    describe(t, "--inject %s %s", t->inject, t->more);
    must_say(first_start(t, 4), "not finite in 2 steps in a row, up to step 5");
    until_done(t, 0);
    as_undisturbed(t, "");
}

/* ---- what starts them --------------------------------------------------------------------------------------------------------- */

/* Ranks wait for `rank`, which sleeps in some step, so that there is time for a fault from outside. */
static job *begin_and_hold(trial *t, int rank, const char *seconds)
{
    snprintf(t->inject, sizeof t->inject, "slow=%s@%d:%d", seconds, rank, some_step(t));
    job *j = begin(t, "");
    wait_for_lines(j, textf("%s/injected.txt", t->dir), 1);
    return j;
}

static void kill_now(trial *t, int pid)
{
    t->fault_at = wall_clock();
    kill(pid, SIGKILL);
}

static void launcher_killed(trial *t)
{
    int pids[8];
    job *j = begin_and_hold(t, some_rank(t), "60s");
    describe(t, "mpirun is killed");
    const int n = processes(process_of(j), "mpirun orterun prterun mpiexec", pids, 8);
    if (n > 0) kill_now(t, pids[0]);
    else send(j, SIGKILL);
    expect_code(ended(t, j), 137);
    until_done(t, 0);
    as_undisturbed(t, "");
}

static void daemon_killed(trial *t)
{
    int pids[8], hit = 0;
    const int rank = some_rank(t);
    job *j = begin_and_hold(t, some_rank(t), "60s");
    describe(t, "the daemon of rank %d is killed", rank);
    const int n = processes(process_of(j), "orted prted", pids, 8);
    for (int i = 0; i < n && !hit; i++)
        if (process_of_rank(pids[i], rank)) hit = pids[i];
    if (hit) kill_now(t, hit);
    else send(j, SIGKILL);
    const outcome *o = ended(t, j);
    if (!hit) FAIL_RUN(o, "%d daemons, none of rank %d", n, rank);
    expect_code(o, 205);
    until_done(t, 0);
    as_undisturbed(t, "");
}

/* mpirun learns of it by a daemon that is silent (205), or first by the end of what started the daemon there, and leaves with that
 * code: 255 of ssh, its signal of the stand-in for ssh. */
static void node_killed(trial *t)
{
    const int rank = some_rank(t);
    job *j = begin_and_hold(t, some_rank(t), "60s");
    const int node = 1 + rank * t->on->nodes / t->on->ranks, first = process_with(process_of(j), "bash", textf("--init node%d ", node));
    describe(t, "node%d is gone", node);
    if (first) kill_now(t, first);             /* and everything on it with it */
    else send(j, SIGKILL);
    const outcome *o = ended(t, j);
    if (!first) FAIL_RUN(o, "there is no node%d", node);
    if (o->code != 205 && o->code != 255 && o->code != SIGKILL && o->code != 128 + SIGKILL) FAIL_RUN(o, "exit code %d", o->code);
    until_done(t, 0);
    as_undisturbed(t, "");
}

/* ---- requests to stop ---------------------------------------------------------------------------------------------------------- */

/* When the newest checkpoint got its final name. */
static void measure_checkpoint(trial *t)
{
    struct stat st;
    const int64_t step = newest_checkpoint(t->dir);
    if (step < 0 || stat(checkpoint_of(t->dir, step), &st) != 0) fail_msg("no checkpoint in %s", t->dir);
    is_whole(checkpoint_of(t->dir, step), step);
    t->to_checkpoint = (double)st.st_ctim.tv_sec + 1e-9 * (double)st.st_ctim.tv_nsec - t->fault_at;
}

/* One rank is asked, in each section; all stop.  A run that is ending already, ends. */
static void asked_inside(trial *t, const char *signal_)
{
    const char *section = inject_somewhere(t, signal_, some_rank(t));
    const bool late = strcmp(section, "ending") == 0;
    const outcome *o = first_start(t, late ? 0 : 75);
    if (!late) {
        must_say(o, "stopped on request after step ");
        measure_checkpoint(t);
        until_done(t, 0);
    }
    as_undisturbed(t, "");
}

static void term_inside(trial *t) { asked_inside(t, "term"); }
static void usr1_inside(trial *t) { asked_inside(t, "usr1"); }

static void asked_outside(trial *t)
{
    static const struct { int number; const char *name; } signals[] = { { SIGTERM, "TERM" }, { SIGUSR1, "USR1" }, { SIGINT, "INT" } };
    const int k = t->turn % 3;
    job *j = begin_and_hold(t, some_rank(t), "0.5s");
    describe(t, "SIG%s to launch/run", signals[k].name);
    t->fault_at = wall_clock();
    send(j, signals[k].number);
    const outcome *o = ended(t, j);
    expect_code(o, 75);
    must_say(o, "stopped on request after step ");
    measure_checkpoint(t);
    until_done(t, 0);
    as_undisturbed(t, "");
}

/* ---- disks ---------------------------------------------------------------------------------------------------------------------- */

/* For one write, for two, or to the end: then the run cannot be called done. */
static void writes_fail(trial *t)
{
    static const int writes[] = { 1, 2, 1000 };
    const int n = writes[t->turn % 3];
    snprintf(t->inject, sizeof t->inject, "enospc=%d@0:%d", n, some_step(t));
    describe(t, "--inject %s", t->inject);
    const outcome *o = first_start(t, n < 1000 ? 0 : 1);
    must_say(o, "No space left on device");
    t->to_exit = NAN;                          /* it has tried until the end, and then some */
    if (n == 1000) until_done(t, 0);
    as_undisturbed(t, "");
}

/* Where no disk can be mounted: no file of rank 0 may grow beyond 1 MiB, once MPI has made its own. */
static void file_too_large(trial *t, bool in_time)
{
    job *j = begin_and_hold(t, 0, "0.1s");
    const int pid = process_of_rank(process_of(j), 0);
    describe(t, "no file longer than 1 MiB%s", in_time ? ", until later" : "");
    limit_files(pid, 1 << 20);
    for (bool larger = !in_time; !larger && running(j); pause_s(0.01))
        if ((larger = last_step(t->dir) == STEPS)) limit_files(pid, -1);
    const outcome *o = ended(t, j);
    t->to_exit = NAN;
    expect_code(o, in_time ? 0 : 1);
    must_say(o, "File too large");
    if (!in_time) until_done(t, 0);
    as_undisturbed(t, "");
}

static void make_room(const char *disk)
{
    if (!resize_disk(disk, 64 << 20)) fail_msg("%s cannot be made larger", disk);
}

/* A disk with room for one checkpoint: the second does not fit, the first stays whole.  When room is made while the run still tries, it is
 * done; when not, it ends with 1, and goes on when there is room. */
static void disk_full(trial *t)
{
    const char *disk = textf("%s/checkpoints", t->dir);
    const bool in_time = t->variant % 2;
    if (!small_disk(disk, 5 << 20)) {
        file_too_large(t, in_time);
        return;
    }
    describe(t, "a disk of 5 MiB for checkpoints of 3.5%s", in_time ? ", made larger in time" : "");
    job *j = begin(t, "");
    for (bool larger = !in_time; !larger && running(j); pause_s(0.01))
        if ((larger = last_step(t->dir) == STEPS)) make_room(disk);
    const outcome *o = ended(t, j);
    expect_code(o, in_time ? 0 : 1);
    must_say(o, "No space left on device");
    is_whole(checkpoint_of(t->dir, SAVE_EVERY), SAVE_EVERY);
    if (!in_time) {
        make_room(disk);
        until_done(t, 0);
    }
    as_undisturbed(t, "");
    no_disk(disk);
}

static void damage(const char *path, uint64_t how_, uint64_t where)
{
    size_t n;
    if (how_ == 0) {
        unlink(path);
        return;
    }
    char *bytes = read_file(path, &n);
    if (how_ == 1) n = where % n;
    else bytes[where % n] ^= 16;
    write_file(path, bytes, n);
}

/* Truncated, a byte changed, removed; the newest checkpoint, or every one: then the run is refused until they are gone. */
static void checkpoint_damaged(trial *t)
{
    static const char *const ways[] = { "removed", "cut short", "changed in one byte" };
    const int way = t->variant % 4 == 3 ? 1 : t->variant % 4;
    const bool all = t->variant % 4 == 3;
    t->more = textf("--stop-after %d", 7 + (int)draw(t, 5));
    describe(t, "%s is %s", all ? "every checkpoint" : "the newest checkpoint", ways[way]);
    first_start(t, 75);
    const int64_t newest = newest_checkpoint(t->dir);
    size_t n;
    char **files = files_below(textf("%s/checkpoints", t->dir), &n);
    for (size_t i = 0; i < n; i++)
        if (all || strcmp(files[i], checkpoint_of(t->dir, newest)) == 0) damage(files[i], (uint64_t)way, draw(t, 1 << 30));
    t->more = NULL;
    if (all) {
        const outcome *o = ended(t, begin(t, ""));
        expect_code(o, 3);
        must_say(o, "step-");
        for (size_t i = 0; i < n; i++) unlink(files[i]);
        until_done(t, 0);
    } else {
        const outcome *o = finish(begin(t, ""));
        expect_code(o, 0);
        t->restarts++;
        if (way > 0) must_say(o, textf("passing over %s", checkpoint_of(t->dir, newest)));
    }
    as_undisturbed(t, "");
}

const kind kinds[] = {
    { "kill",       "a rank dies",                       ANY,      killed },
    { "stop",       "a signal to launch/run",            ANY,      asked_outside },
    { "stall",      "a rank's thread sleeps for ever",   ANY,      stalled },
    { "disk",       "a disk that is full",               ANY,      disk_full },
    { "term",       "SIGTERM to a rank",                 ANY,      term_inside },
    { "daemon",     "mpirun's daemon on a node dies",    ON_NODES, daemon_killed },
    { "damage",     "a damaged checkpoint",              ANY,      checkpoint_damaged },
    { "flip",       "one bit on one rank",               SEVERAL,  bit_flipped },
    { "nan",        "a step that is not finite",         ANY,      not_a_number },
    { "freeze",     "a rank's process is stopped",       SEVERAL,  frozen },
    { "enospc",     "writes that find no space",         ANY,      writes_fail },
    { "node",       "all of a node dies",                ON_NODES, node_killed },
    { "usr1",       "SIGUSR1 to a rank",                 ANY,      usr1_inside },
    { "mpirun",     "mpirun dies",                       ANY,      launcher_killed },
    { "diverge",    "too many of those",                 ANY,      diverged },
    { "slow",       "a rank is slow",                    SEVERAL,  slow },
};
const int n_kinds = sizeof kinds / sizeof *kinds;
