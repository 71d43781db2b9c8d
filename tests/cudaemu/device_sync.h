/* device_sync.h - barriers, warp collectives, atomics and asynchronous copies, as kernels call them.
 *
 * Every call carries the place it was made from, so that two lanes which meet in different places are told apart and named.
 * Fibers are cooperative: a plain read-modify-write is atomic, and the race checker is told that it was meant to be. */
#pragma once

template <class T> struct emu_same { using type = T; };      // an argument that takes no part in deduction

EMU_FN void __syncthreads(EMU_AT) { cudaemu::syncthreads(emu_file, emu_line, cudaemu::BAR_PLAIN, 0); }
EMU_FN int __syncthreads_count(int p, EMU_AT) { return cudaemu::syncthreads(emu_file, emu_line, cudaemu::BAR_COUNT, p); }
EMU_FN int __syncthreads_and(int p, EMU_AT) { return cudaemu::syncthreads(emu_file, emu_line, cudaemu::BAR_AND, p); }
EMU_FN int __syncthreads_or(int p, EMU_AT) { return cudaemu::syncthreads(emu_file, emu_line, cudaemu::BAR_OR, p); }
EMU_FN void __syncwarp(unsigned mask = 0xffffffffu, EMU_AT)
{
    const char none = 0;
    cudaemu::warp_exchange(mask, cudaemu::SYNCWARP, &none, 1, emu_file, emu_line);
}
EMU_FN void __threadfence() { cudaemu::fence_note(); }
EMU_FN void __threadfence_block() {}
EMU_FN void __threadfence_system() { cudaemu::fence_note(); }

// ---- warp collectives ------------------------------------------------------------------------------------------------
template <class T> EMU_FN T emu_shfl(unsigned mask, T v, int src, cudaemu::Collective op, const char *file, int line)
{
    static_assert(sizeof(T) <= 16 && std::is_trivially_copyable<T>::value, "a shuffle moves up to 16 plain bytes");
    const cudaemu::WarpView w = cudaemu::warp_exchange(mask, op, &v, sizeof(T), file, line);
    if (src >= 0 && src != (int)cudaemu::cur->lane) {
        if (!(w.present >> src & 1))
            cudaemu::fail("%s:%d: shuffle reads lane %d, which does not take part (mask %08x, present %08x)", file, line, src,
                          mask, w.present);
        cudaemu::slot_get(w, src, &v, sizeof(T));
    }
    return v;
}
EMU_FN int emu_segment(int width) { return (int)cudaemu::cur->lane & ~(width - 1); }
template <class T> EMU_FN T __shfl_sync(unsigned m, T v, int lane, int width = 32, EMU_AT)
{
    return emu_shfl(m, v, emu_segment(width) + (lane & (width - 1)), cudaemu::SHFL, emu_file, emu_line);
}
template <class T> EMU_FN T __shfl_up_sync(unsigned m, T v, unsigned d, int width = 32, EMU_AT)
{
    const int s = (int)cudaemu::cur->lane - (int)d;
    return emu_shfl(m, v, s < emu_segment(width) ? -1 : s, cudaemu::SHFL_UP, emu_file, emu_line);
}
template <class T> EMU_FN T __shfl_down_sync(unsigned m, T v, unsigned d, int width = 32, EMU_AT)
{
    const int s = (int)cudaemu::cur->lane + (int)d;
    return emu_shfl(m, v, s >= emu_segment(width) + width ? -1 : s, cudaemu::SHFL_DOWN, emu_file, emu_line);
}
template <class T> EMU_FN T __shfl_xor_sync(unsigned m, T v, int x, int width = 32, EMU_AT)
{
    const int s = (int)cudaemu::cur->lane ^ x;
    return emu_shfl(m, v, s >= emu_segment(width) + width ? -1 : s, cudaemu::SHFL_XOR, emu_file, emu_line);
}
EMU_FN unsigned __ballot_sync(unsigned m, int p, EMU_AT)
{
    const cudaemu::WarpView w = cudaemu::warp_exchange(m, cudaemu::BALLOT, &p, sizeof p, emu_file, emu_line);
    unsigned r = 0;
    for (int i = 0; i < 32; i++) {
        int q = 0;
        if (w.present >> i & 1) cudaemu::slot_get(w, i, &q, sizeof q);
        r |= (unsigned)(q != 0) << i;
    }
    return r;
}
EMU_FN int __any_sync(unsigned m, int p, EMU_AT) { return __ballot_sync(m, p, emu_file, emu_line) != 0; }
EMU_FN int __all_sync(unsigned m, int p, EMU_AT) { return __ballot_sync(m, !p, emu_file, emu_line) == 0; }
template <class T> EMU_FN unsigned __match_any_sync(unsigned m, T v, EMU_AT)
{
    const cudaemu::WarpView w = cudaemu::warp_exchange(m, cudaemu::MATCH, &v, sizeof v, emu_file, emu_line);
    unsigned r = 0;
    for (int i = 0; i < 32; i++) {
        T q;
        if (!(w.present >> i & 1)) continue;
        cudaemu::slot_get(w, i, &q, sizeof q);
        r |= (unsigned)(memcmp(&q, &v, sizeof v) == 0) << i;
    }
    return r;
}
EMU_FN unsigned __activemask() { return cudaemu::activemask(); }
#define EMU_REDUCE(name, T, first, expr)                                                                                \
    EMU_FN T name(unsigned m, T v, EMU_AT)                                                                              \
    {                                                                                                                   \
        const cudaemu::WarpView w = cudaemu::warp_exchange(m, cudaemu::REDUCE, &v, sizeof v, emu_file, emu_line);       \
        T r = first, q;                                                                                                 \
        for (int i = 0; i < 32; i++)                                                                                    \
            if (w.present >> i & 1) { cudaemu::slot_get(w, i, &q, sizeof q); r = expr; }                                \
        return r;                                                                                                       \
    }
EMU_REDUCE(__reduce_add_sync, unsigned, 0u, r + q)
EMU_REDUCE(__reduce_add_sync, int, 0, (int)((unsigned)r + (unsigned)q))
EMU_REDUCE(__reduce_min_sync, unsigned, ~0u, (q < r ? q : r))
EMU_REDUCE(__reduce_max_sync, unsigned, 0u, (q > r ? q : r))
EMU_REDUCE(__reduce_min_sync, int, INT32_MAX, (q < r ? q : r))
EMU_REDUCE(__reduce_max_sync, int, INT32_MIN, (q > r ? q : r))
EMU_REDUCE(__reduce_or_sync, unsigned, 0u, r | q)
EMU_REDUCE(__reduce_and_sync, unsigned, ~0u, r & q)

// ---- atomics ---------------------------------------------------------------------------------------------------------
#define EMU_ATOMIC(name, expr)                                                                                          \
    template <class T> EMU_FN T name(T *p, typename emu_same<T>::type v)                                                \
    {                                                                                                                   \
        cudaemu::atomic_enter();                                                                                        \
        const T o = *p;                                                                                                 \
        *p = (T)(expr);                                                                                                 \
        cudaemu::atomic_exit();                                                                                         \
        return o;                                                                                                       \
    }
EMU_ATOMIC(atomicAdd, o + v)
EMU_ATOMIC(atomicSub, o - v)
EMU_ATOMIC(atomicMin, (v < o ? v : o))
EMU_ATOMIC(atomicMax, (v > o ? v : o))
EMU_ATOMIC(atomicOr, o | v)
EMU_ATOMIC(atomicAnd, o & v)
EMU_ATOMIC(atomicXor, o ^ v)
EMU_ATOMIC(atomicExch, v)
EMU_ATOMIC(atomicInc, (o >= v ? 0 : o + 1))
EMU_ATOMIC(atomicDec, (o == 0 || o > v ? v : o - 1))
template <class T> EMU_FN T atomicCAS(T *p, typename emu_same<T>::type compare, typename emu_same<T>::type v)
{
    cudaemu::atomic_enter();
    const T o = *p;
    if (o == compare) *p = v;
    cudaemu::atomic_exit();
    return o;
}

// ---- asynchronous copies: done when they are waited for, as late as the hardware may --------------------------------
EMU_FN void __pipeline_memcpy_async(void *dst, const void *src, size_t bytes, size_t zero_bytes = 0)
{
    cudaemu::pipe_copy(dst, src, bytes, zero_bytes);
}
EMU_FN void __pipeline_commit() { cudaemu::pipe_commit(); }
EMU_FN void __pipeline_wait_prior(int n) { cudaemu::pipe_wait(n); }

// ---- programmatic dependent launch: kernels of a stream never overlap here -------------------------------------------
EMU_FN void cudaGridDependencySynchronize() {}
EMU_FN void cudaTriggerProgrammaticLaunchCompletion() {}
EMU_FN void __nanosleep(unsigned) {}
EMU_FN void __trap() { cudaemu::fail("__trap()"); }
EMU_FN long long clock64() { static long long ticks; return ++ticks; }
