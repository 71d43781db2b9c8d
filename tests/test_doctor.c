/* test_doctor.c - what `effnet doctor` makes of facts: made-up hosts, one thing wrong at a time.
 *
 * A job without anything wrong has no findings; so each finding in a test comes of what the test changed. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/doctor/doctor.h"

enum { HOSTS = 4, EACH = 2, RANKS = HOSTS * EACH };

static en_doctor_facts all[RANKS];
static en_doctor_job   job;
static en_findings     w;

#define SET(field, ...) snprintf(field, sizeof(field), __VA_ARGS__)

static en_doctor_facts *of(int host) { return &all[host * EACH]; }

/* Four hosts, node1 to node4, of two ranks each, in good order. */
static int sound(void **state)
{
    (void)state;
    for (int r = 0; r < RANKS; r++) {
        en_doctor_facts *f = &all[r];
        en_doctor_nothing(f);
        SET(f->host, "node%d", r / EACH + 1);
        f->launched = f->has_launcher = 1;
        SET(f->isa, "avx2");
        SET(f->isas, "avx2 sse4 generic");
        f->processors = 8;
        f->allowed[0] = r % EACH ? 0xf0 : 0x0f;
        f->allowed_processors = f->allowed_cores = 4;
        f->memory_bytes = (int64_t)64 << 30;
        f->open_files = 4096;
        SET(f->revision, "0.1.0 (abc)");
        f->program_bytes = 1000;
        f->program_crc = 0x12345678;
        SET(f->mpi, "Open MPI v4.1.4");
        SET(f->folder, "/shared/run");
        SET(f->filesystem, "nfs");
        f->disk_free_bytes = (int64_t)100 << 30;
        f->disk_free_files = 1000000;
        f->sum_right = 1;
        if (r % EACH) continue;
        f->writable = f->flock_works = f->fcntl_works = f->shared = f->flock_excludes = f->fcntl_excludes = 1;
        f->data_state = 1;
        f->train_images = 5000;
        f->val_images = 100;
        f->classes = 10;
        f->train_hash = (uint64_t)77 << 32;
        f->met = 1;
        f->round_trip_s = r ? 50e-6 : 0;
        f->next_bytes_per_s = 1e9;
        SET(f->next, "node%d", (r / EACH + 1) % HOSTS + 1);
    }
    job = (en_doctor_job){ .all = all, .ranks = RANKS, .hosts = HOSTS, .folder_asked = true, .model = "b0", .checkpoint_bytes = 85000000, .checkpoints = 5 };
    return 0;
}

static char line[EN_FINDING];

/* Finding i as it is printed */
static const char *told(int i)
{
    en_finding_text(&job, &w, i, line);
    return line;
}

static void begin(void)
{
    en_findings_close(&w);
    assert_true(en_findings_open(&w, RANKS));
}

static void judge(void)
{
    begin();
    en_doctor_judge_job(&job, &w);
    en_doctor_judge_likeness(&job, &w);
    for (int r = 0; r < RANKS; r += EACH) en_doctor_judge_host(&job, r, &w);
    en_doctor_judge_binding(&job, &w);
}

/* One finding, of this weight, that says both */
static void finds(bool must, const char *who, const char *what)
{
    judge();
    for (int i = 0; i < w.n; i++) print_message("    %c %s\n", w.item[i].must ? '!' : '-', told(i));
    assert_int_equal(w.n, 1);
    assert_int_equal(w.item[0].must, must);
    assert_int_equal(w.musts, must);
    assert_non_null(strstr(told(0), who));
    assert_non_null(strstr(told(0), what));
}

/* ---- findings ------------------------------------------------------------------------------------------------------------- */

static void a_sound_job_has_no_findings(void **state)
{
    (void)state;
    judge();
    for (int i = 0; i < w.n; i++) print_message("%s\n", told(i));
    assert_int_equal(w.n, 0);
    int class_of[RANKS];
    for (int i = 0; i < en_doctor_n_rows; i++) assert_true(en_doctor_classes(&job, &en_doctor_rows[i], class_of) <= 1);
}

static void another_program(void **state)
{
    (void)state;
    all[5].program_crc++;                                            /* rank 5 alone, on node3 */
    finds(true, "node3 (rank 5): not the same program as on node1-node2, node3 (rank 4), node4", "the same file on every host");
}

static void other_images(void **state)
{
    (void)state;
    of(1)->train_images--;
    finds(true, "node2: not the same images of --data as on node1, node3-node4", "complete copy");
}

/* The same number of other names, and a packed file cut short: both differ. */
static void images_are_told_apart_by_the_listing_and_by_the_file(void **state)
{
    (void)state;
    of(2)->val_hash = 5;
    finds(true, "node3: not the same images", "");
    sound(NULL);
    for (int h = 0; h < HOSTS; h++) of(h)->packed_bytes = 1000000;
    of(3)->packed_crc = 5;
    finds(true, "node4: not the same images", "");
}

static void refused_images(void **state)
{
    (void)state;
    of(3)->data_state = 0;
    SET(of(3)->data_trouble, "/d does not exist");
    judge();
    assert_int_equal(w.musts, 2);                                    /* and it is not what the others see */
    assert_non_null(strstr(told(0), "node4: --data is refused: /d does not exist"));
}

static void a_folder_of_its_own(void **state)    { (void)state; of(2)->shared = 0; finds(true, "node3: /shared/run", "all hosts share"); }
static void a_lock_that_does_not_hold(void **state) { (void)state; of(1)->flock_excludes = 0; finds(true, "node2: a lock (flock) of rank 0 on node1", "nolock"); }
static void an_fcntl_lock_is_advice(void **state)   { (void)state; of(1)->fcntl_excludes = 0; finds(false, "node2: a lock (fcntl)", ""); }
static void a_slow_cache(void **state)           { (void)state; of(1)->shown_after_s = 6; finds(false, "node2: a file of rank 0 showed", "6.0 s"); }

static void a_folder_that_cannot_be_written(void **state)
{
    (void)state;
    of(0)->writable = 0;
    SET(of(0)->folder_trouble, "making a file: Read-only file system");
    finds(true, "node1: /shared/run (nfs)", "Read-only file system");
    job.folder_asked = false;                                        /* the working folder need not be written to */
    finds(false, "node1: /shared/run (nfs)", "Read-only file system");
    sound(NULL);
    of(1)->writable = 0;                                             /* rank 0 alone writes */
    finds(false, "node2: /shared/run", "cannot be written");
}

/* Five checkpoints of 85 MB are 425 MB: a byte less is too little. */
static void room_for_checkpoints(void **state)
{
    (void)state;
    of(0)->disk_free_bytes = 425000000;
    judge();
    assert_int_equal(w.n, 0);
    of(0)->disk_free_bytes--;
    finds(true, "node1: 0.396 GiB free", "5 checkpoints of b0 take 0.4 GiB");
    sound(NULL);
    of(0)->disk_free_files = 10;
    finds(true, "node1: room for 10 more files", "df -i");
}

static void a_wrong_sum(void **state)
{
    (void)state;
    all[3].sum_right = 0;
    finds(true, "node2: a sum over the ranks came out wrong", "memory");
    sound(NULL);
    all[6].tensor_right = 0;
    finds(true, "node4: sums over the GPUs are wrong", "");
    SET(all[6].tensor_why, "NCCL says no");
    finds(true, "node4: sums over the GPUs do not work: NCCL says no", "");
}

/* What the measurement leaves open counts for the clock: 1.5 s give or take 0.6 may be less than one. */
static void a_clock(void **state)
{
    (void)state;
    of(2)->clock_offset_s = -1.5;
    of(2)->clock_error_s = 0.6;
    judge();
    assert_int_equal(w.n, 0);
    of(2)->clock_error_s = 0.001;
    finds(false, "node3: its clock is 1.5 s behind that of node1", "chrony");
}

static void a_slow_pair(void **state)
{
    (void)state;
    of(1)->next_bytes_per_s = 3.4e8;                                 /* a third of the others' 1 GB/s, and a little */
    judge();
    assert_int_equal(w.n, 0);
    of(1)->next_bytes_per_s = 3.2e8;
    finds(false, "node2: exchanges 320 MB/s with node3, others 1000", "cable");
    sound(NULL);
    of(3)->round_trip_s = 1e-3;
    finds(false, "node4: 1 ms there and back from node1, the others 0.05", "--bn-group node");
}

static void gpus(void **state)
{
    (void)state;
    for (int r = 0; r < RANKS; r++) {
        SET(all[r].gpus, "0: NVIDIA H200, sm_90, 139.8 GiB; 1: NVIDIA H200, sm_90, 139.8 GiB");
        SET(all[r].device, "0000:%02x:00.0", r % EACH);
        all[r].numa = 1u << r % EACH;
        all[r].device_numa = r % EACH;
        all[r].tensor_right = 1;
        SET(all[r].tensor, "nccl");
    }
    judge();
    assert_int_equal(w.n, 0);
    all[5].device_numa = 0;
    finds(false, "node3: the GPU of local rank 1 (0000:01:00.0) hangs on NUMA node 0", "bind");
    all[5].device_numa = 1;
    SET(all[7].device, "0000:00:00.0");
    finds(false, "node4: local ranks 0 and 1 share GPU 0000:00:00.0", "one rank a GPU");
    SET(all[7].device, "0000:01:00.0");
    for (int r = 2; r < 4; r++) all[r].gpus[0] = 0;
    judge();
    assert_int_equal(w.n, 2);
    assert_non_null(strstr(told(0), "6 of 8 ranks find a GPU"));
    assert_non_null(strstr(told(1), "node2: not the same GPUs as on node1, node3-node4"));
}

static void names_twice(void **state)
{
    (void)state;
    for (int r = 2; r < 4; r++) SET(all[r].host, "node1");
    judge();
    assert_true(w.n > 0 && strstr(told(0), "4 hosts have 3 different names"));
}

static void ranks_on_the_same_processors(void **state)
{
    (void)state;
    for (int r = 4; r < 6; r++) all[r].allowed[0] = 1, all[r].allowed_processors = 1;
    judge();
    assert_int_equal(w.n, 2);
    assert_non_null(strstr(told(0), "node3: local ranks 0, 1 share 1 processor (0)"));
    assert_non_null(strstr(told(1), "node3: the 2 ranks may use 1 of 8 processors"));
}

static void infiniband_wants_locked_memory(void **state)
{
    (void)state;
    of(1)->infiniband = 1;
    of(1)->locked_bytes = 65536;
    finds(false, "node2: has InfiniBand, and may lock 64 KiB", "ulimit -l");
    of(1)->locked_bytes = INT64_MAX;
    judge();
    assert_int_equal(w.n, 0);
}

/* More than there is room for are counted, and what must be done is not forgotten. */
static void a_slow_network_is_one_finding(void **state)
{
    (void)state;
    for (int h = 0; h < HOSTS; h++) of(h)->next_bytes_per_s = 12e6;
    finds(false, "neighbouring hosts exchange 12 MB/s", "btl_tcp_if_include");
}

/* Also of ranks whose numbers differ, where the local ones do not. */
static void what_hosts_have_in_common_is_one_finding(void **state)
{
    (void)state;
    for (int h = 0; h < 3; h++) SET(of(h)->thp, "never");
    finds(false, "node1-node3: transparent huge pages are off", "madvise");
    sound(NULL);
    for (int r = 0; r < RANKS; r++) all[r].allowed[0] = 1, all[r].allowed_processors = 1, all[r].processors = 1;
    finds(false, "node1-node4: local ranks 0, 1 share 1 processor (0)", "fewer");
}

static void many_findings_are_counted(void **state)
{
    (void)state;
    begin();
    for (int i = 0; i < EN_FINDINGS + 7; i++) en_find(&w, i == EN_FINDINGS + 3, "%d", i);
    assert_int_equal(w.n, EN_FINDINGS);
    assert_int_equal(w.left_out, 7);
    assert_int_equal(w.musts, 1);
}

/* ---- who ------------------------------------------------------------------------------------------------------------------- */

/* The hosts of class 0 as text: hosts[i] has it where have[i] is '1'. */
static const char *who(const char *const *hosts, const char *have)
{
    static char text[400];
    static const en_doctor_row row = { .what = "x" };
    int class_of[RANKS];
    const int n = (int)strlen(have);
    for (int i = 0; i < n; i++) {
        SET(all[i].host, "%s", hosts[i]);
        class_of[i] = have[i] == '1' ? 0 : 1;
    }
    job.ranks = n;
    en_doctor_who(&job, &row, class_of, 0, text, sizeof text);
    return text;
}

static void hosts_are_told_as_ranges(void **state)
{
    (void)state;
    static const char *const plain[] = { "n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8" }, *const padded[] = { "n08", "n09", "n10", "n100" },
                      *const site[] = { "gpu-9.site2", "gpu-10.site2", "gpu-11.site3", "gpu-12.site3" }, *const words[] = { "alice", "bob", "carol", "dave" };
    assert_string_equal(who(plain, "11111111"), "n1-n8");
    assert_string_equal(who(plain, "11011110"), "n1-n2, n4-n7");
    assert_string_equal(who(plain, "10101001"), "n1, n3, n5, n8");
    assert_string_equal(who(padded, "1111"), "n08-n10, n100");
    assert_string_equal(who(site, "1111"), "gpu-9.site2-gpu-10.site2, gpu-11.site3-gpu-12.site3");
    assert_string_equal(who(words, "1101"), "alice, bob, dave");
}

/* A list that does not fit says so and stays within its room. */
static void long_lists_are_cut(void **state)
{
    (void)state;
    static const en_doctor_row row = { .what = "x", .per_rank = true };
    int class_of[RANKS] = { 0 };
    char text[60];
    for (int r = 0; r < RANKS; r++) SET(all[r].host, "a-host-with-a-long-name-%c", 'a' + r);
    memset(text, 'x', sizeof text);
    en_doctor_who(&job, &row, class_of, 0, text, 40);
    assert_true(strlen(text) < 40);
    assert_non_null(strstr(text, ".."));
    assert_int_equal(text[40], 'x');
}

static void masks_are_told_as_ranges(void **state)
{
    (void)state;
    uint64_t mask[EN_DOCTOR_CPUS / 64] = { 0x10f, 1 };
    char text[64];
    assert_string_equal(en_doctor_mask(mask, text, sizeof text), "0-3,8,64");
}

int main(void)
{
#define WITH(test) cmocka_unit_test_setup(test, sound)
    const struct CMUnitTest tests[] = {
        WITH(a_sound_job_has_no_findings), WITH(another_program), WITH(other_images), WITH(images_are_told_apart_by_the_listing_and_by_the_file),
        WITH(refused_images), WITH(a_folder_of_its_own), WITH(a_lock_that_does_not_hold), WITH(an_fcntl_lock_is_advice), WITH(a_slow_cache),
        WITH(a_folder_that_cannot_be_written), WITH(room_for_checkpoints), WITH(a_wrong_sum), WITH(a_clock), WITH(a_slow_pair), WITH(gpus),
        WITH(names_twice), WITH(ranks_on_the_same_processors), WITH(infiniband_wants_locked_memory),
        WITH(a_slow_network_is_one_finding), WITH(what_hosts_have_in_common_is_one_finding), WITH(many_findings_are_counted),
        WITH(hosts_are_told_as_ranges), WITH(long_lists_are_cut), WITH(masks_are_told_as_ranges) };
    const int failed = cmocka_run_group_tests_name("doctor", tests, NULL, NULL);
    en_findings_close(&w);
    return failed;
}
