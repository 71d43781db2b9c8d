/* queues.cpp - streams: when what is queued runs.
 *
 * A stream is a queue of operations.  When do they run?  CUDA promises only the order within a stream and what events add,
 * so a program may not rely on more.  Three ways to run the queues look for programs that do (CUDAEMU_STREAMS):
 *     eager    at once, as far as possible without waiting;
 *     random   only when the host waits, taking the front of any stream at random;
 *     late     only when the host waits, and then only what it waits for: everything else as late as can be.
 * Operations run on the thread that waits.  One that is not finished (a collective whose peers have yet to come) stays at the
 * front of its queue and is asked again, so the others go on meanwhile.  Every query lets some work happen: a host that polls
 * an event gets there. */
#include "streams.h"
#include <algorithm>
#include <sched.h>

namespace cudaemu {

static CUstream_st legacy, per_thread;
std::vector<CUstream_st *> &all_streams()
{
    static auto *v = new std::vector<CUstream_st *>{&legacy, &per_thread};
    return *v;
}
CUstream_st *stream_of(cudaStream_t s)
{
    if (!s || s == cudaStreamLegacy) return &legacy;
    if (s == cudaStreamPerThread) return &per_thread;
    auto &v = all_streams();
    return std::find(v.begin(), v.end(), s) != v.end() && !s->dying ? s : nullptr;
}
bool capturing(cudaStream_t s)
{
    CUstream_st *q = stream_of(s);
    return q && q->capture;
}
static bool mine(const Entry &e) { return e.owner == std::thread::id() || e.owner == std::this_thread::get_id(); }
static bool runnable(const CUstream_st *s)
{
    if (s->q.empty()) return false;
    const Entry &e = s->q.front();
    return mine(e) && !(e.event && e.event->done < e.version);
}
static bool step(CUstream_st *s)                     // runs the front of a runnable stream; false: it wants to be asked again
{
    Entry &e = s->q.front();
    if (e.work) {
        DeviceOpen open;
        if (!e.work()) return false;
    }
    s->q.pop_front();
    return true;
}
static void bury()
{
    auto &v = all_streams();
    for (size_t i = 0; i < v.size();) {
        if (v[i]->dying && v[i]->q.empty()) {
            delete v[i];
            v.erase(v.begin() + (long)i);
        } else {
            i++;
        }
    }
}
void give_way()
{
    big_lock().unlock();
    sched_yield();
    big_lock().lock();
}
void run_until(const std::function<bool()> &reached, CUstream_st *first)
{
    static uint64_t choice = 0;
    size_t last = 0;
    bool asked_again = false;                        // the last step was not finished
    while (!reached()) {
        auto &all = all_streams();
        CUstream_st *s = nullptr;
        if (opt().queues == LATE && first && !asked_again && runnable(first)) s = first;
        if (!s && opt().queues != EAGER) {
            choice = choice * 6364136223846793005u + 2 * opt().seed + 1;
            last = (choice >> 33) % all.size();
        }
        for (size_t i = 1; i <= all.size() && !s; i++)
            if (runnable(all[(last + i) % all.size()])) {
                last = (last + i) % all.size();
                s = all[last];
            }
        if (!s) {
            bool elsewhere = false;
            for (auto q : all) elsewhere |= !q->q.empty() && !mine(q->q.front());
            if (!elsewhere) fail("the host waits for work that waits for an event which nothing will record");
            give_way();
            continue;
        }
        asked_again = !step(s);
        if (asked_again) give_way();
    }
    bury();
}
void pump()
{
    if (opt().queues != EAGER) {
        static size_t turn = 0;
        auto &all = all_streams();
        for (size_t i = 0; i < all.size(); i++) {
            CUstream_st *s = all[(turn + i) % all.size()];
            if (!runnable(s)) continue;
            turn += i + (step(s) ? 0 : 1);
            break;
        }
        return;
    }
    std::vector<CUstream_st *> pending;
    for (bool any = true; any;) {
        any = false;
        for (auto s : all_streams())
            while (std::find(pending.begin(), pending.end(), s) == pending.end() && runnable(s)) {
                if (step(s)) any = true;
                else pending.push_back(s);
            }
    }
    bury();
}
void finish_device(bool also_nonblocking)
{
    run_until([=] {
        for (auto s : all_streams())
            if (!s->q.empty() && (also_nonblocking || !s->nonblocking)) return false;
        return true;
    }, nullptr);
}
cudaError_t push(CUstream_st *s, Entry e)
{
    if (s == &legacy) {                              // waits for all blocking streams, and they for it
        if (cudaError_t err = uses_legacy(e.what)) return err;
        finish_device(false);
        legacy.q.push_back(std::move(e));
        run_until([] { return legacy.q.empty(); }, &legacy);
        return cudaSuccess;
    }
    s->q.push_back(std::move(e));
    if (opt().queues == EAGER) pump();
    return cudaSuccess;
}
cudaError_t submit(cudaStream_t stream, Task t)
{
    if (int e = no_device()) return note((cudaError_t)e);
    CUstream_st *s = stream_of(stream);
    if (!s) return note(cudaErrorInvalidResourceHandle);
    if (s->capture) return capture_task(s, std::move(t));
    const std::thread::id owner = t.bound ? std::this_thread::get_id() : std::thread::id();
    return push(s, {t.what, t.make(), owner, nullptr});
}
cudaError_t submit(cudaStream_t s, const char *what, std::function<void()> f)
{
    return submit(s, {what, [f]() -> Work { return [f] { f(); return true; }; }});
}

} // namespace cudaemu
using namespace cudaemu;

extern "C" {
// ---- streams ---------------------------------------------------------------------------------------------------------
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority)
{
    Api api;
    if (int e = no_device()) return note((cudaError_t)e);
    *s = new CUstream_st;
    (*s)->nonblocking = flags & cudaStreamNonBlocking;
    (*s)->priority = std::min(0, std::max(-5, priority));
    all_streams().push_back(*s);
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { return cudaStreamCreateWithPriority(s, flags, 0); }
cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithPriority(s, 0, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    Api api;
    CUstream_st *q = stream_of(s);
    if (!q || q == &legacy || q == &per_thread) return note(cudaErrorInvalidResourceHandle);
    if (cudaError_t e = refuse_capture(q, "cudaStreamDestroy")) return e;
    q->dying = true;                                 // what is queued still runs
    bury();
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    Api api;
    CUstream_st *q = stream_of(s);
    if (int e = no_device()) return note((cudaError_t)e);
    if (!q) return note(cudaErrorInvalidResourceHandle);
    if (cudaError_t e = refuse_capture(q, "cudaStreamSynchronize")) return e;
    if (q == &legacy) finish_device(false);
    else run_until([q] { return q->q.empty(); }, q);
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t s)
{
    Api api;
    CUstream_st *q = stream_of(s);
    if (!q) return note(cudaErrorInvalidResourceHandle);
    if (cudaError_t e = refuse_capture(q, "cudaStreamQuery")) return e;
    pump();
    return q->q.empty() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaDeviceSynchronize(void)
{
    Api api;
    if (int e = no_device()) return note((cudaError_t)e);
    if (cudaError_t e = refuse_any_capture("cudaDeviceSynchronize")) return e;
    finish_device(true);
    return cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority)
{
    *priority = stream_of(s) ? stream_of(s)->priority : 0;
    return cudaSuccess;
}
cudaError_t cudaStreamGetFlags(cudaStream_t s, unsigned *flags)
{
    *flags = stream_of(s) && stream_of(s)->nonblocking ? cudaStreamNonBlocking : cudaStreamDefault;
    return cudaSuccess;
}
cudaError_t cudaStreamSetAttribute(cudaStream_t, cudaStreamAttrID, const cudaStreamAttrValue *) { return cudaSuccess; }
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t fn, void *data)
{
    Api api;
    return submit(s, "cudaLaunchHostFunc", [=] { fn(data); });
}
}
