/* test_comm_watch.c - whom the ranks blame, and what their threads tell each other.
 *
 * The judge is a function of a table, so each way for a job to hang is a table.  The lines between ranks are real sockets, of many
 * ranks in this one process, moved on by turns of this test: no clock decides anything, only what has arrived. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "comm/watch_inside.h"

enum { RANKS = 4 };

/* ---- the judge ---------------------------------------------------------------------------------------------------------------- */

static double limit[EN_SECTIONS];
static en_watch_rules rules = { .limit_s = limit, .strict = true, .source = "--stall-timeout", .advice = "start again" };
static en_peer peer[RANKS];
static bool mark[RANKS];
static char line[1000];

static void all_limits(double s)
{
    for (int i = 0; i < EN_SECTIONS; i++) limit[i] = s;
}

static void place(int r, en_section s, const char *detail, uint64_t met, double since)
{
    peer[r].at = (en_place){ .met = met, .step = 120, .since_s = since, .limit_s = limit[s], .section = s };
    snprintf(peer[r].at.detail, sizeof peer[r].at.detail, "%s", detail);
}

static void waits(int r, uint64_t met, double since)
{
    place(r, EN_FORWARD, "blocks.3", met, since);
    peer[r].at.waits = true;
    snprintf(peer[r].at.call, sizeof peer[r].at.call, "a sum");
}

/* Ranks 0, 1 and 2 wait in their 1000th call; rank 3 is on its way to it. */
static int begin(void **state)
{
    (void)state;
    all_limits(30);
    rules.patience_s = 0;
    rules.strict = true;
    rules.apart = false;
    for (int r = 0; r < RANKS; r++) {
        peer[r] = (en_peer){ .rank = r, .pid = 700 + r, .state = EN_HEARD, .silent_s = 0.5, .step_then = 120 };
        snprintf(peer[r].host, sizeof peer[r].host, "node%d", r / 2 + 1);
        waits(r, 1000, 12);
    }
    place(3, EN_FORWARD, "blocks.3", 999, 12);
    return 0;
}

static bool judged(void) { return en_watch_judge(&rules, peer, RANKS, mark, line, sizeof line); }

static void says(const char *what)
{
    if (!judged()) fail_msg("nobody is blamed; expected: %s", what);
    if (!strstr(line, what)) fail_msg("\"%s\"\ndoes not say\n\"%s\"", line, what);
}

static void a_rank_that_stands_is_named_with_its_place(void **state)
{
    (void)state;
    assert_false(judged());
    place(3, EN_FORWARD, "blocks.3", 999, 30);
    assert_false(judged());                      /* the limit is still allowed */
    place(3, EN_FORWARD, "blocks.3", 999, 31);
    says("rank 3 on host node2 (process 703) stands in forward of blocks.3 at step 120 for 31 s (limit 30 s, --stall-timeout); "
         "3 ranks wait for it in a sum. Look at that machine; start again");
    assert_int_equal(strlen(line), strcspn(line, "\n"));
    place(3, EN_DATA, "", 999, 31);
    snprintf(peer[3].at.more, sizeof peer[3].at.more, "at work on /d/cat.jpg for 30 s");
    says("rank 3 on host node2 (process 703) stands in data at step 120, at work on /d/cat.jpg for 30 s, for 31 s");
}

/* Rank 0 writes for as long as a checkpoint may take; nobody ends the job because the others wait for it. */
static void a_section_has_a_limit_of_its_own(void **state)
{
    (void)state;
    limit[EN_CHECKPOINT] = 600;
    for (int r = 0; r < RANKS; r++) waits(r, 1000, 590);
    place(0, EN_CHECKPOINT, "", 999, 590);
    assert_false(judged());
    for (int r = 0; r < RANKS; r++) waits(r, 1000, 601);
    place(0, EN_CHECKPOINT, "", 999, 601);
    says("rank 0 on host node1 (process 700) stands in checkpoint at step 120 for 601 s (limit 600 s");
    limit[EN_CHECKPOINT] = 0;
    place(0, EN_CHECKPOINT, "", 999, 1e6);
    for (int r = 1; r < RANKS; r++) waits(r, 1000, 1e6);
    assert_false(judged());                      /* no limit: also for those who wait for it */
}

static void several_in_the_same_plight_are_counted(void **state)
{
    (void)state;
    for (int r = 1; r < RANKS; r++) place(r, EN_DATA, "", 999, 40);
    says("rank 1 on host node1 (process 701) stands in data");
    says("1 rank waits for it in a sum; so do 2 other ranks. Look");
    place(1, EN_DATA, "", 1000, 40);             /* has left the call that the others have not come to */
    says("rank 2 on host node2 (process 702) stands in data");
}

static void a_silent_rank_is_named_with_what_was_heard_last(void **state)
{
    (void)state;
    peer[3].silent_s = 31;
    says("rank 3 on host node2 (process 703) has been silent for 31 s (limit 30 s, --stall-timeout), last heard in forward of blocks.3 at step 120; "
         "3 ranks wait for it in a sum. Its process is stopped, or its machine or network is lost: look at that machine; start again");
    peer[2].silent_s = 31;                       /* the whole machine: the one who comes first in the count of calls is 3 */
    says("2 ranks wait for it in a sum; so has 1 other rank of that host.");
    limit[EN_FORWARD] = 10;
    peer[2].silent_s = 1, peer[3].silent_s = 11;
    says("silent for 11 s (limit 10 s");
}

/* Only the lines are cut, by a firewall say: somebody has ended steps since. */
static void a_job_that_gets_on_is_left_alone(void **state)
{
    (void)state;
    peer[3].silent_s = 1000;
    peer[1].at.step = 122;
    assert_false(judged());
    peer[3].state = EN_GONE;
    assert_false(judged());
    peer[1].at.step = 121;                       /* the step that was under way may have ended */
    says("rank 3 ");
}

/* Ranks in groups that do not meet: that others make steps does not excuse one that is silent, though nobody waits for it. */
static void a_silent_rank_of_another_group_is_named(void **state)
{
    (void)state;
    for (int r = 0; r < RANKS; r++) place(r, EN_FORWARD, "blocks.3", 10, 0.1);
    peer[3].silent_s = 31;
    peer[1].at.step = 500;
    assert_false(judged());
    rules.apart = true;
    says("rank 3 on host node2 (process 703) has been silent for 31 s");
    peer[3].state = EN_GONE;                     /* nor one that ended */
    says("rank 3 on host node2 (process 703) has ended without a word");
    rules.apart = false;
    assert_false(judged());
}

static void a_rank_that_ended_without_a_word_is_named_soon(void **state)
{
    (void)state;
    peer[3].state = EN_GONE;
    peer[3].silent_s = 4;
    assert_false(judged());                      /* its launcher may end the job by itself */
    peer[3].silent_s = 5.5;
    says("rank 3 on host node2 (process 703) has ended without a word: it was last heard 5.5 s ago, in forward of blocks.3 at step 120; "
         "3 ranks wait for it in a sum. Was it killed, for memory perhaps (dmesg on that host)?; start again");
    for (int r = 0; r < 3; r++) waits(r, 1000, 0.1);
    assert_false(judged());                      /* nobody misses it */
    for (int r = 0; r < 3; r++) waits(r, 1000, 12);
    peer[3].state = EN_LEFT;
    assert_false(judged());                      /* it said goodbye */
}

static void ranks_that_all_wait_blame_the_network(void **state)
{
    (void)state;
    limit[EN_CHECKPOINT] = 600;
    for (int r = 0; r < RANKS; r++) waits(r, 1000, 31);
    waits(2, 998, 32);
    says("all 4 ranks wait for each other for 31 s (limit 30 s, --stall-timeout): rank 2 on host node2 (process 702) in a sum, in forward of blocks.3 "
         "at step 120, while others are 2 calls further. Nothing arrives: look at the network between the machines");
    waits(1, 1000, 3);
    assert_false(judged());                      /* it has just come */
}

/* It enters a section now and then, but its calls come too late for the others. */
static void a_rank_that_gets_on_too_slowly_ends_the_job_too(void **state)
{
    (void)state;
    limit[EN_CHECKPOINT] = 60;
    for (int r = 0; r < 3; r++) waits(r, 1000, 59);
    place(3, EN_EVALUATION, "", 999, 2);
    assert_false(judged());
    waits(0, 1000, 61);
    says("rank 3 on host node2 (process 703) is too far behind, in evaluation at step 120, the others have waited for 61 s (limit 60 s");
}

static void without_limits_asked_for_only_a_wait_counts(void **state)
{
    (void)state;
    rules.strict = false;
    for (int r = 0; r < 3; r++) waits(r, 1000, 29);
    place(3, EN_STARTUP, "", 999, 1e6);
    assert_false(judged());
    waits(0, 1000, 31);
    says("rank 3 on host node2 (process 703) stands in start-up");
}

static void ranks_never_heard_are_blamed_last(void **state)
{
    (void)state;
    peer[2].state = peer[3].state = EN_UNHEARD;
    peer[2].at = peer[3].at = (en_place){ 0 };
    peer[2].silent_s = peer[3].silent_s = 1000;
    assert_false(judged());
    for (int r = 0; r < 2; r++) waits(r, 1000, 31);
    says("rank 0 on host node1 (process 700) waits in a sum, in forward of blocks.3 at step 120, for 31 s (limit 30 s, --stall-timeout), and could not ask "
         "rank 2 on host node2 (process 702); nor 1 other rank of that host: a rank did not arrive.");
}

static void patience_lets_others_speak_first(void **state)
{
    (void)state;
    peer[3].silent_s = 31;
    rules.patience_s = 2;
    assert_false(judged());
    peer[3].silent_s = 33;
    assert_true(judged());
}

static void no_limits_no_judgement(void **state)
{
    (void)state;
    all_limits(0);
    for (int r = 0; r < 3; r++) waits(r, 1000, 1e7);
    place(3, EN_DATA, "", 999, 1e7);
    peer[2].silent_s = 1e7;
    peer[1].state = EN_GONE, peer[1].silent_s = 1e7;
    assert_false(judged());
}

static void a_short_buffer_is_not_overrun(void **state)
{
    (void)state;
    place(3, EN_FORWARD, "blocks.3", 999, 31);
    judged();
    const size_t n = strlen(line);
    for (size_t size = 1; size < n; size += 7) {
        char few[1001];
        memset(few, '#', sizeof few);
        assert_true(en_watch_judge(&rules, peer, RANKS, mark, few, size));
        assert_int_equal(strlen(few), size - 1);
        assert_int_equal(few[size], '#');
    }
}

/* ---- lines -------------------------------------------------------------------------------------------------------------------- */

static en_watch_invitation invitation;
static en_watch_hub *hub;
static en_watch_line *caller[RANKS];
static en_peer root[RANKS];                      /* rank 0 as each of the others knows it */
static en_place zero = { .met = 5, .step = 7, .section = EN_CHECKPOINT };

static void short_pause(void) { poll(NULL, 0, 2); }

static int open_lines(void **state)
{
    (void)state;
    assert_int_equal(en_watch_hub_open(RANKS, &invitation, &hub), EN_OK);
    assert_true(invitation.port > 0 && invitation.addresses > 0);
    memset(peer, 0, sizeof peer);
    memset(root, 0, sizeof root);
    for (int r = 1; r < RANKS; r++) assert_int_equal(en_watch_line_open(&invitation, r, 700 + r, true, &caller[r]), EN_OK);
    return 0;
}

static int close_lines(void **state)
{
    (void)state;
    for (int r = 1; r < RANKS; r++) en_watch_line_close(caller[r]), caller[r] = NULL;
    en_watch_hub_close(hub);
    hub = NULL;
    return 0;
}

static bool turn(int r)
{
    en_place mine = { .met = (uint64_t)(100 + r), .step = 8, .since_s = 1.5, .limit_s = 30, .section = EN_BACKWARD, .waits = r == 2 };
    snprintf(mine.detail, sizeof mine.detail, "blocks.%d", r);
    snprintf(mine.call, sizeof mine.call, "%s", r == 2 ? "a sum" : "");
    return caller[r] && en_watch_line_turn(caller[r], 0.05, &mine, &root[r]);
}

/* Turns of all, until `seen` holds; 20 s are for a machine that does something else. */
static void until(bool (*seen)(void), const char *what)
{
    for (int i = 0; i < 10000 && !seen(); i++) {
        assert_false(en_watch_hub_turn(hub, 0.05, &zero, peer));
        for (int r = 1; r < RANKS; r++) assert_false(turn(r));
        short_pause();
    }
    if (!seen()) fail_msg("never seen: %s", what);
}

static bool all_heard(void)
{
    for (int r = 1; r < RANKS; r++)
        if (peer[r].state != EN_HEARD || root[r].state != EN_HEARD) return false;
    return true;
}

static void ranks_hear_where_the_others_stand(void **state)
{
    (void)state;
    until(all_heard, "all ranks");
    for (int r = 1; r < RANKS; r++) {
        assert_int_equal(peer[r].at.met, 100 + r);
        assert_int_equal(peer[r].at.step, 8);
        assert_int_equal(peer[r].at.section, EN_BACKWARD);
        assert_int_equal(peer[r].at.waits, r == 2);
        assert_true(peer[r].at.since_s == 1.5 && peer[r].at.limit_s == 30);
        char detail[32];
        snprintf(detail, sizeof detail, "blocks.%d", r);
        assert_string_equal(peer[r].at.detail, detail);
        assert_string_equal(peer[r].at.call, r == 2 ? "a sum" : "");
        assert_int_equal(root[r].at.met, 5);
        assert_int_equal(root[r].at.section, EN_CHECKPOINT);
        assert_true(peer[r].silent_s < 1);
    }
    for (int i = 0; i < 100; i++) en_watch_hub_turn(hub, 0.5, &zero, peer);      /* nobody says anything */
    assert_true(peer[1].state == EN_HEARD && peer[1].silent_s > 49);
}

static bool first_left(void)  { return peer[1].state == EN_LEFT; }
static bool first_gone(void)  { return peer[1].state == EN_GONE; }
static bool root_left(void)   { return root[2].state == EN_LEFT && root[3].state == EN_LEFT; }

static void who_says_goodbye_has_left(void **state)
{
    (void)state;
    until(all_heard, "all ranks");
    en_watch_line_close(caller[1]);
    caller[1] = NULL;
    until(first_left, "that rank 1 has left");
    en_watch_hub_close(hub);
    for (int i = 0; i < 10000 && !root_left(); i++, short_pause())
        for (int r = 2; r < RANKS; r++) assert_false(turn(r));
    hub = NULL;
    assert_int_equal(root[2].state, EN_LEFT);
    assert_int_equal(root[3].state, EN_LEFT);
}

/* What a dead process leaves: its sockets are closed, without a word.  The first descriptor of a line is found by its peer. */
static void cut(int r)
{
    for (int fd = 3; fd < 200; fd++) {
        struct sockaddr_in6 there, here;
        socklen_t a = sizeof there, b = sizeof here;
        if (getpeername(fd, (struct sockaddr *)&there, &a) != 0 || getsockname(fd, (struct sockaddr *)&here, &b) != 0) continue;
        if (ntohs(there.sin6_port) != invitation.port) continue;
        if (r-- == 1) {
            shutdown(fd, SHUT_RDWR);
            return;
        }
    }
    fail_msg("no such line");
}

static void a_broken_line_is_gone_until_it_is_called_anew(void **state)
{
    (void)state;
    until(all_heard, "all ranks");
    cut(1);
    for (int i = 0; i < 10000 && !first_gone(); i++, short_pause()) en_watch_hub_turn(hub, 0.05, &zero, peer);
    assert_true(first_gone());
    assert_int_equal(peer[1].at.met, 101);       /* what was heard last is still known */
    until(all_heard, "rank 1 again");
    assert_true(peer[1].silent_s < 1);
}

static void one_word_ends_the_job_for_all(void **state)
{
    (void)state;
    until(all_heard, "all ranks");
    en_watch_hub_end_job(hub);
    for (int r = 1; r < RANKS; r++) {
        bool told = false;
        for (int i = 0; i < 10000 && !told; i++, short_pause()) told = turn(r);
        assert_true(told);
    }
}

static void any_rank_can_say_it(void **state)
{
    (void)state;
    until(all_heard, "all ranks");
    en_watch_line_end_job(caller[2]);
    bool told = false;
    for (int i = 0; i < 10000 && !told; i++, short_pause()) told = en_watch_hub_turn(hub, 0.05, &zero, peer);
    assert_true(told);
}

/* ---- strangers ------------------------------------------------------------------------------------------------------------------ */

static int call_in(void)
{
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(invitation.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

static bool hung_up_on(int fd)
{
    char byte;
    const ssize_t n = recv(fd, &byte, 1, MSG_DONTWAIT);
    if (n > 0) fail_msg("a stranger got an answer");
    return n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

static void strangers_get_no_answer_and_do_no_harm(void **state)
{
    (void)state;
    uint8_t noise[4096];
    enum { MANY = 20 };
    int fd[MANY];
    for (size_t i = 0; i < sizeof noise; i++) noise[i] = (uint8_t)(i * 31 + 7);
    for (int i = 0; i < MANY; i++) {
        fd[i] = call_in();
        const char *words = i % 3 == 0 ? "GET / HTTP/1.1\r\n\r\n" : (const char *)noise;
        assert_true(send(fd[i], words, i % 3 == 0 ? 18 : i % 3 == 1 ? sizeof noise : 1, MSG_NOSIGNAL) > 0);
    }
    until(all_heard, "all ranks beside strangers");
    int gone = 0;
    for (int t = 0; t < 3000 && gone < MANY; t++, short_pause()) {   /* those who said too little: after STRANGER_S of turns */
        assert_false(en_watch_hub_turn(hub, 0.05, &zero, peer));
        for (int r = 1; r < RANKS; r++) assert_false(turn(r));
        for (int i = 0; i < MANY; i++)
            if (fd[i] >= 0 && hung_up_on(fd[i])) close(fd[i]), fd[i] = -1, gone++;
    }
    assert_int_equal(gone, MANY);
    assert_true(all_heard());
    for (int r = 1; r < RANKS; r++) assert_int_equal(peer[r].at.met, 100 + r);
}

/* A frame with the right token, byte by byte as watch_line.c sends it: kind, rank, process, token. */
static void greet(int fd, int32_t rank, const uint8_t *token)
{
    uint8_t frame[1024] = { 0 };
    const uint32_t kind = 0x45464e31;
    memcpy(frame, &kind, 4);
    memcpy(frame + 8, &rank, 4);
    memcpy(frame + 16, token, EN_WATCH_TOKEN);
    assert_true(send(fd, frame, en_watch_frame_bytes(), MSG_NOSIGNAL) > 0);
}

static void what_no_rank_would_say_is_not_believed(void **state)
{
    (void)state;
    static const int32_t ranks[] = { 0, -1, RANKS, INT32_MAX };
    uint8_t wrong[EN_WATCH_TOKEN];
    memcpy(wrong, invitation.token[0], sizeof wrong);
    wrong[EN_WATCH_TOKEN - 1] ^= 1;
    until(all_heard, "all ranks");
    for (int k = 0; k < 5; k++) {
        const int fd = call_in();
        if (k < 4) greet(fd, ranks[k], invitation.token[0]);
        else greet(fd, 1, wrong);
        bool gone = false;
        for (int t = 0; t < 5000 && !gone; t++, short_pause()) {
            assert_false(en_watch_hub_turn(hub, 0, &zero, peer));
            gone = hung_up_on(fd);
        }
        assert_true(gone);
        close(fd);
    }
    const int fd = call_in();                    /* knows the token, and then says nonsense about rank 2 */
    greet(fd, 2, invitation.token[0]);
    uint8_t nonsense[1024];
    memset(nonsense, 0xff, sizeof nonsense);
    const uint32_t stands = 0x45464e32;
    memcpy(nonsense, &stands, 4);
    assert_true(send(fd, nonsense, en_watch_frame_bytes(), MSG_NOSIGNAL) > 0);
    for (int t = 0; t < 100; t++, short_pause()) assert_false(en_watch_hub_turn(hub, 0, &zero, peer));
    assert_int_equal(peer[2].at.section, EN_BACKWARD);
    assert_int_equal(peer[2].at.met, 102);
    close(fd);
    until(all_heard, "rank 2 calls again");
}

/* Somebody else listens where rank 0 was looked for. */
static void a_rank_does_not_talk_to_a_stranger(void **state)
{
    (void)state;
    struct sockaddr_in any = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof any;
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&any, sizeof any), 0);
    assert_int_equal(listen(fd, 4), 0);
    getsockname(fd, (struct sockaddr *)&any, &length);
    en_watch_invitation false_one = { .port = ntohs(any.sin_port), .addresses = 1, .address = { { .loopback = 1, .bytes = { 127, 0, 0, 1 } } } };
    en_watch_line_close(caller[1]);
    assert_int_equal(en_watch_line_open(&false_one, 1, 701, true, &caller[1]), EN_OK);
    int with = -1;
    for (int t = 0; t < 5000 && with < 0; t++, short_pause()) {
        turn(1);
        with = accept(fd, NULL, NULL);
    }
    assert_true(with >= 0);
    greet(with, 0, invitation.token[1]);         /* not the one that this rank expects: its invitation has another */
    for (int t = 0; t < 200; t++, short_pause()) assert_false(turn(1));
    assert_int_equal(root[1].state, EN_UNHEARD);
    close(with), close(fd);
}

int main(void)
{
#define JUDGED(test) cmocka_unit_test_setup(test, begin)
#define TALKED(test) cmocka_unit_test_setup_teardown(test, open_lines, close_lines)
    const struct CMUnitTest tests[] = {
        JUDGED(a_rank_that_stands_is_named_with_its_place),
        JUDGED(a_section_has_a_limit_of_its_own),
        JUDGED(several_in_the_same_plight_are_counted),
        JUDGED(a_silent_rank_is_named_with_what_was_heard_last),
        JUDGED(a_job_that_gets_on_is_left_alone),
        JUDGED(a_silent_rank_of_another_group_is_named),
        JUDGED(a_rank_that_ended_without_a_word_is_named_soon),
        JUDGED(ranks_that_all_wait_blame_the_network),
        JUDGED(a_rank_that_gets_on_too_slowly_ends_the_job_too),
        JUDGED(without_limits_asked_for_only_a_wait_counts),
        JUDGED(ranks_never_heard_are_blamed_last),
        JUDGED(patience_lets_others_speak_first),
        JUDGED(no_limits_no_judgement),
        JUDGED(a_short_buffer_is_not_overrun),
        TALKED(ranks_hear_where_the_others_stand),
        TALKED(who_says_goodbye_has_left),
        TALKED(a_broken_line_is_gone_until_it_is_called_anew),
        TALKED(one_word_ends_the_job_for_all),
        TALKED(any_rank_can_say_it),
        TALKED(strangers_get_no_answer_and_do_no_harm),
        TALKED(what_no_rank_would_say_is_not_believed),
        TALKED(a_rank_does_not_talk_to_a_stranger),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
