/* capture.cpp - a stream that records instead of running.
 *
 * While a stream is captured every operation becomes a node that follows the stream's last ones.  An event that is recorded in a
 * captured stream stands for those nodes; a stream that waits for it joins the capture.  What CUDA forbids meanwhile is refused
 * with CUDA's codes, and costs the capture as it does there: synchronising or querying a captured stream, event or its
 * device, work on the legacy stream beside a blocking one, and, unless the mode is relaxed, calls such as cudaMalloc.
 * Pageable host memory in a captured copy is refused too (transfers.cpp), which is stricter than CUDA: its address would be read
 * at every replay. */
#include "streams.h"
#include <algorithm>

namespace cudaemu {

static auto &active = *new std::vector<std::shared_ptr<Capture>>;
static unsigned long long next_id = 1;
static thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

static cudaError_t lost(Capture &c, const char *what, cudaError_t e)
{
    if (!c.invalid) fprintf(stderr, "CUDAEMU: %s ends a stream capture: %s\n", what, cudaGetErrorString(e));
    c.invalid = true;
    return note(e);
}
cudaError_t refuse_capture(CUstream_st *s, const char *what)
{
    return s->capture ? lost(*s->capture, what, cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
cudaError_t refuse_any_capture(const char *what)
{
    cudaError_t e = cudaSuccess;
    for (auto &c : active) e = lost(*c, what, cudaErrorStreamCaptureUnsupported);
    return e;
}
cudaError_t unsafe_call(const char *what)
{
    cudaError_t e = cudaSuccess;
    if (thread_mode == cudaStreamCaptureModeRelaxed) return e;
    for (auto &c : active)
        if (c->mode == cudaStreamCaptureModeGlobal ||
            (c->mode == cudaStreamCaptureModeThreadLocal && c->thread == std::this_thread::get_id()))
            e = lost(*c, what, cudaErrorStreamCaptureUnsupported);
    return e;
}
cudaError_t uses_legacy(const char *what)
{
    cudaError_t e = cudaSuccess;
    for (auto &c : active)
        for (auto s : c->joined)
            if (!s->nonblocking) e = lost(*c, what, cudaErrorStreamCaptureImplicit);
    return e;
}
cudaError_t capture_task(CUstream_st *s, Task t)
{
    if (s->capture->invalid) return note(cudaErrorStreamCaptureInvalidated);
    auto &nodes = s->capture->graph->nodes;
    nodes.push_back({std::move(t), s->tail});
    s->tail = {nodes.size() - 1};
    return cudaSuccess;
}
cudaError_t capture_wait(CUstream_st *s, const EventRef &e)
{
    if (!e->capture) return lost(*s->capture, "waiting for an event from outside", cudaErrorStreamCaptureIsolation);
    if (std::find(active.begin(), active.end(), e->capture) == active.end()) return note(cudaErrorCapturedEvent);
    if (e->capture->invalid) return note(cudaErrorStreamCaptureInvalidated);
    if (s->capture && s->capture != e->capture) {
        lost(*s->capture, "waiting for another capture", cudaErrorStreamCaptureMerge);
        return lost(*e->capture, "being waited for by another capture", cudaErrorStreamCaptureMerge);
    }
    if (!s->capture) {                               // a fork
        s->capture = e->capture;
        s->tail.clear();
        e->capture->joined.push_back(s);
    }
    for (size_t n : e->tail)
        if (std::find(s->tail.begin(), s->tail.end(), n) == s->tail.end()) s->tail.push_back(n);
    return cudaSuccess;
}
// Everything that was forked has to be upstream of the origin's last nodes.
static bool all_joined(const Capture &c)
{
    std::vector<char> seen(c.graph->nodes.size(), 0);
    std::vector<size_t> todo = c.origin->tail;
    while (!todo.empty()) {
        const size_t n = todo.back();
        todo.pop_back();
        if (seen[n]) continue;
        seen[n] = 1;
        todo.insert(todo.end(), c.graph->nodes[n].deps.begin(), c.graph->nodes[n].deps.end());
    }
    return std::find(seen.begin(), seen.end(), 0) == seen.end();
}

} // namespace cudaemu
using namespace cudaemu;

extern "C" {
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    Api api;
    CUstream_st *s = stream_of(stream);
    if (!s) return note(cudaErrorInvalidResourceHandle);
    if (s == stream_of(nullptr)) return note(cudaErrorStreamCaptureUnsupported);
    if (s->capture) return note(cudaErrorIllegalState);
    auto c = std::make_shared<Capture>();
    c->graph = std::make_unique<CUgraph_st>();
    c->origin = s;
    c->mode = mode;
    c->thread = std::this_thread::get_id();
    c->id = next_id++;
    c->joined = {s};
    s->capture = c;
    s->tail.clear();
    active.push_back(c);
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out)
{
    Api api;
    CUstream_st *s = stream_of(stream);
    *out = nullptr;
    if (!s) return note(cudaErrorInvalidResourceHandle);
    if (!s->capture) return note(cudaErrorIllegalState);
    const std::shared_ptr<Capture> c = s->capture;
    if (c->origin != s) return lost(*c, "cudaStreamEndCapture", cudaErrorStreamCaptureUnmatched);
    if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != std::this_thread::get_id())
        return lost(*c, "cudaStreamEndCapture", cudaErrorStreamCaptureWrongThread);
    const cudaError_t e = c->invalid ? cudaErrorStreamCaptureInvalidated
                        : all_joined(*c) ? cudaSuccess : cudaErrorStreamCaptureUnjoined;
    for (auto q : c->joined) {
        q->capture = nullptr;
        q->tail.clear();
    }
    active.erase(std::find(active.begin(), active.end(), c));
    if (e != cudaSuccess) return note(e);
    *out = c->graph.release();
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    Api api;
    CUstream_st *s = stream_of(stream);
    if (!s) return note(cudaErrorInvalidResourceHandle);
    *status = !s->capture ? cudaStreamCaptureStatusNone
            : s->capture->invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **deps, const cudaGraphEdgeData **edges, size_t *n)
{
    Api api;
    if (cudaError_t e = cudaStreamIsCapturing(stream, status)) return e;
    CUstream_st *s = stream_of(stream);
    if (id) *id = s->capture ? s->capture->id : 0;
    if (graph) *graph = s->capture ? s->capture->graph.get() : nullptr;
    if (deps) *deps = nullptr;
    if (edges) *edges = nullptr;
    if (n) *n = s->tail.size();
    return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode)
{
    std::swap(thread_mode, *mode);
    return cudaSuccess;
}
}
