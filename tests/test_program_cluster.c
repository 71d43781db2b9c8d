/* test_program_cluster.c - jobs over several machines, which tests/cluster/cluster makes out of this one: what a job is told of its
 * hosts, that the bits do not depend on them, and what becomes of it when a machine, a daemon or a link fails.
 *
 * 200 images in steps of 12, much as in test_program_launch.c. */
#define _GNU_SOURCE
#include "program.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#define TRAIN "train --width 0.25 --depth 0.5 --image-size 32 --global-batch 12 --lr 0.001 --threads 1 --eval-every 0"

static const char *data(void) { return drawn("--train-per-class 20 --val-per-class 2 --synth-size 48"); }

/* ---- what this machine can do ---------------------------------------------------------------------------------------- */

static bool can(const char *net)
{
    const int status = system(textf("%s check %s", EN_CLUSTER, net));             /* it says itself why not */
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) return false;
    if (status != 0) fail_msg("cluster check %s: status %d", net, status);
    return true;
}

static void need(const char *net)
{
    static int plain = -1, with_net = -1;
    int *known = *net ? &with_net : &plain;
    if (*known < 0) *known = can(net);
    if (!*known) skip();
}

/* The beginning of a command that runs in a cluster whose folder is at(name). */
static const char *cluster(const char *name, const char *options)
{
    return textf("%s --dir %s %s --", EN_CLUSTER, at("%s", name), options);
}

static int in(const char *name, const char *command) { return system(textf("%s --dir %s %s", EN_CLUSTER, at("%s", name), command)); }

/* ---- ranks that say where they are ----------------------------------------------------------------------------------- */

enum { SUMS = 20, LARGE = 1 << 18 };            /* small sums in a row; floats of a large one */

static const char *ask_who(const char *name, const char *options, int ranks)
{
    shell("%s %s -n %d %s %d %d > %s 2> %s", cluster(name, options), EN_RUN_SCRIPT, ranks, EN_RANK, SUMS, LARGE, at("%s.out", name), at("%s.err", name));
    return read_file(at("%s.out", name), NULL);
}

static void ranks_know_their_nodes(void **state)
{
    (void)state;
    need("");
    for (int nodes = 2; nodes <= 4; nodes += 2) {
        const char *text = ask_who(textf("who-%d", nodes), textf("--nodes %d --per-node 2", nodes), 2 * nodes);
        for (int r = 0; r < 2 * nodes; r++)
            if (count(text, textf("rank %d of %d: host node%d node %d of %d local %d of 2\n", r, 2 * nodes, r / 2 + 1, r / 2, nodes, r % 2)) != 1)
                fail_msg("rank %d of %d does not know its place:\n%s", r, 2 * nodes, text);
    }
}

/* By the speed of light: after the first of them, a sum cannot end before word of the other rank's part in it has come, which
 * was sent after the sum before.  And of two nodes that sum n bytes, one at least sends n. */
static void links_are_as_slow_as_was_asked_for(void **state)
{
    (void)state;
    need("--net");
    enum { DELAY_MS = 20, MBIT = 80 };
    const double least_small = (SUMS - 1) * DELAY_MS * 1e-3, least_large = LARGE * 4 * 8 / (MBIT * 1e6);
    const char *fast = strstr(ask_who("fast", "--nodes 2 --net", 2), "small "), *slow = strstr(ask_who("slow", textf("--nodes 2 --delay %d", DELAY_MS), 2), "small "),
               *narrow = strstr(ask_who("narrow", textf("--nodes 2 --rate %d", MBIT), 2), "small ");
    double small[3], large[3];
    const char *line[] = { fast, slow, narrow };
    for (int i = 0; i < 3; i++)
        if (!line[i] || sscanf(line[i], "small %lf large %lf", &small[i], &large[i]) != 2) fail_msg("no figures");
    print_message("    %d small sums: %.2f ms, with a delay of %d ms %.1f ms; 1 MiB: %.1f ms, at %d Mbit/s %.1f ms\n", SUMS, 1e3 * small[0], DELAY_MS, 1e3 * small[1],
                  1e3 * large[0], MBIT, 1e3 * large[2]);
    if (small[0] >= least_small) fail_msg("slow without a delay: %g s", small[0]);
    if (small[1] < least_small) fail_msg("%d sums in %g s: they do not take the link", SUMS, small[1]);
    if (large[2] < least_large) fail_msg("1 MiB in %g s, at %d Mbit/s it takes %g", large[2], MBIT, least_large);
}

static void nodes_share_neither_name_nor_memory(void **state)
{
    (void)state;
    need("--net");
    const char *script = textf(
        "set -e; c='%s'; test \"$(hostname)\" = head\n"
        "for k in 1 2 3; do test \"$($c on node$k hostname)\" = node$k; $c on node$k touch /dev/shm/only-$k; done\n"
        "for k in 1 2 3; do test \"$($c on node$k sh -c 'ls /dev/shm')\" = only-$k; $c on node$k ip -o addr show eth0 | grep -q ' 10.77.0.'$k/; done\n"
        "$c on node2 sh -c 'sleep 1000 &'\n"
        "$c kill node2; test \"$($c list | grep node2)\" = 'node2 down'; $c on node1 true\n"
        "test -z \"$($c on node2 sh -c 'ls /dev/shm')\"; $c list | grep -q '^node2 up$'\n"            /* there again, empty */
        "$c cut node4 2> /dev/null && exit 1; $c kill-daemon node1 2> /dev/null && exit 1; exit 9\n", EN_CLUSTER);
    write_file(at("script"), script, strlen(script));
    const int status = system(textf("%s sh %s", cluster("names", "--nodes 3 --net"), at("script")));
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 9) fail_msg("%s: status %d", at("script"), status);
}

/* ---- training -------------------------------------------------------------------------------------------------------- */

static how on_nodes(const char *name, const char *options, const char *script)
{
    return (how){ .ranks = 2, .script = script, .within = cluster(name, options), .seconds = 180 };
}

static const char *undisturbed(int ranks, int steps)
{
    const char *dir = at("whole-%d-%d", ranks, steps);
    if (!exists(dir)) expect_code(run_how((how){ .ranks = ranks, .by_script = true }, TRAIN " --steps %d --checkpoint-every 0 --data %s --run %s", steps, data(), dir), 0);
    return checkpoint_of(dir, steps);
}

static void two_nodes_give_the_bits_of_one(void **state)
{
    (void)state;
    need("");
    enum { STEPS = 30 };
    for (int each = 1; each <= 2; each++) {
        const char *dir = at("nodes-%d", each);
        how h = on_nodes("bits", textf("--nodes 2 --per-node %d", each), textf("--per-node %d", each));
        h.ranks = 2 * each;
        outcome *o = run_how(h, TRAIN " --steps %d --checkpoint-every 0 --data %s --run %s", STEPS, data(), dir);
        expect_code(o, 0);
        if (!strstr(o->out, "; 2 hosts\n")) FAIL_RUN(o, "the header does not say that there are two hosts");
        if (!strstr(read_file(textf("%s/run.txt", dir), NULL), textf("  hosts       node1 x %d, node2 x %d\n", each, each))) FAIL_RUN(o, "run.txt does not name the hosts");
        same_bits(checkpoint_of(dir, STEPS), undisturbed(2 * each, STEPS));
    }
}

static void wait_for_step(job *j, const char *dir, int64_t step)
{
    for (const double end = now_s() + 100 * (SANITIZED ? 5 : 1); newest_checkpoint(dir) < step; pause_s(0.02)) {
        if (!running(j)) FAIL_RUN(finish(j), "it ended before step %" PRId64, step);
        if (now_s() > end) fail_msg("no step %" PRId64 " in %s", step, dir);
    }
}

/* A node dies, then another's daemon: the launcher starts again on the same nodes, and the end is that of the run that nobody
 * disturbed.  mpirun's codes: 205 when it misses a daemon first, 255 or 137 when first the end of what started the daemon is noticed. */
static void a_dead_node_is_survived(void **state)
{
    (void)state;
    need("");
    enum { STEPS = 150 };
    const char *dir = at("dies");
    job *j = start(on_nodes("dying", "--nodes 2", "--restarts 1"), TRAIN " --steps %d --checkpoint-every 5 --data %s --run %s", STEPS, data(), dir);
    wait_for_step(j, dir, 20);
    assert_int_equal(in("dying", "kill node2"), 0);
    const int64_t at_death = newest_checkpoint(dir);
    wait_for_step(j, dir, at_death + 10);
    assert_int_equal(in("dying", "kill-daemon node1"), 0);
    outcome *o = finish(j);
    expect_code(o, 0);
    if (count(o->err, "starting again in 5 s (1 of at most 1 without a newer one)") != 2) FAIL_RUN(o, "it was not started again twice");
    if (count(o->err, "run: ended with 205 (lost a node)") + count(o->err, "run: ended with 255 (a node was not reached)") + count(o->err, "run: ended with 137 (") != 2)
        FAIL_RUN(o, "it ended in another way");
    same_bits(checkpoint_of(dir, STEPS), undisturbed(2, STEPS));
}

/* Nobody hears of a cut: no connection is closed.  Whoever notices first ends the job, mpirun (205) or the ranks (5). */
static void a_cut_link_ends_the_job(void **state)
{
    (void)state;
    need("--net");
    const char *dir = at("cut");
    setenv("EFFNET_STALL_S", "12", 1);
    job *j = start(on_nodes("cutting", "--nodes 2 --net", ""), TRAIN " --steps 1000000 --checkpoint-every 5 --data %s --run %s", data(), dir);
    unsetenv("EFFNET_STALL_S");
    wait_for_step(j, dir, 5);
    assert_int_equal(in("cutting", "cut node2"), 0);
    const double from = now_s();
    outcome *o = finish(j);
    if (o->code != 205 && o->code != 5 && o->code != 255) FAIL_RUN(o, "exit code %d", o->code);
    if (now_s() - from > 60) FAIL_RUN(o, "%.0f s from the cut to the end", now_s() - from);
    print_message("    %.1f s from the cut to exit code %d\n", now_s() - from, o->code);
}

/* ---- what is left behind --------------------------------------------------------------------------------------------- */

/* Processes that have `word` in their command line. */
static int processes_with(const char *word)
{
    DIR *d = opendir("/proc");
    int n = 0;
    for (const struct dirent *e; d && (e = readdir(d));) {
        char line[4096] = "";
        FILE *f = isdigit((unsigned char)e->d_name[0]) ? fopen(textf("/proc/%s/cmdline", e->d_name), "r") : NULL;
        if (!f) continue;
        const size_t got = fread(line, 1, sizeof line - 1, f);
        for (size_t i = 0; i < got; i++)
            if (!line[i]) line[i] = ' ';
        n += strstr(line, word) != NULL;
        fclose(f);
    }
    if (d) closedir(d);
    return n;
}

static int interfaces(void)
{
    return count(read_file("/proc/net/dev", NULL), "\n");
}

static void nothing_is_left_behind(void **state)
{
    (void)state;
    need("--net");
    static const struct { int sig, code; } ends[] = { { 0, 7 }, { SIGTERM, 143 }, { SIGINT, 130 }, { SIGKILL, 137 }, { -SIGKILL, 137 } };
    const int links = interfaces();
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        const char *dir = at("left-%zu", i), *ready = at("ready-%zu", i);
        const char *command = textf("exec %s sh -c 'touch %s; %s'", cluster(textf("left-%zu", i), "--nodes 3 --net"), ready, ends[i].sig ? "exec sleep 1000" : "exit 7");
        const pid_t pid = fork();
        if (pid == 0) {
            setpgid(0, 0);
            signal(SIGINT, SIG_DFL);
            execl("/bin/sh", "sh", "-c", command, NULL);
            _exit(127);
        }
        if (ends[i].sig) {
            for (const double end = now_s() + 60; !exists(ready); pause_s(0.02))
                if (now_s() > end) fail_msg("%s does not start", command);
            int child[4];
            const int n = ends[i].sig > 0 ? 0 : children_of(pid, child, 4);       /* < 0: to what it has started, not to itself */
            if (ends[i].sig > 0) kill(pid, ends[i].sig);
            for (int k = 0; k < n; k++) kill(child[k], -ends[i].sig);
        }
        int status, left = 1;
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
        const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (code != ends[i].code) fail_msg("%s, signal %d: exit code %d instead of %d", command, ends[i].sig, code, ends[i].code);
        for (const double end = now_s() + 20; now_s() < end && (left = processes_with(dir)) > 0; pause_s(0.02)) continue;
        if (left) fail_msg("signal %d: %d processes are left", ends[i].sig, left);
        if (interfaces() != links) fail_msg("signal %d: interfaces are left", ends[i].sig);
        if (strstr(read_file("/proc/self/mounts", NULL), dir)) fail_msg("signal %d: something is mounted in %s", ends[i].sig, dir);
        if (ends[i].sig != SIGKILL && exists(dir)) fail_msg("signal %d: %s is left", ends[i].sig, dir);
    }
}

static void wrong_usage_is_refused(void **state)
{
    (void)state;
    static const char *const wrong[] = { "", "--nodes 0 true", "--nodes 65 true", "--nodes", "--delay soon true", "--nodes 2", "--speed 3 true", "--per-node 0 true", "kill" };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const int status = system(textf("%s %s 2> /dev/null", EN_CLUSTER, wrong[i]));
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 2) fail_msg("cluster %s: status %d", wrong[i], status);
    }
    assert_int_equal(WEXITSTATUS(in("nowhere", "kill node1 2> /dev/null")), 1);
}

int main(void)
{
    setenv("EFFNET_WIRE", EN_WIRE, 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_usage_is_refused),
        cmocka_unit_test(nodes_share_neither_name_nor_memory),
        cmocka_unit_test(ranks_know_their_nodes),
        cmocka_unit_test(two_nodes_give_the_bits_of_one),
        cmocka_unit_test(a_dead_node_is_survived),
        cmocka_unit_test(links_are_as_slow_as_was_asked_for),
        cmocka_unit_test(a_cut_link_ends_the_job),
        cmocka_unit_test(nothing_is_left_behind),
    };
    return program_main("program_cluster", tests, sizeof tests / sizeof *tests);
}
