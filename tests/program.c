#define _GNU_SOURCE
#include "program.h"

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

#include "trainer/checkpoint.h"

enum { PATH = 4096, COMMAND = 8192, WORDS = 128, JOBS = 4, DEFAULT_LIMIT_S = 60 };

/* ---- memory that lives until the end --------------------------------------------------------------------------------- */

static struct kept { void *p; struct kept *next; } *kept;

static void *keep(void *p)
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

static void drop_all(void)
{
    while (kept) {
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

bool running(job *j)
{
    siginfo_t info = { 0 };
    return j->pid && (waitid(P_PID, (id_t)j->pid, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0);
}

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

/* ---- metrics --------------------------------------------------------------------------------------------------------- */

static const char *value_of(const char *json, const char *key)
{
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *p = strstr(json, quoted);
    if (!p) return NULL;
    p += strlen(quoted);
    return p + strspn(p, " ");
}

double number_in(const char *json, const char *key)
{
    const char *v = value_of(json, key);
    char *end = NULL;
    const double x = v ? strtod(v, &end) : NAN;
    if (!v || end == v) fail_msg("no number \"%s\" in: %s", key, json);
    return x;
}

metric *metrics(const char *run_dir, const char *kind, size_t *n)
{
    char path[PATH], mark[32], *rest;
    snprintf(path, sizeof path, "%s/metrics.jsonl", run_dir);
    snprintf(mark, sizeof mark, "\"kind\":\"%s\"", kind);
    char *text = read_file(path, NULL);
    size_t room = 0;
    for (const char *p = text; *p; p++) room += *p == '\n';
    metric *m = keep(calloc(room + 1, sizeof *m));
    *n = 0;
    for (char *l = strtok_r(text, "\n", &rest); l; l = strtok_r(NULL, "\n", &rest)) {
        if (!strstr(l, mark)) continue;
        metric *q = &m[(*n)++];
        q->step = (int64_t)number_in(l, "step");
        q->loss = number_in(l, "loss");
        const char *v = value_of(l, "loss");
        snprintf(q->text, sizeof q->text, "%.*s", (int)strcspn(v, ",}"), v);
        if (strcmp(kind, "eval") == 0) {
            q->top1 = number_in(l, "top1");
            q->top5 = number_in(l, "top5");
            q->images = (int64_t)number_in(l, "images");
        }
    }
    return m;
}

/* ---- HDF5 ------------------------------------------------------------------------------------------------------------ */

typedef struct { tensor *t; size_t n, room; } tensor_list;

static void read_dataset(tensor_list *list, hid_t id, const char *name)
{
    hid_t space = H5Dget_space(id), type = H5Dget_type(id);
    if (H5Tget_class(type) == H5T_FLOAT) {
        if (list->n == list->room) list->t = realloc(list->t, (list->room = 2 * list->room + 64) * sizeof *list->t);
        tensor *t = &list->t[list->n++];
        snprintf(t->name, sizeof t->name, "%s", name);
        t->n = (size_t)H5Sget_simple_extent_npoints(space);
        t->v = keep(malloc(t->n * sizeof *t->v + 1));
        if (H5Dread(id, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, t->v) < 0) fail_msg("%s cannot be read", name);
    }
    H5Tclose(type);
    H5Sclose(space);
}

static void read_group(tensor_list *list, hid_t id, const char *prefix)
{
    H5G_info_t info;
    if (H5Gget_info(id, &info) < 0) fail_msg("%s cannot be read", prefix);
    for (hsize_t i = 0; i < info.nlinks; i++) {
        char name[128], full[PATH];
        if (H5Lget_name_by_idx(id, ".", H5_INDEX_NAME, H5_ITER_INC, i, name, sizeof name, H5P_DEFAULT) < 0) fail_msg("%s cannot be read", prefix);
        hid_t member = H5Oopen(id, name, H5P_DEFAULT);
        snprintf(full, sizeof full, "%s/%s", prefix, name);
        if (H5Iget_type(member) == H5I_GROUP) read_group(list, member, full);
        else read_dataset(list, member, full);
        H5Oclose(member);
    }
}

static int by_name(const void *a, const void *b) { return strcmp(((const tensor *)a)->name, ((const tensor *)b)->name); }

tensor *tensors(const char *path, const char *group, size_t *n)
{
    tensor_list list = { 0 };
    hid_t f = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    if (f < 0) fail_msg("%s cannot be opened", path);
    hid_t g = H5Oopen(f, group, H5P_DEFAULT);
    if (g < 0) fail_msg("%s has no %s", path, group);
    if (H5Iget_type(g) == H5I_GROUP) read_group(&list, g, group);
    else read_dataset(&list, g, group);
    H5Oclose(g);
    H5Fclose(f);
    if (list.n == 0) fail_msg("%s: nothing in %s", path, group);
    qsort(list.t, list.n, sizeof *list.t, by_name);
    *n = list.n;
    return keep(list.t);
}

static size_t both(const char *a, const char *b, const char *group, tensor **x, tensor **y)
{
    size_t n, m;
    *x = tensors(a, group, &n);
    *y = tensors(b, group, &m);
    if (n != m) fail_msg("%zu tensors in %s of %s, %zu of %s", n, group, a, m, b);
    for (size_t i = 0; i < n; i++)
        if (strcmp((*x)[i].name, (*y)[i].name) != 0 || (*x)[i].n != (*y)[i].n) fail_msg("%s stands against %s", (*x)[i].name, (*y)[i].name);
    return n;
}

double largest_deviation(const char *a, const char *b, const char *group, char worst[160])
{
    tensor *x, *y;
    double most = -1;
    const size_t n = both(a, b, group, &x, &y);
    for (size_t i = 0; i < n; i++) {
        double d = 0, s = 0;
        for (size_t k = 0; k < x[i].n; k++) {
            const double e = (double)x[i].v[k] - y[i].v[k];
            d += e * e;
            s += (double)y[i].v[k] * y[i].v[k];
        }
        const double relative = sqrt(d / (double)x[i].n) / fmax(sqrt(s / (double)x[i].n), 0.01);
        if (!(relative <= most)) {               /* a NaN is the worst */
            most = relative;
            snprintf(worst, 160, "%s", x[i].name);
            if (isnan(relative)) break;
        }
    }
    return most;
}

void same_bits(const char *a, const char *b)
{
    static const char *const groups[] = { "/model", "/ema", "/optimizer" };
    for (size_t g = 0; g < 3; g++) {
        tensor *x, *y;
        const size_t n = both(a, b, groups[g], &x, &y);
        for (size_t i = 0; i < n; i++)
            if (memcmp(x[i].v, y[i].v, x[i].n * sizeof(float)) != 0) {
                size_t differ = 0;
                for (size_t k = 0; k < x[i].n; k++) differ += memcmp(&x[i].v[k], &y[i].v[k], sizeof(float)) != 0;
                fail_msg("%s: %zu of %zu values of %s are other bits than in %s", a, differ, x[i].n, x[i].name, b);
            }
    }
}

/* ---- checkpoints ----------------------------------------------------------------------------------------------------- */

const char *checkpoint_of(const char *run_dir, int64_t step)
{
    return textf("%s/checkpoints/step-%08" PRId64 ".h5", run_dir, step);
}

int64_t newest_checkpoint(const char *run_dir)
{
    char path[PATH];
    int64_t newest = -1;
    snprintf(path, sizeof path, "%s/checkpoints", run_dir);
    DIR *d = opendir(path);
    for (const struct dirent *e; d && (e = readdir(d));) {
        int64_t step;
        int end = 0;
        if (sscanf(e->d_name, "step-%" SCNd64 ".h5%n", &step, &end) == 1 && end > 0 && !e->d_name[end] && step > newest) newest = step;
    }
    if (d) closedir(d);
    return newest;
}

void is_whole(const char *path, int64_t step)
{
    en_checkpoint_info info = { 0 };
    en_error_clear();
    if (en_checkpoint_inspect(path, true, &info) != EN_OK) fail_msg("%s is not whole: %s", path, en_error_text());
    const int64_t holds = info.state.step;
    en_checkpoint_info_free(&info);
    if (holds != step) fail_msg("%s holds step %" PRId64 " instead of %" PRId64, path, holds, step);
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
    for (int i = 0; i < JOBS; i++)
        if (jobs[i]) give_up_on(jobs[i]);
    kill_orphans();
    if (failed) fprintf(stderr, "%s: what the runs left behind is in %s\n", name, folder);
    else nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    drop_all();
    return failed;
}
