/* devices.cpp - what the machine is said to have, and the error that was last met.
 *
 * CUDAEMU_DEVICES devices (1) of CUDAEMU_SMS multiprocessors (4) with the limits of sm_90.  With 0 devices every call fails as
 * it does without a driver (cudaErrorInsufficientDriver), or, when CUDAEMU_DRIVER names a driver version, as with a driver that
 * finds no device (cudaErrorNoDevice); the count is left unwritten, as the real library leaves it. */
#include "runtime.h"
#include <cstdio>
#include <cstring>
#include <map>

namespace cudaemu {

constexpr size_t SMEM_SM = 228 << 10;
static thread_local cudaError_t last_error = cudaSuccess;
static thread_local int device;
static auto &opted_in = *new std::map<const void *, size_t>;

cudaError_t note(cudaError_t e)
{
    if (e != cudaSuccess) last_error = e;
    return e;
}
int no_device()
{
    if (opt().driver < CUDART_VERSION / 1000 * 1000) return cudaErrorInsufficientDriver;
    return opt().devices <= 0 ? cudaErrorNoDevice : cudaSuccess;
}
int current_device() { return device; }
size_t dyn_limit(const void *kernel)
{
    auto i = opted_in.find(kernel);
    return i == opted_in.end() ? SMEM_DEFAULT : i->second;
}
static const struct { cudaError_t e; const char *name, *text; } errors[] = {
#define E(e, text) {e, #e, text}
    E(cudaSuccess, "no error"),
    E(cudaErrorInvalidValue, "invalid argument"),
    E(cudaErrorMemoryAllocation, "out of memory"),
    E(cudaErrorInitializationError, "initialization error"),
    E(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    E(cudaErrorInvalidPitchValue, "invalid pitch argument"),
    E(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    E(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    E(cudaErrorInvalidDevice, "invalid device ordinal"),
    E(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    E(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    E(cudaErrorNotReady, "device not ready"),
    E(cudaErrorNotSupported, "operation not supported"),
    E(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    E(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    E(cudaErrorStreamCaptureMerge, "operation would result in a merge of separate capture sequences"),
    E(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began"),
    E(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    E(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    E(cudaErrorStreamCaptureImplicit, "operation would make the legacy stream depend on a capturing blocking stream"),
    E(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream"),
    E(cudaErrorStreamCaptureWrongThread, "attempt to terminate a thread-local capture sequence from another thread"),
    E(cudaErrorUnknown, "unknown error"),
#undef E
};

} // namespace cudaemu
using namespace cudaemu;

extern "C" {
const char *cudaGetErrorName(cudaError_t e)
{
    for (auto &x : errors)
        if (x.e == e) return x.name;
    return "unrecognized error code";
}
const char *cudaGetErrorString(cudaError_t e)
{
    for (auto &x : errors)
        if (x.e == e) return x.text;
    return "unrecognized error code";
}
cudaError_t cudaGetLastError(void)
{
    const cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }

// ---- devices ---------------------------------------------------------------------------------------------------------
cudaError_t cudaGetDeviceCount(int *n)
{
    if (int e = no_device()) return note((cudaError_t)e);
    *n = opt().devices;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int d)
{
    if (int e = no_device()) return note((cudaError_t)e);
    if (d < 0 || d >= opt().devices) return note(cudaErrorInvalidDevice);
    device = d;
    return cudaSuccess;
}
cudaError_t cudaInitDevice(int d, unsigned, unsigned) { return cudaSetDevice(d); }
cudaError_t cudaGetDevice(int *d)
{
    if (int e = no_device()) return note((cudaError_t)e);
    *d = device;
    return cudaSuccess;
}
cudaError_t cudaDeviceReset(void) { return cudaSuccess; }
cudaError_t cudaSetDeviceFlags(unsigned) { return cudaSuccess; }
cudaError_t cudaDeviceSetLimit(enum cudaLimit, size_t) { return cudaSuccess; }
cudaError_t cudaProfilerStart(void) { return cudaSuccess; }
cudaError_t cudaProfilerStop(void) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *v)
{
    *v = opt().driver;                               // 0: no driver, and that is a success
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *v)
{
    *v = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *out, int len, int d)
{
    if (int e = no_device()) return note((cudaError_t)e);
    if (d < 0 || d >= opt().devices) return note(cudaErrorInvalidDevice);
    if (len < 13) return note(cudaErrorInvalidValue);
    snprintf(out, (size_t)len, "0000:%02X:00.0", 0x1b + d);
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d)
{
    if (int e = no_device()) return note((cudaError_t)e);
    if (d < 0 || d >= opt().devices) return note(cudaErrorInvalidDevice);
    switch (a) {
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: *v = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *v = 64; break;
    case cudaDevAttrMaxGridDimX: *v = 2147483647; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *v = 65535; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = (int)SMEM_DEFAULT; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = (int)SMEM_OPTIN; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *v = (int)SMEM_SM; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *v = 1024; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMultiProcessorCount: *v = opt().sms; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *v = 32; break;
    case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: *v = 65536; break;
    case cudaDevAttrComputeCapabilityMajor: *v = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *v = 0; break;
    case cudaDevAttrClockRate: *v = 1000000; break;
    case cudaDevAttrMemoryClockRate: *v = 1000000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *v = 1024; break;
    case cudaDevAttrL2CacheSize: *v = 50 << 20; break;
    case cudaDevAttrConcurrentKernels: case cudaDevAttrUnifiedAddressing: case cudaDevAttrAsyncEngineCount:
    case cudaDevAttrStreamPrioritiesSupported: case cudaDevAttrMemoryPoolsSupported: *v = 1; break;
    case cudaDevAttrPciBusId: *v = 0x1b + d; break;
    default: *v = 0;
    }
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d)
{
    if (int e = no_device()) return note((cudaError_t)e);
    if (d < 0 || d >= opt().devices) return note(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "cudaemu (this CPU)");
    p->uuid.bytes[0] = (char)(d + 1);
    p->totalGlobalMem = opt().memory;
    p->sharedMemPerBlock = SMEM_DEFAULT;
    p->sharedMemPerBlockOptin = SMEM_OPTIN;
    p->sharedMemPerMultiprocessor = SMEM_SM;
    p->reservedSharedMemPerBlock = 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = 64 << 10;
    p->major = 9;
    p->multiProcessorCount = opt().sms;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32;
    p->memoryBusWidth = 1024;
    p->l2CacheSize = 50 << 20;
    p->concurrentKernels = p->unifiedAddressing = p->asyncEngineCount = p->canMapHostMemory = p->streamPrioritiesSupported = 1;
    p->pciBusID = 0x1b + d;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    if (int e = no_device()) return note((cudaError_t)e);
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int, int)
{
    *can = 0;
    return cudaSuccess;
}

// ---- kernels ---------------------------------------------------------------------------------------------------------
cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute a, int v)
{
    Api api;
    if (int e = no_device()) return note((cudaError_t)e);
    if (a != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (v < 0 || (size_t)v > SMEM_OPTIN) return note(cudaErrorInvalidValue);
    opted_in[kernel] = (size_t)v > SMEM_DEFAULT ? (size_t)v : SMEM_DEFAULT;
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *kernel)
{
    Api api;
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 32;
    a->maxDynamicSharedSizeBytes = (int)dyn_limit(kernel);
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *kernel, int threads, size_t smem, unsigned)
{
    Api api;
    if (int e = no_device()) return note((cudaError_t)e);
    if (threads <= 0 || threads > 1024) return note(cudaErrorInvalidValue);
    const size_t by_threads = 2048 / (size_t)((threads + 31) / 32 * 32), by_smem = SMEM_SM / (smem + 1024);
    *n = smem > dyn_limit(kernel) ? 0 : (int)std::min<size_t>(32, std::min(by_threads, by_smem));
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *kernel, int threads, size_t smem)
{
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, kernel, threads, smem, 0);
}
// Called by the toolkit's own inline templates; nothing here runs without its types.
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *, const void *, void **) { return note(cudaErrorNotSupported); }
cudaError_t cudaLaunchKernel(const void *, dim3, dim3, void **, size_t, cudaStream_t) { return note(cudaErrorNotSupported); }
}
