/* mpi.c - ranks under MPI.
 *
 * Small blocking sums (batch norm, agreement) wait for the network and for little else, so what counts is how many messages
 * follow one another.  Up to EN_SMALL_SUM_RANKS ranks send each other all they have, and each adds it up in rank order: one message.
 * Above that, and for longer sums, MPI_Allreduce: every algorithm that Open MPI and MPICH have for it either lets one rank
 * compute an element and hands the result on (ring, reduce-scatter, reduce + broadcast), or doubles recursively, where both
 * partners form a+b and b+a: the same bits, because IEEE addition commutes.  (Of few ranks Open MPI 4.1 takes a ring for 4 to 8
 * KiB and above 16: 2(P-1) messages.)
 *
 * Gradient sums are our own two rounds, not MPI_Iallreduce.  With P ranks a piece of m floats is cut into P slices:
 *
 *     exchange   rank r gets slice r of every rank                 and adds them in rank order, 0 first
 *     share      rank r sends the finished slice r to every rank
 *
 * Rank 0's arena  [ a0 | a1 | a2 ]   ──exchange──▶   rank 0 owns  a0+b0+c0   ──share──▶   every rank has all three
 * Rank 1          [ b0 | b1 | b2 ]                   rank 1       a1+b1+c1
 * Rank 2          [ c0 | c1 | c2 ]                   rank 2       a2+b2+c2
 *
 * because then
 *   1. each element is added by exactly one rank in one fixed order: the same bits on all ranks, in every run, whatever
 *      the MPI library would choose for this size;
 *   2. each rank sends and receives 2(P-1)/P of the buffer, the least possible, in two rounds; Open MPI 4.1 sums in place
 *      by a binomial tree: log2(P) times the whole buffer up, and again down (coll/libnbc, nbc_iallreduce.c);
 *   3. nothing is allocated in a step; libnbc takes and returns a temporary as large as the buffer for each sum.
 *
 * Sums go through these states, advanced by `progress` and by every call that waits:
 *
 *     QUEUED ──▶ EXCHANGE ──▶ SHARE ──▶ DONE ──sum_wait──▶ FREE
 *                   ▲           │ next piece
 *                   └───────────┘
 * Invariants:
 *   - sums have consecutive sequence numbers, equal on all ranks, and live in slot[seq % EN_SUMS_IN_FLIGHT];
 *   - only the WINDOW sums from `oldest` on are moving, so WINDOW scratch buffers of at most PIECE floats suffice; the
 *     oldest is moving on every rank that has begun it, so some sum can always finish;
 *   - messages of one sum carry tags of its own, so neither rounds nor sums can be taken for one another.
 *
 * Only the thread that opened the communicator calls it (MPI_THREAD_FUNNELED). */
#include <limits.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/internal.h"

enum { WINDOW = 4, PIECE = 1 << 23, BLOCK = 1024, MAX_COUNT = 1 << 30, TAGS = (1 << 14) - 1 };
enum { SMALL_TAG = 2 * TAGS };

typedef enum { FREE, QUEUED, EXCHANGE, SHARE, DONE } sum_state;

struct en_request {
    sum_state state;
    uint64_t  seq;
    float    *buf;                             /* borrowed until sum_wait                     */
    size_t    n, at, piece;                    /* elements; done so far; in the current piece */
};

typedef struct {
    MPI_Comm comm;                             /* ours: a duplicate or a split                */
    bool     finalize;                         /* we called MPI_Init and close the world      */
    uint64_t oldest, next;                     /* first sum not DONE; first not begun         */
    struct en_request slot[EN_SUMS_IN_FLIGHT];
    struct {
        float       *scratch;                  /* the other ranks' slices of one piece        */
        MPI_Request *request;                  /* 2 * (world_size - 1)                        */
        int          requests;
    } lane[WINDOW];                            /* sum seq uses lane[seq % WINDOW]             */
    const float **source;                      /* world_size pointers, while adding           */
    double   *others;                          /* of small sums: EN_SMALL_SUM_VALUES of each other rank; NULL: more than EN_SMALL_SUM_RANKS */
} mpi_impl;

static en_status mpi_failed(const char *file, int line, const char *func, int rc, const char *call)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0, class = MPI_SUCCESS;
    MPI_Error_string(rc, text, &length);
    MPI_Error_class(rc, &class);
    return en_raise(class == MPI_ERR_NO_MEM ? EN_ENOMEM : EN_EPEER, file, line, func, "%.*s: %s",
                    (int)strcspn(call, "("), call, text);
}
#define MPI_TRY(call)                                                                                                  \
    do { const int rc_ = (call); if (rc_ != MPI_SUCCESS) return mpi_failed(__FILE__, __LINE__, __func__, rc_, #call); } while (0)
/* a call in which other ranks may keep this one waiting */
#define MPI_MEET(what, call)                                                                                           \
    do { en_watch_enter(what);                                                                                         \
         const int rc_ = (call);                                                                                       \
         en_watch_leave();                                                                                             \
         if (rc_ != MPI_SUCCESS) return mpi_failed(__FILE__, __LINE__, __func__, rc_, #call); } while (0)
#define MPI_TRY_OUT(call)                                                                                              \
    do { const int rc_ = (call);                                                                                       \
         if (rc_ != MPI_SUCCESS) { status = mpi_failed(__FILE__, __LINE__, __func__, rc_, #call); goto out; } } while (0)

/* ---- gradient sums ------------------------------------------------------------------------------------------------- */

/* slice p of a piece: whole cache lines, except at the piece's end */
static size_t slice_begin(const en_comm *c, const struct en_request *r, int p)
{
    const size_t lines = (r->piece + 15) / 16, at = (size_t)((__uint128_t)lines * (unsigned)p / (unsigned)c->world_size) * 16;
    return at < r->piece ? at : r->piece;
}
static size_t slice_elems(const en_comm *c, const struct en_request *r, int p)
{
    return slice_begin(c, r, p + 1) - slice_begin(c, r, p);
}
static int tag_of(const struct en_request *r) { return (int)(r->seq % TAGS) * 2 + (r->state == SHARE); }

/* Once, before the first sum: address space for the largest piece; pages are touched as far as buckets reach. */
static en_status take_scratch(en_comm *c)
{
    mpi_impl *m = c->impl;
    const size_t bytes = (PIECE + 16 * (size_t)c->world_size) * sizeof(float);
    for (int k = 0; k < WINDOW && c->world_size > 1; k++)
        if (!m->lane[k].scratch)
            EN_REQUIRE(m->lane[k].scratch = aligned_alloc(64, bytes), EN_ENOMEM, "no memory to exchange gradients (%zu bytes)", bytes);
    return EN_OK;
}

static en_status begin_exchange(en_comm *c, struct en_request *r)
{
    mpi_impl *m = c->impl;
    const int me = c->rank, ranks = c->world_size, k = (int)(r->seq % WINDOW);
    r->piece = r->n - r->at < PIECE ? r->n - r->at : PIECE;
    r->state = EXCHANGE;
    const size_t mine = slice_elems(c, r, me);
    float *piece = r->buf + r->at;
    m->lane[k].requests = 0;
    for (int step = 1; step < ranks; step++) { /* each rank starts with another partner: nobody is everybody's first */
        const int from = (me + ranks - step) % ranks;
        if (mine) MPI_TRY(MPI_Irecv(m->lane[k].scratch + mine * (size_t)(step - 1), (int)mine, MPI_FLOAT, from, tag_of(r), m->comm,
                                    &m->lane[k].request[m->lane[k].requests++]));
    }
    for (int step = 1; step < ranks; step++) {
        const int to = (me + step) % ranks;
        const size_t theirs = slice_elems(c, r, to);
        if (theirs) MPI_TRY(MPI_Isend(piece + slice_begin(c, r, to), (int)theirs, MPI_FLOAT, to, tag_of(r), m->comm,
                                      &m->lane[k].request[m->lane[k].requests++]));
    }
    return EN_OK;
}

/* my slice = sum over ranks, 0 first */
static void add_in_rank_order(en_comm *c, struct en_request *r)
{
    mpi_impl *m = c->impl;
    const int me = c->rank, ranks = c->world_size, k = (int)(r->seq % WINDOW);
    const size_t mine = slice_elems(c, r, me);
    float *out = r->buf + r->at + slice_begin(c, r, me);
    m->source[me] = out;
    for (int step = 1; step < ranks; step++)
        m->source[(me + ranks - step) % ranks] = m->lane[k].scratch + mine * (size_t)(step - 1);
    for (size_t at = 0; at < mine; at += BLOCK) {
        const size_t n = mine - at < BLOCK ? mine - at : BLOCK;
        float sum[BLOCK];
        memcpy(sum, m->source[0] + at, n * sizeof *sum);
        for (int p = 1; p < ranks; p++)
            for (size_t i = 0; i < n; i++) sum[i] += m->source[p][at + i];
        memcpy(out + at, sum, n * sizeof *sum);
    }
}

static en_status begin_share(en_comm *c, struct en_request *r)
{
    mpi_impl *m = c->impl;
    const int me = c->rank, ranks = c->world_size, k = (int)(r->seq % WINDOW);
    float *piece = r->buf + r->at;
    r->state = SHARE;
    m->lane[k].requests = 0;
    for (int step = 1; step < ranks; step++) {
        const int from = (me + ranks - step) % ranks;
        const size_t theirs = slice_elems(c, r, from);
        if (theirs) MPI_TRY(MPI_Irecv(piece + slice_begin(c, r, from), (int)theirs, MPI_FLOAT, from, tag_of(r), m->comm,
                                      &m->lane[k].request[m->lane[k].requests++]));
    }
    const size_t mine = slice_elems(c, r, me);
    for (int step = 1; step < ranks; step++) {
        const int to = (me + step) % ranks;
        if (mine) MPI_TRY(MPI_Isend(piece + slice_begin(c, r, me), (int)mine, MPI_FLOAT, to, tag_of(r), m->comm,
                                    &m->lane[k].request[m->lane[k].requests++]));
    }
    return EN_OK;
}

/* Takes one sum as far as it goes without waiting. */
static en_status advance(en_comm *c, struct en_request *r)
{
    mpi_impl *m = c->impl;
    const int k = (int)(r->seq % WINDOW);
    if (r->state == QUEUED) {
        if (r->n == 0 || c->world_size == 1) r->state = DONE;
        else EN_TRY(begin_exchange(c, r), "exchanging slices");
    }
    while (r->state == EXCHANGE || r->state == SHARE) {
        int arrived = 0;
        MPI_TRY(MPI_Testall(m->lane[k].requests, m->lane[k].request, &arrived, MPI_STATUSES_IGNORE));
        if (!arrived) return EN_OK;
        if (r->state == EXCHANGE) {
            add_in_rank_order(c, r);
            EN_TRY(begin_share(c, r), "sharing sums");
        } else if ((r->at += r->piece) == r->n) {
            r->state = DONE;
        } else {
            EN_TRY(begin_exchange(c, r), "exchanging slices");
        }
    }
    return EN_OK;
}

static en_status progress(en_comm *c)
{
    mpi_impl *m = c->impl;
    for (uint64_t seq = m->oldest; seq < m->next && seq < m->oldest + WINDOW; seq++) {
        struct en_request *r = &m->slot[seq % EN_SUMS_IN_FLIGHT];
        if (r->state != DONE) EN_TRY(advance(c, r), "summing %zu values over %d ranks", r->n, c->world_size);
        if (seq == m->oldest && r->state == DONE) m->oldest++;
    }
    return EN_OK;
}

static en_status sum_f32_begin(en_comm *c, float *buf, size_t n, en_request **out)
{
    mpi_impl *m = c->impl;
    struct en_request *r = &m->slot[m->next % EN_SUMS_IN_FLIGHT];
    EN_REQUIRE(r->state == FREE, EN_EINVAL, "more than %d sums begun and not waited for", EN_SUMS_IN_FLIGHT);
    EN_TRY(take_scratch(c), "preparing the sums of gradients");
    *r = (struct en_request){ .state = QUEUED, .seq = m->next++, .buf = buf, .n = n };
    *out = r;
    return progress(c);
}

static en_status sum_wait(en_comm *c, en_request *r)
{
    EN_REQUIRE(r && r->state != FREE, EN_EINVAL, "waiting for a sum that was not begun, or waited for before");
    const mpi_impl *m = c->impl;
    en_status s = EN_OK;
    en_watch_enter("the sum of gradients");
    while (s == EN_OK && (r->state != DONE || m->oldest <= r->seq)) s = progress(c);     /* and the sums before it */
    en_watch_leave();
    EN_TRY(s, "waiting for a sum");
    r->state = FREE;
    return EN_OK;
}

/* ---- small and blocking -------------------------------------------------------------------------------------------- */

/* Everybody's values to everybody, added in rank order.  Sums follow one another in one order, and so do their messages. */
static en_status sum_at_once(en_comm *c, const double *in, double *out, size_t n)
{
    mpi_impl *m = c->impl;
    const int me = c->rank, ranks = c->world_size;
    MPI_Request request[2 * (EN_SMALL_SUM_RANKS - 1)];
    const double *source[EN_SMALL_SUM_RANKS];
    int requests = 0;
    source[me] = in;
    for (int step = 1; step < ranks; step++) {
        const int from = (me + ranks - step) % ranks;
        double *values = m->others + (size_t)(step - 1) * EN_SMALL_SUM_VALUES;
        source[from] = values;
        MPI_TRY(MPI_Irecv(values, (int)n, MPI_DOUBLE, from, SMALL_TAG, m->comm, &request[requests++]));
    }
    for (int step = 1; step < ranks; step++)
        MPI_TRY(MPI_Isend(in, (int)n, MPI_DOUBLE, (me + step) % ranks, SMALL_TAG, m->comm, &request[requests++]));
    MPI_MEET("a sum", MPI_Waitall(requests, request, MPI_STATUSES_IGNORE));
    for (size_t i = 0; i < n; i++) {
        double sum = source[0][i];
        for (int p = 1; p < ranks; p++) sum += source[p][i];
        out[i] = sum;
    }
    return EN_OK;
}

static en_status sum_f64(en_comm *c, const double *in, double *out, size_t n)
{
    mpi_impl *m = c->impl;
    if (m->oldest < m->next) EN_TRY(progress(c), "advancing the gradients' sums");
    if (m->others && n <= EN_SMALL_SUM_VALUES) return sum_at_once(c, in, out, n);
    for (size_t at = 0; at < n; at += MAX_COUNT) {
        const int count = (int)(n - at < MAX_COUNT ? n - at : MAX_COUNT);
        MPI_MEET("a sum", MPI_Allreduce(in == out ? MPI_IN_PLACE : in + at, out + at, count, MPI_DOUBLE, MPI_SUM, m->comm));
    }
    return EN_OK;
}

static en_status broadcast(en_comm *c, void *buf, size_t bytes, int root)
{
    mpi_impl *m = c->impl;
    EN_REQUIRE(root >= 0 && root < c->world_size, EN_EINVAL, "broadcast from rank %d of %d", root, c->world_size);
    for (size_t at = 0; at < bytes; at += MAX_COUNT)
        MPI_MEET("a broadcast", MPI_Bcast((char *)buf + at, (int)(bytes - at < MAX_COUNT ? bytes - at : MAX_COUNT), MPI_BYTE, root, m->comm));
    return EN_OK;
}

static en_status gather(en_comm *c, const void *in, size_t bytes, void *out, int root)
{
    mpi_impl *m = c->impl;
    EN_REQUIRE(root >= 0 && root < c->world_size, EN_EINVAL, "gather to rank %d of %d", root, c->world_size);
    EN_REQUIRE(bytes <= MAX_COUNT, EN_EINVAL, "a block of %zu bytes is more than gather takes (%d)", bytes, MAX_COUNT);
    if (bytes) MPI_MEET("a gather", MPI_Gather(in, (int)bytes, MPI_BYTE, out, (int)bytes, MPI_BYTE, root, m->comm));
    return EN_OK;
}

static en_status barrier(en_comm *c)
{
    mpi_impl *m = c->impl;
    MPI_MEET("a barrier", MPI_Barrier(m->comm));
    return EN_OK;
}

/* ---- opening, splitting, closing ----------------------------------------------------------------------------------- */

/* Sums still in flight finish first: MPI holds pointers into them.  A rank that failed does not close, it aborts. */
static void close_mpi(en_comm *c)
{
    mpi_impl *m = c->impl;
    if (m) {
        while (m->oldest < m->next && progress(c) == EN_OK) continue;
        if (m->finalize) {
            en_watch_enter("the end of the run");
            MPI_Barrier(m->comm);              /* nobody exits while another is still before this line */
            en_watch_leave();
            en_watch_part();
        }
        for (int k = 0; k < WINDOW; k++) { free(m->lane[k].scratch); free(m->lane[k].request); }
        free(m->source);
        free(m->others);
        if (m->comm != MPI_COMM_NULL) MPI_Comm_free(&m->comm);
        if (m->finalize) {
            MPI_Finalize();
            en_watch_close();
        }
    }
    free(m);
    free(c);
}

/* Takes `comm` over, also on failure. */
static en_status wrap(MPI_Comm comm, bool finalize, en_comm **out);

static en_status split(en_comm *c, int color, en_comm **out)
{
    mpi_impl *m = c->impl;
    MPI_Comm part = MPI_COMM_NULL;
    EN_REQUIRE(color >= 0, EN_EINVAL, "split by color %d; colors count from 0", color);
    MPI_MEET("a split", MPI_Comm_split(m->comm, color, c->rank, &part));
    return wrap(part, false, out);
}

static const struct en_comm_ops mpi_ops = {
    .sum_f64 = sum_f64, .sum_f32_begin = sum_f32_begin, .sum_wait = sum_wait, .progress = progress, .broadcast = broadcast,
    .gather = gather, .barrier = barrier, .split = split, .close = close_mpi,
};

/* Who shares a host, and the hosts numbered by their lowest rank. */
static en_status find_places(en_comm *c, MPI_Comm comm)
{
    en_status status = EN_OK;
    MPI_Comm host = MPI_COMM_NULL;
    MPI_TRY(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, c->rank, MPI_INFO_NULL, &host));
    MPI_TRY_OUT(MPI_Comm_rank(host, &c->local_rank));
    MPI_TRY_OUT(MPI_Comm_size(host, &c->local_size));
    const int leads = c->local_rank == 0;
    int before = 0;                            /* leaders among lower ranks: undefined on rank 0 by the standard */
    MPI_TRY_OUT(MPI_Exscan(&leads, &before, 1, MPI_INT, MPI_SUM, comm));
    c->node = c->rank == 0 ? 0 : before;
    MPI_TRY_OUT(MPI_Bcast(&c->node, 1, MPI_INT, 0, host));
    MPI_TRY_OUT(MPI_Allreduce(&leads, &c->nodes, 1, MPI_INT, MPI_SUM, comm));
out:
    MPI_Comm_free(&host);
    return status;
}

static en_status wrap(MPI_Comm comm, bool finalize, en_comm **out)
{
    en_status status = EN_OK;
    char name[MPI_MAX_PROCESSOR_NAME] = "";
    int length = 0;
    en_comm *c = calloc(1, sizeof *c);
    mpi_impl *m = calloc(1, sizeof *m);
    if (!c || !m) {
        free(c); free(m);
        MPI_Comm_free(&comm);
        EN_REQUIRE(false, EN_ENOMEM, "no memory for a communicator");
    }
    *m = (mpi_impl){ .comm = comm, .finalize = finalize };
    *c = (en_comm){ .name = "mpi", .ops = &mpi_ops, .impl = m };
    MPI_TRY_OUT(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN));
    MPI_TRY_OUT(MPI_Comm_rank(comm, &c->rank));
    MPI_TRY_OUT(MPI_Comm_size(comm, &c->world_size));
    MPI_TRY_OUT(MPI_Get_processor_name(name, &length));
    snprintf(c->host, sizeof c->host, "%.*s", (int)sizeof c->host - 1, name);
    for (int k = 0; k < WINDOW; k++)
        EN_REQUIRE_OUT(m->lane[k].request = calloc(2 * (size_t)c->world_size, sizeof *m->lane[k].request), EN_ENOMEM,
                       "no memory for the requests of %d ranks", c->world_size);
    EN_REQUIRE_OUT(m->source = calloc((size_t)c->world_size, sizeof *m->source), EN_ENOMEM, "no memory for %d ranks", c->world_size);
    if (c->world_size > 1 && c->world_size <= EN_SMALL_SUM_RANKS)
        EN_REQUIRE_OUT(m->others = malloc((size_t)(c->world_size - 1) * EN_SMALL_SUM_VALUES * sizeof *m->others), EN_ENOMEM, "no memory for %d ranks", c->world_size);
    EN_TRY_OUT(find_places(c, comm), "finding out who shares a host");
    *out = c;
    return EN_OK;
out:
    close_mpi(c);
    return status;
}

/* How Open MPI sends over TCP, unless the user's environment or mpirun says otherwise.  Its own way asks before a message of more than
 * 64 KiB, and then has the receiver fetch it piece by piece, each asked for in turn: over a link of 1 Gbit/s and 1 ms gradients came at
 * half the link's bandwidth (`effnet bench comm`: 0.058 GB/s at 16 MiB, 0.106 so), and at another one each time.
 *     flags          long messages are sent in pieces as the socket takes them, not fetched
 *     eager limits   up to 1 MiB goes without asking: one way over the link in place of three.  It is received into place, since
 *                    receives are posted before sends; what comes earlier is kept aside, a MiB at a time
 * Other MPIs do not read these. */
static en_status init(int *provided)
{
    static const char *const eager = "OMPI_MCA_btl_tcp_eager_limit", *const first = "OMPI_MCA_btl_tcp_rndv_eager_limit", *const most = "1048576";
    setenv("OMPI_MCA_btl_tcp_flags", "send,inplace", 0);
    if (!getenv(eager) && !getenv(first)) setenv(eager, most, 1), setenv(first, most, 1);      /* a pair: the second may not be above the first */
    MPI_TRY(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, provided));
    return EN_OK;
}

static bool begun_ahead;

en_status en_comm_begin_mpi(void)
{
    int provided;
    EN_TRY(init(&provided), "starting MPI");
    begun_ahead = true;
    return EN_OK;
}

en_status en_comm_open_mpi(int expected, en_comm **out)
{
    int initialised = 0, provided = MPI_THREAD_SINGLE, ranks = 0;
    MPI_Comm ours = MPI_COMM_NULL;
    MPI_TRY(MPI_Initialized(&initialised));
    if (!initialised) EN_TRY(init(&provided), "starting MPI");
    else              MPI_TRY(MPI_Query_thread(&provided));
    const bool finalize = !initialised || begun_ahead;
    begun_ahead = false;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
    en_status status = EN_OK;
    EN_REQUIRE_OUT(provided >= MPI_THREAD_FUNNELED, EN_ENOTSUP, "this MPI allows no threads beside the one that calls it");
    MPI_TRY_OUT(MPI_Comm_size(MPI_COMM_WORLD, &ranks));
    EN_REQUIRE_OUT(!(expected > 1 && ranks == 1), EN_EUSAGE, "the launcher says %d ranks but MPI sees one: it belongs to another"
                   " MPI than the one this program was built with", expected);
    MPI_TRY_OUT(MPI_Comm_dup(MPI_COMM_WORLD, &ours));
    EN_TRY(wrap(ours, finalize, out), "opening the world");      /* which finalises when it fails */
    status = en_watch_open(*out);
    if (status != EN_OK) {
        close_mpi(*out);
        *out = NULL;
    }
    return status;
out:
    if (finalize) MPI_Finalize();
    return status;
}

_Noreturn void en_comm_abort_mpi(int exit_code)
{
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    _Exit(exit_code);
}
