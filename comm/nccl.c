/* nccl.c - sums between GPUs, queued beside the passes.  Part of the CUDA plugin.
 *
 * One stream of high priority carries every sum of this rank, those of split groups too, in the order of the calls; all ranks
 * call in one order, so no two sums can wait for each other crosswise, which concurrent communicators of NCCL may do.
 *
 *     compute ──pass──●──────────────●──pass──▶      sum_f64: the passes behind it see the sum
 *                     │ready     done│
 *     sums    ────────●──all-reduce──●────────▶
 *
 *     compute ──pass──●──pass──pass──pass──●──▶      sum_f32_begin ... sum_wait
 *                     │ready           done│
 *     sums    ────────●──all-reduce────────●──▶
 *
 * The host waits for neither; recorded, the events become edges of the graph.  Outside of recordings the host stays at most
 * AHEAD sums ahead of the device: it then never stands in a launch for which the driver's queue has no room, where nothing
 * could reach it, and it knows which sum a peer left unfinished.
 *
 * What can go wrong on the way is nccl_watch.c's.  Communicators are non-blocking: a call returns at once, and we ask until it
 * is through, under a deadline. */
#define _GNU_SOURCE
#include "comm/nccl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/plugin.h"

#define EXPORTED __attribute__((visibility("default")))

struct en_request { bool taken, empty; cudaEvent_t done; };

typedef struct {
    wires *w;                                  /* owned by the world */
    int    at;                                 /* of w->comm; -1: a group of this rank alone */
    bool   world;
    struct en_request slot[EN_SUMS_IN_FLIGHT];
} group;

/* ---- sums -------------------------------------------------------------------------------------------------------------- */

/* Queues out = sum over the group of in; *done is recorded behind it. */
static en_status queue_sum(group *g, const char *what, const void *in, void *out, size_t n, ncclDataType_t type, cudaEvent_t *done)
{
    wires *w = g->w;
    enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    WHOLE(w);
    CU_TRY(cudaStreamIsCapturing(w->compute, &capture), "%s", what);
    const bool recording = capture != cudaStreamCaptureStatusNone;
    if (!recording) EN_TRY(en_nccl_make_room(w), "%s", what);
    const int k = (int)(w->issued % AHEAD);
    CU_TRY(cudaEventRecord(w->ready, w->compute), "%s", what);
    CU_TRY(cudaStreamWaitEvent(w->sums, w->ready, 0), "%s", what);
    const ncclResult_t r = en_nccl_ask(w, w->comm[g->at], w->nccl->AllReduce(in, out, n, type, ncclSum, w->comm[g->at], w->sums),
                               en_nccl_within(w, START_S));             /* the first ones connect */
    EN_REQUIRE(r != ncclInvalidArgument, EN_EINVAL, "%s of %zu values: %.150s", what, n, en_nccl_words(w, w->comm[g->at], r));
    if (r != ncclSuccess)
        return en_nccl_broken(w, "%s of %zu values cannot be queued: %.150s", what, n,
                              r == ncclInProgress ? "another rank did not arrive" : en_nccl_words(w, w->comm[g->at], r));
    *done = recording ? w->recorded : w->flight[k].done;
    CU_TRY(cudaEventRecord(*done, w->sums), "%s", what);
    w->replays |= recording;
    if (!recording) {
        w->flight[k].what = what;
        w->flight[k].n = n;
        w->flight[k].queued = true;
        w->issued++;
    }
    return EN_OK;
}

static en_status sum_f64(en_comm *c, const double *in, double *out, size_t n)
{
    group *g = c->impl;
    cudaEvent_t done;
    if (n == 0 || (g->at < 0 && in == out)) return EN_OK;
    if (g->at < 0) {
        CU_TRY(cudaMemcpyAsync(out, in, n * sizeof *out, cudaMemcpyDeviceToDevice, g->w->compute), "a sum over one rank");
        return EN_OK;
    }
    EN_TRY(queue_sum(g, "a sum", in, out, n, ncclFloat64, &done), "summing over %d ranks", c->world_size);
    CU_TRY(cudaStreamWaitEvent(g->w->compute, done, 0), "summing over %d ranks", c->world_size);
    return EN_OK;
}

static en_status sum_f32_begin(en_comm *c, float *buf, size_t n, en_request **out)
{
    group *g = c->impl;
    struct en_request *r = NULL;
    cudaEvent_t done;
    for (int i = 0; i < EN_SUMS_IN_FLIGHT && !r; i++)
        if (!g->slot[i].taken) r = &g->slot[i];
    EN_REQUIRE(r, EN_EINVAL, "more than %d sums begun and not waited for", EN_SUMS_IN_FLIGHT);
    if (!r->done) CU_TRY(cudaEventCreateWithFlags(&r->done, cudaEventDisableTiming), "beginning a sum");
    r->empty = n == 0 || g->at < 0;
    if (!r->empty) {
        EN_TRY(queue_sum(g, "the sum of gradients", buf, buf, n, ncclFloat32, &done), "summing over %d ranks", c->world_size);
        CU_TRY(cudaEventRecord(r->done, g->w->sums), "summing over %d ranks", c->world_size);
    }
    r->taken = true;
    *out = r;
    return EN_OK;
}

static en_status sum_wait(en_comm *c, en_request *r)
{
    group *g = c->impl;
    EN_REQUIRE(r && r->taken, EN_EINVAL, "waiting for a sum that was not begun, or waited for before");
    r->taken = false;
    WHOLE(g->w);
    if (!r->empty) CU_TRY(cudaStreamWaitEvent(g->w->compute, r->done, 0), "waiting for a sum");
    return EN_OK;
}

static en_status progress(en_comm *c) { return en_nccl_look(((group *)c->impl)->w); }

/* ---- opening, splitting, closing --------------------------------------------------------------------------------------- */

static void close_nccl(en_comm *c);
static en_status split(en_comm *c, int color, en_comm **out);

static const struct en_comm_ops nccl_ops = {
    .sum_f64 = sum_f64, .sum_f32_begin = sum_f32_begin, .sum_wait = sum_wait, .progress = progress, .broadcast = en_control_broadcast,
    .gather = en_control_gather, .barrier = en_control_barrier, .split = split, .close = close_nccl,
};

/* Takes `control` over unless it is the world's; owns nothing of NCCL's on failure. */
static en_status wrap(wires *w, en_comm *control, int at, bool world, en_comm **out)
{
    en_comm *c = calloc(1, sizeof *c);
    group *g = calloc(1, sizeof *g);
    if (!c || !g) {
        free(c); free(g);
        EN_REQUIRE(false, EN_ENOMEM, "no memory for a communicator");
    }
    *g = (group){ .w = w, .at = at, .world = world };
    *c = en_beside(control, "nccl", &nccl_ops, g);
    c->captures = true;
    *out = c;
    return EN_OK;
}

static ncclConfig_t configured(void)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.splitShare = 1;                     /* groups use the world's buffers: sums follow one another anyway */
    return config;
}

static en_status join(wires *w, en_comm *control)
{
    struct { ncclResult_t result; char words[160]; ncclUniqueId id; } hello = { .result = ncclSuccess };
    if (control->rank == 0) {
        hello.result = w->nccl->GetUniqueId(&hello.id);
        if (hello.result != ncclSuccess) snprintf(hello.words, sizeof hello.words, "%s", en_nccl_words(w, NULL, hello.result));
    }
    EN_TRY(control->ops->broadcast(control, &hello, sizeof hello, 0), "starting NCCL");
    EN_REQUIRE(hello.result == ncclSuccess, EN_ENOTSUP, "NCCL finds no way to start: %s", hello.words);
    ncclConfig_t config = configured();
    const ncclResult_t r = w->nccl->CommInitRankConfig(&w->comm[0], control->world_size, hello.id, control->rank, &config);
    return en_nccl_settle(w, w->comm[0], r, en_nccl_within(w, START_S), "starting NCCL");
}

/* Small sums connect the ranks, and show that what comes out is a sum. */
static en_status try_it(en_comm *c)
{
    en_backend *be = ((group *)c->impl)->w->be;
    const double one = 1;
    const float onef = 1;
    double sum = 0;
    float sumf = 0;
    void *device = NULL;
    en_request *r;
    en_status status;
    EN_TRY(be->ops->alloc(be, 256, &device), "memory");
    double *d = device;
    float *f = (float *)device + 32;
    EN_TRY_OUT(be->ops->upload(be, d, &one, sizeof one), "a double");
    EN_TRY_OUT(be->ops->upload(be, f, &onef, sizeof onef), "a float");
    EN_TRY_OUT(sum_f32_begin(c, f, 1, &r), "a sum of floats");
    EN_TRY_OUT(sum_f64(c, d, d, 1), "a sum of doubles");
    EN_TRY_OUT(sum_wait(c, r), "a sum of floats");
    EN_TRY_OUT(be->ops->synchronize(be), "waiting for sums");
    EN_TRY_OUT(be->ops->download(be, &sum, d, sizeof sum), "reading a sum");
    EN_TRY_OUT(be->ops->download(be, &sumf, f, sizeof sumf), "reading a sum");
    EN_REQUIRE_OUT(sum == c->world_size && sumf == (float)c->world_size, EN_ENOTSUP, "NCCL sums %d ones to %g and %g: the GPUs do not reach one"
                   " another's memory, often because of an IOMMU or ACS; NCCL_P2P_DISABLE=1 goes round it", c->world_size, sum, (double)sumf);
out:
    if (status != EN_OK) en_nccl_abort(((group *)c->impl)->w);           /* `free` waits for the device */
    be->ops->free(be, device);
    return status;
}

static void free_wires(wires *w)
{
    for (int i = 0; i < AHEAD; i++)
        if (w->flight[i].done) (void)cudaEventDestroy(w->flight[i].done);
    if (w->ready) (void)cudaEventDestroy(w->ready);
    if (w->probe) (void)cudaEventDestroy(w->probe);
    if (w->recorded) (void)cudaEventDestroy(w->recorded);
    if (w->sums) (void)cudaStreamDestroy(w->sums);
    (void)cudaGetLastError();
    if (w->be->watcher == w) w->be->watch = NULL, w->be->watcher = NULL;
    free(w);
}

static en_status lay(wires *w)
{
    int least = 0, greatest = 0;
    CU_TRY(cudaDeviceGetStreamPriorityRange(&least, &greatest), "a stream for sums");
    CU_TRY(cudaStreamCreateWithPriority(&w->sums, cudaStreamNonBlocking, greatest), "a stream for sums");
    CU_TRY(cudaEventCreateWithFlags(&w->ready, cudaEventDisableTiming), "events for sums");
    CU_TRY(cudaEventCreateWithFlags(&w->probe, cudaEventDisableTiming), "events for sums");
    CU_TRY(cudaEventCreateWithFlags(&w->recorded, cudaEventDisableTiming), "events for sums");
    for (int i = 0; i < AHEAD; i++) CU_TRY(cudaEventCreateWithFlags(&w->flight[i].done, cudaEventDisableTiming), "events for sums");
    return EN_OK;
}

EXPORTED bool en_nccl_probe(char *why, size_t size) { return en_nccl_load(why, size) != NULL; }

EXPORTED en_status en_nccl_open(en_comm *control, en_backend *be, const struct en_waits *waits, en_comm **out)
{
    char why[256] = "";
    en_status status;
    *out = NULL;
    wires *w = calloc(1, sizeof *w);
    EN_REQUIRE(w, EN_ENOMEM, "no memory for a communicator");
    w->be = be;
    w->waits = *waits;
    w->compute = en_cuda_stream(be);
    EN_REQUIRE_OUT(w->nccl = en_nccl_load(why, sizeof why), EN_ENOTSUP, "%s", why);
    EN_REQUIRE_OUT(w->compute, EN_EINVAL, "NCCL sums what lies on a GPU, and this backend is %s", be->name);
    EN_TRY_OUT(lay(w), "starting NCCL");
    EN_TRY_OUT(join(w, control), "starting NCCL");
    EN_TRY_OUT(wrap(w, control, 0, true, out), "starting NCCL");
    be->watch = en_nccl_watch;
    be->watcher = w;
    w->opening = true;
    EN_TRY_OUT(try_it(*out), "trying NCCL");
    w->opening = false;
    return EN_OK;
out:
    if (w->nccl) en_nccl_abort(w);
    if (*out) {
        close_nccl(*out);
        *out = NULL;
    } else {
        free_wires(w);
    }
    return status;
}

static en_status split(en_comm *c, int color, en_comm **out)
{
    group *g = c->impl;
    wires *w = g->w;
    en_comm *part = NULL;
    en_status status = EN_OK;
    int at = -1;
    *out = NULL;
    WHOLE(w);
    EN_TRY(c->control->ops->split(c->control, color, &part), "splitting %d ranks", c->world_size);
    if (g->at >= 0) {                          /* a group of one has no part in NCCL's, but takes part in the split */
        for (int i = 1; part->world_size > 1 && i < GROUPS && at < 0; i++)
            if (!w->comm[i]) at = i;
        EN_REQUIRE_OUT(at > 0 || part->world_size == 1, EN_EINVAL, "more than %d groups of ranks", GROUPS);
        ncclComm_t comm = NULL;
        ncclConfig_t config = configured();
        const double most = en_nccl_within(w, START_S);
        const ncclResult_t r = w->nccl->CommSplit(w->comm[g->at], at > 0 ? color : NCCL_SPLIT_NOCOLOR, c->rank, &comm, &config);
        EN_TRY_OUT(en_nccl_settle(w, w->comm[g->at], r, most, "splitting NCCL's ranks"), "splitting %d ranks", c->world_size);
        if (at > 0) {                          /* it is there once its parent is through */
            w->comm[at] = comm;
            EN_TRY_OUT(en_nccl_settle(w, comm, ncclInProgress, most, "splitting NCCL's ranks"), "splitting %d ranks", c->world_size);
        }
    }
    EN_TRY_OUT(wrap(w, part, at, false, out), "splitting %d ranks", c->world_size);
    return EN_OK;
out:
    if (part) part->ops->close(part);
    return en_nccl_broken(w, "splitting %d ranks failed: %.200s", c->world_size, en_error_message()), status;
}

/* All ranks that close together flush what is queued; after a failure each is by itself. */
static void close_nccl(en_comm *c)
{
    group *g = c->impl;
    wires *w = g->w;
    for (int i = 0; i < EN_SUMS_IN_FLIGHT; i++)
        if (!w->failed && g->slot[i].taken && !g->slot[i].empty) (void)cudaStreamWaitEvent(w->compute, g->slot[i].done, 0);
    if (!w->failed && g->at >= 0 && w->be->ops->synchronize(w->be) != EN_OK) en_nccl_abort(w);
    if (g->at >= 0 && w->comm[g->at]) {
        const ncclComm_t comm = w->comm[g->at];
        w->comm[g->at] = NULL;
        w->waits.enter("the end of NCCL", 2 * END_S);
        if (en_nccl_ask(w, comm, w->nccl->CommFinalize(comm), en_nccl_within(w, END_S)) == ncclSuccess) (void)w->nccl->CommDestroy(comm);
        else (void)w->nccl->CommAbort(comm);
        w->waits.leave();
    }
    for (int i = 0; i < EN_SUMS_IN_FLIGHT; i++)
        if (g->slot[i].done) (void)cudaEventDestroy(g->slot[i].done);
    (void)cudaGetLastError();
    if (g->world) free_wires(w);
    else c->control->ops->close(c->control);
    free(g);
    free(c);
}

EXPORTED void en_nccl_give_up(en_comm *c)
{
    en_nccl_abort(((group *)c->impl)->w);
    close_nccl(c);
}
