/* replay.c - runs a fuzz target once on each file that is named, and on each file of a folder: for compilers without libFuzzer.
 *
 *     replay_decode FILE|FOLDER...
 *
 * The corpus holds every input that has once broken something, so this is the regression test of all findings, in every build.
 * What a file may cost is bounded as in a fuzzing run: SECONDS of time for each, and, without the address sanitizer, which maps
 * terabytes, MEMORY for the process.  When a file ends the program, its name is the last thing said. */
#define _GNU_SOURCE
#include "fuzz.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SECONDS = 20 };
static const rlim_t MEMORY = (rlim_t)1 << 30;

static const char *current = "no file";

static void name_the_file(void)                /* only what a signal handler may call */
{
    static const char said[] = "\nreplay: broken by ";
    (void)!write(STDERR_FILENO, said, sizeof said - 1);
    (void)!write(STDERR_FILENO, current, strlen(current));
    (void)!write(STDERR_FILENO, "\n", 1);
}

static void on_signal(int signal)
{
    if (signal == SIGALRM) {
        static const char said[] = "\nreplay: a file takes too long";
        (void)!write(STDERR_FILENO, said, sizeof said - 1);
    }
    name_the_file();
    raise(signal);                             /* SA_RESETHAND: ends the process as it would have ended */
}

void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static int files;

static void replay(const char *path)
{
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (!f || fstat(fileno(f), &st) != 0) {
        fprintf(stderr, "replay: %s: %s\n", path, strerror(errno));
        exit(2);
    }
    const size_t n = (size_t)st.st_size;
    uint8_t *bytes = malloc(n ? n : 1), *exact = malloc(n);            /* exact: a read behind the end is seen */
    if (!bytes || (n && !exact) || fread(bytes, 1, n, f) != n) {
        fprintf(stderr, "replay: cannot read %s\n", path);
        exit(2);
    }
    fclose(f);
    if (n) memcpy(exact, bytes, n);
    free(bytes);
    current = path;
    alarm(SECONDS);
    LLVMFuzzerTestOneInput(exact, n);
    alarm(0);
    current = "no file";
    free(exact);
    files++;
}

static int no_dots(const struct dirent *e) { return e->d_name[0] != '.'; }

static void replay_all(const char *path)
{
    struct dirent **entries;
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) { replay(path); return; }
    const int n = scandir(path, &entries, no_dots, alphasort);
    for (int i = 0; i < n; i++) {
        char *below;
        if (asprintf(&below, "%s/%s", path, entries[i]->d_name) < 0) exit(2);
        replay_all(below);
        free(below);
        free(entries[i]);
    }
    if (n >= 0) free(entries);
}

int main(int argc, char **argv)
{
    static const int signals[] = { SIGABRT, SIGALRM, SIGSEGV, SIGBUS, SIGFPE, SIGILL };
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(name_the_file);
    else setrlimit(RLIMIT_AS, &(struct rlimit){ MEMORY, MEMORY });
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        if (__sanitizer_set_death_callback && signals[i] != SIGALRM && signals[i] != SIGABRT) continue;     /* it reports these itself */
        sigaction(signals[i], &(struct sigaction){ .sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND | SA_NODEFER }, NULL);
    }
    for (int i = 1; i < argc; i++) replay_all(argv[i]);
    printf("%d files\n", files);
    return files > 0 ? 0 : 2;
}
