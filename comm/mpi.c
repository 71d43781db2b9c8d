/* mpi.c - ranks under MPI, and their small sums; mpi_gradients.c has those of gradients.
 *
 * Small blocking sums (batch norm, agreement) wait for the network and for little else, so what counts is how many messages
 * follow one another.  Up to EN_SMALL_SUM_RANKS ranks send each other all they have, and each adds it up in rank order: one message.
 * Above that, and for longer sums, MPI_Allreduce: every algorithm that Open MPI and MPICH have for it either lets one rank
 * compute an element and hands the result on (ring, reduce-scatter, reduce + broadcast), or doubles recursively, where both
 * partners form a+b and b+a: the same bits, because IEEE addition commutes.  (Of few ranks Open MPI 4.1 takes a ring for 4 to 8
 * KiB and above 16: 2(P-1) messages.)
 *
 * Only the thread that opened the communicator calls it (MPI_THREAD_FUNNELED). */
#include "comm/mpi_inside.h"

#include <stdio.h>
#include <string.h>

enum { SMALL_TAG = 2 * EN_MPI_TAGS };

en_status en_mpi_failed(const char *file, int line, const char *func, int rc, const char *call)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0, class = MPI_SUCCESS;
    MPI_Error_string(rc, text, &length);
    MPI_Error_class(rc, &class);
    return en_raise(class == MPI_ERR_NO_MEM ? EN_ENOMEM : EN_EPEER, file, line, func, "%.*s: %s",
                    (int)strcspn(call, "("), call, text);
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

static en_status sum_small(en_comm *c, const double *in, double *out, size_t n)
{
    mpi_impl *m = c->impl;
    if (m->others && n <= EN_SMALL_SUM_VALUES) return sum_at_once(c, in, out, n);
    for (size_t at = 0; at < n; at += EN_MPI_MAX_COUNT) {
        const int count = (int)(n - at < EN_MPI_MAX_COUNT ? n - at : EN_MPI_MAX_COUNT);
        MPI_MEET("a sum", MPI_Allreduce(in == out ? MPI_IN_PLACE : in + at, out + at, count, MPI_DOUBLE, MPI_SUM, m->comm));
    }
    return EN_OK;
}

/* Gradients behind it, not before: it would wait for them (mpi_gradients.c). */
static en_status sum_f64(en_comm *c, const double *in, double *out, size_t n)
{
    const mpi_impl *m = c->impl;
    EN_TRY(en_mpi_look(c), "looking for gradients");
    EN_TRY(sum_small(c, in, out, n), "a sum over %d ranks", c->world_size);
    if (m->oldest < m->next) EN_TRY(en_mpi_hand_over(c), "advancing the gradients' sums");
    return EN_OK;
}

static en_status broadcast(en_comm *c, void *buf, size_t bytes, int root)
{
    mpi_impl *m = c->impl;
    EN_REQUIRE(root >= 0 && root < c->world_size, EN_EINVAL, "broadcast from rank %d of %d", root, c->world_size);
    for (size_t at = 0; at < bytes; at += EN_MPI_MAX_COUNT)
        MPI_MEET("a broadcast", MPI_Bcast((char *)buf + at, (int)(bytes - at < EN_MPI_MAX_COUNT ? bytes - at : EN_MPI_MAX_COUNT), MPI_BYTE, root, m->comm));
    return EN_OK;
}

static en_status gather(en_comm *c, const void *in, size_t bytes, void *out, int root)
{
    mpi_impl *m = c->impl;
    EN_REQUIRE(root >= 0 && root < c->world_size, EN_EINVAL, "gather to rank %d of %d", root, c->world_size);
    EN_REQUIRE(bytes <= EN_MPI_MAX_COUNT, EN_EINVAL, "a block of %zu bytes is more than gather takes (%d)", bytes, EN_MPI_MAX_COUNT);
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
        en_mpi_gradients_close(c);
        if (m->finalize) {
            en_watch_enter("the end of the run");
            MPI_Barrier(m->comm);              /* nobody exits while another is still before this line */
            en_watch_leave();
            en_watch_part();
        }
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
    .sum_f64 = sum_f64, .sum_f32_begin = en_mpi_sum_begin, .sum_wait = en_mpi_sum_wait, .progress = en_mpi_progress, .broadcast = broadcast,
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
    if (c->world_size > 1 && c->world_size <= EN_SMALL_SUM_RANKS)
        EN_REQUIRE_OUT(m->others = malloc((size_t)(c->world_size - 1) * EN_SMALL_SUM_VALUES * sizeof *m->others), EN_ENOMEM, "no memory for %d ranks", c->world_size);
    EN_TRY_OUT(find_places(c, comm), "finding out who shares a host");
    EN_TRY_OUT(en_mpi_gradients_open(c), "preparing the sums of gradients");
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
