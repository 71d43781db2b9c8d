/* core.h - what rewritten kernels and the harness know of each other.
 *
 * A kernel sees its CUDA thread as `cur`, launches through `launcher`, and meets the others of its block in barriers, warp
 * exchanges and shared slots.  Nothing here is a macro of CUDA's: those are in cudaemu.h, which only .cu files read. */
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <tuple>
#include <type_traits>
#include <cuda_runtime.h>

namespace cudaemu {

struct Ctx {                                   // one CUDA thread, as its kernel sees it
    uint3 threadIdx, blockIdx;
    unsigned lane, warp, tid;
};
extern Ctx *cur;                               // the running CUDA thread; nullptr in host code
extern uint3 threadIdx, blockIdx;              // its built-in variables
extern dim3 blockDim, gridDim;

// A mistake that the harness was built to find: says where, and ends the process with code 86.
[[noreturn]] void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

// ---- inside a kernel -------------------------------------------------------------------------------------------------
enum Reduce { BAR_PLAIN, BAR_COUNT, BAR_AND, BAR_OR };
enum Collective { SHFL, SHFL_UP, SHFL_DOWN, SHFL_XOR, BALLOT, REDUCE, MATCH, SYNCWARP };

struct WarpView {                              // what the lanes of a finished warp collective brought
    const unsigned char (*slot)[16];
    unsigned present;
};
int      syncthreads(const char *file, int line, Reduce op, int predicate);
WarpView warp_exchange(unsigned mask, Collective op, const void *value, size_t bytes, const char *file, int line);
void     slot_get(const WarpView &view, int lane, void *out, size_t bytes);
unsigned activemask();
void    *dyn_smem();                                                    // extern __shared__
void    *shared_slot(const void *key, size_t bytes, size_t align);      // one array per declaration and block
void     fence_note();                                                  // __threadfence: what was written is published
void     atomic_enter();
void     atomic_exit();
void     pipe_copy(void *dst, const void *src, size_t bytes, size_t zero_bytes);
void     pipe_commit();
void     pipe_wait(int prior);
void     kernel_enter();
void     kernel_exit();
void     over_launch_bounds(unsigned max_threads);

inline void launch_bounds(unsigned max_threads, unsigned = 0, unsigned = 0)
{
    if (blockDim.x * blockDim.y * blockDim.z > max_threads) over_launch_bounds(max_threads);
}
template <class T> T &shared_ref(const void *key)
{
    return *static_cast<T *>(shared_slot(key, sizeof(T), alignof(T) < 16 ? 16 : alignof(T)));
}

// ---- launching -------------------------------------------------------------------------------------------------------
struct Launch {
    const void *kernel;
    const char *name, *file;
    int line;
    dim3 grid, block;
    size_t smem;
    cudaStream_t stream;
};
cudaError_t launch(const Launch &l, std::function<void()> thread);

template <class... P> struct Launcher {
    void (*kernel)(P...);
    Launch l;
    cudaError_t operator()(P... args) const    // P...: arguments convert here as in a call, and are kept by value as CUDA does
    {
        std::tuple<P...> kept(args...);
        auto k = kernel;
        return launch(l, [k, kept] {
            auto k2 = k;
            auto mine = kept;                  // parameters live on the CUDA thread's own stack
            kernel_enter();
            std::apply(k2, mine);
            kernel_exit();
        });
    }
};
template <class... P>
Launcher<P...> launcher(void (*k)(P...), const char *name, const char *file, int line, dim3 grid, dim3 block, size_t smem = 0,
                        cudaStream_t stream = nullptr)
{
    return {k, {reinterpret_cast<const void *>(k), name, file, line, grid, block, smem, stream}};
}
// cudaLaunchKernelEx: attributes (programmatic serialisation, priorities) change when a kernel runs, not what it computes.
template <class... P, class... A>
cudaError_t launch_ex(const cudaLaunchConfig_t *c, void (*k)(P...), A &&...args)
{
    for (unsigned i = 0; i < c->numAttrs; i++)
        if (c->attrs[i].id == cudaLaunchAttributeClusterDimension || c->attrs[i].id == cudaLaunchAttributeCooperative)
            return cudaErrorNotSupported;
    return launcher(k, "cudaLaunchKernelEx", __builtin_FILE(), __builtin_LINE(), c->gridDim, c->blockDim, c->dynamicSmemBytes,
                    c->stream)(static_cast<A &&>(args)...);
}

} // namespace cudaemu
