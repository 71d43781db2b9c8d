/* graphs.cpp - stream capture, and graphs that are launched again and again.
 *
 * While a stream is captured nothing runs: every operation becomes a node that follows the stream's last ones.  An event that
 * is recorded in a captured stream stands for those nodes; a stream that waits for it joins the capture.  What CUDA forbids
 * meanwhile is refused with CUDA's codes, and costs the capture as it does there: synchronising or querying a captured stream,
 * event or its device, work on the legacy stream beside a blocking one, and, unless the mode is relaxed, calls such as
 * cudaMalloc.  Pageable host memory in a captured copy is refused too, which is stricter than CUDA: its address would be
 * read at every replay.
 * A launch runs the nodes in an order that keeps the dependencies and, in random mode, nothing else; the same executable
 * graph waits for its own previous launch. */
#include "streams.h"
#include <algorithm>

struct CUgraphExec_st {
    std::shared_ptr<std::vector<cudaemu::Node>> nodes;
    std::shared_ptr<uint64_t> launched = std::make_shared<uint64_t>(0), finished = std::make_shared<uint64_t>(0);
};

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

// One launch: asked again until every node has run.
struct Replay {
    std::shared_ptr<std::vector<Node>> nodes;
    std::shared_ptr<uint64_t> finished;
    uint64_t turn;
    std::vector<Work> work = {};
    std::vector<size_t> before = {}, ready = {};     // how many nodes each still waits for; those that wait for none
    std::vector<std::vector<size_t>> after = {};
    size_t left = 0, next = 0;
    void begin()
    {
        left = nodes->size();
        after.resize(left);
        for (size_t i = 0; i < left; i++) {
            work.push_back((*nodes)[i].task.make());
            before.push_back((*nodes)[i].deps.size());
            if (!before[i]) ready.push_back(i);
            for (size_t d : (*nodes)[i].deps) after[d].push_back(i);
        }
    }
    bool step()
    {
        static uint64_t choice = 1;
        if (*finished < turn) return false;          // the previous launch of the same graph is still running
        while (left) {
            choice = choice * 6364136223846793005u + 2 * opt().seed + 1;
            const size_t k = (opt().queues == EAGER ? next : choice >> 33) % ready.size(), i = ready[k];
            if (!work[i]()) {
                next++;
                return false;
            }
            ready.erase(ready.begin() + (long)k);
            for (size_t n : after[i])
                if (--before[n] == 0) ready.push_back(n);
            left--;
            if (left && opt().queues != EAGER) return false;
        }
        ++*finished;
        return true;
    }
};

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
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    Api api;
    if (!graph) return note(cudaErrorInvalidValue);
    *exec = new CUgraphExec_st;
    (*exec)->nodes = std::make_shared<std::vector<Node>>(graph->nodes);
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    return cudaGraphInstantiate(exec, graph, flags);
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    Api api;
    if (!exec) return note(cudaErrorInvalidValue);
    const auto nodes = exec->nodes;
    const auto launched = exec->launched, finished = exec->finished;
    bool bound = false;
    for (auto &n : *nodes) bound |= n.task.bound;
    return submit(stream, {"cudaGraphLaunch", [=]() -> Work {
        auto r = std::make_shared<Replay>(Replay{nodes, finished, (*launched)++});
        r->begin();
        return [r] { return r->step(); };
    }, bound});
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n)
{
    Api api;
    if (!graph || !n) return note(cudaErrorInvalidValue);
    if (nodes)
        for (size_t i = 0; i < *n; i++)
            nodes[i] = i < graph->nodes.size() ? reinterpret_cast<cudaGraphNode_t>(i + 1) : nullptr;
    if (!nodes || *n > graph->nodes.size()) *n = graph->nodes.size();
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    Api api;
    delete exec;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    Api api;
    delete graph;
    return cudaSuccess;
}
}
