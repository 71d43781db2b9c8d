/* test_data_cache.c - the cache of pictures: what goes in comes out, whoever puts and gets it, whatever ends them.
 *
 * pwrite, flock and statfs are ours here, in place of the C library's: so a disk can be full, a process can die in the middle of a
 * picture, a name can vanish and a folder can lie on a network, at the moment that a test wants. */
#define _GNU_SOURCE
#include "data_help.h"

#include "kernels/host.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

static _Atomic int die_in_write, refuse_writes;
static _Atomic long pretend_type;

ssize_t pwrite(int fd, const void *from, size_t n, off_t at)
{
    if (refuse_writes) {                                       /* the first half finds room, the rest does not */
        if (refuse_writes++ == 1 && n > 1) return syscall(SYS_pwrite64, fd, from, n / 2, at);
        errno = ENOSPC;
        return -1;
    }
    if (die_in_write && --die_in_write == 0) {
        syscall(SYS_pwrite64, fd, from, n / 2, at);
        kill(getpid(), SIGKILL);
    }
    return syscall(SYS_pwrite64, fd, from, n, at);
}

int statfs(const char *path, struct statfs *s)
{
    const int r = (int)syscall(SYS_statfs, path, s);
    if (r == 0 && pretend_type) s->f_type = pretend_type;
    return r;
}

static const char *vanishes;                                   /* the name goes between opening and locking, twice */
static int vanished;
static const char *passes_on;                                  /* the name goes before the file is locked for removal, and names another file, which is held */
static int heir = -1;

int flock(int fd, int how)
{
    if (vanishes && how == LOCK_SH && vanished < 2) vanished += unlink(vanishes) == 0;
    if (passes_on && how == (LOCK_EX | LOCK_NB) && heir < 0 && unlink(passes_on) == 0) {
        heir = open(passes_on, O_RDWR | O_CREAT, 0600);
        syscall(SYS_flock, heir, LOCK_SH);
    }
    return (int)syscall(SYS_flock, fd, how);
}

/* ---- pictures whose every pixel says whose it is -------------------------------------------------------------------------- */

static void sides_of(int64_t sample, int64_t *w, int64_t *h) { *w = 1 + sample * 7 % 90, *h = 1 + sample * 13 % 70; }
static uint8_t pixel_of(int64_t sample, int64_t i) { return (uint8_t)((uint64_t)(sample * 1000003 + i) * 0x9E3779B97F4A7C15u >> 56); }

static en_image picture_of(int64_t sample)
{
    en_image img = { .channels = 1 + (int)(sample % 4) };
    sides_of(sample, &img.w, &img.h);
    img.rgb = malloc((size_t)(img.w * img.h * 3));
    for (int64_t i = 0; i < img.w * img.h * 3; i++) img.rgb[i] = pixel_of(sample, i);
    return img;
}

static int64_t bytes_of(int64_t sample)
{
    int64_t w, h;
    sides_of(sample, &w, &h);
    return w * h * 3;
}

static void put(en_cache *c, int64_t sample)
{
    en_image img = picture_of(sample);
    en_cache_put(c, sample, &img);
    free(img.rgb);
}

/* 1: there and whole, 0: a miss, -1: something else.  For threads too: no assert. */
static int look(en_cache *c, int64_t sample, en_image *img, size_t *capacity)
{
    int64_t w, h;
    sides_of(sample, &w, &h);
    if (!en_cache_get(c, sample, img, capacity)) return 0;
    if (img->w != w || img->h != h || img->channels != 1 + (int)(sample % 4)) return -1;
    for (int64_t i = 0; i < w * h * 3; i++)
        if (img->rgb[i] != pixel_of(sample, i)) return -1;
    return 1;
}

static int64_t found(en_cache *c, int64_t samples)             /* -1: one of them is wrong */
{
    en_image img = { 0 };
    size_t capacity = 0;
    int64_t n = 0;
    for (int64_t i = 0; i < samples && n >= 0; i++) {
        const int r = look(c, i, &img, &capacity);
        n = r < 0 ? -1 : n + r;
    }
    free(img.rgb);
    return n;
}

static en_cache *open_in(const char *dir, int64_t samples, uint64_t token)
{
    en_cache *c;
    OK(en_cache_open(&(en_cache_config){ .place = dir, .side = 64, .samples = samples, .token = token }, &c));
    return c;
}

/* A child that ends with the test, should that fail. */
static pid_t fork_child(void)
{
    const pid_t child = fork();
    if (child == 0) prctl(PR_SET_PDEATHSIG, SIGKILL);
    return child;
}

static int names_in(const char *dir)                           /* of caches */
{
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; (e = readdir(d)); ) n += strncmp(e->d_name, "effnet-cache-", 13) == 0;
    closedir(d);
    return n;
}

/* ---- one process ----------------------------------------------------------------------------------------------------------- */

static void what_was_put_comes_out_once_it_is_there(void **state)
{
    (void)state;
    char *dir = temp_open();
    enum { N = 300 };
    en_cache *c = open_in(dir, N, 1);
    en_image img = { 0 };
    size_t capacity = 0;
    int64_t pictures, sum = 0;
    assert_int_equal(found(c, N), 0);
    for (int64_t i = 0; i < N; i += 3) put(c, i), sum += bytes_of(i);
    assert_int_equal(found(c, N), N / 3);
    assert_int_equal(en_cache_bytes(c, &pictures), sum);
    assert_int_equal(pictures, N / 3);
    for (int64_t i = 0; i < N; i++) assert_int_equal(look(c, i, &img, &capacity), i % 3 == 0);
    assert_false(en_cache_full(c));
    en_image other = picture_of(7);                             /* a second put changes nothing and takes nothing */
    en_cache_put(c, 3, &other);
    assert_int_equal(look(c, 3, &img, &capacity), 1);
    assert_int_equal(en_cache_bytes(c, &pictures), sum);
    const int64_t none[] = { -1, N, INT64_MAX, INT64_MIN };
    for (int k = 0; k < 4; k++) {
        en_cache_put(c, none[k], &other);
        assert_false(en_cache_get(c, none[k], &img, &capacity));
    }
    assert_int_equal(en_cache_bytes(c, &pictures), sum);
    free(other.rgb);
    free(img.rgb);
    en_cache_close(c);
    en_cache_close(NULL);
    assert_int_equal(names_in(dir), 0);
    temp_close(dir);
}

static void no_sample_is_a_cache_too(void **state)
{
    (void)state;
    char *dir = temp_open();
    en_cache *c = open_in(dir, 0, 1);
    put(c, 0);
    assert_int_equal(found(c, 1), 0);
    en_cache_close(c);
    temp_close(dir);
}

static void memory_is_a_place(void **state)
{
    (void)state;
    struct stat st;
    if (stat("/dev/shm", &st) != 0 || access("/dev/shm", W_OK) != 0) skip();
    en_cache *c = open_in("memory", 20, 0x7e57000000000000u + (uint64_t)getpid());
    en_cache_unlink(c);
    for (int64_t i = 0; i < 20; i++) put(c, i);
    const int64_t n = found(c, 20);
    en_cache_close(c);
    assert_int_equal(n, 20);
}

/* ---- many --------------------------------------------------------------------------------------------------------------------- */

enum { SAMPLES = 1501, PROCESSES = 4, THREADS = 4 };          /* 7, 9, 11 and 13 are coprime to 1501 */
typedef struct { en_cache *c; int number; int64_t hits; bool wrong; } putter;

/* Every thread wants every sample, twice, in an order of its own; what is not there it makes and puts.  The second time all are
 * there but for those that somebody else is just putting. */
static void *want_all(void *p)
{
    putter *t = p;
    en_image img = { 0 };
    size_t capacity = 0;
    for (int round = 0; round < 2; round++)
        for (int64_t k = 0; k < SAMPLES; k++) {
            const int64_t sample = (k * (2 * (t->number % 4) + 7) + t->number / 4 * 11) % SAMPLES;
            const int r = look(t->c, sample, &img, &capacity);
            if (r < 0) t->wrong = true;
            if (r == 0) put(t->c, sample);
            else t->hits++;
        }
    free(img.rgb);
    return NULL;
}

static int one_process(const char *dir, int number, int ready, int go)
{
    en_cache *c = open_in(dir, SAMPLES, 77);
    char byte = 0;
    if (write(ready, &byte, 1) != 1 || read(go, &byte, 1) != 0) return 2;      /* all have opened it: the end of the pipe says so */
    en_cache_unlink(c);
    putter t[THREADS];
    pthread_t thread[THREADS];
    bool wrong = false;
    for (int i = 0; i < THREADS; i++) {
        t[i] = (putter){ .c = c, .number = number * THREADS + i };
        if (pthread_create(&thread[i], NULL, want_all, &t[i]) != 0) return 2;
    }
    for (int i = 0; i < THREADS; i++) pthread_join(thread[i], NULL), wrong = wrong || t[i].wrong || t[i].hits < SAMPLES - PROCESSES * THREADS;
    wrong = wrong || found(c, SAMPLES) < SAMPLES - PROCESSES * THREADS;
    en_cache_close(c);
    return wrong;
}

static void processes_and_threads_share_one_copy_of_each_picture(void **state)
{
    (void)state;
    char *dir = temp_open();
    int ready[2], go[2];
    char byte;
    pid_t child[PROCESSES];
    assert_true(pipe(ready) == 0 && pipe(go) == 0);
    for (int i = 0; i < PROCESSES; i++) {
        child[i] = fork_child();
        if (child[i] == 0) {
            close(go[1]);
            _exit(one_process(dir, i, ready[1], go[0]));
        }
    }
    for (int i = 0; i < PROCESSES; i++) assert_int_equal(read(ready[0], &byte, 1), 1);
    en_cache *c = open_in(dir, SAMPLES, 77);
    assert_int_equal(names_in(dir), 1);
    close(go[1]);
    for (int i = 0; i < PROCESSES; i++) {
        int end;
        assert_int_equal(waitpid(child[i], &end, 0), child[i]);
        assert_true(WIFEXITED(end) && WEXITSTATUS(end) == 0);
    }
    int64_t sum = 0, pictures;
    for (int64_t i = 0; i < SAMPLES; i++) sum += bytes_of(i);
    assert_int_equal(en_cache_bytes(c, &pictures), sum);       /* each was put once */
    assert_int_equal(pictures, SAMPLES);
    assert_int_equal(found(c, SAMPLES), SAMPLES);
    assert_int_equal(names_in(dir), 0);
    en_cache_close(c);
    close(ready[0]), close(ready[1]), close(go[0]);
    temp_close(dir);
}

static void ranks_that_want_different_things_do_not_share(void **state)
{
    (void)state;
    char *dir = temp_open();
    en_cache *c = open_in(dir, 10, 5), *other;
    for (int k = 0; k < 2; k++) {
        en_error_clear();
        assert_int_equal(en_cache_open(&(en_cache_config){ .place = dir, .side = k ? 65 : 64, .samples = k ? 10 : 11, .token = 5 }, &other), EN_EUSAGE);
        assert_null(other);
        assert_non_null(strstr(en_error_text(), "started alike"));
        assert_int_equal(names_in(dir), 1);                     /* and it is still there for those who want it */
    }
    other = open_in(dir, 10, 6);
    put(c, 1);
    assert_int_equal(found(other, 10), 0);
    en_cache_close(other);
    other = open_in(dir, 10, 5);
    assert_int_equal(found(other, 10), 1);
    en_cache_close(other);
    en_cache_close(c);
    assert_int_equal(names_in(dir), 0);
    temp_close(dir);
}

/* ---- ends -------------------------------------------------------------------------------------------------------------------- */

static void wait_killed(pid_t child)
{
    int end;
    assert_int_equal(waitpid(child, &end, 0), child);
    assert_true(WIFSIGNALED(end) && WTERMSIG(end) == SIGKILL);
}

static void who_dies_in_the_middle_of_a_picture_leaves_a_miss(void **state)
{
    (void)state;
    char *dir = temp_open();
    en_cache *c = open_in(dir, 40, 9);
    for (int k = 0; k < 3; k++) {                               /* with 0, 5, 10 whole pictures before it */
        const pid_t child = fork_child();
        if (child == 0) {
            en_cache *mine = open_in(dir, 40, 9);
            die_in_write = 1 + 5 * k;
            for (int64_t i = 12 * k; i < 40; i++) put(mine, i);
            _exit(0);
        }
        wait_killed(child);
    }
    alarm(60);                                                  /* nobody waits for the dead */
    assert_int_equal(found(c, 40), 15);
    for (int64_t i = 0; i < 40; i++) put(c, i);
    assert_int_equal(found(c, 40), 40 - 3);                     /* the three that they had claimed are decoded anew, every time */
    alarm(0);
    assert_false(en_cache_full(c));
    en_cache_close(c);
    temp_close(dir);
}

/* Killed at any time, and not where a test says so */
static void who_dies_anywhere_leaves_only_whole_pictures(void **state)
{
    (void)state;
    char *dir = temp_open();
    en_cache *c = open_in(dir, 4000, 9);
    int64_t before = 0;
    for (int k = 0; k < 12; k++) {
        const pid_t child = fork_child();
        if (child == 0) {
            en_cache *mine = open_in(dir, 4000, 9);
            for (int64_t i = 0;; i = (i + 1) % 4000) put(mine, i);
        }
        usleep((useconds_t)(500 + 1700 * k));
        kill(child, SIGKILL);
        wait_killed(child);
        const int64_t now = found(c, 4000);
        assert_true(now >= before);                             /* -1: one is wrong */
        before = now;
    }
    assert_true(before > 0);
    en_cache_close(c);
    temp_close(dir);
}

static void nothing_is_left_of_a_run_that_was_killed(void **state)
{
    (void)state;
    char *dir = temp_open();
    for (int unlinked = 0; unlinked < 2; unlinked++) {
        int ready[2];
        char byte;
        assert_int_equal(pipe(ready), 0);
        const pid_t child = fork_child();
        if (child == 0) {
            en_cache *mine = open_in(dir, 40, 100);
            if (unlinked) en_cache_unlink(mine);
            put(mine, 1);
            if (write(ready[1], "", 1) != 1) _exit(1);
            for (;;) pause();
        }
        assert_int_equal(read(ready[0], &byte, 1), 1);
        assert_int_equal(names_in(dir), !unlinked);
        en_cache *beside = open_in(dir, 40, 200);               /* another run leaves the living alone */
        assert_int_equal(names_in(dir), !unlinked + 1);
        en_cache_close(beside);
        kill(child, SIGKILL);
        wait_killed(child);
        assert_int_equal(names_in(dir), !unlinked);
        put_file(dir, "effnet-cache.txt", "mine", 4);           /* no cache */
        beside = open_in(dir, 40, 300);                         /* and removes the name that a dead one had not come to remove */
        assert_int_equal(names_in(dir), 1);
        en_cache_close(beside);
        assert_int_equal(names_in(dir), 0);
        assert_int_equal(access(path_in(dir, "effnet-cache.txt"), F_OK), 0);
        close(ready[0]), close(ready[1]);
    }
    temp_close(dir);
}

/* Another run that opens a cache may take ours for one that nobody holds, until we have locked it. */
static void a_name_that_is_removed_too_early_is_made_anew(void **state)
{
    (void)state;
    char *dir = temp_open(), name[4096];
    snprintf(name, sizeof name, "%s/effnet-cache-%016x", dir, 12);
    vanishes = name, vanished = 0;
    en_cache *c = open_in(dir, 10, 12);
    vanishes = NULL;
    assert_int_equal(vanished, 2);
    assert_int_equal(names_in(dir), 1);
    put(c, 1);
    en_cache *other = open_in(dir, 10, 12);
    assert_int_equal(found(other, 10), 1);
    en_cache_close(other);
    en_cache_close(c);
    temp_close(dir);
}

/* A name is removed by those who hold the file that it names. */
static void a_name_that_has_come_to_mean_another_file_stays(void **state)
{
    (void)state;
    char *dir = temp_open();
    en_cache *a = open_in(dir, 10, 12), *b = open_in(dir, 10, 12);
    en_cache_unlink(a);
    en_cache *c = open_in(dir, 10, 12);
    en_cache_close(b);
    en_cache_close(a);
    assert_int_equal(names_in(dir), 1);
    en_cache_close(c);
    assert_int_equal(names_in(dir), 0);
    temp_close(dir);
}

/* Two sweep: one removes the name of a dead run, a third makes it anew, and then the other comes to lock the old file. */
static void a_name_that_another_file_got_meanwhile_is_not_swept(void **state)
{
    (void)state;
    char *dir = temp_open(), name[4096];
    snprintf(name, sizeof name, "%s/effnet-cache-%016x", dir, 12);
    put_file(dir, "effnet-cache-000000000000000c", "left behind", 11);
    passes_on = name;
    en_cache *c = open_in(dir, 10, 13);
    passes_on = NULL;
    assert_true(heir >= 0);
    assert_int_equal(access(name, F_OK), 0);
    close(heir);
    en_cache_close(c);
    temp_close(dir);
}

/* ---- places ------------------------------------------------------------------------------------------------------------------ */

/* A folder that lies in memory takes of the host's memory, whatever it is called. */
static void a_folder_in_memory_is_memory(void **state)
{
    (void)state;
    char *dir = temp_open();
    en_dataset none = { 0 };
    int64_t planned, room;
    static const struct { long type; bool memory; } kinds[] = { { 0x01021994, true }, { (long)0x858458F6, true }, { 0xEF53 /* ext4 */, false } };
    for (int k = 0; k < 3; k++) {
        pretend_type = kinds[k].type;
        assert_int_equal(en_cache_in_memory(dir), kinds[k].memory);
        assert_true(en_cache_in_memory("memory"));
        OK(en_cache_plan(&none, dir, 64, &planned, &room));
        if (kinds[k].memory) assert_true((double)room <= 0.76 * (double)en_memory_available());       /* 3/4, and others take and give meanwhile */
    }
    pretend_type = 0;
    temp_close(dir);
}

static void a_full_disk_keeps_what_is_there(void **state)
{
    (void)state;
    char *dir = temp_open();
    en_cache *c = open_in(dir, 30, 3);
    int64_t pictures, sum = 0;
    for (int64_t i = 0; i < 10; i++) put(c, i), sum += bytes_of(i);
    refuse_writes = 1;
    put(c, 15);
    refuse_writes = 0;
    assert_true(en_cache_full(c));
    put(c, 16);                                                 /* nobody tries again */
    assert_int_equal(found(c, 30), 10);
    assert_int_equal(en_cache_bytes(c, &pictures), sum);
    assert_int_equal(pictures, 10);
    en_cache *other = open_in(dir, 30, 3);                      /* and all ranks know */
    assert_true(en_cache_full(other));
    en_cache_close(other);
    en_cache_close(c);
    temp_close(dir);
}

/* Where writing beyond the limit would end the process by SIGXFSZ. */
static void a_limit_on_file_sizes_is_kept_not_met(void **state)
{
    (void)state;
    char *dir = temp_open();
    const pid_t child = fork_child();
    if (child == 0) {
        const rlim_t limit = 100000;
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){ limit, limit });
        en_cache *c = open_in(dir, 200, 3);
        for (int64_t i = 0; i < 200; i++) put(c, i);
        int64_t pictures;
        struct stat st;
        const int64_t held = en_cache_bytes(c, &pictures), largest = 90 * 70 * 3, index = 4096 + 200 * 24 + 4096;
        const bool good = en_cache_full(c) && found(c, 200) == pictures && pictures > 0 && held > (int64_t)limit - index - largest &&
                          stat(path_in(dir, "effnet-cache-0000000000000003"), &st) == 0 && st.st_size <= (off_t)limit;
        en_cache_close(c);
        en_error_clear();
        const bool refused = en_cache_open(&(en_cache_config){ .place = dir, .side = 64, .samples = 10000, .token = 4 }, &c) == EN_EIO &&
                             strstr(en_error_text(), "ulimit -f") && names_in(dir) == 0;
        _exit(good ? refused ? 0 : 2 : 1);
    }
    int end;
    assert_int_equal(waitpid(child, &end, 0), child);
    assert_true(WIFEXITED(end));
    assert_int_equal(WEXITSTATUS(end), 0);
    temp_close(dir);
}

static void refused(const char *place, const char *words)
{
    en_cache *c;
    en_dataset none = { 0 };
    int64_t planned, room;
    for (int k = 0; k < 2; k++) {
        en_error_clear();
        const en_status s = k ? en_cache_plan(&none, place, 64, &planned, &room) : en_cache_open(&(en_cache_config){ .place = place, .side = 64, .samples = 4 }, &c);
        assert_int_equal(s, EN_EUSAGE);
        if (!strstr(en_error_message(), words) || !strstr(en_error_message(), place)) fail_msg("%s lacks \"%s\" or the place", en_error_message(), words);
    }
    en_error_clear();
}

static void places_that_are_none_are_named_with_a_remedy(void **state)
{
    (void)state;
    char *dir = temp_open();
    refused(path_in(dir, "missing"), "No such file or directory; name a folder on a local disk, or memory");
    put_file(dir, "file", "x", 1);
    refused(path_in(dir, "file"), "it is not a folder");
    static const long kinds[] = { 0x6969, 0x0BD00BD0, (long)0xFF534D42, (long)0xFE534D42 };
    for (int k = 0; k < 4; k++) {
        pretend_type = kinds[k];
        refused(dir, "network");
        pretend_type = 0;
    }
    assert_int_equal(names_in(dir), 0);
    if (geteuid() != 0) {
        chmod(dir, 0555);
        refused(dir, "may be written");
        chmod(dir, 0755);
    }
    if (symlink("elsewhere", path_in(dir, "effnet-cache-0000000000000008")) != 0) fail();   /* a name that somebody has put there */
    en_cache *c;
    assert_int_equal(en_cache_open(&(en_cache_config){ .place = dir, .side = 64, .samples = 4, .token = 8 }, &c), EN_EIO);
    assert_null(c);
    assert_int_not_equal(access(path_in(dir, "elsewhere"), F_OK), 0);
    en_error_clear();
    temp_close(dir);
}

/* ---- the estimate -------------------------------------------------------------------------------------------------------------- */

/* Sizes and shapes as a set of photographs has them, gray and PNG among them, some no images at all: the estimate is within 20 % of
 * what the cache holds in the end. */
static void the_estimate_is_near_what_the_pictures_take(void **state)
{
    (void)state;
    enum { KINDS = 9, FILES = 700, SIDE = 32 };
    static const int sides[KINDS][2] = { { 50, 37 }, { 37, 50 }, { 120, 33 }, { 24, 24 }, { 64, 64 }, { 31, 90 }, { 100, 75 }, { 9, 30 }, { 200, 150 } };
    char *dir = temp_open(), name[64];
    bytes file[KINDS];
    for (int k = 0; k < KINDS; k++) {
        uint8_t *rgb = make_picture(sides[k][0], sides[k][1], (unsigned)k);
        file[k] = k == 4 ? make_png(rgb, (size_t)sides[k][0] * 3, sides[k][0], sides[k][1], 2, 8, 0)
                         : make_jpeg(rgb, sides[k][0], sides[k][1], &(jpeg_kind){ .components = k == 5 ? 1 : 3, .quality = 80, .luma_h = 2, .luma_v = 2 });
        free(rgb);
    }
    for (int i = 0; i < FILES; i++) {
        const int k = (int)((uint64_t)i * 2654435761u % 1000003 % KINDS);
        snprintf(name, sizeof name, "class%d/%04d", i % 3, i);
        if (i % 50 == 7) put_file(dir, name, "no image", 8);
        else put_file(dir, name, file[k].at, file[k].n);
    }
    en_dataset *ds;
    OK(en_dataset_open(dir, "train", NULL, &ds));
    char *place = temp_open();
    int64_t planned, room, pictures;
    OK(en_cache_plan(ds, place, SIDE, &planned, &room));
    en_cache *c;
    OK(en_cache_open(&(en_cache_config){ .place = place, .side = SIDE, .samples = ds->samples, .token = 1 }, &c));
    uint8_t *buf = NULL;
    size_t capacity = 0, n, shrunk_capacity = 0;
    en_image shrunk = { 0 };
    for (int64_t i = 0; i < ds->samples; i++) {
        en_image img = { 0 };
        OK(ds->ops->read(ds, i, &buf, &capacity, &n));
        if (en_image_decode(ds->files[i], buf, n, EN_MAX_PIXELS, &img) != EN_OK) { en_error_clear(); continue; }
        OK(en_shrink(&img, SIDE, &shrunk, &shrunk_capacity));
        en_cache_put(c, i, &shrunk);
        en_image_free(&img);
    }
    const double took = (double)en_cache_bytes(c, &pictures) + 4096 + 24 * (double)ds->samples;
    assert_int_equal(pictures, FILES - FILES / 50);
    print_message("# planned %.0f bytes, took %.0f\n", (double)planned, took);
    assert_true((double)planned > 0.8 * took && (double)planned < 1.2 * took);
    assert_true(room > 0);
    free(buf), free(shrunk.rgb);
    en_cache_close(c);
    en_dataset_close(ds);
    for (int k = 0; k < KINDS; k++) bytes_free(&file[k]);
    temp_close(place);
    temp_close(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_put_comes_out_once_it_is_there),
        cmocka_unit_test(no_sample_is_a_cache_too),
        cmocka_unit_test(memory_is_a_place),
        cmocka_unit_test(processes_and_threads_share_one_copy_of_each_picture),
        cmocka_unit_test(ranks_that_want_different_things_do_not_share),
        cmocka_unit_test(who_dies_in_the_middle_of_a_picture_leaves_a_miss),
        cmocka_unit_test(who_dies_anywhere_leaves_only_whole_pictures),
        cmocka_unit_test(nothing_is_left_of_a_run_that_was_killed),
        cmocka_unit_test(a_name_that_is_removed_too_early_is_made_anew),
        cmocka_unit_test(a_name_that_has_come_to_mean_another_file_stays),
        cmocka_unit_test(a_name_that_another_file_got_meanwhile_is_not_swept),
        cmocka_unit_test(a_folder_in_memory_is_memory),
        cmocka_unit_test(a_full_disk_keeps_what_is_there),
        cmocka_unit_test(a_limit_on_file_sizes_is_kept_not_met),
        cmocka_unit_test(places_that_are_none_are_named_with_a_remedy),
        cmocka_unit_test(the_estimate_is_near_what_the_pictures_take),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
