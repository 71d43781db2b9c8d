/* events.cpp - events, and streams that wait for them.
 *
 * An event counts how often cudaEventRecord was called and how often a queue has come past such a call; who waits, waits for the
 * count at the time of waiting.  Recorded in a captured stream it stands for the nodes captured so far instead (graphs.cpp),
 * unless the call says "external": then the record is a node, and times every replay. */
#include "streams.h"
#include <algorithm>

namespace cudaemu {

static cudaError_t record(const EventRef &e, cudaStream_t s)       // as an operation: outside captures, and external ones
{
    return submit(s, {"cudaEventRecord", [e]() -> Work {
        const uint64_t v = ++e->recorded;
        return [e, v] {
            e->done = std::max(e->done, v);
            e->t = now_s();
            return true;
        };
    }});
}

} // namespace cudaemu
using namespace cudaemu;

extern "C" {
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    Api api;
    if (int err = no_device()) return note((cudaError_t)err);
    *e = new CUevent_st{std::make_shared<EventState>()};
    (*e)->s->timing = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    Api api;
    if (!e) return note(cudaErrorInvalidResourceHandle);
    delete e;                                        // what is queued holds on to the state
    return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags)
{
    Api api;
    CUstream_st *q = stream_of(s);
    if (!e || !q) return note(cudaErrorInvalidResourceHandle);
    if (q->capture && !(flags & cudaEventRecordExternal)) {
        if (q->capture->invalid) return note(cudaErrorStreamCaptureInvalidated);
        e->s->capture = q->capture;
        e->s->tail = q->tail;
        return cudaSuccess;
    }
    e->s->capture = nullptr;
    return record(e->s, s);
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return cudaEventRecordWithFlags(e, s, cudaEventRecordDefault); }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags)
{
    Api api;
    CUstream_st *q = stream_of(s);
    if (!e || !q) return note(cudaErrorInvalidResourceHandle);
    const EventRef state = e->s;
    if (flags & cudaEventWaitExternal) {
        if (!q->capture) return note(cudaErrorIllegalState);
        return submit(s, {"cudaStreamWaitEvent", [state]() -> Work {
            const uint64_t v = state->recorded;
            return [state, v] { return state->done >= v; };
        }});
    }
    if (q->capture || state->capture) return capture_wait(q, state);
    if (state->recorded == state->done) return cudaSuccess;        // never recorded, or past already
    return push(q, {"cudaStreamWaitEvent", nullptr, std::thread::id(), state, state->recorded});
}
cudaError_t cudaEventQuery(cudaEvent_t e)
{
    Api api;
    if (!e) return note(cudaErrorInvalidResourceHandle);
    if (e->s->capture) return note(cudaErrorCapturedEvent);
    if (cudaError_t err = unsafe_call("cudaEventQuery")) return err;
    pump();
    return e->s->done < e->s->recorded ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    Api api;
    if (!e) return note(cudaErrorInvalidResourceHandle);
    if (e->s->capture) return note(cudaErrorCapturedEvent);
    if (cudaError_t err = unsafe_call("cudaEventSynchronize")) return err;
    const EventRef state = e->s;
    const uint64_t v = state->recorded;
    run_until([=] { return state->done >= v; }, nullptr);
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b)
{
    Api api;
    if (!a || !b || !a->s->timing || !b->s->timing || !a->s->recorded || !b->s->recorded)
        return note(cudaErrorInvalidResourceHandle);
    if (a->s->done < a->s->recorded || b->s->done < b->s->recorded) return cudaErrorNotReady;
    *ms = (float)(1e3 * (b->s->t - a->s->t));
    return cudaSuccess;
}
}
