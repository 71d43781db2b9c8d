/* test_checkpoint_faults.c - whatever the machine does while a checkpoint is written: the file of before stays, no .tmp
 * stays, the message says what happened.
 *
 * The calls by which our code reaches the disk are wrapped by the linker (--wrap): each can be made to fail, to do half,
 * to be interrupted, or to write a wrong byte.  HDF5's own calls are not touched. */
#define _GNU_SOURCE
#include "test_checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#include "trainer/dump.h"

/* ---- wrapped calls --------------------------------------------------------------------------------------------------- */

static struct { int write_error, fsync_error, rename_error, link_error, close_error, open_dir_error; bool halves, interrupted;
                long long flip_at, written; int fsyncs, links; } faults;

static void no_faults(void) { memset(&faults, 0, sizeof faults); faults.flip_at = -1; }

ssize_t __real_pwrite(int fd, const void *p, size_t n, off_t at);
int     __real_fsync(int fd);
int     __real_rename(const char *from, const char *to);
int     __real_link(const char *from, const char *to);
int     __real_close(int fd);
ssize_t __wrap_pwrite(int fd, const void *p, size_t n, off_t at);
int     __wrap_fsync(int fd);
int     __wrap_rename(const char *from, const char *to);
int     __wrap_link(const char *from, const char *to);
int     __wrap_close(int fd);

ssize_t __wrap_pwrite(int fd, const void *p, size_t n, off_t at)
{
    static int turn;
    if (fd < 3) return __real_pwrite(fd, p, n, at);
    if (faults.interrupted && ++turn % 2) return errno = EINTR, -1;
    if (faults.write_error && faults.written > 3000) return errno = faults.write_error, -1;
    if (faults.halves && n > 1) n = n / 2;
    char *copy = malloc(n);
    memcpy(copy, p, n);
    if (faults.flip_at >= faults.written && faults.flip_at < faults.written + (long long)n) copy[faults.flip_at - faults.written] ^= 4;
    const ssize_t done = __real_pwrite(fd, copy, faults.write_error && n > 4000 ? 4000 : n, at);
    free(copy);
    if (done > 0) faults.written += done;
    return done;
}

int __wrap_fsync(int fd)
{
    struct stat st;
    if (faults.interrupted && ++faults.fsyncs % 2) return errno = EINTR, -1;
    if (faults.open_dir_error && fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) return errno = faults.open_dir_error, -1;
    if (faults.fsync_error) return errno = faults.fsync_error, -1;
    return __real_fsync(fd);
}

int __wrap_rename(const char *from, const char *to)
{
    return faults.rename_error ? errno = faults.rename_error, -1 : __real_rename(from, to);
}

int __wrap_link(const char *from, const char *to)
{
    faults.links++;
    return faults.link_error ? errno = faults.link_error, -1 : __real_link(from, to);
}

int __wrap_close(int fd)
{
    const int result = __real_close(fd);
    return faults.close_error && faults.written > 0 ? errno = faults.close_error, -1 : result;
}

static int begin_test(void **state) { no_faults(); return make_folder(state); }
static int end_test(void **state)   { no_faults(); return remove_folder(state); }

/* ---- one write fails ----------------------------------------------------------------------------------------------- */

static en_model model;
static en_snapshot snapshot;

static void begin_with(int64_t step)                           /* a whole file a.h5 of that step, and a snapshot of the next */
{
    model = tiny_model();
    OK(en_snapshot_alloc(&model, 2, slots, true, &snapshot));
    fill(&snapshot, step);
    OK(en_checkpoint_write(path("a.h5"), &snapshot));
    fill(&snapshot, step + 1);
    faults.written = faults.fsyncs = 0;
}

static void refused_and_as_before(en_status code, const char *part)
{
    REFUSED(code, en_checkpoint_write(path("a.h5"), &snapshot), part);
    if (!strstr(en_error_message(), path("a.h5"))) fail_msg("no path in: %s", en_error_message());
    no_faults();
    assert_false(exists(path("a.h5.tmp")));
    holds_step(path("a.h5"), &model, 2, 1);
    OK(en_checkpoint_write(path("a.h5"), &snapshot));          /* and the next one goes well                            */
    holds_step(path("a.h5"), &model, 2, 2);
    en_snapshot_free(&snapshot);
}

static void a_full_disk(void **state)
{
    (void)state;
    begin_with(1);
    faults.write_error = ENOSPC;
    refused_and_as_before(EN_EIO, "No space left on device: it needs ");
}

static void a_quota_that_shows_when_the_file_is_closed(void **state)
{
    (void)state;
    begin_with(1);
    faults.close_error = EDQUOT;
    refused_and_as_before(EN_EIO, "Disk quota exceeded: it needs ");
}

static void a_disk_that_cannot_sync(void **state)
{
    (void)state;
    begin_with(1);
    faults.fsync_error = EIO;
    refused_and_as_before(EN_EIO, "cannot sync");
}

static void a_rename_that_fails(void **state)
{
    (void)state;
    begin_with(1);
    faults.rename_error = EACCES;
    refused_and_as_before(EN_EIO, "cannot rename");
}

static void a_disk_that_writes_a_wrong_bit(void **state)
{
    (void)state;
    begin_with(1);
    faults.flip_at = 2100;
    refused_and_as_before(EN_EIO, "wrong when read back");
}

static void interrupted_calls_and_short_writes_are_gone_on_with(void **state)
{
    (void)state;
    begin_with(1);
    faults.halves = faults.interrupted = true;
    OK(en_checkpoint_write(path("a.h5"), &snapshot));
    no_faults();
    holds_step(path("a.h5"), &model, 2, 2);
    en_snapshot_free(&snapshot);
}

static void a_file_system_without_fsync_of_folders(void **state)
{
    (void)state;
    begin_with(1);
    faults.open_dir_error = EINVAL;
    OK(en_checkpoint_write(path("a.h5"), &snapshot));
    faults.open_dir_error = EIO;
    REFUSED(EN_EIO, en_checkpoint_write(path("a.h5"), &snapshot), "cannot sync the folder");
    en_snapshot_free(&snapshot);
}

static void a_folder_that_is_not_there_or_no_folder(void **state)
{
    (void)state;
    begin_with(1);
    REFUSED(EN_EIO, en_checkpoint_write(path("none/a.h5"), &snapshot), "No such file or directory");
    REFUSED(EN_EIO, en_checkpoint_write(path("a.h5/a.h5"), &snapshot), "Not a directory");
    char deep[5000];
    memset(deep, 'x', sizeof deep);
    deep[4999] = '\0';
    REFUSED(EN_EUSAGE, en_checkpoint_write(deep, &snapshot), "too long");
    en_snapshot_free(&snapshot);
}

/* ---- in a child, under real limits --------------------------------------------------------------------------------- */

/* Runs `work` in a child that then leaves by exit(), so that HDF5 closes up too; its exit code, or -signal. */
static int in_child(int (*work)(void))
{
    fflush(NULL);
    const pid_t pid = fork();
    if (pid == 0) exit(work());
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

enum { NOT_HERE = 77 };

static bool write_is_refused(const char *p, const char *part)
{
    en_error_clear();
    const en_status status = en_checkpoint_write(p, &snapshot);
    const bool ok = status == EN_EIO && strstr(en_error_message(), part) && strstr(en_error_message(), "it needs ");
    if (!ok) fprintf(stderr, "%s: %s\n", en_status_name(status), en_error_text());
    return ok;
}

static int beyond_the_limit_on_file_size(void)                 /* SIGXFSZ at its default, which kills                   */
{
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){ 5000, 5000 });
    return write_is_refused(path("a.h5"), "File too large") ? 0 : 1;
}

static void a_limit_on_file_size(void **state)
{
    (void)state;
    begin_with(1);
    assert_int_equal(in_child(beyond_the_limit_on_file_size), 0);
    assert_false(exists(path("a.h5.tmp")));
    holds_step(path("a.h5"), &model, 2, 1);
    en_snapshot_free(&snapshot);
}

static int on_a_small_disk(void)
{
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0
        || mount("tmpfs", path("disk"), "tmpfs", 0, "size=64k") != 0)
        return NOT_HERE;
    fill(&snapshot, 1);
    OK(en_checkpoint_write(path("disk/a.h5"), &snapshot));
    struct stat st;
    stat(path("disk/a.h5"), &st);
    int fd = open(path("disk/filler"), O_WRONLY | O_CREAT, 0666);
    static char page[4096];
    while (write(fd, page, sizeof page) == (ssize_t)sizeof page) continue;
    close(fd);
    fill(&snapshot, 2);
    if (!write_is_refused(path("disk/a.h5"), "No space left on device")) return 1;
    if (exists(path("disk/a.h5.tmp"))) return 2;
    holds_step(path("disk/a.h5"), &model, 2, 1);
    en_dump *d;
    OK(en_dump_open(path("disk/d.h5"), &d));
    OK(en_dump_i64(d, "/x", 1, &(int64_t){ 1 }, &(int64_t){ 7 }));
    if (en_dump_close(d) != EN_EIO || exists(path("disk/d.h5")) || exists(path("disk/d.h5.tmp"))) return 3;
    unlink(path("disk/filler"));
    OK(en_checkpoint_write(path("disk/a.h5"), &snapshot));
    holds_step(path("disk/a.h5"), &model, 2, 2);
    return 0;
}

static void a_disk_that_is_really_full(void **state)
{
    (void)state;
    begin_with(1);
    mkdir(path("disk"), 0777);
    const int code = in_child(on_a_small_disk);
    en_snapshot_free(&snapshot);
    if (code == NOT_HERE) {
        print_message("skipped: a small tmpfs cannot be mounted here (needs root and mount)\n");
        skip();
    }
    assert_int_equal(code, 0);
}

static int as_nobody(void)
{
    if (getuid() == 0 && setresuid(65534, 65534, 65534) != 0) return NOT_HERE;
    en_error_clear();
    if (en_checkpoint_write(path("a.h5"), &snapshot) != EN_EIO || !strstr(en_error_message(), "Permission denied")) return 1;
    en_checkpoint_writer *w;
    en_error_clear();
    if (en_checkpoint_writer_open(folder, 3, &snapshot, &w) != EN_EIO || !strstr(en_error_message(), "Permission denied")) return 2;
    en_checkpoint_info i;
    en_error_clear();
    if (en_checkpoint_inspect(path("secret.h5"), true, &i) != EN_EIO || !strstr(en_error_message(), "Permission denied")) return 3;
    return 0;
}

static void a_folder_without_permission(void **state)
{
    (void)state;
    begin_with(1);
    spill(path("secret.h5"), "x", 1);
    chmod(path("secret.h5"), 0);
    chmod(folder, 0555);
    const int code = in_child(as_nobody);
    chmod(folder, 0777);
    en_snapshot_free(&snapshot);
    if (code == NOT_HERE) skip();
    assert_int_equal(code, 0);
}

/* ---- killed at any instant ------------------------------------------------------------------------------------------ */

static int report_to;

/* Goes on from the newest file and writes one step after another until it is killed. */
static int write_until_killed(void)
{
    char newest[4096];
    en_checkpoint_info i = { 0 };
    if (en_checkpoint_newest(folder, newest, NULL) != EN_OK) return 1;
    if (newest[0] && en_checkpoint_inspect(newest, false, &i) != EN_OK) return 2;
    for (int64_t step = i.state.step + 1;; step++) {
        fill(&snapshot, step);
        if (en_checkpoint_write(step_path(step), &snapshot) != EN_OK) return 3;
        if (write(report_to, &step, sizeof step) != sizeof step) return 4;
        if (en_checkpoint_prune(folder, 2) != EN_OK) return 5;
    }
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int n_passed_over;
static void count(const char *p, const char *why) { n_passed_over++; fprintf(stderr, "%s %s\n", p, why); }

static void killed_at_sixty_instants_nothing_finished_is_lost(void **state)
{
    (void)state;
    model = tiny_model();
    OK(en_snapshot_alloc(&model, 2, slots, true, &snapshot));
    int64_t finished = 0, step;
    int leftovers = 0;
    double step_s = 0.01;                                      /* how long one takes here                               */
    n_passed_over = 0;
    for (int kill_number = 0; kill_number < 60; kill_number++) {
        int ends[2];
        assert_int_equal(pipe(ends), 0);
        fflush(NULL);
        const pid_t pid = fork();
        if (pid == 0) {
            report_to = ends[1];
            _exit(write_until_killed());
        }
        __real_close(ends[1]);
        for (uint32_t wait = mixed(12, (uint64_t)kill_number) % 3; wait > 0; wait--) {          /* some whole steps ... */
            const double since = seconds();
            assert_int_equal(read(ends[0], &step, sizeof step), sizeof step);
            assert_int_equal(step, ++finished);                /* goes on where the last one ended                      */
            step_s = seconds() - since;
        }
        const double instant = 1.2 * step_s * (mixed(11, (uint64_t)kill_number) % 1000) / 1000; /* ... and part of one  */
        nanosleep(&(struct timespec){ (time_t)instant, (long)(1e9 * (instant - (double)(time_t)instant)) }, NULL);
        kill(pid, SIGKILL);
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (!WIFSIGNALED(status)) fail_msg("the writer left with %d", WEXITSTATUS(status));
        while (read(ends[0], &step, sizeof step) == sizeof step) assert_int_equal(step, ++finished);
        __real_close(ends[0]);
        char newest[4096];
        OK(en_checkpoint_newest(folder, newest, count));
        en_checkpoint_info i = { 0 };
        if (newest[0]) OK(en_checkpoint_inspect(newest, true, &i));
        if (i.state.step < finished) fail_msg("step %" PRId64 " was finished, %" PRId64 " is found", finished, i.state.step);
        if (newest[0]) holds_step(newest, &model, 2, i.state.step);
        finished = i.state.step;                               /* renamed, and killed before it could say so            */
        char tmp[300];
        snprintf(tmp, sizeof tmp, "%s.tmp", step_path(finished + 1));
        leftovers += exists(tmp);
    }
    assert_int_equal(n_passed_over, 0);
    print_message("%" PRId64 " steps finished, %d kills left a .tmp behind\n", finished, leftovers);
    if (leftovers < 5) fail_msg("only %d kills came while a file was being written", leftovers);
    OK(en_checkpoint_prune(folder, 2));
    assert_true(exists(step_path(finished)) && exists(step_path(finished - 1)) && !exists(step_path(finished - 2)));
    en_snapshot_free(&snapshot);
}

/* ---- the writer thread ------------------------------------------------------------------------------------------------ */

static void the_writer_saves_retains_and_keeps_the_best(void **state)
{
    (void)state;
    en_checkpoint_writer *w;
    model = tiny_model();
    OK(en_snapshot_alloc(&model, 2, slots, true, &snapshot));
    char dir[256];
    snprintf(dir, sizeof dir, "%s", path("checkpoints"));
    mkdir(dir, 0777);
    snprintf(folder + strlen(folder), sizeof folder - strlen(folder), "/checkpoints");
    spill(path("step-00000009.h5.tmp"), "x", 1);               /* of a run that was killed                              */
    OK(en_checkpoint_writer_open(dir, 2, &snapshot, &w));
    assert_false(exists(path("step-00000009.h5.tmp")));
    assert_string_equal(en_checkpoint_writer_last(w), "");
    for (int64_t step = 1; step <= 6; step++) {
        OK(en_checkpoint_writer_acquire(w));
        fill(&snapshot, step);
        en_checkpoint_writer_begin(w, step == 2 || step == 3);
        if (step != 3) continue;
        OK(en_checkpoint_writer_wait(w));
        struct stat a, b;
        stat(path("best.h5"), &a);
        stat(step_path(3), &b);
        assert_true(a.st_ino == b.st_ino);                     /* a second name, no second copy                         */
    }
    OK(en_checkpoint_writer_wait(w));
    assert_string_equal(en_checkpoint_writer_last(w), step_path(6));
    holds_step(step_path(6), &model, 2, 6);
    holds_step(step_path(5), &model, 2, 5);
    assert_false(exists(step_path(4)) || exists(step_path(3)));
    holds_step(path("best.h5"), &model, 2, 3);
    assert_false(exists(path("best.h5.tmp")));

    OK(en_checkpoint_writer_acquire(w));
    en_checkpoint_writer_begin(w, true);                       /* step 6 again, and best again                          */
    OK(en_checkpoint_writer_acquire(w));
    en_checkpoint_writer_begin(w, true);
    OK(en_checkpoint_writer_wait(w));
    holds_step(path("best.h5"), &model, 2, 6);
    assert_false(exists(path("best.h5.tmp")));

    faults.link_error = EPERM;                                 /* exFAT, some network file systems                      */
    OK(en_checkpoint_writer_acquire(w));
    fill(&snapshot, 7);
    en_checkpoint_writer_begin(w, true);
    en_checkpoint_writer_close(w);                             /* waits                                                 */
    no_faults();
    holds_step(path("best.h5"), &model, 2, 7);
    holds_step(step_path(7), &model, 2, 7);
    struct stat a, b;
    stat(path("best.h5"), &a);
    stat(step_path(7), &b);
    assert_true(a.st_ino != b.st_ino);
    en_checkpoint_writer_close(NULL);
    en_snapshot_free(&snapshot);
    *strrchr(folder, '/') = '\0';
}

static void an_error_of_the_writer_comes_back_once_and_training_goes_on(void **state)
{
    (void)state;
    en_checkpoint_writer *w;
    model = tiny_model();
    OK(en_snapshot_alloc(&model, 2, slots, true, &snapshot));
    OK(en_checkpoint_writer_open(folder, 3, &snapshot, &w));
    fill(&snapshot, 1);
    en_checkpoint_writer_begin(w, true);
    OK(en_checkpoint_writer_acquire(w));

    faults.write_error = ENOSPC;
    fill(&snapshot, 2);
    en_checkpoint_writer_begin(w, true);
    en_error_clear();
    assert_int_equal(en_checkpoint_writer_acquire(w), EN_EIO);
    assert_non_null(strstr(en_error_text(), "No space left on device"));
    assert_non_null(strstr(en_error_text(), "saving in the background"));
    no_faults();
    assert_string_equal(en_checkpoint_writer_last(w), step_path(1));
    holds_step(step_path(1), &model, 2, 1);
    holds_step(path("best.h5"), &model, 2, 1);
    assert_false(exists(step_path(2)));

    OK(en_checkpoint_writer_acquire(w));                       /* told once                                             */
    OK(en_checkpoint_writer_wait(w));
    fill(&snapshot, 3);
    en_checkpoint_writer_begin(w, false);
    OK(en_checkpoint_writer_wait(w));
    holds_step(step_path(3), &model, 2, 3);
    en_checkpoint_writer_close(w);

    REFUSED(EN_EIO, en_checkpoint_writer_open(path("a/b"), 3, &snapshot, &w), "cannot make the folder");
    assert_null(w);
    REFUSED(EN_EUSAGE, en_checkpoint_writer_open(folder, 0, &snapshot, &w), "--keep 0");
    en_snapshot_free(&snapshot);
}

/* The training thread reads and dumps with HDF5 while the writer writes. */
static void two_threads_use_hdf5_at_once(void **state)
{
    (void)state;
    en_checkpoint_writer *w;
    model = tiny_model();
    en_snapshot own;
    OK(en_snapshot_alloc(&model, 2, slots, true, &snapshot));
    OK(en_snapshot_alloc(&model, 2, slots, true, &own));
    fill(&own, 1000);
    OK(en_checkpoint_write(path("a.h5"), &own));
    OK(en_checkpoint_writer_open(folder, 2, &snapshot, &w));
    for (int64_t step = 1; step <= 20; step++) {
        OK(en_checkpoint_writer_acquire(w));
        fill(&snapshot, step);
        en_checkpoint_writer_begin(w, false);
        OK(en_checkpoint_read(path("a.h5"), &own, false));
        en_dump *d;
        OK(en_dump_open(path("d.h5"), &d));
        OK(en_dump_tensors(d, "/before", &model, own.params, own.stats));
        OK(en_dump_close(d));
    }
    OK(en_checkpoint_writer_wait(w));
    holds_step(step_path(20), &model, 2, 20);
    en_checkpoint_writer_close(w);
    en_snapshot_free(&own);
    en_snapshot_free(&snapshot);
}

#define IN_A_FOLDER(test) cmocka_unit_test_setup_teardown(test, begin_test, end_test)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_A_FOLDER(a_full_disk),
        IN_A_FOLDER(a_quota_that_shows_when_the_file_is_closed),
        IN_A_FOLDER(a_disk_that_cannot_sync),
        IN_A_FOLDER(a_rename_that_fails),
        IN_A_FOLDER(a_disk_that_writes_a_wrong_bit),
        IN_A_FOLDER(interrupted_calls_and_short_writes_are_gone_on_with),
        IN_A_FOLDER(a_file_system_without_fsync_of_folders),
        IN_A_FOLDER(a_folder_that_is_not_there_or_no_folder),
        IN_A_FOLDER(a_limit_on_file_size),
        IN_A_FOLDER(a_disk_that_is_really_full),
        IN_A_FOLDER(a_folder_without_permission),
        IN_A_FOLDER(killed_at_sixty_instants_nothing_finished_is_lost),
        IN_A_FOLDER(the_writer_saves_retains_and_keeps_the_best),
        IN_A_FOLDER(an_error_of_the_writer_comes_back_once_and_training_goes_on),
        IN_A_FOLDER(two_threads_use_hdf5_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
