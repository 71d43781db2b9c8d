/* test_program_doctor.c - `effnet doctor` from outside, on ranks that differ on purpose.
 *
 * Ranks of one machine stand for hosts where that is enough; real ones come of cluster/cluster, made-up ones are in test_doctor.c. */
#define _GNU_SOURCE
#include "program.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *data(void) { return drawn("--train-per-class 3 --val-per-class 1 --synth-classes 3 --synth-size 40"); }

static void has(const outcome *o, const char *text)
{
    if (!strstr(o->out, text)) FAIL_RUN(o, "it does not say \"%s\"", text);
}

static void has_not(const outcome *o, const char *text)
{
    if (strstr(o->out, text)) FAIL_RUN(o, "it says \"%s\"", text);
}

/* Nothing of the doctor's is left in a folder. */
static void is_clean(const char *folder)
{
    size_t n;
    char **files = files_below(folder, &n);
    for (size_t i = 0; i < n; i++)
        if (strstr(files[i], "effnet-doctor")) fail_msg("%s is left behind", files[i]);
}

/* ---- nothing wrong -------------------------------------------------------------------------------------------------------- */

static void equal_ranks_differ_in_nothing(void **state)
{
    (void)state;
    make_folders(at("good"));
    const outcome *o = run(0, 2, "doctor --data %s --run %s", data(), at("good/run/not/there/yet"));
    has(o, "\nwho differs: nobody (");
    has(o, "rank 0 sees   9 training and 3 validation images of 3 classes\n");
    has(o, "a file of rank 0 shows everywhere");
    has(o, "; its locks exclude the others\n");
    has(o, "; right\n");
    has_not(o, "  ! ");
    if (!is_folder(at("good")) || exists(at("good/run"))) fail_msg("the folder of --run was made");
    is_clean(at("good"));
}

static void one_process_needs_no_others(void **state)
{
    (void)state;
    const outcome *o = run(0, 0, "doctor --data %s --run %s", data(), at("alone"));
    has(o, "rank 0 sees   9 training");
    has_not(o, "between the ranks");
    has_not(o, "who differs");
}

static void json_has_it_all(void **state)
{
    (void)state;
    const outcome *o = run(0, 2, "doctor --json --data %s --run %s", data(), at("."));
    assert_true(o->out[0] == '{' && strcmp(o->out + strlen(o->out) - 2, "}\n") == 0);
    assert_true(number_in(o->out, "training_images") == 9);
    assert_true(number_in(o->out, "write_bytes_per_s") > 0);
    has(o, "\"flock_excludes\": true");
    has(o, "\"sum_right\": true");
    has(o, "\"differences\": []");
    has(o, "\"must\": []");
}

/* What checkpoints need follows the model: 4 copies of 5,288,548 parameters (describe_json in trainer.cmake) and twice 42,016
 * statistics, and at most a percent for tensors that begin on cache lines. */
static void checkpoints_are_sized_by_the_model(void **state)
{
    (void)state;
    const outcome *o = run(0, 0, "doctor --json");
    const double bytes = number_in(o->out, "checkpoint_bytes"), least = 4.0 * (4 * 5288548 + 2 * 42016);
    if (bytes < least || bytes > 1.01 * least) FAIL_RUN(o, "%.0f bytes and not %.0f", bytes, least);
    o = run(0, 0, "doctor --model b7");
    has(o, "  checkpoints   of b7: ");
    run(2, 2, "doctor --model b99");
}

/* ---- one rank differs ------------------------------------------------------------------------------------------------------- */

static outcome *differ(int code, const char *second, const char *first)
{
    outcome *o = run_how((how){ .ranks = 2, .second = second }, "%s", first);
    expect_code(o, code);
    return o;
}

static void other_images_on_one_rank(void **state)
{
    (void)state;
    shell("cp -r '%s' '%s' && rm '%s'/train/*/*1.jpg", data(), at("fewer"), at("fewer"));
    const outcome *o = differ(1, textf("doctor --data %s", at("fewer")), textf("doctor --data %s", data()));
    has(o, "! images of --data ");
    has(o, " 9 training and 3 validation images of 3 classes");
    has(o, " 6 training and 3 validation images of 3 classes");
    has(o, "(rank 1): not the same images of --data as on ");
    has(o, "1 of them (!) would break a job: exit code 1\n");
    has_not(o, "! program");
}

/* A copy elsewhere is the same dataset, as for a training. */
static void the_same_images_in_another_place(void **state)
{
    (void)state;
    shell("cp -r '%s' '%s'", data(), at("copy"));
    const outcome *o = differ(0, textf("doctor --data %s", at("copy")), textf("doctor --data %s", data()));
    has(o, "listed by     2 ranks");
    has(o, "who differs: nobody");
}

static void a_packed_file_cut_short(void **state)
{
    (void)state;
    run(0, 0, "pack %s %s", data(), at("whole.h5"));
    copy_file(at("whole.h5"), at("changed.h5"));
    run(0, 2, "doctor --data %s", at("whole.h5"));
    assert_int_equal(truncate(at("changed.h5"), 3000), 0);
    const outcome *o = differ(1, textf("doctor --data %s", at("changed.h5")), textf("doctor --data %s", at("whole.h5")));
    has(o, ": --data is refused: ");
    has(o, " refused\n");
}

static void images_that_are_not_there(void **state)
{
    (void)state;
    const outcome *o = run(1, 2, "doctor --data %s", at("no-such-folder"));
    has(o, "no-such-folder does not exist");
}

#define MPI_SETTINGS "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1 "             \
                     "OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1 "                       \
                     "PRTE_MCA_rmaps_default_mapping_policy=:OVERSUBSCRIBE PRTE_MCA_hwloc_default_binding_policy=none ASAN_OPTIONS=detect_leaks=0 "

/* A command line of the shell's; what it prints, and that it exits with `code`. */
static const char *by_shell(int code, const char *name, const char *command)
{
    const int status = system(textf(MPI_SETTINGS "timeout -k 5 120 %s > '%s' 2>&1", command, at("%s", name)));
    const char *text = read_file(at("%s", name), NULL);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != code) fail_msg("%s\nexit code %d and not %d:\n%s", command, WEXITSTATUS(status), code, text);
    return text;
}

static void says(const char *text, const char *needle)
{
    if (!strstr(text, needle)) fail_msg("it does not say \"%s\":\n%s", needle, text);
}

/* Rank 1 runs `program` in place of ours. */
static const char *second_runs(int code, const char *program, const char *arguments)
{
    return by_shell(code, "second.txt", textf("'%s' %s 1 '%s' %s : %s 1 '%s' %s", EN_MPIEXEC, EN_MPIEXEC_NUMPROC, EN_PROGRAM, arguments, EN_MPIEXEC_NUMPROC,
                                              program, arguments));
}

static void another_program_on_one_rank(void **state)
{
    (void)state;
    shell("cp '%s' '%s' && printf x >> '%s'", EN_PROGRAM, at("other"), at("other"));
    shell("plugin=$(dirname '%s')/libeffnet_cuda.so; test ! -e $plugin || cp $plugin '%s'", EN_PROGRAM, at("libeffnet_cuda.so"));     /* it is looked for beside the program */
    const char *text = second_runs(1, at("other"), "doctor");
    says(text, "\n! program ");
    says(text, "(rank 1): not the same program as on ");
    says(text, "1 of them (!) would break a job: exit code 1\n");
}

static void another_environment_on_one_rank(void **state)
{
    (void)state;
    outcome *o = run_how((how){ .ranks = 2, .second = "doctor", .env = { "EN_ISA=generic", "EN_ISA=" } }, "doctor");
    expect_code(o, 0);                                               /* a run agrees on one: advice */
    has(o, "EN_ISA=generic");
    has(o, "not the same environment as on");
}

static void another_folder_is_wrong_usage(void **state)
{
    (void)state;
    const outcome *o = differ(2, textf("doctor --run %s", at("x")), textf("doctor --run %s", at("y")));
    says_once(o, "start all ranks with the same options");
}

/* ---- folders ------------------------------------------------------------------------------------------------------------------ */

static void a_folder_that_cannot_be_written(void **state)
{
    (void)state;
    if (geteuid() == 0) skip();                                      /* root may write anywhere */
    make_folders(at("locked"));
    assert_int_equal(chmod(at("locked"), 0555), 0);
    const outcome *o = run(1, 2, "doctor --run %s/run", at("locked"));
    chmod(at("locked"), 0755);
    has(o, "cannot be written (making a file: Permission denied); choose another folder for --run");
}

/* /proc takes no files, from root neither. */
static void a_folder_of_the_kernel_s(void **state)
{
    (void)state;
    const outcome *o = run(1, 2, "doctor --run /proc/effnet");
    has(o, "/proc");
    has(o, "cannot be written (making a file: ");
}

/* A mount of its own is for root, and not in every container. */
static void a_small_disk(void **state)
{
    (void)state;
    make_folders(at("small"));
    if (system(textf("mount -t tmpfs -o size=8m,nr_inodes=100 none '%s' 2>/dev/null", at("small"))) != 0) skip();
    outcome *o = run_how((how){ .ranks = 2 }, "doctor --run %s/run", at("small"));
    size_t n;
    files_below(at("small"), &n);
    shell("umount '%s'", at("small"));
    expect_code(o, 1);
    has(o, "5 checkpoints of efficientnet_b0 take 0.4 GiB");
    has(o, "more files in ");
    assert_int_equal(n, 0);
}

/* Rank 1 sees a file system of its own there, as a host does where nothing is mounted. */
static void a_folder_that_is_not_shared(void **state)
{
    (void)state;
    if (system("unshare --mount sh -c 'mount -t tmpfs none /mnt' 2>/dev/null") != 0) skip();
    make_folders(at("own"));
    const char *script = textf("#!/bin/sh\nexec unshare --mount sh -c 'mount -t tmpfs none \"%s\" && exec \"$0\" \"$@\"' '%s' \"$@\"\n", at("own"), EN_PROGRAM);
    write_file(at("elsewhere"), script, strlen(script));
    assert_int_equal(chmod(at("elsewhere"), 0755), 0);
    const char *text = second_runs(1, at("elsewhere"), textf("doctor --run %s", at("own")));
    says(text, "is not the folder that rank 0 on ");
    says(text, "a file of rank 0 shows nowhere else\n");
    is_clean(at("own"));
}

/* ---- hosts ------------------------------------------------------------------------------------------------------------------ */

static const char *cluster(void)               /* NULL: not on this machine */
{
    static int can = -1;
    const char *script = EN_CLUSTER;
    if (can < 0) can = exists(script) && system(textf("'%s' check --net > /dev/null 2>&1", script)) == 0;
    return can ? script : NULL;
}

/* Nodes have names, addresses and links of their own; files are everybody's, and so are locks. */
static void two_hosts(void **state)
{
    (void)state;
    if (!cluster()) skip();
    const char *text = by_shell(0, "hosts.txt", textf("'%s' --nodes 2 --per-node 2 --net -- '%s' %s 4 '%s' doctor --data %s --run %s", cluster(), EN_MPIEXEC,
                                                      EN_MPIEXEC_NUMPROC, EN_PROGRAM, data(), at("hosts")));
    says(text, ", 4 ranks on 2 hosts, ");
    says(text, "\nhost node1 (the others are like it");
    says(text, "listed by     2 ranks, one a host");
    says(text, "  transport     TCP over eth0 10.77.0.1\n");
    says(text, "  clocks        ahead or behind by at most ");
    says(text, " each way");
    says(text, "a file of rank 0 shows everywhere");
    says(text, "; its locks exclude the others\n");
}

/* Open MPI told to take an interface that leads to no other host: nothing arrives.  Both sides say so, by name. */
static void a_host_that_cannot_be_reached_is_named(void **state)
{
    (void)state;
    if (!cluster()) skip();
    const char *text = by_shell(5, "wall.txt", textf("env EFFNET_STALL_S=8 '%s' --nodes 2 --net -- '%s' --mca btl_tcp_if_include lo -x EFFNET_STALL_S "
                                                     "%s 2 '%s' doctor", cluster(), EN_MPIEXEC, EN_MPIEXEC_NUMPROC, EN_PROGRAM));
    says(text, "host node1 has no answer after 8 s from 1 of 2 ranks: 1.");
    says(text, "host node2 hears nothing of rank 0 for 8 s");
}

/* ---- GPUs, over tests/cudaemu ------------------------------------------------------------------------------------------------ */

#ifdef EN_CUDA_EMU
static outcome *with_gpus(int code, int devices, int ranks)
{
    setenv("EFFNET_CUDA_PLUGIN", EN_CUDA_EMU, 1);
    setenv("CUDAEMU_DEVICES", textf("%d", devices), 1);
    outcome *o = run_how((how){ .ranks = ranks, .seconds = 120 }, "doctor");
    unsetenv("EFFNET_CUDA_PLUGIN");
    unsetenv("CUDAEMU_DEVICES");
    expect_code(o, code);
    return o;
}

static void gpus_add_up_by_nccl(void **state)
{
    (void)state;
    outcome *o = with_gpus(0, 2, 2);
    has(o, "  over GPUs     nccl: 65 numbers in ");
    has(o, ", right\n");
    has(o, "who differs: nobody");
    has_not(o, "share GPU");
}

static void a_gpu_for_two(void **state)
{
    (void)state;
    outcome *o = with_gpus(0, 1, 2);
    has(o, "  over GPUs     mpi: 65 numbers in ");
    has(o, ": local ranks 0 and 1 share GPU ");
    has(o, "the GPUs add up through host memory, slowly, because NCCL cannot: ranks 0 and 1 share GPU");
}

static void nccl_that_fails_ends_the_job(void **state)
{
    (void)state;
    setenv("CUDAEMU_NCCL_FAIL_AT", "3", 1);
    setenv("CUDAEMU_NCCL_FAIL_RANK", "1", 1);
    outcome *o = with_gpus(5, 2, 2);
    unsetenv("CUDAEMU_NCCL_FAIL_AT");
    unsetenv("CUDAEMU_NCCL_FAIL_RANK");
    if (!strstr(o->err, "[rank 1/2 ") || !strstr(o->err, "in flight: a sum of 65 values")) FAIL_RUN(o, "it does not name the rank");
}
#endif

/* ---- a rank that does not answer --------------------------------------------------------------------------------------------- */

/* mpirun itself waits for a child that has not come to its program yet. */
static bool runs_the_program(int pid)
{
    char exe[4096] = "", want[4096] = "";
    return readlink(textf("/proc/%d/exe", pid), exe, sizeof exe - 1) > 0 && realpath(EN_PROGRAM, want) && strcmp(exe, want) == 0;
}

/* A rank is stopped as soon as it is there; the others end the job within the limit and say so. */
static void a_rank_that_hangs_ends_the_job(void **state)
{
    (void)state;
    setenv("EFFNET_STALL_S", "4", 1);
    job *j = start((how){ .ranks = 2 }, "doctor");
    int ranks[16], n = 0;
    while (running(j) && ((n = ranks_of(j, ranks, 16)) < 2 || !runs_the_program(ranks[0]) || !runs_the_program(ranks[1]))) pause_s(0.001);
    if (n == 2) kill(ranks[1], SIGSTOP);
    outcome *o = finish(j);
    unsetenv("EFFNET_STALL_S");
    if (o->code == 0) skip();                                        /* it was through before: nothing was tried */
    if (o->code != 5) FAIL_RUN(o, "not exit code 5");
    if (!strstr(o->err, "another rank failed: ")) FAIL_RUN(o, "it does not say why");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#ifdef EN_CUDA_EMU
        cmocka_unit_test(gpus_add_up_by_nccl), cmocka_unit_test(a_gpu_for_two), cmocka_unit_test(nccl_that_fails_ends_the_job),
#endif
        cmocka_unit_test(equal_ranks_differ_in_nothing), cmocka_unit_test(one_process_needs_no_others), cmocka_unit_test(json_has_it_all),
        cmocka_unit_test(checkpoints_are_sized_by_the_model), cmocka_unit_test(other_images_on_one_rank), cmocka_unit_test(the_same_images_in_another_place),
        cmocka_unit_test(a_packed_file_cut_short), cmocka_unit_test(images_that_are_not_there), cmocka_unit_test(another_program_on_one_rank),
        cmocka_unit_test(another_environment_on_one_rank), cmocka_unit_test(another_folder_is_wrong_usage),
        cmocka_unit_test(a_folder_that_cannot_be_written), cmocka_unit_test(a_folder_of_the_kernel_s), cmocka_unit_test(a_small_disk),
        cmocka_unit_test(a_folder_that_is_not_shared), cmocka_unit_test(two_hosts),
        cmocka_unit_test(a_host_that_cannot_be_reached_is_named), cmocka_unit_test(a_rank_that_hangs_ends_the_job) };
    return program_main("doctor", tests, sizeof tests / sizeof *tests);
}
