/* graphs.cpp - what was captured, launched again and again.
 *
 * A launch is one operation of its stream, and runs the nodes in an order that keeps their dependencies and, in random mode,
 * nothing else: an edge that is missing shows.  An executable graph waits for its own previous launch, as in CUDA. */
#include "streams.h"

struct CUgraphExec_st {
    std::shared_ptr<std::vector<cudaemu::Node>> nodes;
    std::shared_ptr<uint64_t> launched = std::make_shared<uint64_t>(0), finished = std::make_shared<uint64_t>(0);
};

namespace cudaemu {

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
