/* cudaemu.h - read before everything else by every .cu file that g++ compiles (-include cudaemu.h).
 *
 * CUDA C++ is C++ with a few words more.  Most are attributes and vanish here; <<<>>>, __shared__ and __launch_bounds__ are
 * rewritten by cu2cpp.py; the built-in variables read the running fiber; the built-in functions are in device_sync.h and
 * device_math.h.  Types, conversions and prototypes come from NVIDIA's own headers, so that a kernel is checked against the
 * real ones.  __CUDACC__ and __CUDA_ARCH__ stay undefined: code that holds inline PTX needs a portable branch. */
#pragma once
#define CUDAEMU 1
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__ __attribute__((unused))
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static_assert(false, "a __shared__ declaration that cu2cpp.py did not recognise")
#include <vector_types.h>
#include <vector_functions.h>
#include <driver_types.h>
#include <cuda_runtime.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>

#include "core.h"

using cudaemu::blockDim;
using cudaemu::blockIdx;
using cudaemu::gridDim;
using cudaemu::threadIdx;
static const int warpSize __attribute__((unused)) = 32;

#define EMU_FN static inline __attribute__((unused))
#define EMU_AT const char *emu_file = __builtin_FILE(), int emu_line = __builtin_LINE()   // where the kernel calls

#include "device_sync.h"
#include "device_math.h"

// ---- host functions that nvcc offers as templates -------------------------------------------------------------------
#define cudaLaunchKernelEx cudaemu::launch_ex
template <class... P> static inline cudaError_t cudaFuncSetAttribute(void (*k)(P...), cudaFuncAttribute a, int v)
{
    return ::cudaFuncSetAttribute(reinterpret_cast<const void *>(k), a, v);
}
template <class... P> static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, void (*k)(P...))
{
    return ::cudaFuncGetAttributes(a, reinterpret_cast<const void *>(k));
}
template <class T>
static inline cudaError_t cudaMemcpyToSymbol(T &symbol, const void *src, size_t bytes, size_t offset = 0,
                                             cudaMemcpyKind = cudaMemcpyHostToDevice)
{
    return ::cudaMemcpyToSymbol(reinterpret_cast<const void *>(&symbol), src, bytes, offset, cudaMemcpyHostToDevice);
}
template <class T>
static inline cudaError_t cudaMemcpyToSymbolAsync(T &symbol, const void *src, size_t bytes, size_t offset, cudaMemcpyKind,
                                                  cudaStream_t s)
{
    return ::cudaMemcpyToSymbolAsync(reinterpret_cast<const void *>(&symbol), src, bytes, offset, cudaMemcpyHostToDevice, s);
}
template <class T> static inline cudaError_t cudaGetSymbolAddress(void **p, T &symbol)
{
    *p = const_cast<void *>(static_cast<const void *>(&symbol));
    return cudaSuccess;
}
