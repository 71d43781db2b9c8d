/* language.cuh - device code in a header: rewritten with the file that includes it. */
#pragma once
#include <cuda_bf16.h>

struct __align__(16) eight { __nv_bfloat162 v[4]; };

template <int THREADS> static __device__ __forceinline__ float block_sum(float v)
{
    __shared__ float part[THREADS / 32];
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    float s = 0;
    for (int i = 0; i < THREADS / 32; i++) s += part[i];
    return s;
}
