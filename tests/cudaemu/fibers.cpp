/* fibers.cpp - every CUDA thread of the running block is a fiber.
 *
 * Blocks run one after another, and within a block one fiber runs until it reaches a barrier or a warp collective (warps.cpp).
 * A fiber that finished one CUDA thread takes the next, so a kernel without barriers needs one stack.  Who runs next is the
 * first that is ready (in order), or anybody (random): a kernel whose result depends on it has a race or misses a barrier.
 * A switch saves the six registers that a called function must preserve: 5 ns; ucontext makes a system call, hence only
 * where the switch is not written out. */
#include "runtime.h"
#include <cstdio>
#include <cstring>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cudaemu {

Ctx *cur;
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
Block block;
bool in_kernel;
char *stack_lo = reinterpret_cast<char *>(-1), *stack_hi;

struct Fiber {
    void *sp;
    char *stack;
    size_t bytes;
    Thread *t;
    void *fake;                                     // AddressSanitizer's own, as is the host's stack, learnt when it is left
#if !defined(__x86_64__)
    ucontext_t uc;
#endif
};
static Fiber host_fiber;
static Fiber *running_fiber = &host_fiber;
static auto &idle = *new std::vector<Fiber *>;      // never destroyed: LeakSanitizer runs last
static auto &ready = *new std::vector<Fiber *>;
static size_t ready_head;
static std::function<void()> *thread_body;

#if defined(__x86_64__)
extern "C" void cudaemu_switch(void **save, void *load) __attribute__((visibility("hidden")));
asm(".text\n.globl cudaemu_switch\n.hidden cudaemu_switch\n.type cudaemu_switch,@function\ncudaemu_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\nmovq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n.size cudaemu_switch,.-cudaemu_switch\n");
#endif
static void switch_to(Fiber *to)
{
    Fiber *me = running_fiber;
    running_fiber = to;
    stack_lo = to->stack;
    stack_hi = to->stack + to->bytes;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&me->fake, to->stack, to->bytes);
#endif
#if defined(__x86_64__)
    cudaemu_switch(&me->sp, to->sp);
#else
    swapcontext(&me->uc, &to->uc);
#endif
#if defined(__SANITIZE_ADDRESS__)
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(me->fake, &bottom, &size);
    if (me != &host_fiber && !host_fiber.stack) host_fiber.stack = (char *)bottom, host_fiber.bytes = size;
#endif
}

static void become(Thread *t)
{
    cur = &t->c;
    threadIdx = t->c.threadIdx;
}
static Fiber *new_fiber();
static Fiber *pick()
{
    size_t n = ready.size() - ready_head;
    const bool can_start = block.next < block.n;
    if (n && opt().order == RANDOM) {
        if (can_start && (rnd() & 1)) n = 0;
        else std::swap(ready[ready_head], ready[ready_head + rnd() % n]);
    }
    if (n) {
        Fiber *f = ready[ready_head++];
        if (ready_head == ready.size()) ready.clear(), ready_head = 0;
        return f;
    }
    if (!can_start) return nullptr;
    if (idle.empty()) return new_fiber();
    Fiber *f = idle.back();
    idle.pop_back();
    return f;
}
void wait_here()
{
    Fiber *me = running_fiber, *n = pick();
    if (n != me) switch_to(n ? n : &host_fiber);
    become(me->t);
}
void wake(Thread &t)
{
    t.st = RUNNING;
    ready.push_back(t.fiber);
}
void requeue()
{
    if (opt().order != RANDOM) return;
    ready.push_back(running_fiber);
    wait_here();
}

static void fiber_main()
{
    Fiber *me = running_fiber;
#if defined(__SANITIZE_ADDRESS__)
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (!host_fiber.stack) host_fiber.stack = (char *)bottom, host_fiber.bytes = size;
#endif
    for (;;) {
        while (block.next < block.n && (opt().order != RANDOM || ready_head == ready.size() || (rnd() & 1))) {
            Thread &t = block.threads[block.order[block.next++]];
            t.fiber = me;
            me->t = &t;
            t.st = RUNNING;
            become(&t);
            (*thread_body)();                       // kernel_enter() and kernel_exit() are inside
            in_kernel = false;
            thread_left(t);
        }
        me->t = nullptr;
        idle.push_back(me);
        Fiber *n = pick();
        if (n != me) switch_to(n ? n : &host_fiber);
    }
}
static Fiber *new_fiber()
{
    const size_t page = 4096, bytes = (opt().stack + page - 1) / page * page;
    char *m = static_cast<char *>(mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (m == MAP_FAILED) fail("no memory for the stack of a fiber");
    mprotect(m, page, PROT_NONE);
    Fiber *f = new Fiber();
    f->stack = m + page;
    f->bytes = bytes;
#if defined(__x86_64__)
    void **s = reinterpret_cast<void **>(f->stack + bytes - 64);
    *--s = nullptr;                                 // where fiber_main would return to, and what aligns its frame
    *--s = reinterpret_cast<void *>(fiber_main);
    s -= 6;
    memset(s, 0, 6 * sizeof *s);
    f->sp = s;
#else
    getcontext(&f->uc);
    f->uc.uc_stack.ss_sp = f->stack;
    f->uc.uc_stack.ss_size = bytes;
    f->uc.uc_link = nullptr;
    makecontext(&f->uc, fiber_main, 0);
#endif
    return f;
}

void run_fibers(std::function<void()> *thread)
{
    thread_body = thread;
    host_fiber.stack = nullptr;                     // another host thread may be calling this time
    host_fiber.bytes = 0;
    while (block.done < block.n) {
        Fiber *f = pick();
        if (!f) deadlock();
        switch_to(f);
    }
    cur = nullptr;
}
void deadlock()
{
    unsigned shown = 0;
    fprintf(stderr, "CUDAEMU: block %llu: %u of %u threads done\n", (unsigned long long)block.id, block.done, block.n);
    for (auto &t : block.threads)
        if ((t.st == AT_BARRIER || t.st == IN_WARP) && shown++ < 6)
            fprintf(stderr, "  thread %u waits in %s at %s:%d\n", t.c.tid,
                    t.st == AT_BARRIER ? "__syncthreads" : "a warp collective", t.file, t.line);
    cur = nullptr;
    fail("deadlock: every thread waits for one that will not come");
}

} // namespace cudaemu
