/* program.h - drives the built program from outside: starts it, with mpirun where there are ranks, waits for it with a
 * limit, and reads what it left behind.
 *
 * A run that is still there when its limit has passed is a failure that says what hung; it and all its descendants are
 * killed (ranks sit in process groups of their own, so the test makes itself the reaper of orphans and finds them by their
 * parent).  A run that ends and leaves processes behind is a failure too.
 *
 * Everything that the helpers hand out lives until the test binary ends, or forget_since() is called. */
#ifndef EN_TEST_PROGRAM_H
#define EN_TEST_PROGRAM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __SANITIZE_ADDRESS__
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

/* ---- a folder of the test binary's own ------------------------------------------------------------------------------ */

int         program_main(const char *name, const struct CMUnitTest *tests, size_t n);   /* main's body                  */
const char *at(const char *fmt, ...) __attribute__((format(printf, 1, 2)));             /* a path in the folder         */
const char *drawn(const char *options);                                                  /* at("data"), made once by `effnet synth` */
const char *textf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
bool        exists(const char *path);
bool        is_folder(const char *path);
void        make_folders(const char *path);                                             /* mkdir -p                     */
void        write_file(const char *path, const void *bytes, size_t n);
char       *read_file(const char *path, size_t *n);                                     /* 0-terminated; n may be NULL  */
void        copy_file(const char *from, const char *to);
void        shell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));          /* must succeed                 */
/* Paths (none when there is no such folder) of the files below `folder` (hidden ones too), sorted. */
char      **files_below(const char *folder, size_t *n);

/* What has been handed out so far; and the end of all that was handed out later. */
const void *remembered(void);
void        forget_since(const void *mark);

/* ---- runs ------------------------------------------------------------------------------------------------------------ */

typedef struct {
    int     ranks;              /* 0: no launcher                                                                        */
    int64_t file_limit;         /* > 0: RLIMIT_FSIZE                                                                     */
    const char *operand;        /* one more argument, as it is (spaces and quotes in it)                                 */
    const char *second;         /* options of rank 1 alone (2 ranks), where they differ from rank 0's                    */
    const char *env[2];         /* with `second`: NAME=value for rank 0, for rank 1                                       */
    bool    patient;            /* a mpirun that was asked to end gives its ranks seconds for it, not none               */
    bool    by_script;          /* launch/run instead of mpirun                                                          */
    const char *script;         /* the same, with these options of its own before -n                                     */
    const char *within;         /* a program, with arguments, that starts all that: "tests/cluster/cluster --nodes 2 --"  */
    double  seconds;            /* 0: 60                                                                                 */
} how;

typedef struct {
    const char *command;
    int    code;                /* exit code; 128 + signal when one ended it                                             */
    double seconds;
    long   max_rss_kib;         /* of the process that was started, without a launcher                                   */
    char  *out, *err;           /* CR removed: Open MPI gives rank 0 a terminal                                          */
} outcome;

typedef struct job job;

/* `fmt` are the program's arguments, parted by blanks. */
job     *start(how h, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
outcome *finish(job *j);                                        /* waits, with the limit counted from the start        */
bool     running(job *j);
void     send(job *j, int sig);                                 /* to the process that was started                     */
void     abandon_all(void);                                     /* kills whatever runs still: after a failure           */
int      process_of(const job *j);                              /* that process, 0: it has ended                        */
int      children_of(int pid, int *pids, int most);              /* by /proc, without ended ones                    */
int      ranks_of(job *j, int *pids, int most);                 /* children of mpirun, oldest first                    */
void     pause_s(double seconds);
double   now_s(void);
/* Until `path` has `lines` lines. */
void     wait_for_lines(job *j, const char *path, int lines);

outcome *run_how(how h, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Runs on `ranks` (0: without launcher) and fails with all that was printed unless the code is `code`. */
outcome *run(int code, int ranks, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void     expect_code(const outcome *o, int code);
int      count(const char *text, const char *needle);
/* The error stream says `needle` exactly once. */
void     says_once(const outcome *o, const char *needle);
/* `fail_msg` with the command and both streams behind it. */
#define FAIL_RUN(o, ...) fail_run((o), __FILE__, __LINE__, __VA_ARGS__)
_Noreturn void fail_run(const outcome *o, const char *file, int line, const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* ---- what runs leave behind ------------------------------------------------------------------------------------------ */

typedef struct { int64_t step; double loss, top1, top5; int64_t images; char text[32]; } metric;   /* text: the loss as it stands there */
/* Lines of kind "train" or "eval" of RUN/metrics.jsonl. */
metric *metrics(const char *run_dir, const char *kind, size_t *n);
/* The value of "key" in a JSON text, which must have it. */
double  number_in(const char *json, const char *key);

typedef struct { char name[160]; size_t n; float *v; } tensor;
/* All float datasets below `group` of an HDF5 file, sorted by name. */
tensor *tensors(const char *path, const char *group, size_t *n);
/* The largest rms(a - b) / max(rms(b), 0.01) over the tensors; `worst` gets the name.  0.01, because some have no size of
 * their own: biases begin at zero, and those whose gradient is zero by the mathematics (a batch norm follows) stay at
 * rounding; they are added to values of unit variance, so what is below 0.01 of that is measured by that. */
double  largest_deviation(const char *a, const char *b, const char *group, char worst[160]);
/* /model, /ema and /optimizer, name by name, bit by bit. */
void    same_bits(const char *a, const char *b);

const char *checkpoint_of(const char *run_dir, int64_t step);   /* RUN/checkpoints/step-<8 digits>.h5                  */
int64_t newest_checkpoint(const char *run_dir);                 /* the highest step of a file that bears its final name, -1: none */
void    is_whole(const char *path, int64_t step);               /* verifies, and holds that step                        */

#endif
