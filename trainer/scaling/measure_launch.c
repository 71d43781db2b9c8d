/* scaling/measure_launch.c - starting ranks, as a user would: by launch/run beside the program, which knows hostfiles, Slurm and the
 * settings that Open MPI needs; where it is not there, by mpirun itself; by srun where EFFNET_LAUNCH=srun says so, as in
 * launch/slurm.sbatch; by the launch/run that EFFNET_LAUNCH names, for a program that was built elsewhere.
 *
 * The launcher is in a process group of its own, so that Ctrl-C comes here alone: it is told to end once (its ranks finish a step), once more
 * after some seconds, and at last its group is killed.  It also ends when this process is killed (PR_SET_PDEATHSIG). */
#define _GNU_SOURCE
#include "trainer/scaling/measure.h"

#include "trainer/trainer.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LAST_WORDS = 2000, LAST_LINES = 12 };
static const double ask_again_s = 15, kill_s = 25;

/* ---- arguments --------------------------------------------------------------------------------------------------------------- */

void en_args_add(en_args *a, const char *fmt, ...)
{
    char *text = NULL;
    va_list ap;
    va_start(ap, fmt);
    const int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (n < 0 || a->n == EN_MOST_ARGS) {
        if (n >= 0) free(text);
        a->full = true;
        return;
    }
    a->arg[a->n++] = text;
    a->arg[a->n] = NULL;
}

void en_args_free(en_args *a)
{
    for (int i = 0; i < a->n; i++) free(a->arg[i]);
    *a = (en_args){ 0 };
}

/* ---- the launcher ------------------------------------------------------------------------------------------------------------ */

int en_cores_allowed(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    const int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? n : 1;
}

static bool on_path(const char *name, char out[EN_PATH])
{
    const char *path = getenv("PATH");
    for (const char *p = path ? path : "", *end; *p; p = *end ? end + 1 : end) {
        end = strchrnul(p, ':');
        if (end > p && snprintf(out, EN_PATH, "%.*s/%s", (int)(end - p), p, name) < EN_PATH && access(out, X_OK) == 0) return true;
    }
    return false;
}

/* launch/run lies beside the build folder in which the program is, or in a folder beside the program where both were installed. */
static bool find_run(const char *program, char out[EN_PATH])
{
    static const char *const places[] = { "../launch/run", "launch/run", "../share/effnet/launch/run" };
    const char *slash = strrchr(program, '/');
    for (size_t i = 0; slash && i < sizeof places / sizeof *places; i++)
        if (snprintf(out, EN_PATH, "%.*s/%s", (int)(slash - program), program, places[i]) < EN_PATH && access(out, X_OK) == 0) return true;
    return false;
}

en_status en_find_starter(en_study *s)
{
    const char *asked = getenv("EFFNET_LAUNCH");
    const ssize_t n = readlink("/proc/self/exe", s->program, sizeof s->program - 1);
    EN_REQUIRE(n > 0 && (size_t)n < sizeof s->program - 1, EN_EIO, "this program does not find itself: /proc/self/exe: %s", strerror(errno));
    s->program[n] = 0;
    if (asked && strcmp(asked, "srun") == 0) {
        s->by = EN_BY_SRUN;
        EN_REQUIRE(on_path("srun", s->starter), EN_ENOTSUP, "EFFNET_LAUNCH=srun, and there is no srun on PATH");
    } else if (asked && strchr(asked, '/')) {
        s->by = EN_BY_RUN;
        EN_REQUIRE(access(asked, X_OK) == 0 && realpath(asked, s->starter), EN_EUSAGE, "EFFNET_LAUNCH=%s is no program: %s; it is srun, or the path of launch/run", asked,
                   strerror(errno));
    } else if (find_run(s->program, s->starter)) {
        s->by = EN_BY_RUN;
    } else {
        s->by = EN_BY_MPIRUN;
        EN_REQUIRE(on_path("mpirun", s->starter), EN_ENOTSUP, "ranks are started by launch/run beside %s or by mpirun, and neither is there; launch/quickstart installs "
                   "Open MPI", s->program);
    }
    return EN_OK;
}

static void add_launcher(const en_study *s, int ranks, en_args *a)
{
    const bool hosts = s->o->hosts[0];
    en_args_add(a, "%s", s->starter);
    if (s->by == EN_BY_SRUN) {
        en_args_add(a, "--mpi=pmix");
        en_args_add(a, "-n");
        en_args_add(a, "%d", ranks);
        return;
    }
    en_args_add(a, "-n");
    en_args_add(a, "%d", ranks);
    if (hosts) en_args_add(a, "--hostfile");
    if (hosts) en_args_add(a, "%s", s->o->hosts);
    if (s->by == EN_BY_RUN) return;
    en_args_add(a, "--bind-to");
    en_args_add(a, "none");
    if (s->one_machine) en_args_add(a, "--oversubscribe");
    if (geteuid() == 0) en_args_add(a, "--allow-run-as-root");
}

/* ---- one job ----------------------------------------------------------------------------------------------------------------- */

static _Noreturn void become(char *const *argv, const char *out, const char *log, pid_t parent, bool share)
{
    const int in = open("/dev/null", O_RDONLY), err = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    const int to = out ? open(out, O_WRONLY | O_CREAT | O_TRUNC, 0666) : err;
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);                     /* it died before the line above */
    signal(SIGPIPE, SIG_DFL);
    signal(SIGXFSZ, SIG_DFL);
    if (share) setenv("OMPI_MCA_btl", "^tcp", 0), setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);       /* as launch/run does */
    if (in < 0 || err < 0 || to < 0 || dup2(in, 0) < 0 || dup2(to, 1) < 0 || dup2(err, 2) < 0) _exit(126);
    execv(argv[0], argv);
    dprintf(2, "%s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

/* The end of a log, without the lines of progress. */
static void last_words(const char *log, char out[LAST_WORDS])
{
    char *text = NULL;
    int lines = 0;
    snprintf(out, LAST_WORDS, "it said nothing");
    if (en_text_read(log, &text) != EN_OK) {
        en_error_clear();
        return;
    }
    size_t n = strlen(text), from;
    while (n > 0 && strchr("\n\r ", text[n - 1])) text[--n] = 0;
    for (from = n; from > 0 && n - from < LAST_WORDS - 8; from--)
        if (text[from - 1] == '\n' && ++lines == LAST_LINES) break;
    if (n > 0) snprintf(out, LAST_WORDS, "%s", text + from);
    free(text);
}

static int wait_for(pid_t pid)
{
    double asked = 0;
    int status, told = 0;
    for (;;) {
        const pid_t ended = waitpid(pid, &status, WNOHANG);
        if (ended == pid) return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (ended < 0 && errno != EINTR) return 127;
        const double now = en_seconds();
        if (en_stop_requested() && told == 0) kill(pid, SIGTERM), asked = now, told++;
        else if (told == 1 && now - asked > ask_again_s) kill(pid, SIGTERM), told++;
        else if (told == 2 && now - asked > kill_s) kill(-pid, SIGKILL), told++;
        nanosleep(&(struct timespec){ .tv_nsec = 10 * 1000 * 1000 }, NULL);
    }
}

en_status en_start_ranks(const en_study *s, int ranks, const en_args *args, const char *out, const char *log)
{
    en_args all = { 0 };
    en_status status = EN_OK;
    char words[LAST_WORDS];
    add_launcher(s, ranks, &all);
    en_args_add(&all, "%s", s->program);
    for (int i = 0; i < args->n; i++) en_args_add(&all, "%s", args->arg[i]);
    EN_REQUIRE_OUT(!all.full && !args->full, EN_ENOMEM, "too many arguments for a job");
    fflush(stdout);
    const pid_t parent = getpid(), pid = fork();
    EN_REQUIRE_OUT(pid >= 0, EN_EIO, "no process can be made: %s", strerror(errno));
    if (pid == 0) become(all.arg, out, log, parent, s->by == EN_BY_MPIRUN && s->one_machine && ranks > s->cores);
    const int code = wait_for(pid);
    EN_REQUIRE_OUT(!en_stop_requested(), EN_ENOTSUP, "stopped on request");
    if (code != 0) last_words(log, words);
    EN_REQUIRE_OUT(code == 0, EN_EPEER, "ended with %d; the last it said:\n%s", code, words);
out:
    en_args_free(&all);
    return status;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    remove(path);
    return 0;
}

void en_remove_folder(const char *path) { nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS); }
