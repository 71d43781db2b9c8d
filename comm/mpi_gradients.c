/* mpi_gradients.c - sums of gradients between ranks under MPI, while they compute.
 *
 * Two ranks of one host sum at once, by MPI_Allreduce, when they begin: nothing moves while they compute, since who would move it
 * computes, and the next batch norm waits for both anyway.  a + b is b + a, so no algorithm can come to other bits, and the library's
 * works in pieces that stay in the caches (of more than AT_ONCE values at a time it does not, and takes fresh memory each time).
 *
 * All others: our own two rounds, not MPI_Iallreduce.  With P ranks a piece of m floats is cut into P slices:
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
 *   - only the EN_MPI_WINDOW sums from `oldest` on are moving, so as many scratch buffers of at most PIECE floats suffice; the
 *     oldest is moving on every rank that has begun it, so some sum can always finish;
 *   - messages of one sum carry tags of its own, so neither rounds nor sums can be taken for one another.
 *
 * Pace.  Between hosts batch norm's sums take the same way as the gradients, and whatever was handed to the network before them goes
 * first: a bucket that is sent at once is not hidden behind the passes, since the next batch norm waits until it is through.  So each
 * slice goes in chunks, one to each rank between two small sums, as large as the network carries while the passes between them run:
 *
 *     compute  ──pass──● sum ●──pass──pass──● sum ●──pass──▶
 *     network          ╰─────╯▒▒chunk▒▒     ╰─────╯▒▒chunk▒▒
 *
 * The sender cuts: a receive is posted for all that a slice still lacks, and says how much came.  The next chunk goes to a rank when
 * as many have come from it.  Passes follow one another alike in every step, so each gap between two small sums has a size of its own: a
 * chunk that has not come when the gap ends was too large (a quarter less in the next step), one that has may be larger (by a sixteenth;
 * twice as large as long as none was too large).  Who is late for whom only the receiver sees, and only the sender can help it: so after each
 * step the ranks tell each other what they saw in its gaps, and all have the same sizes.  That sum is through before it is asked
 * for, when gradients begin to move in the next step.  No size changes a bit of a sum of gradients.  Who waits for them has no passes to
 * hide them behind, and sends all at once.  On one host nothing moves while ranks compute, and there is nothing to pace. */
#include "comm/mpi_inside.h"

#include <string.h>

/* Chunks stay below what MPI sends without asking (mpi.c, init). */
enum { PIECE = 1 << 23, AT_ONCE = 1 << 21, BLOCK = 1024, LEAST_CHUNK = EN_LEAST_CHUNK / sizeof(float), FIRST_CHUNK = 1 << 16, LOOKS = 4 };
_Static_assert(EN_GRADIENT_CHUNK < (1 << 20), "a chunk is asked for");

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
static int tag_of(const struct en_request *r) { return (int)(r->seq % EN_MPI_TAGS) * 2 + (r->state == SHARE); }
static mpi_lane *lane_of(mpi_impl *m, const struct en_request *r) { return &m->lane[r->seq % EN_MPI_WINDOW]; }
static int rank_at(const en_comm *c, int distance) { return (c->rank + distance) % c->world_size; }

/* Once, before the first sum: address space for the largest piece; pages are touched as far as buckets reach. */
static en_status take_scratch(en_comm *c)
{
    mpi_impl *m = c->impl;
    const size_t bytes = (PIECE + 16 * (size_t)c->world_size) * sizeof(float);
    for (int k = 0; k < EN_MPI_WINDOW && c->world_size > 1; k++)
        if (!m->lane[k].scratch)
            EN_REQUIRE(m->lane[k].scratch = aligned_alloc(64, bytes), EN_ENOMEM, "no memory to exchange gradients (%zu bytes)", bytes);
    return EN_OK;
}

/* ---- a round: to every rank, from every rank ------------------------------------------------------------------------- */

static en_status expect(en_comm *c, const struct en_request *r, int distance)
{
    mpi_impl *m = c->impl;
    mpi_way *w = &lane_of(m, r)->way[distance];
    if (w->got < w->recv)
        MPI_TRY(MPI_Irecv(w->to + w->got, (int)(w->recv - w->got), MPI_FLOAT, rank_at(c, distance), tag_of(r), m->comm, &w->in));
    return EN_OK;
}

static en_status begin_round(en_comm *c, struct en_request *r, sum_state round)
{
    mpi_lane *lane = lane_of(c->impl, r);
    float *piece = r->buf + r->at;
    r->state = round;
    const size_t mine = slice_elems(c, r, c->rank);
    for (int d = 1; d < c->world_size; d++) {
        const int p = rank_at(c, d);
        float *theirs = piece + slice_begin(c, r, p);
        lane->way[d] = round == EXCHANGE ? (mpi_way){ .from = theirs, .send = slice_elems(c, r, p), .to = lane->scratch + mine * (size_t)(d - 1), .recv = mine }
                                         : (mpi_way){ .from = piece + slice_begin(c, r, c->rank), .send = mine, .to = theirs, .recv = slice_elems(c, r, p) };
        lane->way[d].out = lane->way[d].in = MPI_REQUEST_NULL;
        EN_TRY(expect(c, r, d), "expecting a slice");
    }
    return EN_OK;
}

static en_status begin_exchange(en_comm *c, struct en_request *r)
{
    r->piece = r->n - r->at < PIECE ? r->n - r->at : PIECE;
    return begin_round(c, r, EXCHANGE);
}

/* What has arrived, as far as it has. */
static en_status take_in(en_comm *c, const struct en_request *r)
{
    mpi_lane *lane = lane_of(c->impl, r);
    for (int d = 1; d < c->world_size; d++) {
        mpi_way *w = &lane->way[d];
        while (w->in != MPI_REQUEST_NULL) {
            MPI_Status came;
            int arrived = 0, count = 0;
            MPI_TRY(MPI_Test(&w->in, &arrived, &came));
            if (!arrived) break;
            MPI_TRY(MPI_Get_count(&came, MPI_FLOAT, &count));
            w->got += (size_t)count;
            w->chunks_got++;
            EN_TRY(expect(c, r, d), "expecting a slice");
        }
    }
    return EN_OK;
}

static bool all_over(const en_comm *c, const mpi_lane *lane)
{
    for (int d = 1; d < c->world_size; d++)
        if (lane->way[d].got < lane->way[d].recv || lane->way[d].sent < lane->way[d].send || lane->way[d].out != MPI_REQUEST_NULL) return false;
    return true;
}

/* Each rank starts with another partner: nobody is everybody's first. */
static en_status hand_over(en_comm *c, const struct en_request *r, bool paced)
{
    mpi_impl *m = c->impl;
    for (int d = 1; d < c->world_size; d++) {
        mpi_way *w = &lane_of(m, r)->way[d];
        int gone = 1;
        if (w->out != MPI_REQUEST_NULL) MPI_TRY(MPI_Test(&w->out, &gone, MPI_STATUS_IGNORE));
        if (!gone || w->sent == w->send || (paced && w->chunks_sent > w->chunks_got && w->got < w->recv)) continue;
        const size_t rest = w->send - w->sent, chunk = m->pace[m->gap].chunk, n = paced && rest > chunk ? chunk : rest;
        MPI_TRY(MPI_Isend(w->from + w->sent, (int)n, MPI_FLOAT, rank_at(c, d), tag_of(r), m->comm, &w->out));
        w->sent += n;
        w->chunks_sent++;
        m->handed_over = true;
        m->whole_chunk |= n == chunk;
    }
    return EN_OK;
}

/* my slice = sum over ranks, 0 first */
static void add_in_rank_order(en_comm *c, struct en_request *r)
{
    mpi_impl *m = c->impl;
    const int me = c->rank, ranks = c->world_size;
    const size_t mine = slice_elems(c, r, me);
    float *out = r->buf + r->at + slice_begin(c, r, me);
    m->source[me] = out;
    for (int d = 1; d < ranks; d++) m->source[rank_at(c, d)] = lane_of(m, r)->way[d].to;
    for (size_t at = 0; at < mine; at += BLOCK) {
        const size_t n = mine - at < BLOCK ? mine - at : BLOCK;
        float sum[BLOCK];
        memcpy(sum, m->source[0] + at, n * sizeof *sum);
        for (int p = 1; p < ranks; p++)
            for (size_t i = 0; i < n; i++) sum[i] += m->source[p][at + i];
        memcpy(out + at, sum, n * sizeof *sum);
    }
}

/* ---- sums ------------------------------------------------------------------------------------------------------------- */

/* Takes one sum as far as it goes without waiting.  sends: it may hand over, else it only takes in. */
static en_status advance(en_comm *c, struct en_request *r, bool sends, bool paced)
{
    mpi_impl *m = c->impl;
    if (r->state == QUEUED) {
        if (r->n == 0 || c->world_size == 1) r->state = DONE;
        else EN_TRY(begin_exchange(c, r), "exchanging slices");
    }
    while (r->state == EXCHANGE || r->state == SHARE) {
        EN_TRY(take_in(c, r), "taking slices");
        if (sends) EN_TRY(hand_over(c, r, paced), "sending slices");
        if (!all_over(c, lane_of(m, r))) return EN_OK;
        if (r->state == EXCHANGE) {
            add_in_rank_order(c, r);
            EN_TRY(begin_round(c, r, SHARE), "sharing sums");
        } else if ((r->at += r->piece) == r->n) {
            r->state = DONE;
        } else {
            EN_TRY(begin_exchange(c, r), "exchanging slices");
        }
    }
    return EN_OK;
}

/* Paced, one sum sends at a time: the oldest. */
static en_status advance_all(en_comm *c, bool paced)
{
    mpi_impl *m = c->impl;
    for (uint64_t seq = m->oldest; seq < m->next && seq < m->oldest + EN_MPI_WINDOW; seq++) {
        struct en_request *r = &m->slot[seq % EN_SUMS_IN_FLIGHT];
        if (r->state != DONE) EN_TRY(advance(c, r, !paced || seq == m->oldest, paced), "summing %zu values over %d ranks", r->n, c->world_size);
        if (seq == m->oldest && r->state == DONE) m->oldest++;
    }
    return EN_OK;
}

en_status en_mpi_hand_over(en_comm *c) { return advance_all(c, ((mpi_impl *)c->impl)->paced); }

/* What the gap that ends here was like. */
static en_status learn(en_comm *c)
{
    mpi_impl *m = c->impl;
    struct en_request *r = &m->slot[m->oldest % EN_SUMS_IN_FLIGHT];
    bool awaited = true;
    const bool handed_over = m->handed_over, whole_chunk = m->whole_chunk;
    m->handed_over = m->whole_chunk = false;
    if (!m->paced || !handed_over || (r->state != EXCHANGE && r->state != SHARE)) return EN_OK;
    for (int i = 0; i < LOOKS && awaited; i++) {           /* one look at a socket takes a part of what lies there */
        EN_TRY(take_in(c, r), "taking slices");
        awaited = false;
        for (int d = 1; d < c->world_size; d++) {
            const mpi_way *w = &lane_of(m, r)->way[d];
            awaited |= w->chunks_sent > w->chunks_got && w->got < w->recv;
        }
    }
    m->seen[m->gap] = awaited ? TOO_LARGE : whole_chunk ? IN_TIME : NOTHING;
    return EN_OK;
}

en_status en_mpi_look(en_comm *c)
{
    mpi_impl *m = c->impl;
    if (m->unwaited == 0) return EN_OK;
    EN_TRY(learn(c), "looking for gradients");
    if (m->gap + 1 < EN_MPI_GAPS) m->gap++;
    return EN_OK;
}

/* Behind the last sum of a step: collective, and does not wait. */
static en_status tell(en_comm *c)
{
    mpi_impl *m = c->impl;
    if (m->paced && m->gap > 0 && m->telling == MPI_REQUEST_NULL)
        MPI_TRY(MPI_Iallreduce(m->seen, m->told, EN_MPI_GAPS, MPI_UNSIGNED_CHAR, MPI_MAX, m->comm, &m->telling));
    m->gap = 0;
    return EN_OK;
}

/* Before the first of the next. */
static en_status be_told(en_comm *c)
{
    mpi_impl *m = c->impl;
    if (m->telling == MPI_REQUEST_NULL) return EN_OK;
    MPI_MEET("the pace of gradients", MPI_Wait(&m->telling, MPI_STATUS_IGNORE));
    for (int i = 0; i < EN_MPI_GAPS; i++) {
        size_t *chunk = &m->pace[i].chunk;
        m->pace[i].found |= m->told[i] == TOO_LARGE;
        if (m->told[i] == TOO_LARGE) *chunk -= *chunk / 4;
        else if (m->told[i] == IN_TIME) *chunk += m->pace[i].found ? *chunk / 16 : *chunk;
        if (*chunk < LEAST_CHUNK) *chunk = LEAST_CHUNK;
        if (*chunk > EN_GRADIENT_CHUNK / sizeof(float)) *chunk = EN_GRADIENT_CHUNK / sizeof(float);
    }
    memset(m->seen, NOTHING, sizeof m->seen);
    return EN_OK;
}

en_status en_mpi_progress(en_comm *c)
{
    EN_TRY(en_mpi_look(c), "advancing sums");
    return en_mpi_hand_over(c);
}

/* Leaves the sum done; those before it are. */
static en_status sum_of_two(en_comm *c, struct en_request *r)
{
    mpi_impl *m = c->impl;
    for (; r->at < r->n; r->at += r->piece) {
        r->piece = r->n - r->at < AT_ONCE ? r->n - r->at : AT_ONCE;
        MPI_MEET("the sum of gradients", MPI_Allreduce(MPI_IN_PLACE, r->buf + r->at, (int)r->piece, MPI_FLOAT, MPI_SUM, m->comm));
    }
    r->state = DONE;
    m->oldest++;
    return EN_OK;
}

en_status en_mpi_sum_begin(en_comm *c, float *buf, size_t n, en_request **out)
{
    mpi_impl *m = c->impl;
    struct en_request *r = &m->slot[m->next % EN_SUMS_IN_FLIGHT];
    EN_REQUIRE(r->state == FREE, EN_EINVAL, "more than %d sums begun and not waited for", EN_SUMS_IN_FLIGHT);
    const bool at_once = c->world_size == 2 && !m->paced;
    if (!at_once) EN_TRY(take_scratch(c), "preparing the sums of gradients");
    if (m->unwaited++ == 0) EN_TRY(be_told(c), "setting the pace of gradients");
    *r = (struct en_request){ .state = QUEUED, .seq = m->next++, .buf = buf, .n = n };
    *out = r;
    return at_once ? sum_of_two(c, r) : en_mpi_hand_over(c);
}

en_status en_mpi_sum_wait(en_comm *c, en_request *r)
{
    EN_REQUIRE(r && r->state != FREE, EN_EINVAL, "waiting for a sum that was not begun, or waited for before");
    mpi_impl *m = c->impl;
    en_status s = EN_OK;
    en_watch_enter("the sum of gradients");
    while (s == EN_OK && (r->state != DONE || m->oldest <= r->seq)) s = advance_all(c, false);      /* and the sums before it */
    en_watch_leave();
    EN_TRY(s, "waiting for a sum");
    m->handed_over = m->whole_chunk = false;   /* by who waits: says nothing of the pace */
    r->state = FREE;
    return --m->unwaited == 0 ? tell(c) : EN_OK;
}

en_status en_mpi_gradients_open(en_comm *c)
{
    mpi_impl *m = c->impl;
    for (int k = 0; k < EN_MPI_WINDOW; k++)
        EN_REQUIRE(m->lane[k].way = calloc((size_t)c->world_size, sizeof *m->lane[k].way), EN_ENOMEM, "no memory for the ways to %d ranks", c->world_size);
    EN_REQUIRE(m->source = calloc((size_t)c->world_size, sizeof *m->source), EN_ENOMEM, "no memory for %d ranks", c->world_size);
    for (int i = 0; i < EN_MPI_GAPS; i++) m->pace[i].chunk = FIRST_CHUNK;
    m->telling = MPI_REQUEST_NULL;
    m->paced = c->nodes > 1;
    return EN_OK;
}

void en_comm_pace_mpi(en_comm *c, bool paced) { ((mpi_impl *)c->impl)->paced = paced; }

void en_mpi_gradients_close(en_comm *c)
{
    mpi_impl *m = c->impl;
    while (m->oldest < m->next && advance_all(c, false) == EN_OK) continue;   /* MPI holds pointers into them */
    if (m->telling != MPI_REQUEST_NULL) (void)MPI_Wait(&m->telling, MPI_STATUS_IGNORE);
    for (int k = 0; k < EN_MPI_WINDOW; k++) { free(m->lane[k].scratch); free(m->lane[k].way); }
    free(m->source);
}
