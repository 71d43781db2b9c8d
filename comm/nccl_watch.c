/* nccl_watch.c - noticing that a sum between GPUs will never end, and ending it.
 *
 * The host asks while it waits for the device (be->watch), while it makes room for a sum, and in `progress`:
 *
 *     NCCL reports a broken connection  ┐
 *     a call of NCCL's returns an error ├──▶ abort all communicators, which ends their kernels ──▶ EN_EPEER from then on
 *     no progress for the limit         ┘
 *
 * Progress is an event, the probe, that is set behind everything queued so far, and set again when the device has reached it:
 * the host may wait for long work as long as it likes, if only the device gets through it. */
#define _GNU_SOURCE
#include "comm/nccl.h"

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- failure ----------------------------------------------------------------------------------------------------------- */

static void name_flight(wires *w, char *text, size_t size)
{
    for (uint64_t i = w->issued > AHEAD ? w->issued - AHEAD : 0; i < w->issued; i++) {
        const int k = (int)(i % AHEAD);
        if (!w->flight[k].queued || cudaEventQuery(w->flight[k].done) != cudaErrorNotReady) continue;
        snprintf(text, size, "%s of %zu values", w->flight[k].what, w->flight[k].n);
        (void)cudaGetLastError();
        return;
    }
    (void)cudaGetLastError();
    snprintf(text, size, w->replays ? "a recorded step" : "no sum of this rank's");
}

/* Ends the kernels that wait for a peer; NCCL itself may hang in it, then watch.c ends the process. */
void en_nccl_abort(wires *w)
{
    w->failed = true;
    w->waits.enter("giving up NCCL's sums", ABORT_S);
    for (int i = GROUPS - 1; i >= 0; i--)      /* groups before the world whose resources they share */
        if (w->comm[i]) {
            (void)w->nccl->CommAbort(w->comm[i]);
            w->comm[i] = NULL;
        }
    w->waits.leave();
}

en_status en_nccl_broken(wires *w, const char *fmt, ...)
{
    if (!w->failed) {
        char flight[120];
        va_list args;
        name_flight(w, flight, sizeof flight);
        va_start(args, fmt);
        const int n = vsnprintf(w->trouble, sizeof w->trouble, fmt, args);
        va_end(args);
        if (n >= 0 && (size_t)n < sizeof w->trouble) snprintf(w->trouble + n, sizeof w->trouble - (size_t)n, "; in flight: %s", flight);
        en_nccl_abort(w);
    }
    return en_raise(EN_EPEER, __FILE__, __LINE__, __func__, "%s", w->trouble);
}

/* ---- waiting ----------------------------------------------------------------------------------------------------------- */

ncclResult_t en_nccl_ask(wires *w, ncclComm_t comm, ncclResult_t r, double within)
{
    const double from = now_s();
    for (int asked = 0; r == ncclInProgress; asked++) {
        if (now_s() - from > within) return r;
        ncclResult_t state = ncclSuccess;
        r = w->nccl->CommGetAsyncError(comm, &state);
        if (r == ncclSuccess) r = state;
        if (asked > 1000) nanosleep(&(struct timespec){ .tv_nsec = 200000 }, NULL);
        else sched_yield();
    }
    return r;
}

const char *en_nccl_words(wires *w, ncclComm_t comm, ncclResult_t r)
{
    const char *last = w->nccl->GetLastError(comm);
    return last && *last ? last : w->nccl->GetErrorString(r);
}

en_status en_nccl_settle(wires *w, ncclComm_t comm, ncclResult_t r, double within, const char *what)
{
    r = en_nccl_ask(w, comm, r, within);
    EN_REQUIRE(r != ncclInProgress, EN_EPEER, "%s: not through after %.3g s, another rank did not arrive (NCCL_DEBUG=INFO tells more)", what,
               within);
    EN_REQUIRE(r == ncclSuccess, r == ncclRemoteError ? EN_EPEER : r == ncclInvalidArgument ? EN_EINVAL : EN_ENOTSUP,
               "%s: %.150s (NCCL_DEBUG=INFO tells more)", what, en_nccl_words(w, comm, r));
    return EN_OK;
}

double en_nccl_within(const wires *w, double seconds)
{
    const double half = 0.5 * w->waits.limit_s();
    return half > 0 && half < seconds ? half : seconds;
}

en_status en_nccl_look(wires *w)
{
    WHOLE(w);
    for (int i = 0; i < GROUPS; i++) {
        ncclResult_t state = ncclSuccess;
        if (!w->comm[i]) continue;
        const ncclResult_t r = w->nccl->CommGetAsyncError(w->comm[i], &state);
        if (r != ncclSuccess) state = r;
        if (state != ncclSuccess && state != ncclInProgress)
            return en_nccl_broken(w, "another rank failed, says NCCL: %.150s", en_nccl_words(w, w->comm[i], state));
    }
    return EN_OK;
}

en_status en_nccl_watch(void *watcher)
{
    wires *w = watcher;
    EN_TRY(en_nccl_look(w), "watching the other ranks");
    const double now = now_s(), passed = now - w->asked;
    w->asked = now;
    if (w->probing && cudaEventQuery(w->probe) == cudaErrorNotReady) {
        (void)cudaGetLastError();
        w->waited += passed < 1 ? passed : 1;                        /* a job that was suspended did not wait */
        const double limit = w->opening ? en_nccl_within(w, START_S) : w->waits.limit_s();
        if (limit > 0 && w->waited > limit) {
            char where[200];
            w->waits.where(where, sizeof where);
            return en_nccl_broken(w, "the device has waited for %.0f s in %s, another rank did not arrive (--stall-timeout or EFFNET_STALL_S sets the limit)",
                                  w->waited, where);
        }
        return EN_OK;
    }
    (void)cudaGetLastError();
    w->waits.alive();
    w->waited = 0;
    w->probing = true;
    CU_TRY(cudaEventRecord(w->probe, w->compute), "watching the other ranks");
    return EN_OK;
}

en_status en_nccl_make_room(wires *w)
{
    const int k = (int)(w->issued % AHEAD);
    double asked = now_s();
    while (w->flight[k].queued) {
        const cudaError_t e = cudaEventQuery(w->flight[k].done);
        w->flight[k].queued = e == cudaErrorNotReady;
        if (e != cudaErrorNotReady) CU_TRY(e, "waiting for the device");
        else if ((void)cudaGetLastError(), sched_yield(), now_s() - asked > 2e-3) {
            EN_TRY(en_nccl_watch(w), "waiting for %s of %zu values", w->flight[k].what, w->flight[k].n);
            asked = now_s();
        }
    }
    return EN_OK;
}
