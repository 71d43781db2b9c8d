/* race.cpp - a race checker behind gcc's -fsanitize=thread.
 *
 * Kernels compiled with that option call __tsan_read4(p) and the like before every access; the functions are ours, and
 * libtsan is not linked.  For each two bytes touched in a launch we keep who wrote and who read them last: block, thread, and
 * how many barriers (of the block, of the warp) had passed.  Two accesses, one of them a write, race unless
 *     - the same thread made both, or both were atomic;
 *     - the same block made both, and a __syncthreads lies between, or a full __syncwarp if the warp is the same;
 *     - different blocks made them, the first did __threadfence and then an atomic, and the second has done an atomic since.
 * Unlike a run in random order this needs no bad luck: the schedule that was seen proves that the order is not guaranteed.
 * Every access is also held against what may be accessed at all: device and pinned memory, declared shared arrays, the
 * fiber's own stack, constants.  A pointer to anything else of the host is an error. */
#include "runtime.h"
#include <dlfcn.h>
#include <link.h>
#include <unordered_map>

namespace cudaemu {
namespace {

struct Who {
    uint32_t block;
    uint16_t tid;
    uint8_t atomic, many;                            // many: 1 several threads of the block, 2 several blocks
    uint32_t block_epoch, warp_epoch;
};
struct Cell { uint64_t launch; Who w, r; bool written, read; };
constexpr size_t GRAIN = 2;                          // bytes per cell: a bf16
struct Page { Cell c[4096 / GRAIN]; };
auto &pages = *new std::unordered_map<uintptr_t, std::unique_ptr<Page>>;

Cell &cell_of(uintptr_t a)
{
    static uintptr_t last;
    static Page *page;
    if (a >> 12 != last || !page) {
        auto &p = pages[a >> 12];
        if (!p) p.reset(new Page());
        last = a >> 12;
        page = p.get();
    }
    return page->c[(a & 4095) / GRAIN];
}
struct Range { uintptr_t lo, hi; };
std::vector<Range> &modules()                        // where programs and libraries lie: constants, and threadIdx itself
{
    static auto *v = [] {
        auto *r = new std::vector<Range>;
        dl_iterate_phdr([](dl_phdr_info *i, size_t, void *out) {
            for (int k = 0; k < i->dlpi_phnum; k++)
                if (i->dlpi_phdr[k].p_type == PT_LOAD)
                    static_cast<std::vector<Range> *>(out)->push_back(
                        {i->dlpi_addr + i->dlpi_phdr[k].p_vaddr,
                         i->dlpi_addr + i->dlpi_phdr[k].p_vaddr + i->dlpi_phdr[k].p_memsz});
            return 0;
        }, r);
        return r;
    }();
    return *v;
}
bool in_module(uintptr_t a)
{
    static Range last = {0, 0};
    if (a >= last.lo && a < last.hi) return true;
    for (auto &m : modules())
        if (a >= m.lo && a < m.hi) {
            last = m;
            return true;
        }
    return false;
}
bool ordered(const Who &o, const Thread &t, const Warp &w)         // o, of this block, came before
{
    if (o.block_epoch != block.epoch) return true;
    return !o.many && (unsigned)(o.tid >> 5) == t.c.warp && o.warp_epoch != w.epoch;
}
struct Access { const char *p; size_t n; bool write, shared; void *pc; };
std::string line_of(void *pc)                        // for addr2line
{
    Dl_info i;
    char text[512] = "in the harness";
    if (pc && dladdr(pc, &i) && i.dli_fname)
        snprintf(text, sizeof text, "addr2line -e %s %#zx", i.dli_fname, (size_t)((char *)pc - (char *)i.dli_fbase) - 1);
    return text;
}
[[noreturn]] void race(const char *kind, const Access &a, const Who &o, const char *before)
{
    fail("DATA RACE (%s) on %s memory %p: %s of %zu bytes by block %llu thread %u conflicts with an earlier %s by block %u "
         "thread %u%s (%s)", kind, a.shared ? "shared" : "global", (const void *)a.p, a.write ? "write" : "read", a.n,
         (unsigned long long)block.id, cur->tid, before, o.block, o.tid, o.many ? " and others" : "", line_of(a.pc).c_str());
}
// What may be accessed at all; false: private to the thread, or constant.
bool check_place(Access &a)
{
    const char *verb = a.write ? "writes" : "reads";
    if (a.p >= stack_lo && a.p < stack_hi) return false;
    if (arena && a.p >= arena && a.p < arena + ARENA) {
        a.shared = true;
        for (auto &s : slots)
            if (a.p >= s.p && a.p + a.n <= s.p + s.n) return true;
        fail("the kernel %s %zu bytes at %p, outside every shared array (%s)", verb, a.n, (const void *)a.p, line_of(a.pc).c_str());
    }
    if (dyn_size && a.p >= dyn_base && a.p < dyn_base + dyn_size) {
        if (a.p + a.n > dyn_base + dyn_size)
            fail("the kernel %s past the end of dynamic shared memory (%s)", verb, line_of(a.pc).c_str());
        return a.shared = true;
    }
    const char *threads = reinterpret_cast<char *>(block.threads.data());
    if (a.p >= threads && a.p < threads + block.threads.size() * sizeof(Thread)) return false;      // threadIdx
    const Alloc *m = find_alloc(a.p);
    if (!m) {
        if (in_module((uintptr_t)a.p)) return false;
        fail("the kernel %s %zu bytes at %p: neither device nor shared memory (a host pointer, or out of bounds) (%s)", verb, a.n,
             (const void *)a.p, line_of(a.pc).c_str());
    }
    if (a.p + a.n > m->p + m->n) fail("the kernel %s %zu bytes at %p, past the end of an allocation of %zu bytes (%s)", verb,
                                      a.n, (const void *)a.p, m->n, line_of(a.pc).c_str());
    if (a.n <= 16 && (uintptr_t)a.p & (a.n - 1))
        fail("misaligned access of %zu bytes at %p (%s)", a.n, (const void *)a.p, line_of(a.pc).c_str());
    return true;
}
void access(const void *p, size_t n, bool write, void *pc)
{
    Access a = {static_cast<const char *>(p), n, write, false, pc};
    if (!check_place(a)) return;
    const Warp &w = block.warps[cur->warp];
    const Thread &t = block.threads[cur->tid];
    const bool atomic = in_atomic != 0;
    for (uintptr_t x = (uintptr_t)p / GRAIN * GRAIN; x < (uintptr_t)p + n; x += GRAIN) {
        Cell &c = cell_of(x);
        if (c.launch != launch_id) c.launch = launch_id, c.written = c.read = false;
        if (a.shared && c.written && c.w.block != block.id) c.written = false;
        if (a.shared && c.read && c.r.block != block.id) c.read = false;
        if (c.written && !(atomic && c.w.atomic)) {
            if (c.w.block != block.id && !(block.acquired && released[c.w.block])) race("between blocks", a, c.w, "write");
            if (c.w.block == block.id && c.w.tid != cur->tid && !ordered(c.w, t, w))
                race("missing barrier", a, c.w, "write");
        }
        if (write && c.read && !(atomic && c.r.atomic)) {
            if (c.r.block != block.id || c.r.many == 2) race("between blocks", a, c.r, "read");
            if ((c.r.tid != cur->tid || c.r.many) && !ordered(c.r, t, w)) race("missing barrier", a, c.r, "read");
        }
        Who me = {(uint32_t)block.id, (uint16_t)cur->tid, atomic, 0, block.epoch, w.epoch};
        if (write) c.w = me, c.written = true;
        if (!write || atomic) {
            if (c.read && (c.r.block != block.id || c.r.many == 2)) me.many = 2;
            else if (c.read && c.r.block_epoch == block.epoch && (c.r.tid != cur->tid || c.r.many)) me.many = 1;
            if (c.read && !c.r.atomic) me.atomic = 0;
            c.r = me;
            c.read = true;
        }
    }
}
void by_harness(const void *p, size_t n, bool write) { access(p, n, write, nullptr); }
__attribute__((constructor)) void hook() { access_hook = by_harness; }

inline void instrumented(const void *p, size_t n, bool write, void *pc)
{
    if (!in_kernel || !cur) return;
    Quiet quiet;
    access(p, n, write, pc);
}

} // namespace
} // namespace cudaemu

extern "C" {
#define PC __builtin_return_address(0)
#define ACCESS(kind, n, write) void __tsan_##kind##n(void *p) { cudaemu::instrumented(p, n, write, PC); }
#define BOTH(prefix, n) ACCESS(prefix##read, n, false) ACCESS(prefix##write, n, true)
#define EVERY(n) BOTH(, n) BOTH(unaligned_, n) BOTH(volatile_, n)
EVERY(1) EVERY(2) EVERY(4) EVERY(8) EVERY(16)
void __tsan_read_range(void *p, unsigned long n) { cudaemu::instrumented(p, n, false, PC); }
void __tsan_write_range(void *p, unsigned long n) { cudaemu::instrumented(p, n, true, PC); }
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
void __tsan_init(void) {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
}
