/* faults.h - jobs with a fault on purpose: what a trial is, and what its kinds have in common (faults.c has the idea). */
#ifndef EN_TESTS_FAULTS_H
#define EN_TESTS_FAULTS_H

#define _GNU_SOURCE
#include "program.h"

enum { STEPS = 16, SAVE_EVERY = 3, EVALUATE_EVERY = 7, MOST_CODES = 8, MOST_TRIALS = 4000 };

typedef struct { const char *name; int ranks, nodes; } layout;
enum { ONE, TWO, FOUR, NODES, LAYOUTS };
extern const layout layouts[LAYOUTS];

typedef struct trial trial;
typedef struct {
    const char *name, *what;                   /* what happens, in a few words, for the table                              */
    int  on;                                   /* bits of layouts where it has a meaning                                   */
    void (*go)(trial *t);                      /* fails as a cmocka test does                                              */
} kind;
extern const kind kinds[];
extern const int  n_kinds;

struct trial {
    int number, turn, variant;                 /* of all; of its kind, from 0; by turns on each layout, another first on each  */
    const kind *kind;
    const layout *on;
    uint64_t random;                           /* state of draw()                                                          */
    char dir[600], inject[200], what[96];      /* its run folder; --inject, or ""; for the log                             */
    const char *more;                          /* further options of the first start, or NULL                              */
    /* what came out */
    int    codes[MOST_CODES], n_codes, restarts;
    double fault_at, to_exit, to_checkpoint;   /* seconds since 1970; seconds, NAN: not measured                           */
    bool   began, same_bits, done;
};

uint64_t draw(trial *t, uint64_t below);                   /* 0 ... below - 1                                             */
double   wall_clock(void);                                 /* seconds since 1970                                          */
const char *pictures(void);

/* ---- starting -------------------------------------------------------------------------------------------------------------- */

/* `effnet train` of the trial, by launch/run on its layout; script: options of launch/run, or "". */
job     *begin(trial *t, const char *script);
/* Waits for its end, notes its code, and the time since fault_at where that is known or injected.txt says it. */
outcome *ended(trial *t, job *j);
/* One start with the fault that must end with `code`. */
outcome *first_start(trial *t, int code);
/* Starts the same command until it is done: each start must end with 0, or, as long as faults are left, as `also` says (0: none). */
void     until_done(trial *t, int also);
/* The last checkpoint has the bits of the undisturbed run (with --inject `inject`, "": none), and each step is in the metrics once. */
void     as_undisturbed(trial *t, const char *inject);
/* The last step in the metrics of a run, 0: none. */
int      last_step(const char *dir);
/* The error stream without the lines that announce injected faults. */
const char *said(const outcome *o);
void     must_say(const outcome *o, const char *what);

/* ---- processes of a running job ----------------------------------------------------------------------------------------------- */

/* Those below `root` whose name is one of `names` (parted by blanks). */
int      processes(int root, const char *names, int *pids, int most);
int      process_of_rank(int root, int rank);              /* 0: none                                                     */
/* One below `root` of that name, whose arguments, parted by blanks, have `words` in them; 0: none. */
int      process_with(int root, const char *name, const char *words);
/* No file that `pid` writes may be longer from now on; -1: any may. */
void     limit_files(int pid, int64_t bytes);

/* A small file system of its own at `path`, where this machine lets us. */
bool     small_disk(const char *path, int64_t bytes);
bool     resize_disk(const char *path, int64_t bytes);
void     no_disk(const char *path);

/* ---- figures (bench/bench.c) ------------------------------------------------------------------------------------------------------ */
void figures(void **state);

#endif
