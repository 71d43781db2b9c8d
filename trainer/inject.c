#define _GNU_SOURCE
#include "trainer/inject.h"

#include "comm/watch.h"
#include "trainer/checkpoint/internal.h"
#include "trainer/nearest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef enum { KILL, STALL, FREEZE, TERM, USR1, SLOW, NAN_, FLIP, ENOSPC_, KINDS } kind;
enum { MOST_FAULTS = 64, TEXT = 80, ANYWHERE = -1 };

static const struct { const char *name; bool anywhere, amount; } kinds[KINDS] = {      /* anywhere: takes a section   */
    [KILL] = { "kill", true, false },  [STALL] = { "stall", true, false }, [FREEZE] = { "freeze", true, false },
    [TERM] = { "term", true, false },  [USR1] = { "usr1", true, false },   [SLOW] = { "slow", false, true },
    [NAN_] = { "nan", false, false },  [FLIP] = { "flip", false, false },  [ENOSPC_] = { "enospc", false, true } };

typedef struct { kind kind; double amount; bool in_seconds; long rank; int64_t step; int section; bool came; char text[TEXT]; } fault;

/* Of this process: it trains one run at a time. */
static struct {
    fault  fault[MOST_FAULTS];
    int    n, rank, world_size;
    char   host[sizeof ((en_comm *)0)->host], dir[4000];
    const fault *slow;                         /* NULL: as fast as it can                                             */
    double began, waited, slept;               /* of the step before: when, en_watch_waited then, added by `slow`     */
    en_trainer *t;                             /* borrowed, while its step's work is being queued                     */
    int64_t poisoned; float healthy;           /* the parameter that is NaN in this step, -1: none; what it was       */
    atomic_int full_writes;                    /* writes that are still to fail                                       */
    _Atomic double full_until;                 /* en_seconds                                                          */
} job = { .poisoned = -1 };

/* ---- reading the option ----------------------------------------------------------------------------------------------- */

static en_status read_kind(const char *text, size_t n, kind *out)
{
    char word[TEXT], all[200] = "";
    snprintf(word, sizeof word, "%.*s", (int)n, text);
    en_nearest nearest = { .typed = word };
    for (int k = 0; k < KINDS; k++) {
        if (strcmp(kinds[k].name, word) == 0) {
            *out = (kind)k;
            return EN_OK;
        }
        en_nearest_offer(&nearest, kinds[k].name);
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", k == 0 ? "" : k == KINDS - 1 ? " or " : ", ", kinds[k].name);
    }
    const char *best = en_nearest_best(&nearest);
    EN_REQUIRE(!best, EN_EUSAGE, "--inject %s: there is no fault '%s'; did you mean %s?", text, word, best);
    return en_raise(EN_EUSAGE, __FILE__, __LINE__, __func__, "--inject %s: there is no fault '%s': use %s", text, word, all);
}

static en_status read_amount(const char *text, const char *amount, fault *f)
{
    char *end;
    f->amount = strtod(amount, &end);
    f->in_seconds = *end == 's';
    const char *use = f->kind == SLOW ? "a factor above 1 (slow=2) or seconds (slow=0.5s)" : "a number of writes (enospc=3) or seconds (enospc=2.5s)";
    EN_REQUIRE(end != amount && *(end + f->in_seconds) == '@' && isfinite(f->amount) && f->amount > 0 && f->amount < 1e6, EN_EUSAGE,
               "--inject %s: the amount is %s", text, use);
    EN_REQUIRE(f->in_seconds || (f->kind == SLOW ? f->amount > 1 : f->amount == floor(f->amount)), EN_EUSAGE, "--inject %s: the amount is %s", text, use);
    return EN_OK;
}

static en_status read_section(const char *name, fault *f)
{
    char all[300] = "";
    for (int s = 0; s < EN_SECTIONS; s++) {
        if (strcmp(en_section_name((en_section)s), name) == 0) f->section = s;
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", s == 0 ? "" : s == EN_SECTIONS - 1 ? " or " : ", ", en_section_name((en_section)s));
    }
    EN_REQUIRE(f->section != ANYWHERE, EN_EUSAGE, "--inject %s: there is no section '%s': use %s", f->text, name, all);
    EN_REQUIRE(kinds[f->kind].anywhere || (f->kind == NAN_ && f->section == EN_BACKWARD), EN_EUSAGE, "--inject %s: %s takes no section%s: leave it out",
               f->text, kinds[f->kind].name, f->kind == NAN_ ? " but backward" : "");
    return EN_OK;
}

static en_status read_fault(const char *text, int world_size, fault *f)
{
    *f = (fault){ .section = ANYWHERE };
    EN_REQUIRE(strlen(text) < TEXT, EN_EUSAGE, "--inject %s: that is too long for a fault, as kill@1:20 or kill@1:20:forward", text);
    strcpy(f->text, text);
    EN_TRY(read_kind(text, strcspn(text, "=@"), &f->kind), "reading --inject");
    const char *at = strchr(text, '@'), *equals = strchr(text, '='), *name = kinds[f->kind].name;
    EN_REQUIRE(at, EN_EUSAGE, "--inject %s: on which rank, in which step? Write %s@RANK:STEP, as in %s@0:20", text, name, name);
    f->amount = f->kind == SLOW ? 2 : 1;
    if (equals && equals < at) {
        EN_REQUIRE(kinds[f->kind].amount, EN_EUSAGE, "--inject %s: %s takes no amount: write %s%s", text, name, name, at);
        EN_TRY(read_amount(text, equals + 1, f), "reading --inject");
    }
    char *end, *last;
    f->rank = strtol(at + 1, &end, 10);
    const bool two = at[1] >= '0' && at[1] <= '9' && *end == ':' && end[1] >= '0' && end[1] <= '9';
    EN_REQUIRE(two, EN_EUSAGE, "--inject %s: write %s@RANK:STEP, two whole numbers, as in %s@0:20", text, name, name);
    f->step = strtoll(end + 1, &last, 10);
    EN_REQUIRE(!*last || *last == ':', EN_EUSAGE, "--inject %s: behind %s@RANK:STEP stands nothing, or :SECTION", text, name);
    EN_REQUIRE(f->rank < world_size, EN_EUSAGE, "--inject %s: there is no rank %ld; this run has %d, counted from 0", text, f->rank, world_size);
    EN_REQUIRE(f->kind != ENOSPC_ || f->rank == 0, EN_EUSAGE, "--inject %s: rank 0 writes the checkpoints: write rank 0", text);
    if (*last) EN_TRY(read_section(last + 1, f), "reading --inject");
    EN_REQUIRE((f->step == 0) == (f->section == EN_STARTUP), EN_EUSAGE, "--inject %s: %s", text, f->step == 0
               ? "steps count from 1; step 0 is the start-up: add :start-up, or give a step" : "the start-up is before the first step: write step 0");
    return EN_OK;
}

static en_status read_faults(const char *option, int world_size)
{
    char text[4096], *rest;
    EN_REQUIRE(strlen(option) < sizeof text, EN_EUSAGE, "--inject is longer than %zu characters: give fewer faults", sizeof text - 1);
    strcpy(text, option);
    job.n = 0;
    for (char *one = strtok_r(text, ",", &rest); one; one = strtok_r(NULL, ",", &rest)) {
        EN_REQUIRE(job.n < MOST_FAULTS, EN_EUSAGE, "--inject has more than %d faults: give fewer", MOST_FAULTS);
        EN_TRY(read_fault(one, world_size, &job.fault[job.n]), "reading --inject");
        job.n++;
    }
    return EN_OK;
}

/* ---- once in a run's folder --------------------------------------------------------------------------------------------- */

static void marks(char path[4096]) { snprintf(path, 4096, "%s/injected.txt", job.dir); }

/* Each line of it stands for one fault of that text. */
static void forget_what_came(void)
{
    char path[4096], line[4096];
    marks(path);
    FILE *f = job.dir[0] ? fopen(path, "r") : NULL;
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, " \n")] = 0;
        for (int i = 0; i < job.n; i++)
            if (!job.fault[i].came && strcmp(job.fault[i].text, line) == 0) {
                job.fault[i].came = true;
                break;
            }
    }
    if (f) fclose(f);
}

/* The line is there before the fault is; a rank that cannot leave it would die at every start, so it does not die at all. */
static bool leave_mark(fault *f, en_section s, int64_t step)
{
    char path[4096], line[256];
    struct timespec now;
    f->came = true;
    clock_gettime(CLOCK_REALTIME, &now);
    const int n = snprintf(line, sizeof line, "%s %lld.%06ld %s %" PRId64 "\n", f->text, (long long)now.tv_sec, now.tv_nsec / 1000, en_section_name(s), step);
    marks(path);
    if (job.dir[0]) {
        mkdir(job.dir, 0777);                  /* at the start-up it may not be there yet */
        const int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
        const bool written = fd >= 0 && write(fd, line, (size_t)n) == n;
        if (!written) fprintf(stderr, "effnet: --inject %s: left out, %s cannot be written: %s\n", f->text, path, strerror(errno));
        if (fd >= 0) close(fd);
        if (!written) return false;
    }
    fprintf(stderr, "effnet: [rank %d/%d %s] --inject %s: now, in section %s of step %" PRId64 "\n", job.rank, job.world_size, job.host, f->text,
            en_section_name(s), step);
    fflush(stderr);
    return true;
}

/* ---- faults -------------------------------------------------------------------------------------------------------------- */

static void poison(en_section s);

static void happen(const fault *f, en_section s)
{
    switch (f->kind) {
    case KILL:   raise(SIGKILL); break;
    case FREEZE: raise(SIGSTOP); break;
    case TERM:   raise(SIGTERM); break;
    case USR1:   raise(SIGUSR1); break;
    case STALL:  for (;;) pause();
    case NAN_:   poison(s); break;
    default: break;
    }
}

static bool is_mine(const fault *f) { return !f->came && f->rank == job.rank; }

/* comm/watch.h's hook */
static void entered(en_section s, const char *detail, int64_t step)
{
    (void)detail;
    const en_section here = step == 0 ? EN_STARTUP : s;
    for (int i = 0; i < job.n; i++) {
        fault *f = &job.fault[i];
        if (is_mine(f) && f->section == (int)here && step >= f->step && leave_mark(f, here, step)) happen(f, here);
    }
}

/* A weight that all images meet: of the first layer, so that all that follows is ruined, running statistics included; or, once the
 * loss is known, of the last, so that the gradients are. */
static void poison(en_section s)
{
    const en_model *m = job.t->model;
    const en_backend *be = job.t->be;
    const int64_t at = m->tensors[s == EN_BACKWARD ? m->head.fc_weight : m->stem.weight].offset;
    const float ill = NAN;
    if (be->ops->download(job.t->be, &job.healthy, job.t->a.params + at, sizeof ill) != EN_OK) return;
    job.poisoned = at;
    if (be->ops->upload(job.t->be, job.t->a.params + at, &ill, sizeof ill) != EN_OK) return;
}

static en_status flip(en_trainer *t)
{
    union { float f; uint32_t bits; } x;
    float *const place = t->a.params + t->model->tensors[t->model->stem.weight].offset;
    EN_TRY(t->be->ops->download(t->be, &x, place, sizeof x), "--inject flip");
    x.bits ^= (uint32_t)1 << 20;               /* an eighth of it, or less: the loss does not show it */
    EN_TRY(t->be->ops->upload(t->be, place, &x, sizeof x), "--inject flip");
    return EN_OK;
}

static void fill_disk(const fault *f)
{
    if (f->in_seconds) atomic_store(&job.full_until, en_seconds() + f->amount);
    else atomic_fetch_add(&job.full_writes, (int)f->amount);
}

/* A step's own work is its time less what it waited for others and what it slept here. */
static void be_slow(void)
{
    const double now = en_seconds(), waited = en_watch_waited();
    const double own = job.began > 0 ? now - job.began - (waited - job.waited) - job.slept : 0;
    job.slept = 0;
    if (job.slow) {
        job.slept = job.slow->in_seconds ? job.slow->amount : (job.slow->amount - 1) * own;
        const struct timespec nap = { (time_t)job.slept, (long)((job.slept - floor(job.slept)) * 1e9) };
        if (job.slept > 0) nanosleep(&nap, NULL);
    }
    job.began = now;
    job.waited = waited;
}

/* ---- where the trainer calls ----------------------------------------------------------------------------------------------- */

en_status en_inject_open(const en_options *o, const en_comm *comm)
{
    job.rank = comm->rank;
    job.world_size = comm->world_size;
    snprintf(job.host, sizeof job.host, "%s", comm->host);
    snprintf(job.dir, sizeof job.dir, "%s", o->run);
    EN_TRY(read_faults(o->inject, comm->world_size), "reading --inject");
    forget_what_came();
    if (job.n > 0) en_watch_hook(entered);
    entered(EN_STARTUP, NULL, 0);
    return EN_OK;
}

en_status en_inject_step_begins(en_trainer *t)
{
    const int64_t step = t->state.step + 1;
    if (job.n == 0) return EN_OK;
    job.t = t;
    for (int i = 0; i < job.n; i++) {
        fault *f = &job.fault[i];
        if (f->section == EN_FORWARD || f->section == EN_BACKWARD || f->section == EN_UPDATE) t->recording = false;   /* what is replayed enters nothing; on all ranks */
        if (!is_mine(f) || f->section != ANYWHERE || f->step != step || !leave_mark(f, EN_DATA, step)) continue;
        if (f->kind == SLOW) job.slow = f;
        else if (f->kind == ENOSPC_) fill_disk(f);
        else if (f->kind == FLIP) EN_TRY(flip(t), "step %" PRId64, t->state.step);
        else {
            en_watch_at(EN_DATA, NULL);        /* what a step begins with */
            happen(f, EN_DATA);
        }
    }
    be_slow();
    return EN_OK;
}

en_status en_inject_step_ended(en_trainer *t)
{
    const int64_t at = job.poisoned;
    job.poisoned = -1;
    if (at >= 0) EN_TRY(t->be->ops->upload(t->be, t->a.params + at, &job.healthy, sizeof job.healthy), "--inject nan");
    return EN_OK;
}

int en_inject_write_error(void)
{
    if (en_seconds() < atomic_load(&job.full_until)) return ENOSPC;
    int left = atomic_load(&job.full_writes);
    while (left > 0 && !atomic_compare_exchange_weak(&job.full_writes, &left, left - 1)) continue;
    return left > 0 ? ENOSPC : 0;
}
