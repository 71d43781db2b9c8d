/* warps.cpp - barriers and warp collectives: who waits for whom.
 *
 * A barrier completes when every thread of the block is at it.  The hardware lets threads that have exited not count; here
 * that is an error, because a kernel that relies on it breaks with the next early return.  Likewise a collective must be met
 * by every lane its mask names, at the same place.  An exchange is double-buffered: a lane that runs ahead to the next
 * collective does not overwrite what a slower lane has yet to read. */
#include "runtime.h"
#include <cstring>

namespace cudaemu {

static void release_barrier()
{
    if (block.done)
        fail("__syncthreads at %s:%d completes although %u of %u threads have already exited (early return before a barrier)",
             block.file, block.line, block.done, block.n);
    int *r = block.result[block.epoch & 1];
    r[BAR_COUNT] = block.count;
    r[BAR_AND] = block.count == (int)block.n;
    r[BAR_OR] = block.count > 0;
    block.count = 0;
    block.waiting = 0;
    block.epoch++;
    for (auto &t : block.threads)
        if (t.st == AT_BARRIER) wake(t);
}
int syncthreads(const char *file, int line, Reduce op, int predicate)
{
    if (!cur) fail("%s:%d: __syncthreads outside a kernel", file, line);
    Quiet quiet;
    Thread &t = block.threads[cur->tid];
    if (block.waiting == 0) block.file = file, block.line = line, block.op = op;
    else if (block.line != line || block.op != op || strcmp(block.file, file))
        fail("divergent __syncthreads: this thread at %s:%d, others wait at %s:%d", file, line, block.file, block.line);
    const unsigned epoch = block.epoch;
    block.waiting++;
    block.count += predicate != 0;
    if (block.waiting + block.done == block.n) {
        release_barrier();
        requeue();
    } else {
        t.st = AT_BARRIER;
        t.file = file;
        t.line = line;
        wait_here();
    }
    return block.result[epoch & 1][op];
}

static bool complete(const Warp &w, const Exchange &x)
{
    return ((x.arrived | w.exited) & x.mask & w.live) == (x.mask & w.live);
}
static void finish(Warp &w, Exchange &x, unsigned first_thread)
{
    const unsigned absent = w.exited & x.mask & ~x.arrived, here = x.arrived;
    if (absent)
        fail("warp collective at %s:%d: mask %08x names lanes %08x that exited without taking part", x.file, x.line, x.mask,
             absent);
    x.present[x.gen & 1] = here;
    x.arrived = 0;
    x.gen++;
    if (x.op == SYNCWARP && x.mask == 0xffffffffu) w.epoch++;
    for (unsigned i = 0; i < 32; i++) {
        if (!(here >> i & 1)) continue;
        Thread &t = block.threads[first_thread + i];
        if (t.st == IN_WARP && t.mask == x.mask) wake(t);
    }
}
WarpView warp_exchange(unsigned mask, Collective op, const void *value, size_t bytes, const char *file, int line)
{
    if (!cur) fail("%s:%d: a warp collective outside a kernel", file, line);
    Quiet quiet;
    Thread &t = block.threads[cur->tid];
    const unsigned lane = cur->lane;
    Warp &w = block.warps[cur->warp];
    if (!(mask >> lane & 1)) fail("%s:%d: warp collective: the calling lane %u is not in mask %08x", file, line, lane, mask);
    if ((mask & ~w.live) && mask != 0xffffffffu)
        fail("%s:%d: warp collective: mask %08x names lanes that the block does not have", file, line, mask);
    Exchange *x = nullptr;
    for (auto &q : w.exchanges)
        if (q.mask == mask) x = &q;
    if (!x) {
        w.exchanges.reserve(64);                     // the views that lanes hold must stay where they are
        if (w.exchanges.size() == 64) fail("%s:%d: more than 64 different masks in one warp", file, line);
        w.exchanges.emplace_back();
        x = &w.exchanges.back();
        x->mask = mask;
    }
    if (!x->arrived) x->op = op, x->file = file, x->line = line;
    else if (x->op != op || x->line != line || strcmp(x->file, file))
        fail("warp divergence: lane %u calls a warp collective at %s:%d, other lanes wait at %s:%d (mask %08x)", lane, file,
             line, x->file, x->line, mask);
    const unsigned b = x->gen & 1;
    memcpy(x->buf[b][lane], value, bytes);
    x->arrived |= 1u << lane;
    if (complete(w, *x)) {
        finish(w, *x, cur->warp * 32);
        requeue();
    } else {
        t.st = IN_WARP;
        t.file = file;
        t.line = line;
        t.mask = mask;
        wait_here();
    }
    return {x->buf[b], x->present[b]};
}
void slot_get(const WarpView &view, int lane, void *out, size_t bytes)
{
    memcpy(out, view.slot[lane], bytes);
}
unsigned activemask()
{
    const Warp &w = block.warps[cur->warp];
    return w.live & ~w.exited;
}
void thread_left(Thread &t)
{
    if (!t.pipe.empty()) fail("a CUDA thread ends with %zu cp.async copies that nobody waited for", t.pipe.size());
    t.st = DONE;
    block.done++;
    Warp &w = block.warps[t.c.warp];
    w.exited |= 1u << t.c.lane;
    for (auto &x : w.exchanges)
        if (x.arrived && complete(w, x)) finish(w, x, t.c.warp * 32);
    if (block.waiting && block.waiting + block.done == block.n) release_barrier();
}

// ---- cp.async: the copy happens when it is waited for, so a wait that is missing shows as garbage --------------------
void pipe_copy(void *dst, const void *src, size_t bytes, size_t zero_bytes)
{
    Quiet quiet;
    if ((bytes != 4 && bytes != 8 && bytes != 16) || zero_bytes > bytes) fail("cp.async of %zu bytes", bytes);
    if ((uintptr_t)dst % bytes || (uintptr_t)src % bytes) fail("cp.async of %zu bytes is misaligned", bytes);
    if (!(dyn_size && (char *)dst >= dyn_base && (char *)dst + bytes <= dyn_base + dyn_size) &&
        !((char *)dst >= arena && (char *)dst < arena + ARENA))
        fail("cp.async to %p, which is not shared memory", dst);
    Thread &t = block.threads[cur->tid];
    t.pipe.push_back({dst, src, bytes, zero_bytes, t.pipe_group});
}
void pipe_commit()
{
    block.threads[cur->tid].pipe_group++;
}
void pipe_wait(int prior)
{
    Quiet quiet;
    Thread &t = block.threads[cur->tid];
    size_t left = 0;
    for (auto &o : t.pipe) {
        if (o.group >= t.pipe_group - prior) {
            t.pipe[left++] = o;
            continue;
        }
        if (access_hook && o.bytes > o.zero) access_hook(o.src, o.bytes - o.zero, false);
        if (access_hook) access_hook(o.dst, o.bytes, true);
        memcpy(o.dst, o.src, o.bytes - o.zero);
        memset(static_cast<char *>(o.dst) + o.bytes - o.zero, 0, o.zero);
    }
    t.pipe.resize(left);
}

} // namespace cudaemu
