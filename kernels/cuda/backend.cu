/* backend.cu - a GPU as a backend: opening it, its memory, and the order in which things happen on it.
 *
 * Two streams.  `compute` carries every pass in the order of the calls; `copy` carries input up beside it.  A slot is what one
 * call of the net reads; two events tie it to the compute:
 *
 *     copy     ──(wait freed[slot])── host to device ──(record filled[slot])──▶
 *     compute  ──(wait filled[slot])── the passes that read the slot ──(record freed[slot])──▶
 *
 * The host never sleeps in the driver: it asks an event again and again, and between two questions the watcher, so that a rank
 * whose neighbour died learns it (kernels.h, watch). */
#include "passes.h"
#include "kernels/plugin.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SLOTS = 2 };

struct backend_state {
    cudaEvent_t filled[SLOTS], freed[SLOTS], marks[EN_MARKS], done;
    bool capturing;
};

extern const en_backend_ops cuda_ops;
extern "C" const uint32_t en_cuda_abi = EN_CUDA_ABI;

en_status cuda_status(cudaError_t e) { return e == cudaErrorMemoryAllocation ? EN_ENOMEM : EN_ENOTSUP; }

extern "C" void *en_cuda_stream(en_backend *be) { return be->ops == &cuda_ops ? engine(be)->compute : NULL; }

/* ---- is there one? ------------------------------------------------------------------------------------------------------- */

extern "C" bool en_cuda_probe(char *why, size_t size)
{
    int devices = 0, driver = 0, runtime = 0;                      /* an error leaves them unwritten */
    const cudaError_t e = cudaGetDeviceCount(&devices);
    (void)cudaGetLastError();
    if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
    if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) runtime = 0;
    (void)cudaGetLastError();
    if (e == cudaSuccess && devices > 0) return true;
    if (driver == 0) snprintf(why, size, "no NVIDIA driver on this machine");
    else if (e == cudaErrorInsufficientDriver)
        snprintf(why, size, "the driver is for CUDA %d.%d, too old for CUDA %d.%d: update it", driver / 1000, driver % 1000 / 10, runtime / 1000,
                 runtime % 1000 / 10);
    else if (e == cudaErrorNoDevice || e == cudaSuccess)
        snprintf(why, size, "no GPU is visible to this process%s", getenv("CUDA_VISIBLE_DEVICES") ? " (CUDA_VISIBLE_DEVICES is set)" : "");
    else snprintf(why, size, "%s: %s", cudaGetErrorName(e), cudaGetErrorString(e));
    return false;
}

extern "C" void en_cuda_list(char *text, size_t size)
{
    int devices = 0;
    size_t used = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess) (void)cudaGetLastError(), devices = 0;
    for (int d = 0; d < devices && used < size; d++) {
        cudaDeviceProp p;
        if (cudaGetDeviceProperties(&p, d) != cudaSuccess) (void)cudaGetLastError();
        else used += (size_t)snprintf(text + used, size - used, "%s%d: %s, sm_%d%d, %.1f GiB", used ? "; " : "", d, p.name, p.major, p.minor,
                                      (double)p.totalGlobalMem / 0x1p30);
    }
}

/* ---- opening ---------------------------------------------------------------------------------------------------------------- */

static en_status open_device(en_backend *be, const en_backend_config *config)
{
    cuda_engine *e = engine(be);
    int devices = 0, least = 0, greatest = 0, shared = 0;
    cudaDeviceProp prop;
    CU_TRY(cudaGetDeviceCount(&devices), "counting GPUs");
    EN_REQUIRE(devices > 0, EN_ENOTSUP, "no GPU is visible to this process");
    e->device = config->local_rank % devices;
    CU_TRY(cudaSetDevice(e->device), "GPU %d", e->device);
    CU_TRY(cudaGetDeviceProperties(&prop, e->device), "GPU %d", e->device);
    EN_REQUIRE(prop.major >= 8, EN_ENOTSUP, "GPU %d, %s, has compute capability %d.%d; this program needs 8.0 (A100) or newer", e->device, prop.name,
               prop.major, prop.minor);
    CU_TRY(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, e->device), "GPU %d", e->device);
    CU_TRY(cudaDeviceGetPCIBusId(be->device, sizeof be->device, e->device), "GPU %d", e->device);
    CU_TRY(cudaDeviceGetStreamPriorityRange(&least, &greatest), "GPU %d", e->device);
    CU_TRY(cudaStreamCreateWithPriority(&e->compute, cudaStreamNonBlocking, least), "GPU %d: stream", e->device);
    CU_TRY(cudaStreamCreateWithPriority(&e->copy, cudaStreamNonBlocking, least), "GPU %d: stream", e->device);
    e->sms = prop.multiProcessorCount;
    e->shared_max = (size_t)shared;
    static thread_local char isa[300];
    snprintf(isa, sizeof isa, "sm_%d%d, %s", prop.major, prop.minor, prop.name);
    be->isa = isa;
    for (int i = 0; i < SLOTS; i++) {
        CU_TRY(cudaEventCreateWithFlags(&e->state->filled[i], cudaEventDisableTiming), "event");
        CU_TRY(cudaEventCreateWithFlags(&e->state->freed[i], cudaEventDisableTiming), "event");
    }
    CU_TRY(cudaEventCreateWithFlags(&e->state->done, cudaEventDisableTiming), "event");
    for (int i = 0; i < EN_MARKS; i++) CU_TRY(cudaEventCreate(&e->state->marks[i]), "event");
    EN_TRY(gemm_open(e), "cuBLASLt on GPU %d", e->device);
    return EN_OK;
}

extern "C" en_status en_cuda_open(const en_backend_config *config, en_backend **out)
{
    unsigned chosen = 0;
    *out = NULL;
    EN_TRY(en_cuda_folds(config->folds, &chosen), "folds");
    en_backend *be = (en_backend *)calloc(1, sizeof *be);
    cuda_engine *e = (cuda_engine *)calloc(1, sizeof *e);
    backend_state *state = (backend_state *)calloc(1, sizeof *state);
    if (!be || !e || !state) {
        free(be), free(e), free(state);
        return en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory for a backend");
    }
    be->name = "cuda";
    be->ops = &cuda_ops;
    be->channel_align = 8;
    be->dtype = config->precision == EN_PRECISION_F32 ? EN_F32 : EN_BF16;
    be->threads = config->threads > 0 ? config->threads : 1;
    be->lanes = 1;
    be->captures = true;
    be->gated = (chosen & FOLD_FIVE_SUM) != 0;
    be->u8 = be->dtype == EN_BF16;
    be->slots = SLOTS;
    be->impl = e;
    e->folds = chosen;
    e->dtype = be->dtype;
    e->state = state;
    const en_status s = open_device(be, config);
    if (s != EN_OK) cuda_close(be);
    else *out = be;
    return s;
}

void cuda_close(en_backend *be)
{
    cuda_engine *e = engine(be);
    if (e->compute) (void)cudaStreamSynchronize(e->compute);
    gemm_close(e);
    optimizer_close(e);
    for (int i = 0; i < SLOTS; i++) {
        if (e->state->filled[i]) (void)cudaEventDestroy(e->state->filled[i]);
        if (e->state->freed[i]) (void)cudaEventDestroy(e->state->freed[i]);
    }
    if (e->state->done) (void)cudaEventDestroy(e->state->done);
    for (int i = 0; i < EN_MARKS; i++)
        if (e->state->marks[i]) (void)cudaEventDestroy(e->state->marks[i]);
    for (auto &k : e->kept)
        if (k.copy) (void)cudaFree(k.copy);
    if (e->scratch) (void)cudaFree(e->scratch);
    if (e->cast) (void)cudaFree(e->cast);
    if (e->copy) (void)cudaStreamDestroy(e->copy);
    if (e->compute) (void)cudaStreamDestroy(e->compute);
    (void)cudaGetLastError();
    free(e->state);
    free(e);
    free(be);
}

/* ---- memory ----------------------------------------------------------------------------------------------------------------- */

en_status cuda_alloc(en_backend *be, size_t bytes, void **out)
{
    *out = NULL;
    EN_REQUIRE(!engine(be)->state->capturing, EN_EINVAL, "memory is not taken inside a recording");
    const size_t want = bytes ? bytes : 1;
    if (cudaMalloc(out, want) != cudaSuccess) {
        (void)cudaGetLastError();
        size_t left = 0, total = 0;
        (void)cudaMemGetInfo(&left, &total);
        *out = NULL;
        return en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "%.1f MiB are not to be had on GPU %d (%.1f of %.1f GiB free); a smaller --micro-batch "
                        "needs less", (double)bytes / 0x1p20, engine(be)->device, (double)left / 0x1p30, (double)total / 0x1p30);
    }
    CU_TRY(cudaMemsetAsync(*out, 0, want, engine(be)->compute), "zeroing %zu bytes", bytes);
    return cuda_synchronize(be);                                   /* its zeros must not fall on what another stream brings */
}

void cuda_free(en_backend *be, void *p)
{
    if (!p) return;
    (void)cudaStreamSynchronize(engine(be)->compute);              /* passes may still be at work in it */
    (void)cudaFree(p);
}

en_status cuda_host_alloc(en_backend *be, size_t bytes, void **out)
{
    (void)be;
    *out = NULL;
    CU_TRY(cudaHostAlloc(out, bytes ? bytes : 1, cudaHostAllocDefault), "%.1f MiB of pinned host memory", (double)bytes / 0x1p20);
    return EN_OK;
}

void cuda_host_free(en_backend *be, void *p)
{
    (void)be;
    if (p) (void)cudaFreeHost(p);
}

int64_t cuda_memory_available(en_backend *be)
{
    (void)be;
    size_t left = 0, total = 0;
    if (cudaMemGetInfo(&left, &total) != cudaSuccess) left = 0;
    return (int64_t)left;
}

/* ---- waiting ----------------------------------------------------------------------------------------------------------------- */

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static en_status wait_for(en_backend *be, cudaEvent_t event)
{
    double asked = now_s();
    for (;;) {
        const cudaError_t e = cudaEventQuery(event);
        if (e == cudaSuccess) return EN_OK;
        if (e != cudaErrorNotReady) CU_TRY(e, "waiting for GPU %d", engine(be)->device);
        (void)cudaGetLastError();
        if (be->watch && now_s() - asked > 2e-3) {
            EN_TRY(be->watch(be->watcher), "waiting for GPU %d", engine(be)->device);
            asked = now_s();
        }
        sched_yield();
    }
}

en_status cuda_synchronize(en_backend *be)
{
    cuda_engine *e = engine(be);
    EN_REQUIRE(!e->state->capturing, EN_EINVAL, "nothing waits inside a recording");
    CU_TRY(cudaEventRecord(e->state->done, e->compute), "waiting for GPU %d", e->device);
    return wait_for(be, e->state->done);
}

/* ---- copies ------------------------------------------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(256) cast_weights(const float *w, bf16 *copy, int64_t n)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
        copy[i] = __float2bfloat16_rn(w[i]);
}

static en_status refresh(en_backend *be, const weight_copy *k)
{
    cuda_engine *e = engine(be);
    if (!k->copy || k->elems == 0) return EN_OK;
    cast_weights<<<(unsigned)min64(ceil_div(k->elems, 256), 4096), 256, 0, e->compute>>>(k->w, k->copy, k->elems);
    CU_LAUNCHED("converting %lld weights", (long long)k->elems);
    return EN_OK;
}

en_status cuda_keep_weights(en_backend *be, float *w, int64_t elems)
{
    cuda_engine *e = engine(be);
    if (be->dtype == EN_F32) return EN_OK;
    for (auto &k : e->kept)
        if (k.w == w) {
            (void)cudaStreamSynchronize(e->compute);
            (void)cudaFree(k.copy);
            k = weight_copy{};
        }
    if (elems <= 0) return EN_OK;
    for (auto &k : e->kept)
        if (!k.w) {
            void *copy = NULL;
            EN_TRY(cuda_alloc(be, (size_t)elems * sizeof(bf16), &copy), "a bf16 copy of %lld weights", (long long)elems);
            k = weight_copy{ w, elems, (bf16 *)copy };
            return refresh(be, &k);
        }
    return en_raise(EN_EINVAL, __FILE__, __LINE__, __func__, "more arenas of weights than the backend keeps copies of");
}

en_status cuda_upload(en_backend *be, void *dst, const void *host, size_t bytes)
{
    cuda_engine *e = engine(be);
    if (bytes == 0) return EN_OK;
    EN_TRY(cuda_synchronize(be), "upload");              /* a copy of pageable memory waits in the driver, where nobody asks the watcher */
    CU_TRY(cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, e->compute), "uploading %zu bytes", bytes);
    for (const auto &k : e->kept)
        if (k.w && (const char *)dst < (const char *)(k.w + k.elems) && (const char *)dst + bytes > (const char *)k.w) EN_TRY(refresh(be, &k), "upload");
    return cuda_synchronize(be);
}

en_status cuda_download(en_backend *be, void *host, const void *src, size_t bytes)
{
    EN_TRY(cuda_synchronize(be), "download");            /* as in upload */
    if (bytes) CU_TRY(cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, engine(be)->compute), "downloading %zu bytes", bytes);
    return cuda_synchronize(be);
}

en_status cuda_zero(en_backend *be, void *dst, size_t bytes)
{
    if (bytes) CU_TRY(cudaMemsetAsync(dst, 0, bytes, engine(be)->compute), "zeroing %zu bytes", bytes);
    return EN_OK;
}

en_status cuda_copy(en_backend *be, void *dst, const void *src, size_t bytes)
{
    if (bytes) CU_TRY(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, engine(be)->compute), "copying %zu bytes", bytes);
    return EN_OK;
}

static __global__ void __launch_bounds__(256) scale_all(int64_t n, float factor, float *x)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) x[i] *= factor;
}

en_status cuda_scale(en_backend *be, int64_t elems, float factor, float *x)
{
    if (elems <= 0) return EN_OK;
    scale_all<<<(unsigned)min64(ceil_div(elems, 256), 4096), 256, 0, engine(be)->compute>>>(elems, factor, x);
    CU_LAUNCHED("scaling %lld values", (long long)elems);
    return EN_OK;
}

/* ---- slots -------------------------------------------------------------------------------------------------------------------- */

en_status cuda_stage(en_backend *be, int slot, const en_copy *copies, int n)
{
    cuda_engine *e = engine(be);
    EN_REQUIRE(slot >= 0 && slot < SLOTS, EN_EINVAL, "slot %d of %d", slot, SLOTS);
    CU_TRY(cudaStreamWaitEvent(e->copy, e->state->freed[slot], 0), "slot %d", slot);
    for (int i = 0; i < n; i++)
        if (copies[i].bytes)
            CU_TRY(cudaMemcpyAsync(copies[i].dst, copies[i].host, copies[i].bytes, cudaMemcpyHostToDevice, e->copy), "uploading %zu bytes", copies[i].bytes);
    CU_TRY(cudaEventRecord(e->state->filled[slot], e->copy), "slot %d", slot);
    return EN_OK;
}

en_status cuda_stage_ready(en_backend *be, int slot)
{
    CU_TRY(cudaStreamWaitEvent(engine(be)->compute, engine(be)->state->filled[slot], 0), "slot %d", slot);
    return EN_OK;
}

en_status cuda_stage_done(en_backend *be, int slot)
{
    CU_TRY(cudaEventRecord(engine(be)->state->freed[slot], engine(be)->compute), "slot %d", slot);
    return EN_OK;
}

en_status cuda_stage_wait(en_backend *be, int slot) { return wait_for(be, engine(be)->state->filled[slot]); }

/* ---- recordings ---------------------------------------------------------------------------------------------------------------- */

en_status cuda_capture_begin(en_backend *be)
{
    cuda_engine *e = engine(be);
    EN_REQUIRE(!e->state->capturing, EN_EINVAL, "a recording within a recording");
    CU_TRY(cudaStreamBeginCapture(e->compute, cudaStreamCaptureModeThreadLocal), "recording the step");
    e->state->capturing = true;
    return EN_OK;
}

en_status cuda_capture_end(en_backend *be, void **graph)
{
    cuda_engine *e = engine(be);
    cudaGraph_t recorded = NULL;
    cudaGraphExec_t exec = NULL;
    *graph = NULL;
    e->state->capturing = false;
    CU_TRY(cudaStreamEndCapture(e->compute, &recorded), "recording the step");
    const cudaError_t made = cudaGraphInstantiate(&exec, recorded, 0);
    (void)cudaGraphDestroy(recorded);
    CU_TRY(made, "making a graph of the step");
    *graph = exec;
    return EN_OK;
}

en_status cuda_graph_launch(en_backend *be, void *graph)
{
    CU_TRY(cudaGraphLaunch((cudaGraphExec_t)graph, engine(be)->compute), "replaying the step");
    return EN_OK;
}

void cuda_graph_free(en_backend *be, void *graph)
{
    (void)cudaStreamSynchronize(engine(be)->compute);
    if (graph) (void)cudaGraphExecDestroy((cudaGraphExec_t)graph);
}

en_status cuda_mark(en_backend *be, int i)
{
    backend_state *s = engine(be)->state;
    EN_REQUIRE(i >= 0 && i < EN_MARKS, EN_EINVAL, "mark %d of %d", i, EN_MARKS);
    if (s->capturing) CU_TRY(cudaEventRecordWithFlags(s->marks[i], engine(be)->compute, cudaEventRecordExternal), "mark %d", i);
    else CU_TRY(cudaEventRecord(s->marks[i], engine(be)->compute), "mark %d", i);
    return EN_OK;
}

double cuda_elapsed(en_backend *be, int from, int to)
{
    float ms = 0;
    if (cudaEventElapsedTime(&ms, engine(be)->state->marks[from], engine(be)->state->marks[to]) != cudaSuccess) (void)cudaGetLastError(), ms = 0;
    return 1e-3 * (double)ms;
}

/* ---- what passes work in --------------------------------------------------------------------------------------------------------- */

static en_status grow(en_backend *be, void **buffer, size_t *have, size_t need)
{
    if (need <= *have) return EN_OK;
    void *bigger = NULL;
    EN_TRY(cuda_alloc(be, need, &bigger), "scratch memory");
    cuda_free(be, *buffer);
    *buffer = bigger;
    *have = need;
    return EN_OK;
}

en_status cuda_reserve(en_backend *be, const en_conv_geom *g)
{
    cuda_engine *e = engine(be);
    const size_t sizes[] = { scratch_of_norm(e, g), scratch_of_pointwise(e, g), scratch_of_depthwise(e, g), scratch_of_conv(e, g), scratch_of_stem(e, g),
                             scratch_of_project(e, g), scratch_of_head(e, g), scratch_of_optimizer(e) };
    size_t need = 4096, cast = e->cast_elems * sizeof(bf16);
    for (size_t s : sizes)
        if (s > need) need = s;
    EN_TRY(grow(be, (void **)&e->scratch, &e->scratch_bytes, need), "scratch");
    const size_t matrix = (g->kernel == 0 ? 1 : g->dense ? (size_t)(g->kernel * g->kernel) : 0) * (size_t)(g->c * g->oc) * sizeof(bf16);
    if (be->dtype == EN_BF16) EN_TRY(grow(be, (void **)&e->cast, &cast, matrix), "scratch");
    e->cast_elems = cast / sizeof(bf16);
    be->scratch_bytes = e->scratch_bytes + cast + e->lt_workspace_bytes;
    return EN_OK;
}

size_t cuda_workspace_bytes(en_backend *be, en_work kind, const en_conv_geom *g) { return en_cuda_workspace(be->dtype, engine(be)->folds, kind, g); }

int64_t cuda_fold_floats(en_backend *be, int64_t rows, int64_t ci, int64_t co) { return en_cuda_fold_floats(engine(be)->folds, rows, ci, co); }
