#define _GNU_SOURCE
#include "program_inside.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <hdf5.h>

enum { COMMAND = 8192, WORDS = 128, JOBS = 4, DEFAULT_LIMIT_S = 60 };

/* ---- memory that lives until the end --------------------------------------------------------------------------------- */

static struct kept { void *p; struct kept *next; } *kept;

void *keep(void *p)
{
    struct kept *k = malloc(sizeof *k);
    if (!p || !k) {
        fprintf(stderr, "no memory for the test\n");
        abort();
    }
    *k = (struct kept){ p, kept };
    kept = k;
    return p;
}

const void *remembered(void) { return kept; }

void forget_since(const void *mark)
{
    while (kept && kept != mark) {
        struct kept *k = kept;
        kept = k->next;
        free(k->p);
        free(k);
    }
}

/* ---- the folder ------------------------------------------------------------------------------------------------------ */

static char folder[256];

static char *vformat(const char *fmt, va_list ap)
{
    char *text = NULL;
    if (vasprintf(&text, fmt, ap) < 0) text = NULL;
    return keep(text);
}

const char *textf(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    const char *text = vformat(fmt, ap);
    va_end(ap);
    return text;
}

const char *at(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    const char *name = vformat(fmt, ap);
    va_end(ap);
    return textf("%s/%s", folder, name);
}

bool exists(const char *path)    { struct stat st; return lstat(path, &st) == 0; }
bool is_folder(const char *path) { struct stat st; return stat(path, &st) == 0 && S_ISDIR(st.st_mode); }

void make_folders(const char *path)
{
    char part[PATH];
    snprintf(part, sizeof part, "%s", path);
    for (char *p = part + 1; ; p++) {
        const char c = *p;
        if (c && c != '/') continue;
        *p = 0;
        if (mkdir(part, 0777) != 0 && errno != EEXIST) fail_msg("%s: %s", part, strerror(errno));
        *p = c;
        if (!c) break;
    }
}

void write_file(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f) != 0) fail_msg("%s: %s", path, strerror(errno));
}

char *read_file(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s: %s", path, strerror(errno));
    size_t used = 0, room = 4096;
    char *bytes = malloc(room + 1);
    for (size_t got; (got = fread(bytes + used, 1, room - used, f)) > 0;) {
        used += got;
        if (used == room) bytes = realloc(bytes, (room *= 2) + 1);
    }
    fclose(f);
    bytes[used] = 0;
    if (n) *n = used;
    return keep(bytes);
}

void copy_file(const char *from, const char *to)
{
    size_t n;
    const char *bytes = read_file(from, &n);
    write_file(to, bytes, n);
}

void shell(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    const char *command = vformat(fmt, ap);
    va_end(ap);
    if (system(command) != 0) fail_msg("failed: %s", command);
}

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static struct { char **path; size_t n, room; } walk;

static int walk_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)ftw;
    (void)st;
    if (type != FTW_F && type != FTW_SL) return 0;
    if (walk.n == walk.room) walk.path = realloc(walk.path, (walk.room = 2 * walk.room + 64) * sizeof *walk.path);
    walk.path[walk.n++] = keep(strdup(path));
    return 0;
}

char **files_below(const char *path, size_t *n)
{
    memset(&walk, 0, sizeof walk);
    if (nftw(path, walk_entry, 16, FTW_PHYS) != 0 && errno != ENOENT) fail_msg("%s: %s", path, strerror(errno));
    if (walk.n) qsort(walk.path, walk.n, sizeof *walk.path, by_text);
    *n = walk.n;
    return walk.path ? keep(walk.path) : NULL;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

/* ---- processes ------------------------------------------------------------------------------------------------------- */

struct job {
    how    h;
    pid_t  pid;                 /* 0: ended */
    double began;
    char   out[PATH], err[PATH];
    outcome *o;
};

static job *jobs[JOBS];         /* running ones */

double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void pause_s(double seconds)
{
    struct timespec t = { (time_t)seconds, (long)((seconds - floor(seconds)) * 1e9) };
    while (nanosleep(&t, &t) != 0 && errno == EINTR) continue;
}

int children_of(int parent, int *pids, int most)
{
    DIR *d = opendir("/proc");
    int n = 0;
    for (const struct dirent *e; d && n < most && (e = readdir(d));) {
        if (!isdigit((unsigned char)e->d_name[0])) continue;
        char path[64 + sizeof e->d_name], text[1024];
        snprintf(path, sizeof path, "/proc/%s/stat", e->d_name);
        FILE *f = fopen(path, "r");
        if (!f) continue;
        const char *line = fgets(text, sizeof text, f), *after = line ? strrchr(line, ')') : NULL;     /* pid (name) state ppid */
        int ppid = 0;
        char state;
        fclose(f);
        if (after && sscanf(after + 1, " %c %d", &state, &ppid) == 2 && ppid == parent && state != 'Z') pids[n++] = atoi(e->d_name);
    }
    if (d) closedir(d);
    return n;
}

static int by_number(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

int ranks_of(job *j, int *pids, int most)
{
    const int n = j->pid ? children_of(j->pid, pids, most) : 0;
    qsort(pids, (size_t)n, sizeof *pids, by_number);
    return n;
}

static void kill_tree(pid_t pid)
{
    int pids[256];
    kill(pid, SIGSTOP);                          /* no new children while we count them */
    const int n = children_of(pid, pids, 256);
    for (int i = 0; i < n; i++) kill_tree(pids[i]);
    kill(pid, SIGKILL);
}

static bool is_job(pid_t pid)
{
    for (int i = 0; i < JOBS; i++)
        if (jobs[i] && jobs[i]->pid == pid) return true;
    return false;
}

/* Processes of ended jobs that are still there. */
static int orphans(int *pids, int most)
{
    int all[256], n = 0;
    const int children = children_of(getpid(), all, 256);
    for (int i = 0; i < children; i++)
        if (!is_job(all[i]) && n < most) pids[n++] = all[i];
    return n;
}

static void reap(void)
{
    for (siginfo_t info;;) {                     /* ended orphans; a job's own end is for finish() */
        info.si_pid = 0;
        if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0 || is_job(info.si_pid)) return;
        waitpid(info.si_pid, NULL, 0);
    }
}

static void kill_orphans(void)
{
    int pids[256];
    for (int n; (n = orphans(pids, 256)) > 0; pause_s(0.01)) {
        for (int i = 0; i < n; i++) kill_tree(pids[i]);
        reap();
    }
    reap();
}

static void set_environment(const how *h)
{
    static const char *const settings[][2] = {   /* Open MPI 4 and 5: a test machine may have few cores, and may run as root */
        { "OMPI_ALLOW_RUN_AS_ROOT", "1" }, { "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1" }, { "OMPI_MCA_mpi_yield_when_idle", "1" },
        { "OMPI_MCA_rmaps_base_oversubscribe", "1" }, { "OMPI_MCA_hwloc_base_binding_policy", "none" },
        { "PRTE_ALLOW_RUN_AS_ROOT", "1" }, { "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM", "1" },
        { "PRTE_MCA_rmaps_default_mapping_policy", ":OVERSUBSCRIBE" }, { "PRTE_MCA_hwloc_default_binding_policy", "none" },
        { "OMP_WAIT_POLICY", "passive" } };
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) setenv(settings[i][0], settings[i][1], 1);
    /* Open MPI leaks from plug-ins that it unloads; without it every leak is ours. */
    /* mpirun sleeps twice this after each exit code but 0, and then kills who is still there: 0 is quick, and the hardest */
    setenv("OMPI_MCA_odls_base_sigkill_timeout", h->patient ? SANITIZED ? "10" : "3" : "0", 1);
    setenv("PRTE_MCA_odls_base_sigkill_timeout", h->patient ? SANITIZED ? "10" : "3" : "0", 1);
    setenv("ASAN_OPTIONS", h->ranks > 0 ? "detect_leaks=0" : "detect_leaks=1", 1);
    setenv("UBSAN_OPTIONS", "print_stacktrace=1", 1);
}

static int add_words(char **argv, int n, char *text)
{
    char *rest;
    for (char *w = strtok_r(text, " ", &rest); w && n < WORDS - 1; w = strtok_r(NULL, " ", &rest)) argv[n++] = w;
    return n;
}

static int add_program(char **argv, int n, const char *env)
{
    if (env) {
        argv[n++] = "env";
        argv[n++] = (char *)env;
    }
    argv[n++] = EN_PROGRAM;
    return n;
}

static job *vstart(how h, const char *fmt, va_list ap)
{
    static int number;
    job *j = keep(calloc(1, sizeof *j));
    char *arguments = vformat(fmt, ap), *argv[WORDS], *command = keep(calloc(1, COMMAND)), *split = keep(strdup(arguments));
    int n = 0;
    if (h.within) n = add_words(argv, n, keep(strdup(h.within)));
    if (h.ranks > 0) {
        argv[n++] = h.by_script || h.script ? EN_RUN_SCRIPT : EN_MPIEXEC;
        if (h.script) n = add_words(argv, n, keep(strdup(h.script)));
        argv[n++] = EN_MPIEXEC_NUMPROC;
        argv[n++] = (char *)(h.second ? "1" : textf("%d", h.ranks));
    }
    n = add_program(argv, n, h.env[0]);
    n = add_words(argv, n, split);
    if (h.second) {
        argv[n++] = ":";
        argv[n++] = EN_MPIEXEC_NUMPROC;
        argv[n++] = "1";
        n = add_program(argv, n, h.env[1]);
        n = add_words(argv, n, keep(strdup(h.second)));
    }
    if (h.operand) argv[n++] = (char *)h.operand;
    argv[n] = NULL;
    for (int i = 0; i < n; i++) snprintf(command + strlen(command), COMMAND - strlen(command), "%s%s", i ? " " : "", argv[i]);

    *j = (job){ .h = h, .began = now_s(), .o = keep(calloc(1, sizeof *j->o)) };
    j->o->command = command;
    number++;
    snprintf(j->out, sizeof j->out, "%s/%04d.out", folder, number);
    snprintf(j->err, sizeof j->err, "%s/%04d.err", folder, number);
    const int out = open(j->out, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666), err = open(j->err, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (out < 0 || err < 0) fail_msg("%s: %s", j->out, strerror(errno));
    fflush(NULL);
    j->pid = fork();
    if (j->pid == 0) {
        setpgid(0, 0);                           /* a signal to the test's group does not reach it, nor ours its */
        dup2(open("/dev/null", O_RDONLY | O_CLOEXEC), 0);
        dup2(out, 1);
        dup2(err, 2);
        const struct rlimit none = { 0, 0 }, size = { (rlim_t)h.file_limit, (rlim_t)h.file_limit };
        setrlimit(RLIMIT_CORE, &none);
        if (h.file_limit > 0) setrlimit(RLIMIT_FSIZE, &size);
        set_environment(&h);
        execvp(argv[0], argv);
        fprintf(stderr, "%s: %s\n", argv[0], strerror(errno));
        _exit(127);
    }
    close(out);
    close(err);
    if (j->pid < 0) fail_msg("fork: %s", strerror(errno));
    for (int i = 0; i < JOBS; i++)
        if (!jobs[i]) {
            jobs[i] = j;
            return j;
        }
    fail_msg("more than %d runs at once", JOBS);
    return NULL;
}

job *start(how h, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    job *j = vstart(h, fmt, ap);
    va_end(ap);
    return j;
}

static char *without_cr(char *text)
{
    char *to = text;
    for (const char *p = text; *p; p++)
        if (*p != '\r') *to++ = *p;
    *to = 0;
    return text;
}

static void gather(job *j, int status, const struct rusage *used)
{
    for (int i = 0; i < JOBS; i++)
        if (jobs[i] == j) jobs[i] = NULL;
    j->pid = 0;
    j->o->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    j->o->seconds = now_s() - j->began;
    j->o->max_rss_kib = used->ru_maxrss;
    j->o->out = without_cr(read_file(j->out, NULL));
    j->o->err = without_cr(read_file(j->err, NULL));
}

static void give_up_on(job *j)
{
    struct rusage used = { 0 };
    int status = 0;
    kill_tree(j->pid);
    wait4(j->pid, &status, 0, &used);
    gather(j, status, &used);
    kill_orphans();
}

outcome *finish(job *j)
{
    const double limit = (j->h.seconds > 0 ? j->h.seconds : DEFAULT_LIMIT_S) * (SANITIZED ? 5 : 1);
    struct rusage used;
    int status, left[16], n = 0;
    while (wait4(j->pid, &status, WNOHANG, &used) == 0) {
        if (now_s() - j->began > limit) {
            give_up_on(j);
            FAIL_RUN(j->o, "still there after %.0f s: it hangs", limit);
        }
        pause_s(0.005);
    }
    gather(j, status, &used);
    for (const double end = now_s() + 20; (n = orphans(left, 16)) > 0 && now_s() < end; pause_s(0.005)) reap();
    reap();
    if (n > 0) {
        kill_orphans();
        FAIL_RUN(j->o, "%d process%s left behind", n, n == 1 ? "" : "es");
    }
    if (strstr(j->o->err, "Sanitizer") || strstr(j->o->err, ": runtime error: ")) FAIL_RUN(j->o, "a sanitizer speaks");
    return j->o;
}

void abandon_all(void)
{
    for (int i = 0; i < JOBS; i++)
        if (jobs[i]) give_up_on(jobs[i]);
    kill_orphans();
}

bool running(job *j)
{
    siginfo_t info = { 0 };
    return j->pid && (waitid(P_PID, (id_t)j->pid, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0);
}

int process_of(const job *j) { return j->pid; }

void send(job *j, int sig)
{
    if (j->pid) kill(j->pid, sig);
}

void wait_for_lines(job *j, const char *path, int lines)
{
    const double end = now_s() + 60 * (SANITIZED ? 5 : 1);
    for (;; pause_s(0.01)) {
        int n = 0;
        FILE *f = fopen(path, "r");
        for (int c; f && (c = fgetc(f)) != EOF;) n += c == '\n';
        if (f) fclose(f);
        if (n >= lines) return;
        if (!running(j)) {
            finish(j);
            FAIL_RUN(j->o, "it ended before %s had %d lines", path, lines);
        }
        if (now_s() > end) {
            give_up_on(j);
            FAIL_RUN(j->o, "%s has %d lines instead of %d after %.0f s: it hangs", path, n, lines, now_s() - j->began);
        }
    }
}

outcome *run_how(how h, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    job *j = vstart(h, fmt, ap);
    va_end(ap);
    return finish(j);
}

outcome *run(int code, int ranks, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    job *j = vstart((how){ .ranks = ranks }, fmt, ap);
    va_end(ap);
    outcome *o = finish(j);
    expect_code(o, code);
    return o;
}

void expect_code(const outcome *o, int code)
{
    if (o->code != code) FAIL_RUN(o, "exit code %d instead of %d", o->code, code);
}

int count(const char *text, const char *needle)
{
    int n = 0;
    for (const char *p = text; (p = strstr(p, needle)); p += strlen(needle)) n++;
    return n;
}

void says_once(const outcome *o, const char *needle)
{
    const int n = count(o->err, needle);
    if (n != 1) FAIL_RUN(o, "'%s' stands %d times in the error stream", needle, n);
}

static const char *tail(const char *text)
{
    const size_t n = text ? strlen(text) : 0;
    return !text ? "" : n > 6000 ? text + n - 6000 : text;
}

_Noreturn void fail_run(const outcome *o, const char *file, int line, const char *fmt, ...)
{
    char why[2048];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    fprintf(stderr, "%s\n$ %s\n(code %d after %.1f s)\n---- out\n%s\n---- err\n%s\n----\n", why, o->command, o->code, o->seconds, tail(o->out), tail(o->err));
    _fail(file, line);
    abort();
}

/* ---- main ------------------------------------------------------------------------------------------------------------ */

int program_main(const char *name, const struct CMUnitTest *tests, size_t n)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/en_%s_XXXXXX", tmp && *tmp ? tmp : "/tmp", name);
    if (!mkdtemp(folder)) {
        fprintf(stderr, "%s: %s\n", folder, strerror(errno));
        return 1;
    }
    if (getenv("EN_TEST_FILTER")) cmocka_set_test_filter(getenv("EN_TEST_FILTER"));
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    const int failed = _cmocka_run_group_tests(name, tests, n, NULL, NULL);
    abandon_all();
    if (failed) fprintf(stderr, "%s: what the runs left behind is in %s\n", name, folder);
    else nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    forget_since(NULL);
    return failed;
}
