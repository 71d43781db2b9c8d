/* bench/comm_rows.c - one sum after another, timed and checked.
 *
 *     every repetition    new values, written to where the communicator sums (a device's queue is empty afterwards)
 *                         a barrier of the control communicator
 *          clock on       a series of sums of different memory, each as a step makes it: begun and waited for; on a device also waited
 *          clock off      for by the host, so that what was only queued counts
 *                         every element against what the sum must be
 *
 * A repetition's time is that of the rank that takes longest, by its own clock, over the length of the series.  Ranks leave a barrier up
 * to a message apart, and the one that leaves first waits for the others within its first sum: of a single sum over a slow link half the
 * time were the barrier's.  One sum ends when the last has begun it, though, so over a series that counts once.  It is SERIES long, less
 * for sums that last, to which a message more makes little difference; a broadcast, which keeps no rank waiting for another, is alone.
 *
 * The first two repetitions, of one sum, connect, touch memory and say how long a series may be; they do not count.  After each of the
 * others rank 0's clock says whether there is time for one more.
 *
 * What belongs to a row (times, elements that are wrong) is gathered, not summed: the sums are what is on trial. */
#include "trainer/bench/comm.h"

#include "comm/watch.h"
#include "trainer/trainer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WARM = 2, LEAST = 5, MOST = 1000, CHUNK = 1 << 20, LINE = 64, QUEUED = 16, QUEUED_ROUNDS = 5, SERIES = 16, SERIES_BYTES = 64 << 20,
       BROADCAST_SMALL = 4 << 10, BROADCAST_LARGE = 1 << 20 };

typedef struct {
    const comm_work *w;
    const comm_place *place;                 /* whose memory it is                                                             */
    char       *memory; size_t bytes;        /* owned: the communicator's; inputs, and results where those lie apart           */
    void       *host;                        /* owned: CHUNK elements of the host, where that is another memory                */
    comm_values values, alone;               /* of a sum; of what rank 0 gives out                                             */
    uint32_t    salt;                        /* the same on all ranks                                                          */
} bench;

static size_t elem_bytes(comm_op op) { return op == COMM_SUM_F64 ? sizeof(double) : sizeof(float); }

/* ---- memory -------------------------------------------------------------------------------------------------------------- */

static size_t lines(size_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

/* Of one sum of a series: batch norm sums from one place into another, all others in place. */
static size_t stride_of(comm_op op, size_t bytes) { return lines(bytes) * (op == COMM_SUM_F64 ? 2 : 1); }

static int longest_series(comm_op op, size_t bytes)
{
    if (op == COMM_BROADCAST) return 1;
    const size_t stride = stride_of(op, bytes), fit = stride > 0 ? SERIES_BYTES / stride : SERIES;
    return fit < 1 ? 1 : fit < SERIES ? (int)fit : SERIES;
}

static void make_room(comm_op op, size_t bytes, size_t *most)
{
    const size_t needed = stride_of(op, bytes) * (size_t)longest_series(op, bytes);
    if (needed > *most) *most = needed;
}

static size_t bytes_needed(const comm_work *w)
{
    size_t most = BROADCAST_LARGE;
    for (int k = 0; k < w->n_sizes; k++) make_room(COMM_SUM_F32, w->sizes[k], &most);
    for (int k = 0; k < w->n_channels; k++) make_room(COMM_SUM_F64, (size_t)(2 * w->channels[k] + 1) * sizeof(double), &most);
    return most;
}

static en_status open_place(bench *b, const comm_place *place)
{
    en_backend *be = place->be;
    void *p = NULL;
    b->place = place;
    b->bytes = bytes_needed(b->w);
    if (!be) p = aligned_alloc(LINE, b->bytes);
    else EN_TRY(be->ops->alloc(be, b->bytes, &p), "%zu bytes to sum", b->bytes);
    b->memory = p;
    EN_REQUIRE(p, EN_ENOMEM, "no memory for sums of %zu bytes: --sizes asks for smaller ones", b->bytes);
    if (be) EN_TRY(be->ops->host_alloc(be, CHUNK * sizeof(double), &b->host), "memory to look at sums");
    return EN_OK;
}

static void close_place(bench *b)
{
    if (!b->place) return;
    en_backend *be = b->place->be;
    if (!be) free(b->memory);
    else {
        if (b->memory) be->ops->free(be, b->memory);
        be->ops->host_free(be, b->host);
    }
    b->place = NULL, b->memory = NULL, b->host = NULL;
}

static en_status settle(const bench *b) { return b->place->be ? b->place->be->ops->synchronize(b->place->be) : EN_OK; }

static char *place_of(const bench *b, const comm_row *r, int k) { return b->memory + (size_t)k * stride_of(r->op, r->bytes); }
static char *result_of(const bench *b, const comm_row *r, int k) { return place_of(b, r, k) + (r->op == COMM_SUM_F64 ? lines(r->bytes) : 0); }

static void draw_some(const bench *b, const comm_row *r, uint32_t salt, size_t at, size_t n, void *out)
{
    const int rank = b->place->comm->rank;
    if (r->op == COMM_SUM_F64) comm_fill_f64(&b->values, rank, salt, at, n, out);
    else comm_fill_f32(r->op == COMM_BROADCAST ? &b->alone : &b->values, rank, salt, at, n, out);
}

static en_status fill(const bench *b, const comm_row *r, int k)
{
    en_backend *be = b->place->be;
    const size_t e = elem_bytes(r->op);
    char *to = place_of(b, r, k);
    for (size_t at = 0; at < r->elems; at += CHUNK) {
        const size_t n = r->elems - at < CHUNK ? r->elems - at : CHUNK;
        draw_some(b, r, b->salt + (uint32_t)k, at, n, be ? b->host : to + at * e);
        if (be) EN_TRY(be->ops->upload(be, to + at * e, b->host, n * e), "writing %zu values", n);
    }
    return EN_OK;
}

static en_status count_wrong(const bench *b, comm_row *r, int k)
{
    en_backend *be = b->place->be;
    const size_t e = elem_bytes(r->op);
    const uint32_t salt = b->salt + (uint32_t)k;
    const char *result = result_of(b, r, k);
    for (size_t at = 0; at < r->elems; at += CHUNK) {
        const size_t n = r->elems - at < CHUNK ? r->elems - at : CHUNK;
        if (be) EN_TRY(be->ops->download(be, b->host, result + at * e, n * e), "reading %zu values", n);
        const void *got = be ? b->host : result + at * e;
        r->checked += (int64_t)n;
        if (r->op == COMM_SUM_F64) r->wrong += comm_wrong_f64(&b->values, salt, at, n, got);
        else r->wrong += comm_wrong_f32(r->op == COMM_BROADCAST ? &b->alone : &b->values, salt, at, n, got);
    }
    return EN_OK;
}

/* ---- one repetition ------------------------------------------------------------------------------------------------------ */

static en_status sum_parts(en_comm *c, float *x, size_t n, int parts)
{
    en_request *r[COMM_PARTS];
    for (int k = 0; k < parts; k++) {
        const size_t from = n * (size_t)k / (size_t)parts, to = n * ((size_t)k + 1) / (size_t)parts;
        EN_TRY(c->ops->sum_f32_begin(c, x + from, to - from, &r[k]), "sum %d of %d", k + 1, parts);
    }
    for (int k = 0; k < parts; k++) EN_TRY(c->ops->sum_wait(c, r[k]), "sum %d of %d", k + 1, parts);
    return EN_OK;
}

static en_status work(const bench *b, const comm_row *r, int k)
{
    en_comm *c = b->place->comm;
    char *x = place_of(b, r, k);
    switch (r->op) {
    case COMM_SUM_F32: return sum_parts(c, (float *)x, r->elems, 1);
    case COMM_SUM_PARTS: return sum_parts(c, (float *)x, r->elems, COMM_PARTS);
    case COMM_SUM_F64: return c->ops->sum_f64(c, (double *)x, (double *)result_of(b, r, k), r->elems);
    case COMM_BROADCAST: return c->ops->broadcast(c, x, r->bytes, 0);
    default: return c->ops->barrier(c);
    }
}

static en_status repeat_once(bench *b, comm_row *r, double *seconds)
{
    en_comm *control = b->w->control;
    const int n = r->series;
    b->salt += SERIES;
    for (int k = 0; k < n; k++) EN_TRY(fill(b, r, k), "filling");
    EN_TRY(settle(b), "filling");
    EN_TRY(control->ops->barrier(control), "a barrier");
    const double began = en_seconds();
    for (int k = 0; k < n; k++) {
        EN_TRY(work(b, r, k), "on it");
        EN_TRY(settle(b), "waiting for the device");
    }
    *seconds = (en_seconds() - began) / n;
    for (int k = 0; k < n; k++) EN_TRY(count_wrong(b, r, k), "checking");
    return EN_OK;
}

/* ---- a row --------------------------------------------------------------------------------------------------------------- */

/* Rank 0 gets the largest of each of n values over the ranks. */
static en_status largest(en_comm *c, double *v, int n)
{
    const bool root = c->rank == 0;
    double *all = root ? malloc((size_t)c->world_size * (size_t)n * sizeof *all) : NULL;
    if (root && !all) en_comm_abort(c, en_status_exit_code(EN_ENOMEM));
    const en_status s = c->ops->gather(c, v, (size_t)n * sizeof *v, all, 0);
    for (int k = 0; root && s == EN_OK && k < n; k++)
        for (int p = 0; p < c->world_size; p++) v[k] = fmax(v[k], all[(size_t)p * (size_t)n + (size_t)k]);
    free(all);
    return s;
}

/* Every rank gets the sums over the ranks, without a sum. */
static en_status add_up(en_comm *c, int64_t v[2])
{
    const bool root = c->rank == 0;
    int64_t (*all)[2] = root ? malloc((size_t)c->world_size * sizeof *all) : NULL;
    if (root && !all) en_comm_abort(c, en_status_exit_code(EN_ENOMEM));
    en_status s = c->ops->gather(c, v, sizeof *all, all, 0);
    for (int p = 1; root && s == EN_OK && p < c->world_size; p++) v[0] += all[p][0], v[1] += all[p][1];
    free(all);
    return s == EN_OK ? c->ops->broadcast(c, v, 2 * sizeof *v, 0) : s;
}

/* As many sums as take a part of the row's time, the same on all ranks; an even number: two ranks that began apart end together then. */
static en_status choose_series(const bench *b, comm_row *r, double one_s)
{
    const int most = longest_series(r->op, r->bytes);
    const double fit = b->w->row_s / 2 / fmax(one_s, 1e-9);
    r->series = fit < 1 ? 1 : fit < most ? (int)fit : most;
    r->series = r->series == 1 && fit >= 1 && most > 1 ? 2 : r->series > 1 ? r->series / 2 * 2 : 1;
    return b->w->control->ops->broadcast(b->w->control, &r->series, sizeof r->series, 0);
}

/* After `done` repetitions since `began`: another one?  Rank 0's clock says so to all. */
static en_status go_on(const bench *b, int64_t done, double began, bool *more)
{
    en_comm *c = b->w->control;
    *more = done < b->w->repetitions;
    if (b->w->repetitions > 0) return EN_OK;
    *more = done < LEAST;
    if (done < LEAST || done == MOST) return EN_OK;
    int8_t flag = en_seconds() - began < b->w->row_s;
    EN_TRY(c->ops->broadcast(c, &flag, sizeof flag, 0), "counting repetitions");
    *more = flag;
    return EN_OK;
}

/* What a sum costs a recorded step: between two marks on the queue, one after another.  Of zeros, which stay what they are. */
static en_status time_queued(bench *b, comm_row *r)
{
    en_backend *be = b->place->be;
    en_comm *control = b->w->control;
    double t[QUEUED_ROUNDS];
    EN_TRY(be->ops->zero(be, b->memory, b->bytes), "zeros");
    for (int k = 0; k < QUEUED_ROUNDS; k++) {
        EN_TRY(settle(b), "waiting for the device");
        EN_TRY(control->ops->barrier(control), "a barrier");
        EN_TRY(be->ops->mark(be, 0), "timing");
        for (int i = 0; i < QUEUED; i++) EN_TRY(work(b, r, 0), "on it");
        EN_TRY(be->ops->mark(be, 1), "timing");
        EN_TRY(settle(b), "waiting for the device");
        t[k] = be->ops->elapsed(be, 0, 1) / QUEUED;
    }
    EN_TRY(largest(control, t, QUEUED_ROUNDS), "comparing times");
    r->queued_s = comm_spread_of(t, QUEUED_ROUNDS).median;
    return EN_OK;
}

static en_status measure(bench *b, comm_row *r)
{
    en_comm *control = b->w->control;
    en_status status = EN_OK;
    double one_s = 0, *t = malloc((size_t)(b->w->repetitions > 0 ? b->w->repetitions : MOST) * sizeof *t);
    if (!t) en_comm_abort(control, en_status_exit_code(EN_ENOMEM));
    r->place = b->place;
    r->bytes = r->elems * elem_bytes(r->op);
    r->parts_s = r->queued_s = NAN;
    en_watch_at(EN_STARTUP, NULL);
    r->series = 1;
    for (int k = 0; k < WARM; k++) EN_TRY_OUT(repeat_once(b, r, &one_s), "warming up");
    EN_TRY_OUT(choose_series(b, r, one_s), "choosing how many sums in a row");
    const double began = en_seconds();
    for (bool more = true; more;) {
        EN_TRY_OUT(repeat_once(b, r, &t[r->count]), "repetition %lld", (long long)r->count);
        r->count++;
        EN_TRY_OUT(go_on(b, r->count, began, &more), "repetition %lld", (long long)r->count);
    }
    EN_TRY_OUT(largest(control, t, (int)r->count), "comparing times");
    if (control->rank == 0) r->seconds = comm_spread_of(t, (int)r->count);
    int64_t tally[2] = { r->checked, r->wrong };
    EN_TRY_OUT(add_up(control, tally), "counting what is wrong");
    r->checked = tally[0], r->wrong = tally[1];
    if (b->place->comm->captures && control->world_size > 1 && (r->op == COMM_SUM_F32 || r->op == COMM_SUM_F64)) EN_TRY_OUT(time_queued(b, r), "queued sums");
out:
    free(t);
    return status;
}

/* ---- all rows ------------------------------------------------------------------------------------------------------------ */

static comm_row *next_row(comm_table *t, comm_op op, size_t elems)
{
    comm_row *r = &t->rows[t->n_rows++];
    *r = (comm_row){ .op = op, .elems = elems };
    return r;
}

static en_status gradient_sums(bench *b, comm_table *t)
{
    for (int k = 0; k < b->w->n_sizes; k++) {
        comm_row *r = next_row(t, COMM_SUM_F32, b->w->sizes[k] / sizeof(float)), parts = { .op = COMM_SUM_PARTS, .elems = r->elems };
        EN_TRY(measure(b, r), "sums of %zu bytes", b->w->sizes[k]);
        t->wrong += r->wrong;
        if (r->elems >= COMM_PARTS) {
            EN_TRY(measure(b, &parts), "sums of %zu bytes in %d parts", b->w->sizes[k], COMM_PARTS);
            r->parts_s = parts.seconds.median;
            r->checked += parts.checked, r->wrong += parts.wrong;
            t->wrong += parts.wrong;
        }
        char enough = b->w->slow_s > 0 && r->seconds.median > b->w->slow_s && k + 1 < b->w->n_sizes;
        EN_TRY(b->w->control->ops->broadcast(b->w->control, &enough, 1, 0), "going on to larger sums");
        if (enough) {
            if (t->too_slow == 0 || b->w->sizes[k + 1] < t->too_slow) t->too_slow = b->w->sizes[k + 1];
            break;
        }
    }
    return EN_OK;
}

static en_status small_sums(bench *b, comm_table *t)
{
    for (int k = 0; k < b->w->n_channels; k++) {
        comm_row *r = next_row(t, COMM_SUM_F64, (size_t)(2 * b->w->channels[k] + 1));
        r->channels = b->w->channels[k], r->layers = b->w->layers[k];
        EN_TRY(measure(b, r), "sums of batch norm over %lld channels", (long long)r->channels);
        t->wrong += r->wrong;
    }
    return EN_OK;
}

static en_status others(bench *b, comm_table *t)
{
    static const size_t bytes[] = { BROADCAST_SMALL, BROADCAST_LARGE };
    for (size_t k = 0; k < sizeof bytes / sizeof *bytes; k++) {
        comm_row *r = next_row(t, COMM_BROADCAST, bytes[k] / sizeof(float));
        EN_TRY(measure(b, r), "broadcasts of %zu bytes", bytes[k]);
        t->wrong += r->wrong;
    }
    return measure(b, next_row(t, COMM_BARRIER, 0));
}

en_status comm_measure(const comm_work *w, comm_table *t)
{
    en_comm *control = w->control;
    en_status status = EN_OK;
    bench b = { .w = w, .values = comm_values_of(control->world_size), .alone = comm_values_of(1) };
    *t = (comm_table){ .rows = calloc((size_t)(w->n_places * (w->n_sizes + w->n_channels) + 3), sizeof *t->rows) };
    if (!t->rows) en_comm_abort(control, en_status_exit_code(EN_ENOMEM));
    for (int k = 0; k < w->n_places; k++) {
        EN_TRY_OUT(en_agree(control, open_place(&b, &w->places[k])), "preparing");
        EN_TRY_OUT(gradient_sums(&b, t), "%s (%s)", w->places[k].role, w->places[k].comm->name);
        EN_TRY_OUT(small_sums(&b, t), "%s (%s)", w->places[k].role, w->places[k].comm->name);
        if (k == 0) EN_TRY_OUT(others(&b, t), "%s (%s)", w->places[k].role, w->places[k].comm->name);
        close_place(&b);
    }
out:
    close_place(&b);
    return status;
}

void comm_table_free(comm_table *t)
{
    free(t->rows);
    *t = (comm_table){ 0 };
}
