/* runtime.h - what the files of the harness share.
 *
 *     queues, graphs --call--> grid --runs--> fibers <--wait-- warps            memory: what a pointer is
 *
 * One lock covers everything: an API call takes it, runs what it must, and gives it back. */
#pragma once
#include "core.h"
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define POISON(p, n)   ASAN_POISON_MEMORY_REGION(p, n)
#define UNPOISON(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#define UNCHECKED      __attribute__((no_sanitize_address, no_sanitize("undefined")))
#else
#define POISON(p, n)   ((void)0)
#define UNPOISON(p, n) ((void)0)
#define UNCHECKED
#endif

namespace cudaemu {

// ---- options.cpp -----------------------------------------------------------------------------------------------------
enum Order { IN_ORDER, REVERSE, RANDOM };
enum Queues { EAGER, MIXED, LATE };
struct Options {
    Order order;               // CUDAEMU_ORDER=inorder|reverse|random: fibers and blocks
    Queues queues;             // CUDAEMU_STREAMS=eager|random|late
    uint64_t seed;             // CUDAEMU_SEED
    bool protect;              // CUDAEMU_PROTECT=1: device memory is unreadable while host code runs
    bool fill;                 // CUDAEMU_FILL=0: fresh memory is zero instead of NaN
    bool verbose;              // CUDAEMU_VERBOSE=1: one line per launch
    int devices, sms, driver;  // CUDAEMU_DEVICES, CUDAEMU_SMS, CUDAEMU_DRIVER
    size_t memory, align;      // CUDAEMU_MEM_MB, CUDAEMU_ALIGN
    long malloc_fail_at;       // CUDAEMU_MALLOC_FAIL_AT=k: the k-th cudaMalloc finds no memory
    size_t stack;              // CUDAEMU_STACK: bytes per fiber
};
const Options &opt();
uint64_t rnd();                // the stream of random choices; reseeded at every launch
void     rnd_seed(uint64_t s);
double   now_s();
std::recursive_mutex &big_lock();
struct Api { std::lock_guard<std::recursive_mutex> hold{big_lock()}; };
cudaError_t note(cudaError_t e);                    // remembers an error for cudaGetLastError, and returns it
int  no_device();                                   // 0, or the error that every call has without a usable device
int  current_device();

// ---- fibers.cpp: the threads of the running block --------------------------------------------------------------------
struct Fiber;
enum State { NEW, RUNNING, AT_BARRIER, IN_WARP, DONE };
struct PipeOp { void *dst; const void *src; size_t bytes, zero; int group; };
struct Thread {
    Ctx c;
    State st = NEW;
    Fiber *fiber = nullptr;
    const char *file = nullptr;                     // where it waits
    int line = 0;
    unsigned mask = 0;
    bool fenced = false;
    std::vector<PipeOp> pipe;
    int pipe_group = 0;
};
struct Exchange {                                   // the collectives of one warp under one mask, double-buffered
    unsigned mask = 0, arrived = 0, present[2] = {0, 0}, gen = 0;
    Collective op = SHFL;
    const char *file = nullptr;
    int line = 0;
    alignas(16) unsigned char buf[2][32][16];
};
struct Warp { unsigned live = 0, exited = 0, epoch = 0; std::vector<Exchange> exchanges; };
struct Block {
    uint64_t id = 0;
    unsigned n = 0, next = 0, done = 0;             // threads; the next one to start; how many have finished
    unsigned waiting = 0, epoch = 0;                // at the barrier; barriers passed
    const char *file = nullptr;
    int line = 0;
    Reduce op = BAR_PLAIN;
    int count = 0, result[2][4] = {};
    bool acquired = false;                          // has read an atomic: sees what released blocks published
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<unsigned> order;
};
extern Block block;
extern bool in_kernel;                              // instrumented accesses count as the kernel's
extern char *stack_lo, *stack_hi;                   // of the running fiber
extern void (*access_hook)(const void *p, size_t n, bool write);        // race.cpp: the harness touches memory for a kernel
struct Quiet {                                      // inside the harness, called from a kernel
    Quiet() { in_kernel = false; }
    ~Quiet() { in_kernel = cur != nullptr; }
};
void run_fibers(std::function<void()> *thread);     // every thread of `block`, from beginning to end
void wait_here();                                   // gives way until wake()
void wake(Thread &t);
void requeue();                                     // random order: let somebody else go first
void thread_left(Thread &t);                        // warps.cpp: who waits for it learns
[[noreturn]] void deadlock();

// ---- grid.cpp --------------------------------------------------------------------------------------------------------
extern const Launch *running;                       // the launch that is being executed
extern uint64_t launch_id;
extern int in_atomic;
extern std::vector<char> released;                  // blocks that did __threadfence and then an atomic, in this launch
extern char *dyn_base, *arena;                      // dynamic and static shared memory of the running block
extern size_t dyn_size;
constexpr size_t ARENA = 512 << 10;
struct Slot { const void *key; char *p; size_t n; };
extern std::vector<Slot> slots;
constexpr size_t SMEM_DEFAULT = 48 << 10, SMEM_OPTIN = 227 << 10;        // bytes per block; the second has to be asked for
size_t dyn_limit(const void *kernel);               // devices.cpp: cudaFuncSetAttribute

// ---- memory.cpp ------------------------------------------------------------------------------------------------------
enum Kind { DEVICE, PINNED, REGISTERED };
struct Alloc { char *p; size_t n; char *map; size_t map_bytes; Kind kind; int device; };
const Alloc *find_alloc(const void *p);
void  fill_garbage(void *p, size_t n);
void  check_device_range(const void *p, size_t n, const char *what);     // fails unless it lies in device (or pinned) memory
struct DeviceOpen { DeviceOpen(); ~DeviceOpen(); };                      // device memory may be touched in this scope

// ---- queues.cpp, graphs.cpp ------------------------------------------------------------------------------------------
using Work = std::function<bool()>;                 // one step of an operation; true when it is finished
using Make = std::function<Work()>;                 // a new execution of an operation: once per enqueue or graph launch
struct Task {
    const char *what;
    Make make;
    bool bound = false;                             // runs only on the thread that enqueued it (MPI)
};
cudaError_t submit(cudaStream_t s, Task t);         // records the task when the stream is captured, else queues it
cudaError_t submit(cudaStream_t s, const char *what, std::function<void()> f);
bool        capturing(cudaStream_t s);
cudaError_t unsafe_call(const char *what);          // an error while this thread may not make such a call: it is capturing
cudaError_t uses_legacy(const char *what);          // likewise for what runs on the legacy stream
void        pump();                                 // runs what can run at once (eager), or one step (random, late)
void        finish_device(bool also_nonblocking);   // until the queues are empty
void        give_way();                             // lets other threads and processes run, lock released meanwhile

} // namespace cudaemu
