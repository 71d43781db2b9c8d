/* grid.cpp - a launch: checked as the driver would, then run block by block.
 *
 * Shared memory is garbage when a block begins.  Static arrays live in an arena with red zones between them, laid out by the
 * first thread that passes each declaration; dynamic shared memory ends at a page that cannot be touched.  Both count
 * together against what the hardware has: 48 KiB, or what cudaFuncSetAttribute asked for. */
#include "runtime.h"
#include <cstdio>
#include <sys/mman.h>

namespace cudaemu {

const Launch *running;
uint64_t launch_id;
int in_atomic;
std::vector<char> released;
char *dyn_base, *arena;
size_t dyn_size;
std::vector<Slot> slots;
void (*access_hook)(const void *p, size_t n, bool write);
static size_t arena_used, static_bytes;

void *shared_slot(const void *key, size_t n, size_t align)
{
    Quiet quiet;
    for (auto &q : slots) {
        if (q.key != key) continue;
        if (q.n != n) fail("a shared array changes its size");
        return q.p;
    }
    static_bytes += n;
    if (static_bytes > SMEM_DEFAULT) fail("%zu bytes of static shared memory: over 48 KiB only dynamic", static_bytes);
    if (static_bytes + dyn_size > (dyn_limit(running->kernel) > SMEM_DEFAULT ? SMEM_OPTIN : SMEM_DEFAULT))
        fail("%zu bytes of static and %zu of dynamic shared memory: together more than there is", static_bytes, dyn_size);
    const size_t at = (arena_used + 128 + align - 1) / align * align;
    UNPOISON(arena + at, n);
    fill_garbage(arena + at, n);
    arena_used = at + n;
    slots.push_back({key, arena + at, n});
    return arena + at;
}
void *dyn_smem()
{
    if (!running) fail("extern __shared__ outside a kernel");
    if (!dyn_size) fail("the kernel has dynamic shared memory, but is launched with 0 bytes of it");
    return dyn_base;
}
void over_launch_bounds(unsigned max_threads)
{
    fail("%u threads in a block of a kernel with __launch_bounds__(%u)", block.n, max_threads);
}
void kernel_enter() { in_kernel = true; }
void kernel_exit() { in_kernel = false; }
void fence_note()
{
    if (cur) block.threads[cur->tid].fenced = true;
}
void atomic_enter()
{
    in_atomic++;
    block.acquired = true;
    if (cur && block.threads[cur->tid].fenced) released[block.id] = 1;
}
void atomic_exit() { in_atomic--; }

static void begin_block(uint64_t id)
{
    const dim3 g = gridDim, b = blockDim;
    blockIdx = {(unsigned)(id % g.x), (unsigned)(id / g.x % g.y), (unsigned)(id / ((uint64_t)g.x * g.y))};
    block.id = id;
    block.next = block.done = block.waiting = block.epoch = 0;
    block.count = 0;
    block.acquired = false;
    for (unsigned i = 0; i < block.n; i++) {
        Thread &t = block.threads[i];
        t.c = {{i % b.x, i / b.x % b.y, i / (b.x * b.y)}, blockIdx, i & 31, i >> 5, i};
        t.st = NEW;
        t.fenced = false;
        t.pipe_group = 0;
    }
    for (unsigned w = 0; w < block.warps.size(); w++) {
        const unsigned lanes = block.n - 32 * w;
        block.warps[w].live = lanes >= 32 ? 0xffffffffu : (1u << lanes) - 1;
        block.warps[w].exited = block.warps[w].epoch = 0;
        for (auto &x : block.warps[w].exchanges) x.arrived = 0;
    }
    if (opt().order == RANDOM)
        for (unsigned i = block.n - 1; i > 0; i--) std::swap(block.order[i], block.order[rnd() % (i + 1)]);
    for (auto &q : slots) fill_garbage(q.p, q.n);
    if (dyn_size) fill_garbage(dyn_base, dyn_size);
}
struct DynamicShared {                               // right-aligned against a guard page, poisoned on the left
    char *map = nullptr;
    size_t bytes = 0;
    explicit DynamicShared(size_t n)
    {
        dyn_base = nullptr;
        dyn_size = n;
        if (!n) return;
        bytes = (n + 256 + 4095) / 4096 * 4096 + 4096;
        map = static_cast<char *>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (map == MAP_FAILED) fail("no memory for dynamic shared memory");
        mprotect(map + bytes - 4096, 4096, PROT_NONE);
        dyn_base = map + bytes - 4096 - (n + 15) / 16 * 16;
        POISON(map, bytes);
        UNPOISON(dyn_base, n);
    }
    ~DynamicShared()
    {
        if (map) {
            UNPOISON(map, bytes);
            munmap(map, bytes);
        }
        dyn_base = nullptr;
        dyn_size = 0;
    }
};
static void run_grid(const Launch &l, std::function<void()> &thread)
{
    DeviceOpen open;
    const double began = now_s();
    running = &l;
    gridDim = l.grid;
    blockDim = l.block;
    rnd_seed(opt().seed * 1000003u + ++launch_id);
    block.n = l.block.x * l.block.y * l.block.z;
    block.threads.resize(block.n);
    block.warps.resize((block.n + 31) / 32);
    for (auto &w : block.warps) w.exchanges.clear();
    block.order.resize(block.n);
    for (unsigned i = 0; i < block.n; i++) block.order[i] = opt().order == REVERSE ? block.n - 1 - i : i;

    DynamicShared dynamic(l.smem);
    if (!arena)
        arena = static_cast<char *>(mmap(nullptr, ARENA, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    POISON(arena, ARENA);
    slots.clear();
    arena_used = static_bytes = 0;

    const uint64_t blocks = (uint64_t)l.grid.x * l.grid.y * l.grid.z;
    released.assign(blocks, 0);
    std::vector<uint32_t> order(blocks);
    for (uint64_t i = 0; i < blocks; i++) order[i] = (uint32_t)(opt().order == REVERSE ? blocks - 1 - i : i);
    if (opt().order == RANDOM)
        for (uint64_t i = blocks - 1; i > 0; i--) std::swap(order[i], order[rnd() % (i + 1)]);
    for (uint64_t i = 0; i < blocks; i++) {
        begin_block(order[i]);
        run_fibers(&thread);
    }
    if (opt().verbose)
        fprintf(stderr, "[cudaemu] %-32s grid %ux%ux%u block %ux%ux%u smem %zu  %.3f ms\n", l.name, l.grid.x, l.grid.y, l.grid.z,
                l.block.x, l.block.y, l.block.z, l.smem, 1e3 * (now_s() - began));
    running = nullptr;
}

cudaError_t launch(const Launch &l, std::function<void()> thread)
{
    Api api;
    if (cur) fail("%s:%d: a launch from device code", l.file, l.line);
    if (int e = no_device()) return note((cudaError_t)e);
    const uint64_t threads = (uint64_t)l.block.x * l.block.y * l.block.z;
    cudaError_t e = cudaSuccess;
    if (!l.grid.x || !l.grid.y || !l.grid.z || !threads || threads > 1024 || l.block.x > 1024 || l.block.y > 1024 ||
        l.block.z > 64 || l.grid.x > 2147483647u || l.grid.y > 65535 || l.grid.z > 65535)
        e = cudaErrorInvalidConfiguration;
    else if (l.smem > dyn_limit(l.kernel))
        e = cudaErrorInvalidValue;
    if (e != cudaSuccess) {
        fprintf(stderr, "CUDAEMU: %s at %s:%d refused: grid %ux%ux%u, block %ux%ux%u, %zu bytes of dynamic shared memory\n", l.name,
                l.file, l.line, l.grid.x, l.grid.y, l.grid.z, l.block.x, l.block.y, l.block.z, l.smem);
        return note(e);
    }
    return submit(l.stream, l.name, [l, thread]() mutable { run_grid(l, thread); });
}

} // namespace cudaemu
