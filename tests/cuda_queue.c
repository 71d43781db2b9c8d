#include "cuda_queue.h"

#include <sched.h>
#include <stdlib.h>
#include <time.h>

#include "kernels/plugin.h"

typedef struct { cudaStream_t compute; cudaEvent_t done; } queue;

static queue *of(en_backend *be) { return be->impl; }
cudaStream_t cuda_queue_stream(en_backend *be) { return of(be)->compute; }

#define CU(call)                                                                                                       \
    do { const cudaError_t e_ = (call);                                                                                \
         if (e_ != cudaSuccess) {                                                                                      \
             (void)cudaGetLastError();                                                                                 \
             return en_raise(EN_ENOTSUP, __FILE__, __LINE__, __func__, "%s: %s", #call, cudaGetErrorString(e_)); } } while (0)

static en_status q_alloc(en_backend *be, size_t bytes, void **out)
{
    CU(cudaMalloc(out, bytes ? bytes : 1));
    CU(cudaMemsetAsync(*out, 0, bytes ? bytes : 1, of(be)->compute));
    return EN_OK;
}

static void q_free(en_backend *be, void *p)
{
    (void)cudaStreamSynchronize(of(be)->compute);
    (void)cudaFree(p);
}

static en_status q_host_alloc(en_backend *be, size_t bytes, void **out) { (void)be; CU(cudaHostAlloc(out, bytes ? bytes : 1, 0)); return EN_OK; }
static void q_host_free(en_backend *be, void *p) { (void)be; if (p) (void)cudaFreeHost(p); }

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static en_status q_synchronize(en_backend *be)
{
    CU(cudaEventRecord(of(be)->done, of(be)->compute));
    double asked = now_s();
    for (;;) {
        const cudaError_t e = cudaEventQuery(of(be)->done);
        if (e == cudaSuccess) return EN_OK;
        if (e != cudaErrorNotReady) CU(e);
        (void)cudaGetLastError();
        if (be->watch && now_s() - asked > 2e-3) {
            EN_TRY(be->watch(be->watcher), "waiting for the device");
            asked = now_s();
        }
        sched_yield();
    }
}

/* A copy from or to pageable memory may wait in the driver for all that is queued: wait where the watcher is asked. */
static en_status q_upload(en_backend *be, void *dst, const void *host, size_t bytes)
{
    EN_TRY(q_synchronize(be), "upload");
    if (bytes) CU(cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, of(be)->compute));
    return q_synchronize(be);
}

static en_status q_download(en_backend *be, void *host, const void *src, size_t bytes)
{
    EN_TRY(q_synchronize(be), "download");
    if (bytes) CU(cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, of(be)->compute));
    return q_synchronize(be);
}

static en_status q_capture_begin(en_backend *be)
{
    CU(cudaStreamBeginCapture(of(be)->compute, cudaStreamCaptureModeThreadLocal));
    return EN_OK;
}

static en_status q_capture_end(en_backend *be, void **graph)
{
    cudaGraph_t recorded;
    cudaGraphExec_t exec;
    CU(cudaStreamEndCapture(of(be)->compute, &recorded));
    const cudaError_t e = cudaGraphInstantiate(&exec, recorded, 0);
    (void)cudaGraphDestroy(recorded);
    CU(e);
    *graph = exec;
    return EN_OK;
}

static en_status q_graph_launch(en_backend *be, void *graph) { CU(cudaGraphLaunch(graph, of(be)->compute)); return EN_OK; }
static void q_graph_free(en_backend *be, void *graph) { (void)be; (void)cudaGraphExecDestroy(graph); }

static const struct en_backend_ops ops = {
    .alloc = q_alloc, .free = q_free, .host_alloc = q_host_alloc, .host_free = q_host_free, .upload = q_upload, .download = q_download,
    .synchronize = q_synchronize, .capture_begin = q_capture_begin, .capture_end = q_capture_end, .graph_launch = q_graph_launch,
    .graph_free = q_graph_free,
};

__attribute__((visibility("default"))) void *en_cuda_stream(en_backend *be) { return be->ops == &ops ? of(be)->compute : NULL; }

en_status cuda_queue_open(int local_rank, en_backend **out)
{
    int devices = 0;
    CU(cudaGetDeviceCount(&devices));
    CU(cudaSetDevice(local_rank % devices));
    en_backend *be = calloc(1, sizeof *be);
    queue *q = calloc(1, sizeof *q);
    if (!be || !q) abort();
    *be = (en_backend){ .name = "cuda", .ops = &ops, .channel_align = 8, .captures = true, .impl = q };
    CU(cudaDeviceGetPCIBusId(be->device, sizeof be->device, local_rank % devices));
    CU(cudaStreamCreateWithFlags(&q->compute, cudaStreamNonBlocking));
    CU(cudaEventCreateWithFlags(&q->done, cudaEventDisableTiming));
    *out = be;
    return EN_OK;
}

void cuda_queue_close(en_backend *be)
{
    (void)cudaStreamSynchronize(of(be)->compute);
    (void)cudaEventDestroy(of(be)->done);
    (void)cudaStreamDestroy(of(be)->compute);
    free(be->impl);
    free(be);
}
