/* bench/bench.c - what a checkpoint costs the steps beside it, and a request to stop the one who waits for its end.
 *
 * One run of EfficientNet-B0 at 64 pixels on one rank and one thread, with a checkpoint every ten steps (63 MB: parameters, averages,
 * mean squares, momentum).  A step counts as `beside a write` when the writer was at work for more than half of it, as `alone` when for nothing of
 * it; both kinds come by turns, so a machine that is busy with other things disturbs both.  Then the run is asked to stop, some
 * times, and goes on. */
#include "faults.h"

#include <math.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LAST = 70, EVERY = 10, WARM = 3, MOST = 256, STOPS = 5 };
#define TRAIN_B0 "train --model b0 --image-size 64 --global-batch 16 --lr 0.001 --threads 1 --keep 1 --eval-every 0"

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_size);
    return n ? v[n / 2] : NAN;
}

typedef struct { double from, to; } stretch;
typedef struct {
    stretch step[MOST], write[MOST];
    int steps, writes;
    bool writing;
    int64_t written_step;
    double wait_s[MOST], snapshot_s[MOST];
} record;

/* A new line of the metrics; they come right after what they tell of. */
static void take_line(record *r, const char *line)
{
    const double now = now_s();
    if (strstr(line, "\"kind\":\"train\"") && r->steps < MOST)
        r->step[r->steps++] = (stretch){ now - 16 / number_in(line, "images_per_s"), now };
    if (strstr(line, "\"kind\":\"checkpoint\"") && r->writes < MOST) {
        r->wait_s[r->writes] = number_in(line, "wait_s");
        r->snapshot_s[r->writes] = number_in(line, "snapshot_s");
        r->written_step = (int64_t)number_in(line, "step");
        r->write[r->writes++] = (stretch){ now, INFINITY };
        r->writing = true;
    }
}

static void watch(job *j, const char *dir, record *r)
{
    char line[4096];
    FILE *f = NULL;
    while (running(j)) {
        pause_s(0.001);
        if (!f) f = fopen(textf("%s/metrics.jsonl", dir), "r");
        if (!f) continue;
        for (long at_ = ftell(f); fgets(line, sizeof line, f); at_ = ftell(f)) {
            if (!strchr(line, '\n')) {
                fseek(f, at_, SEEK_SET);
                break;
            }
            take_line(r, line);
        }
        clearerr(f);
        if (r->writing && access(checkpoint_of(dir, r->written_step), R_OK) == 0) {
            r->write[r->writes - 1].to = now_s();
            r->writing = false;
        }
    }
    if (f) fclose(f);
}

static double share_beside(const record *r, stretch s)
{
    double beside = 0;
    for (int i = 0; i < r->writes; i++) beside += fmax(0, fmin(s.to, r->write[i].to) - fmax(s.from, r->write[i].from));
    return beside / (s.to - s.from);
}

static void steps_beside_writes(const char *dir)
{
    static record r;
    static double alone[MOST], beside[MOST], lasted[MOST];
    int a = 0, b = 0, l = 0;
    struct stat st = { 0 };
    const how h = { .ranks = 1, .script = "", .seconds = 600 };
    job *j = start(h, TRAIN_B0 " --steps %d --checkpoint-every %d --data %s --run %s", LAST, EVERY, pictures(), dir);
    watch(j, dir, &r);
    expect_code(finish(j), 0);
    stat(checkpoint_of(dir, LAST), &st);
    for (int i = WARM; i < r.steps; i++) {
        const double share = share_beside(&r, r.step[i]);
        if (share == 0) alone[a++] = r.step[i].to - r.step[i].from;
        else if (share > 0.5) beside[b++] = r.step[i].to - r.step[i].from;
    }
    for (int i = 0; i < r.writes; i++)
        if (isfinite(r.write[i].to)) lasted[l++] = r.write[i].to - r.write[i].from;
    const double x = median(alone, a), y = median(beside, b);
    printf("B0 at 64 px, 16 images a step, 1 rank, 1 thread, %ld cores; checkpoints of %.0f MB\n"
           "  step, alone             %8.1f ms   (median of %d)\n  step, beside a write    %8.1f ms   (median of %d): %+.1f %%\n"
           "  a write                 %8.1f ms   (median of %d)\n  the step waits: for the snapshot %.1f ms, for the write before %.1f ms (medians)\n",
           sysconf(_SC_NPROCESSORS_ONLN), (double)st.st_size / 1e6, 1e3 * x, a, 1e3 * y, b, 100 * (y / x - 1),
           1e3 * median(lasted, l), l,
           1e3 * median(r.snapshot_s, r.writes), 1e3 * median(r.wait_s, r.writes));
    if (!a || !b) fail_msg("%d steps alone, %d beside a write: nothing is measured", a, b);
}

static void stops(const char *dir)
{
    double to_file[STOPS], to_exit[STOPS];
    for (int i = 0; i < STOPS; i++) {
        const int64_t from = newest_checkpoint(dir);
        struct stat st;
        const how h = { .ranks = 1, .script = "", .seconds = 300 };
        job *j = start(h, TRAIN_B0 " --steps 100000 --checkpoint-every 0 --data %s --run %s", pictures(), dir);
        while (running(j)) {                   /* a few steps of its own */
            size_t n;
            const metric *m = metrics(dir, "train", &n);
            if (n && m[n - 1].step >= from + 3) break;
            pause_s(0.02);
        }
        const double asked = wall_clock();
        send(j, SIGTERM);
        expect_code(finish(j), 75);
        to_exit[i] = wall_clock() - asked;
        if (stat(checkpoint_of(dir, newest_checkpoint(dir)), &st) != 0) fail_msg("no checkpoint");
        to_file[i] = (double)st.st_ctim.tv_sec + 1e-9 * (double)st.st_ctim.tv_nsec - asked;
    }
    const double file = median(to_file, STOPS), end = median(to_exit, STOPS);
    printf("  from SIGTERM to the checkpoint %.2f s (worst %.2f), to the exit of launch/run %.2f s (worst %.2f), of %d\n",
           file, to_file[STOPS - 1], end, to_exit[STOPS - 1], STOPS);
}

void figures(void **state)
{
    (void)state;
    steps_beside_writes(at("figures"));
    stops(at("figures"));
}
