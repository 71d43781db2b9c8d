/* cooperative_groups.h - the part of CUDA's header of this name that kernels here may use: blocks and warp tiles. */
#pragma once
namespace cooperative_groups {
struct thread_block {
    static void sync(EMU_AT) { cudaemu::syncthreads(emu_file, emu_line, cudaemu::BAR_PLAIN, 0); }
    static unsigned thread_rank() { return cudaemu::cur->tid; }
    static unsigned size() { return blockDim.x * blockDim.y * blockDim.z; }
    static unsigned num_threads() { return size(); }
};
inline thread_block this_thread_block() { return {}; }
template <unsigned N, class Parent = thread_block> struct thread_block_tile {
    static unsigned lane() { return cudaemu::cur->lane; }
    static unsigned mask() { return (N == 32 ? ~0u : (1u << (N & 31)) - 1) << (lane() & ~(N - 1) & 31); }
    static unsigned thread_rank() { return lane() & (N - 1); }
    static unsigned meta_group_rank() { return cudaemu::cur->tid / N; }
    static constexpr unsigned size() { return N; }
    void sync(EMU_AT) const { __syncwarp(mask(), emu_file, emu_line); }
    template <class T> T shfl(T v, int s, EMU_AT) const { return __shfl_sync(mask(), v, s, N, emu_file, emu_line); }
    template <class T> T shfl_xor(T v, int s, EMU_AT) const { return __shfl_xor_sync(mask(), v, s, N, emu_file, emu_line); }
    template <class T> T shfl_down(T v, unsigned s, EMU_AT) const
    {
        return __shfl_down_sync(mask(), v, s, N, emu_file, emu_line);
    }
};
template <unsigned N> inline thread_block_tile<N> tiled_partition(const thread_block &) { return {}; }
template <class T> struct plus { T operator()(T a, T b) const { return a + b; } };
template <class Group, class T, class Op> inline T reduce(const Group &g, T v, Op op)
{
    for (unsigned o = Group::size() / 2; o; o /= 2) v = op(v, g.shfl_xor(v, (int)o));
    return v;
}
}
