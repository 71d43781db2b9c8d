/* streams.h - the insides of a stream, an event and a capture, for queues.cpp and graphs.cpp. */
#pragma once
#include "runtime.h"
#include <thread>

namespace cudaemu {

struct Node {
    Task task;
    std::vector<size_t> deps;                       // nodes that come before
};
struct Capture {
    std::unique_ptr<CUgraph_st> graph;
    CUstream_st *origin = nullptr;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::thread::id thread;
    unsigned long long id = 0;
    bool invalid = false;
    std::vector<CUstream_st *> joined;              // origin included
};
struct EventState {
    uint64_t recorded = 0, done = 0;                // how often cudaEventRecord was called, and has been reached
    double t = 0;
    bool timing = true;
    std::shared_ptr<Capture> capture;               // last recorded while capturing: after these nodes
    std::vector<size_t> tail;
};
using EventRef = std::shared_ptr<EventState>;
struct Entry {
    const char *what;
    Work work;                                      // empty: waits until `event` has been reached `version` times
    std::thread::id owner;                          // set: only this thread may run it
    EventRef event;
    uint64_t version = 0;
};

// Runs queues; `first` is the stream that the host waits for, if it is one.
void run_until(const std::function<bool()> &reached, CUstream_st *first);
CUstream_st *stream_of(cudaStream_t s);             // nullptr: not a stream
std::vector<CUstream_st *> &all_streams();
cudaError_t push(CUstream_st *s, Entry e);
cudaError_t capture_task(CUstream_st *s, Task t);
cudaError_t capture_wait(CUstream_st *s, const EventRef &e);
cudaError_t refuse_capture(CUstream_st *s, const char *what);      // an error if s is capturing, and the capture is lost
cudaError_t refuse_any_capture(const char *what);                  // likewise for what waits for the whole device

} // namespace cudaemu

struct CUgraph_st { std::vector<cudaemu::Node> nodes; };
struct CUstream_st {
    std::deque<cudaemu::Entry> q;
    bool nonblocking = false, dying = false;
    int priority = 0;
    std::shared_ptr<cudaemu::Capture> capture;
    std::vector<size_t> tail;                       // while capturing: the nodes that the next one follows
};
struct CUevent_st { cudaemu::EventRef s; };
