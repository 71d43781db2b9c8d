/* bugs_host.cu - what host code gets wrong: streams, events, memory, captures. */
#include "bugs.h"
#include <cuda_runtime.h>
#include <stdlib.h>
#include <string.h>

constexpr int N = 256;
static __global__ void add(const float *x, float *y, float by) { y[threadIdx.x] = x[threadIdx.x] + by; }

static __global__ void accumulate(const float *x, float *y) { y[threadIdx.x] += x[threadIdx.x]; }

struct Set {                                         // two streams, two device arrays (a = 1, 1, ...), a pinned one
    cudaStream_t s, t;
    cudaEvent_t e, f;
    float *a, *b, *h;
    Set()
    {
        cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
        cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking);
        cudaEventCreateWithFlags(&e, cudaEventDisableTiming);
        cudaEventCreateWithFlags(&f, cudaEventDisableTiming);
        cudaMalloc(&a, N * sizeof(float));
        cudaMalloc(&b, N * sizeof(float));
        cudaMallocHost(&h, N * sizeof(float));
        fill(1);
        cudaMemcpy(a, h, N * sizeof(float), cudaMemcpyHostToDevice);
        cudaMemcpy(b, h, N * sizeof(float), cudaMemcpyHostToDevice);
        fill(-1);
    }
    ~Set()
    {
        cudaDeviceSynchronize();
        cudaFreeHost(h);
        cudaFree(b);
        cudaFree(a);
        cudaEventDestroy(f);
        cudaEventDestroy(e);
        cudaStreamDestroy(t);
        cudaStreamDestroy(s);
    }
    void fill(float v)
    {
        for (int i = 0; i < N; i++) h[i] = v;
    }
    int differs(float want) const                    // what the pinned array holds now
    {
        for (int i = 0; i < N; i++)
            if (h[i] != want) return 1;
        return 0;
    }
    int fetch(const float *d, float want)
    {
        cudaDeviceSynchronize();
        cudaMemcpy(h, d, N * sizeof(float), cudaMemcpyDeviceToHost);
        return differs(want);
    }
};

static int run_missing_event(int planted)
{
    Set k;
    add<<<1, N, 0, k.s>>>(k.a, k.a, 1);
    cudaEventRecord(k.e, k.s);
    if (!planted) cudaStreamWaitEvent(k.t, k.e, 0);
    add<<<1, N, 0, k.t>>>(k.a, k.b, 1);
    cudaStreamSynchronize(k.t);
    return k.fetch(k.b, 3);
}
static int run_event_recorded_too_early(int planted)
{
    Set k;
    if (planted) cudaEventRecord(k.e, k.s);
    add<<<1, N, 0, k.s>>>(k.a, k.a, 1);
    if (!planted) cudaEventRecord(k.e, k.s);
    cudaStreamWaitEvent(k.t, k.e, 0);
    add<<<1, N, 0, k.t>>>(k.a, k.b, 1);
    cudaStreamSynchronize(k.t);
    return k.fetch(k.b, 3);
}
static int run_result_read_too_early(int planted)
{
    Set k;
    cudaMemcpyAsync(k.h, k.a, N * sizeof(float), cudaMemcpyDeviceToHost, k.s);
    if (!planted) cudaStreamSynchronize(k.s);
    return k.differs(1);
}
static int run_buffer_reused_too_early(int planted)
{
    Set k;
    k.fill(5);
    cudaMemcpyAsync(k.a, k.h, N * sizeof(float), cudaMemcpyHostToDevice, k.s);
    if (!planted) cudaStreamSynchronize(k.s);
    k.fill(6);
    return k.fetch(k.a, 5);
}
static int run_copy_beside_a_stream(int planted)     // cudaMemcpy does not wait for non-blocking streams
{
    Set k;
    add<<<1, N, 0, k.s>>>(k.a, k.a, 1);
    if (!planted) cudaStreamSynchronize(k.s);
    cudaMemcpy(k.h, k.a, N * sizeof(float), cudaMemcpyDeviceToHost);
    return k.differs(2);
}
static int run_host_reads_device_memory(int planted)
{
    Set k;
    float v = 1;
    if (planted) v = *(volatile float *)k.a;
    return v != 1;
}
static int run_wrong_direction(int planted)
{
    Set k;
    cudaMemcpy(k.h, k.a, N * sizeof(float), planted ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost);
    return k.differs(1);
}
static int run_copy_past_the_end(int planted)
{
    Set k;
    cudaMemset(k.a, 0, N * sizeof(float) + planted);
    return k.fetch(k.a, 0);
}
static int run_freed_as_something_else(int planted)
{
    Set k;
    float *p = nullptr;
    cudaMalloc(&p, 64);
    if (planted) cudaFreeHost(p);
    else cudaFree(p);
    return 0;
}

// ---- captures --------------------------------------------------------------------------------------------------------
static int replay(Set &k, int times, float want)     // of what was captured on s; the result is in b
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    if (cudaStreamEndCapture(k.s, &graph) != cudaSuccess) return 1;
    cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphDestroy(graph);
    for (int i = 0; i < times; i++) cudaGraphLaunch(exec, k.s);
    const int bad = k.fetch(k.b, want);
    cudaGraphExecDestroy(exec);
    return bad;
}
static int run_allocation_in_a_capture(int planted)
{
    Set k;
    void *p = nullptr;
    cudaStreamBeginCapture(k.s, cudaStreamCaptureModeThreadLocal);
    if (planted) cudaMalloc(&p, 64);
    add<<<1, N, 0, k.s>>>(k.b, k.b, 1);
    return replay(k, 2, 3);
}
static int run_waiting_in_a_capture(int planted)
{
    Set k;
    cudaStreamBeginCapture(k.s, cudaStreamCaptureModeThreadLocal);
    add<<<1, N, 0, k.s>>>(k.b, k.b, 1);
    if (planted) cudaStreamSynchronize(k.s);
    return replay(k, 2, 3);
}
static int run_pageable_copy_in_a_capture(int planted)
{
    Set k;
    float *h = (float *)calloc(N, sizeof(float));
    cudaStreamBeginCapture(k.s, cudaStreamCaptureModeThreadLocal);
    const cudaError_t e = planted ? cudaMemcpyAsync(k.b, h, N * sizeof(float), cudaMemcpyHostToDevice, k.s)
                                  : cudaMemsetAsync(k.b, 0, N * sizeof(float), k.s);
    free(h);
    return replay(k, 2, 0) || e != cudaSuccess;
}
static int run_fork_without_join(int planted)
{
    Set k;
    cudaStreamBeginCapture(k.s, cudaStreamCaptureModeThreadLocal);
    cudaEventRecord(k.e, k.s);
    cudaStreamWaitEvent(k.t, k.e, 0);
    add<<<1, N, 0, k.t>>>(k.b, k.b, 1);
    cudaEventRecord(k.f, k.t);
    if (!planted) cudaStreamWaitEvent(k.s, k.f, 0);
    return replay(k, 2, 3);
}
static int run_missing_edge_in_a_graph(int planted)  // b += a has to follow a += 1; planted: it need not
{
    Set k;
    cudaStreamBeginCapture(k.s, cudaStreamCaptureModeThreadLocal);
    cudaEventRecord(k.e, k.s);
    cudaStreamWaitEvent(k.t, k.e, 0);
    add<<<1, N, 0, k.t>>>(k.a, k.a, 1);
    cudaEventRecord(k.f, k.t);
    if (!planted) cudaStreamWaitEvent(k.s, k.f, 0);
    accumulate<<<1, N, 0, k.s>>>(k.a, k.b);
    if (planted) cudaStreamWaitEvent(k.s, k.f, 0);
    return replay(k, 6, 1 + 2 + 3 + 4 + 5 + 6 + 7);
}
#define ROW(name) {#name, run_##name}
const struct bug host_bugs[] = {
    ROW(missing_event), ROW(event_recorded_too_early), ROW(result_read_too_early), ROW(buffer_reused_too_early),
    ROW(copy_beside_a_stream), ROW(host_reads_device_memory), ROW(wrong_direction), ROW(copy_past_the_end),
    ROW(freed_as_something_else), ROW(allocation_in_a_capture), ROW(waiting_in_a_capture), ROW(pageable_copy_in_a_capture),
    ROW(fork_without_join), ROW(missing_edge_in_a_graph), {nullptr, nullptr},
};
