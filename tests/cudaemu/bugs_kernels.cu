/* bugs_kernels.cu - what kernels get wrong.
 *
 * One block of 256 threads (or as said) reads x[i] = i and writes y; `BUG` is a template parameter, so that each function
 * holds the mistake and its repair beside each other.  find_bugs.py says which build has to find which. */
#include "bugs.h"
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>

constexpr int N = 256;

template <bool BUG> __global__ void read_past_the_end(const float *x, float *y) { y[threadIdx.x] = x[threadIdx.x + BUG]; }
template <bool BUG> __global__ void write_past_the_end(const float *x, float *y)
{
    y[threadIdx.x] = x[threadIdx.x];
    if (BUG && threadIdx.x == 0) y[N] = 1;
}
template <bool BUG> __global__ void past_a_shared_array(const float *x, float *y)
{
    __shared__ float a[N], b[N];
    a[threadIdx.x] = b[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = a[threadIdx.x + (BUG ? 1 : 0)] - (BUG ? 1 : 0);
}
template <bool BUG> __global__ void past_dynamic_shared(const float *x, float *y)
{
    extern __shared__ float s[];
    s[threadIdx.x + (BUG ? 1 : 0)] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
template <bool BUG> __global__ void misaligned_vector(const float *x, float *y)
{
    if (threadIdx.x >= 32) { y[threadIdx.x] = x[threadIdx.x]; return; }
    const float4 v = *reinterpret_cast<const float4 *>(x + 4 * (threadIdx.x / 4) + (BUG ? 1 : 0));
    const float e[4] = {v.x, v.y, v.z, v.w};
    y[threadIdx.x] = e[threadIdx.x % 4] - (BUG ? 1 : 0);
}
template <bool BUG> __global__ void missing_barrier(const float *x, float *y)
{
    __shared__ float s[N];
    s[N - 1 - threadIdx.x] = x[N - 1 - threadIdx.x];
    if (!BUG) __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
template <bool BUG> __global__ void missing_barrier_in_a_loop(const float *x, float *y)
{
    __shared__ float s[N];
    float v = 0;
    for (int k = 0; k < 4; k++) {
        s[threadIdx.x] = x[threadIdx.x] + k;
        __syncthreads();
        v += s[N - 1 - threadIdx.x] - k;
        if (!BUG) __syncthreads();
    }
    y[N - 1 - threadIdx.x] = v / 4;
}
template <bool BUG> __global__ void divergent_barrier(const float *x, float *y)
{
    if (!BUG) __syncthreads();
    else if (threadIdx.x < 128) __syncthreads();
    else __syncthreads();
    y[threadIdx.x] = x[threadIdx.x];
}
template <bool BUG> __global__ void early_return(const float *x, float *y)
{
    y[threadIdx.x] = x[threadIdx.x];
    if (BUG && threadIdx.x >= 100) return;
    __syncthreads();
}
template <bool BUG> __global__ void missing_atomic(const float *x, float *y)
{
    __shared__ int count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    if (BUG) count += 1;
    else atomicAdd(&count, 1);
    __syncthreads();
    y[threadIdx.x] = x[threadIdx.x] + count - N;
}
template <bool BUG> __global__ void missing_copy_wait(const float *x, float *y)
{
    __shared__ __align__(16) float s[N];
    __pipeline_memcpy_async(&s[threadIdx.x], &x[threadIdx.x], 4);
    __pipeline_commit();
    if (!BUG) __pipeline_wait_prior(0);
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
    if (BUG) __pipeline_wait_prior(0);
}
template <bool BUG> __global__ void shuffle_from_an_absent_lane(const float *x, float *y)
{
    float v = x[threadIdx.x];
    if ((threadIdx.x & 31) < 16) v += __shfl_down_sync(0x0000ffffu, x[threadIdx.x], BUG ? 8 : 0) - v;
    y[threadIdx.x] = v;
}
template <bool BUG> __global__ void full_mask_in_a_branch(const float *x, float *y)
{
    float v = x[threadIdx.x];
    if (!BUG || threadIdx.x & 1) v = __shfl_xor_sync(0xffffffffu, v, 2);
    if (!BUG) v = __shfl_xor_sync(0xffffffffu, v, 2);
    y[threadIdx.x] = v;
}
template <bool BUG> __global__ void uninitialised_shared(const float *x, float *y)
{
    __shared__ float s[N];
    if (!BUG || threadIdx.x != 7) s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
template <bool BUG> __global__ void unwritten_output(const float *x, float *y)
{
    if (!BUG || threadIdx.x != 9) y[threadIdx.x] = x[threadIdx.x];
}
template <bool BUG> __global__ void missing_syncwarp(const float *x, float *y)
{
    __shared__ float s[N];
    s[threadIdx.x ^ 31] = x[threadIdx.x ^ 31];
    if (!BUG) __syncwarp();
    y[threadIdx.x] = s[threadIdx.x];
}
template <bool BUG> __global__ void __launch_bounds__(BUG ? 128 : 256) launch_bounds(const float *x, float *y)
{
    y[threadIdx.x] = x[threadIdx.x];
}
template <bool BUG> __global__ void race_between_blocks(const float *x, float *y)        // every block of 2 adds to y
{
    __shared__ unsigned last;
    __shared__ float part;
    unsigned *count = reinterpret_cast<unsigned *>(y + N);
    float *sums = y + N + 1;
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = x[1];
        if (!BUG) __threadfence();
        last = atomicAdd(count, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    if (threadIdx.x == 0) part = sums[0] + sums[1];
    __syncthreads();
    y[threadIdx.x] = x[threadIdx.x] + part - 2;
}
template <bool BUG> __global__ void host_pointer(const float *x, float *y) { y[threadIdx.x] = x[threadIdx.x]; }

static int check(float *y)
{
    float h[N];
    int bad = 0;
    if (cudaDeviceSynchronize() != cudaSuccess || cudaMemcpy(h, y, sizeof h, cudaMemcpyDeviceToHost) != cudaSuccess) return 1;
    for (int i = 0; i < N; i++) bad |= !(h[i] == (float)i);
    return bad;
}
template <class F> static int with_arrays(size_t extra, F launch)
{
    float h[N], *x = nullptr, *y = nullptr;
    for (int i = 0; i < N; i++) h[i] = (float)i;
    if (cudaMalloc(&x, sizeof h) != cudaSuccess || cudaMalloc(&y, sizeof h + extra) != cudaSuccess) return 1;
    cudaMemcpy(x, h, sizeof h, cudaMemcpyHostToDevice);
    if (extra) cudaMemset(y + N, 0, extra);
    launch(x, y, h);
    const int bad = cudaGetLastError() != cudaSuccess || check(y);
    cudaFree(x);
    cudaFree(y);
    return bad;
}
#define SIMPLE(name)                                                                                                    \
    static int run_##name(int planted)                                                                                  \
    {                                                                                                                   \
        return with_arrays(0, [=](float *x, float *y, float *) {                                                        \
            if (planted) name<true><<<1, N>>>(x, y);                                                                    \
            else name<false><<<1, N>>>(x, y);                                                                           \
        });                                                                                                             \
    }
SIMPLE(read_past_the_end) SIMPLE(write_past_the_end) SIMPLE(past_a_shared_array) SIMPLE(misaligned_vector) SIMPLE(missing_barrier)
SIMPLE(missing_barrier_in_a_loop) SIMPLE(divergent_barrier) SIMPLE(early_return) SIMPLE(missing_atomic) SIMPLE(missing_copy_wait)
SIMPLE(shuffle_from_an_absent_lane) SIMPLE(full_mask_in_a_branch) SIMPLE(uninitialised_shared) SIMPLE(unwritten_output)
SIMPLE(missing_syncwarp) SIMPLE(launch_bounds)
static int run_past_dynamic_shared(int planted)
{
    return with_arrays(0, [=](float *x, float *y, float *) {
        if (planted) past_dynamic_shared<true><<<1, N, N * sizeof(float)>>>(x, y);
        else past_dynamic_shared<false><<<1, N, N * sizeof(float)>>>(x, y);
    });
}
static int run_too_much_shared(int planted)                          // above 48 KiB it has to be asked for
{
    return with_arrays(0, [=](float *x, float *y, float *) {
        if (!planted) cudaFuncSetAttribute(past_dynamic_shared<false>, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10);
        past_dynamic_shared<false><<<1, N, 64 << 10>>>(x, y);
    });
}
static int run_race_between_blocks(int planted)
{
    return with_arrays(3 * sizeof(float), [=](float *x, float *y, float *) {
        if (planted) race_between_blocks<true><<<2, N>>>(x, y);
        else race_between_blocks<false><<<2, N>>>(x, y);
    });
}
static int run_host_pointer(int planted)
{
    return with_arrays(0, [=](float *x, float *y, float *h) { host_pointer<true><<<1, N>>>(planted ? h : x, y); });
}
static int run_use_after_free(int planted)
{
    return with_arrays(0, [=](float *x, float *y, float *) {
        float *z = nullptr;
        cudaMalloc(&z, N * sizeof(float));
        cudaMemcpy(z, x, N * sizeof(float), cudaMemcpyDeviceToDevice);
        if (planted) cudaFree(z);
        host_pointer<false><<<1, N>>>(z, y);
        if (!planted) cudaFree(z);
    });
}
#define ROW(name) {#name, run_##name}
const struct bug kernel_bugs[] = {
    ROW(read_past_the_end), ROW(write_past_the_end), ROW(past_a_shared_array), ROW(past_dynamic_shared), ROW(too_much_shared),
    ROW(misaligned_vector), ROW(missing_barrier), ROW(missing_barrier_in_a_loop), ROW(divergent_barrier), ROW(early_return),
    ROW(missing_atomic), ROW(missing_copy_wait), ROW(shuffle_from_an_absent_lane), ROW(full_mask_in_a_branch),
    ROW(uninitialised_shared), ROW(unwritten_output), ROW(missing_syncwarp), ROW(launch_bounds), ROW(race_between_blocks),
    ROW(host_pointer), ROW(use_after_free), {nullptr, nullptr},
};
