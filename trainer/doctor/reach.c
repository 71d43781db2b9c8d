/* doctor/reach.c - do the hosts reach each other?  Asked with single messages and a time limit, before the first collective: in a
 * collective a host behind a wall makes everybody wait, and nobody can say for whom.
 *
 *     MPI_Init    waits for all ranks, where nothing but a clock can help: whoever waits says so    who says nothing is the one
 *     roll call   rank 0 calls every rank, each answers with its host's name       who did not answer is named
 *     table       rank 0 sends all names to all                                    from here on hosts have names
 *     star        rank 0 with the first rank of each other host, one by one: some messages there and back.  The fastest gives
 *                 the round trip, and the clocks: the other's time is compared with the middle of it, give or take a half
 *     ring        each host with the next one, at the same time: some MiB there and back
 *
 * A rank that misses an answer tells it and stays for some seconds, so that all who miss one can tell theirs. */
#define _GNU_SOURCE
#include "trainer/doctor/doctor.h"

#include "trainer/commands.h"
#include "trainer/trainer.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <ifaddrs.h>
#include <mpi.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { NAME = 64, TRIPS = 40, LARGE = 4 << 20, LARGE_TIMES = 4, DEFAULT_LIMIT_S = 30, INIT_LIMIT_S = 120, LAST_WORDS_S = 5, LATE_S = 2 };
enum { TAG_CALL = 1, TAG_ANSWER, TAG_TABLE, TAG_TRIP, TAG_RING };

static bool begun;                             /* there is a launcher, and MPI             */
static uint64_t sockets_before[16];            /* bit i: descriptor i was open before      */

static double wall_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double at_most(double limit)
{
    const char *text = getenv("EFFNET_STALL_S");
    const double v = text ? strtod(text, NULL) : 0;
    return v > 0 && v < limit ? v : limit;
}

static double limit_s(void) { return at_most(DEFAULT_LIMIT_S); }

/* ---- MPI_Init -------------------------------------------------------------------------------------------------------------- */

static char last_words[400], excuse[200];
static double start_until;

/* A rank that was stopped comes to this late, and has no reason to complain of others. */
static void give_up(int signal)
{
    (void)signal;
    const char *text = en_seconds() > start_until + LATE_S ? excuse : last_words;
    if (write(2, text, strlen(text)) < 0) _exit(en_status_exit_code(EN_EPEER));
    sleep(LAST_WORDS_S);
    _exit(en_status_exit_code(EN_EPEER));
}

static en_status start_mpi(void)
{
    int world_size;
    char host[NAME] = "";
    const struct sigaction act = { .sa_handler = give_up };
    struct sigaction before;
    const int rank = en_launch_rank(&world_size);
    gethostname(host, sizeof host - 1);
    snprintf(last_words, sizeof last_words, "effnet: [rank %d/%d %s] %s: MPI waits for %.0f s for other ranks to start; ranks that do not say this "
             "are those to look at\n", rank, world_size, host, en_status_name(EN_EPEER), at_most(INIT_LIMIT_S));
    snprintf(excuse, sizeof excuse, "effnet: [rank %d/%d %s] was stopped, or got no processor, while MPI started\n", rank, world_size, host);
    const unsigned limit = (unsigned)at_most(INIT_LIMIT_S) + 1;
    start_until = en_seconds() + limit;
    sigaction(SIGALRM, &act, &before);
    alarm(limit);
    const en_status s = en_comm_begin(&begun);
    alarm(0);
    sigaction(SIGALRM, &before, NULL);
    return s;
}

/* ---- messages with a limit ----------------------------------------------------------------------------------------------- */

/* False: not all of them are done at `until`. */
static bool finish_until(MPI_Request *r, int n, double until)
{
    for (int done = 0;;) {
        if (MPI_Testall(n, r, &done, MPI_STATUSES_IGNORE) != MPI_SUCCESS) return false;
        if (done) return true;
        if (en_seconds() > until) return false;
        sched_yield();
    }
}

/* Sends and takes; either may be of no bytes (NULL). */
static bool exchange(int with, int tag, const void *out, void *in, size_t bytes, double until)
{
    MPI_Request r[2] = { MPI_REQUEST_NULL, MPI_REQUEST_NULL };
    if (in && MPI_Irecv(in, (int)bytes, MPI_BYTE, with, tag, MPI_COMM_WORLD, &r[0]) != MPI_SUCCESS) return false;
    if (out && MPI_Isend(out, (int)bytes, MPI_BYTE, with, tag, MPI_COMM_WORLD, &r[1]) != MPI_SUCCESS) return false;
    return finish_until(r, 2, until);
}

/* ---- who is there ---------------------------------------------------------------------------------------------------------- */

typedef struct { int rank, ranks; char (*name)[NAME]; int *lead, hosts; } roll;   /* lead[h]: the first rank of host h */

static void add_rank(char *list, size_t size, size_t *used, int rank)
{
    if (*used + 24 < size) *used += (size_t)snprintf(list + *used, size - *used, "%s%d", *used ? ", " : "", rank);
    else if (*used + 6 < size) *used += (size_t)snprintf(list + *used, size - *used, ", ...");
}

static en_status call_all(const roll *x)
{
    MPI_Request *r = calloc(2 * (size_t)x->ranks, sizeof *r);
    char silent[200] = "", call[NAME] = "";
    size_t used = 0;
    int missing = 0;
    EN_REQUIRE(r, EN_ENOMEM, "no memory to call %d ranks", x->ranks);
    memcpy(call, x->name[0], NAME);
    for (int k = 0; k < 2 * x->ranks; k++) r[k] = MPI_REQUEST_NULL;
    for (int k = 1; k < x->ranks; k++) {
        MPI_Irecv(x->name[k], NAME, MPI_BYTE, k, TAG_ANSWER, MPI_COMM_WORLD, &r[2 * k]);
        MPI_Isend(call, NAME, MPI_BYTE, k, TAG_CALL, MPI_COMM_WORLD, &r[2 * k + 1]);
    }
    const bool all = finish_until(r, 2 * x->ranks, en_seconds() + limit_s());
    for (int k = 1; k < x->ranks && !all; k++) {
        int answered = 0;
        if (MPI_Test(&r[2 * k], &answered, MPI_STATUS_IGNORE) == MPI_SUCCESS && answered) continue;
        missing++;
        add_rank(silent, sizeof silent, &used, k);
    }
    free(r);                                   /* when messages are still under way, the job ends here */
    EN_REQUIRE(all, EN_EPEER, "host %s has no answer after %g s from %d of %d ranks: %s.  Is their network open to it in both directions "
               "(firewall), and is it the one that MPI takes?  Open MPI: --mca btl_tcp_if_include INTERFACE", x->name[0], limit_s(), missing,
               x->ranks, silent);
    return EN_OK;
}

static en_status call_roll(const roll *x)
{
    char call[NAME];
    if (x->rank == 0) {
        EN_TRY(call_all(x), "calling all ranks");
    } else {
        EN_REQUIRE(exchange(0, TAG_CALL, NULL, call, NAME, en_seconds() + limit_s()), EN_EPEER, "host %s hears nothing of rank 0 for %g s",
                   x->name[x->rank], limit_s());
        EN_REQUIRE(exchange(0, TAG_ANSWER, x->name[x->rank], NULL, NAME, en_seconds() + limit_s()), EN_EPEER, "host %s cannot answer rank 0 on %.63s",
                   x->name[x->rank], call);
    }
    for (int k = 1; k < x->ranks; k++)
        if (x->rank == 0 || x->rank == k)
            EN_REQUIRE(exchange(x->rank ? 0 : k, TAG_TABLE, x->rank ? NULL : x->name, x->rank ? x->name : NULL, NAME * (size_t)x->ranks,
                       en_seconds() + limit_s()), EN_EPEER, "host %s: the list of hosts does not get through to rank %d in %g s", x->name[x->rank],
                       k, limit_s());
    return EN_OK;
}

static void find_leads(roll *x)
{
    for (int r = 0; r < x->ranks; r++) {
        bool first = true;
        for (int h = 0; h < x->hosts && first; h++) first = strcmp(x->name[x->lead[h]], x->name[r]) != 0;
        if (first) x->lead[x->hosts++] = r;
    }
}

/* ---- clocks and round trips --------------------------------------------------------------------------------------------------- */

static en_status no_answer(const roll *x, int other, const char *what)
{
    return en_raise(EN_EPEER, __FILE__, __LINE__, __func__, "%s on host %s: no answer after %g s from host %s (rank %d), which rank 0 does reach; "
                    "is the network between these two open?", what, x->name[x->rank], limit_s(), x->name[other], other);
}

/* One of rank 0's side and one of the other; what is measured belongs to the other. */
static en_status star(const roll *x, en_doctor_facts *f)
{
    for (int h = 1; h < x->hosts; h++) {
        const int other = x->lead[h];
        if (x->rank != 0 && x->rank != other) continue;
        double best[3] = { 0, 0, -1 }, now = 0;                    /* offset, error, round trip */
        const double until = en_seconds() + limit_s() * (x->rank ? h : 1);     /* rank 0 comes to them one after the other */
        for (int k = 0; k < TRIPS; k++) {
            if (x->rank != 0) {
                if (!exchange(0, TAG_TRIP, NULL, &now, sizeof now, until)) return no_answer(x, 0, "round trips");
                now = wall_s();
                if (!exchange(0, TAG_TRIP, &now, NULL, sizeof now, until)) return no_answer(x, 0, "round trips");
                continue;
            }
            const double began = wall_s(), from = en_seconds();
            if (!exchange(other, TAG_TRIP, &began, NULL, sizeof now, until) || !exchange(other, TAG_TRIP, NULL, &now, sizeof now, until))
                return no_answer(x, other, "round trips");
            const double took = en_seconds() - from;
            if (best[2] < 0 || took < best[2]) best[0] = now - (began + took / 2), best[1] = took / 2, best[2] = took;
        }
        if (!exchange(x->rank ? 0 : other, TAG_TRIP, x->rank ? NULL : best, x->rank ? best : NULL, sizeof best, until))
            return no_answer(x, x->rank ? 0 : other, "round trips");
        if (x->rank == other) f->met = 1, f->clock_offset_s = best[0], f->clock_error_s = best[1], f->round_trip_s = best[2];
    }
    if (x->rank == 0) f->met = 1;
    return EN_OK;
}

/* ---- the ring ---------------------------------------------------------------------------------------------------------------- */

/* Both send and take at the same time; what comes is what was sent. */
static en_status measure_pair(const roll *x, int other, char *buffer, double *bytes_per_s)
{
    char *out = buffer, *in = buffer + LARGE;
    double best = 0, until = en_seconds() + 3 * limit_s();         /* the other may be at its pair before this one */
    for (int k = 0; k < LARGE_TIMES; k++) {
        memset(out, (x->rank + k) & 127, LARGE);
        memset(in, 255, LARGE);
        char ready = 1, theirs = 0;
        if (!exchange(other, TAG_RING, &ready, &theirs, 1, until)) return no_answer(x, other, "a ring of hosts");
        until = en_seconds() + limit_s();
        const double began = en_seconds();
        if (!exchange(other, TAG_RING, out, in, LARGE, until)) return no_answer(x, other, "a ring of hosts");
        const double took = en_seconds() - began;
        if (k == 0 || took < best) best = took;
        for (size_t i = 0; i < LARGE; i++)
            EN_REQUIRE(in[i] == (char)((other + k) & 127), EN_EPEER, "host %s: byte %zu of a message from host %s (rank %d) came wrong: bad "
                       "memory, or a bad network card", x->name[x->rank], i, x->name[other], other);
    }
    *bytes_per_s = best > 0 ? LARGE / best : 0;
    return EN_OK;
}

/* Host h with host h+1: first the even h, then the odd ones, then the last of an odd number with the first. */
static en_status ring(const roll *x, en_doctor_facts *f)
{
    int me = -1;
    for (int h = 0; h < x->hosts; h++)
        if (x->lead[h] == x->rank) me = h;
    if (me < 0 || x->hosts < 2) return EN_OK;
    char *buffer = malloc(2 * (size_t)LARGE);
    EN_REQUIRE(buffer, EN_ENOMEM, "no memory for a message");
    en_status status = EN_OK;
    for (int round = 0; round < 3; round++)
        for (int h = 0; h < x->hosts; h++) {
            const int next = (h + 1) % x->hosts, turn = x->hosts % 2 && next == 0 ? 2 : h % 2;
            double speed = 0;
            if (turn != round || (me != h && me != next) || (x->hosts == 2 && h == 1)) continue;
            EN_TRY_OUT(measure_pair(x, x->lead[me == h ? next : h], buffer, &speed), "a ring of hosts");
            if (me != h) continue;
            f->next_bytes_per_s = speed;
            snprintf(f->next, sizeof f->next, "%s", x->name[x->lead[next]]);
        }
out:
    free(buffer);
    return status;
}

/* ---- by which sockets ---------------------------------------------------------------------------------------------------------- */

static bool is_open_socket(int fd, struct sockaddr_storage *mine)
{
    struct sockaddr_storage peer;
    socklen_t n = sizeof peer, m = sizeof *mine;
    return getpeername(fd, (struct sockaddr *)&peer, &n) == 0 && getsockname(fd, (struct sockaddr *)mine, &m) == 0;
}

static void remember_sockets(void)
{
    struct sockaddr_storage mine;
    for (int fd = 0; fd < 1024; fd++)
        if (is_open_socket(fd, &mine)) sockets_before[fd / 64] |= (uint64_t)1 << (fd % 64);
}

static bool same_address(const struct sockaddr *a, const struct sockaddr_storage *b)
{
    if (!a || a->sa_family != b->ss_family) return false;
    if (a->sa_family == AF_INET) return ((const struct sockaddr_in *)a)->sin_addr.s_addr == ((const struct sockaddr_in *)b)->sin_addr.s_addr;
    return a->sa_family == AF_INET6
           && memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr, &((const struct sockaddr_in6 *)b)->sin6_addr, sizeof(struct in6_addr)) == 0;
}

/* Connections over TCP that MPI opened for the messages above and the sums: of which interfaces?  None: it has another way. */
void en_doctor_transport(en_doctor_facts *f)
{
    struct ifaddrs *list = NULL;
    struct sockaddr_storage mine;
    size_t n = 0;
    if (!begun || getifaddrs(&list) != 0) return;
    for (const struct ifaddrs *a = list; a && n < sizeof f->transport; a = a->ifa_next) {
        bool used = false;
        char address[INET6_ADDRSTRLEN] = "";
        for (int fd = 0; fd < 1024 && !used; fd++)
            used = !(sockets_before[fd / 64] >> (fd % 64) & 1) && is_open_socket(fd, &mine) && same_address(a->ifa_addr, &mine);
        if (!used) continue;
        if (mine.ss_family == AF_INET) inet_ntop(AF_INET, &((struct sockaddr_in *)&mine)->sin_addr, address, sizeof address);
        else inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&mine)->sin6_addr, address, sizeof address);
        n += (size_t)snprintf(f->transport + n, sizeof f->transport - n, "%s%s %s", n ? ", " : "TCP over ", a->ifa_name, address);
    }
    freeifaddrs(list);
}

/* ---- all of it ------------------------------------------------------------------------------------------------------------------ */

static en_status reach(roll *x, en_doctor_facts *f)
{
    EN_TRY(call_roll(x), "the roll call");
    find_leads(x);
    EN_TRY(star(x, f), "round trips");
    EN_TRY(ring(x, f), "a ring of hosts");
    return EN_OK;
}

en_status en_doctor_reach(en_doctor_facts *f)
{
    int length = 0;
    char name[MPI_MAX_PROCESSOR_NAME] = "";
    roll x = { 0 };
    EN_TRY(start_mpi(), "starting MPI");
    if (!begun) return EN_OK;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &x.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &x.ranks);
    MPI_Get_processor_name(name, &length);
    if (x.ranks == 1) return EN_OK;
    remember_sockets();
    x.name = calloc((size_t)x.ranks, sizeof *x.name);
    x.lead = calloc((size_t)x.ranks, sizeof *x.lead);
    en_status s = EN_ENOMEM;
    if (x.name && x.lead) {
        snprintf(x.name[x.rank], NAME, "%.*s", NAME - 1, name);
        s = reach(&x, f);
    }
    if (s != EN_OK) {
        en_report_error(NULL, s);
        sleep(LAST_WORDS_S);
        MPI_Abort(MPI_COMM_WORLD, en_status_exit_code(s));
    }
    free(x.name);
    free(x.lead);
    return s;
}
