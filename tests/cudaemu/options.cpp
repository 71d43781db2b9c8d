/* options.cpp - the environment, the random choices, and the last words. */
#include "runtime.h"
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <unistd.h>

namespace cudaemu {

static const char *text(const char *name, const char *otherwise)
{
    const char *e = getenv(name);
    return e && *e ? e : otherwise;
}
static long number(const char *name, long otherwise)
{
    const char *e = getenv(name);
    return e && *e ? strtol(e, nullptr, 0) : otherwise;
}
static int one_of(const char *name, const char *const *words)
{
    const char *e = text(name, words[0]);
    for (int i = 0; words[i]; i++)
        if (!strcmp(e, words[i])) return i;
    fprintf(stderr, "CUDAEMU: %s=%s is not understood\n", name, e);
    exit(2);
}
static const char *const orders[] = {"inorder", "reverse", "random", nullptr};
static const char *const queues[] = {"eager", "random", "late", nullptr};
static Options read_options()
{
    Options o = {};
    o.order = (Order)one_of("CUDAEMU_ORDER", orders);
    o.queues = (Queues)one_of("CUDAEMU_STREAMS", queues);
    o.seed = (uint64_t)number("CUDAEMU_SEED", 1);
    o.protect = number("CUDAEMU_PROTECT", 0);
    o.fill = number("CUDAEMU_FILL", 1);
    o.verbose = number("CUDAEMU_VERBOSE", 0);
    o.devices = (int)number("CUDAEMU_DEVICES", 1);
    o.sms = (int)number("CUDAEMU_SMS", 4);
    o.driver = (int)number("CUDAEMU_DRIVER", o.devices > 0 ? 13000 : 0);
    o.memory = (size_t)number("CUDAEMU_MEM_MB", 2048) << 20;
    o.align = (size_t)number("CUDAEMU_ALIGN", 256);
    o.malloc_fail_at = number("CUDAEMU_MALLOC_FAIL_AT", 0);
#if defined(__SANITIZE_ADDRESS__) || defined(CUDAEMU_RACE)
    o.stack = (size_t)number("CUDAEMU_STACK", 256 << 10);
#else
    o.stack = (size_t)number("CUDAEMU_STACK", 64 << 10);
#endif
    return o;
}
const Options &opt()
{
    static const Options o = read_options();
    return o;
}

static uint64_t state = 12345;
void rnd_seed(uint64_t s) { state = s; }
uint64_t rnd()                                       // splitmix64
{
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
double now_s()
{
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
std::recursive_mutex &big_lock()
{
    static auto *m = new std::recursive_mutex;       // never destroyed: atexit handlers may still call
    return *m;
}

void fail(const char *fmt, ...)
{
    in_kernel = false;
    va_list a;
    va_start(a, fmt);
    fprintf(stderr, "CUDAEMU ERROR: ");
    vfprintf(stderr, fmt, a);
    va_end(a);
    if (running) fprintf(stderr, "\n  in kernel %s launched at %s:%d", running->name, running->file, running->line);
    if (cur)
        fprintf(stderr, ", block (%u,%u,%u) thread (%u,%u,%u)", cur->blockIdx.x, cur->blockIdx.y, cur->blockIdx.z,
                cur->threadIdx.x, cur->threadIdx.y, cur->threadIdx.z);
    fprintf(stderr, "\n  CUDAEMU_ORDER=%s CUDAEMU_STREAMS=%s CUDAEMU_SEED=%llu\n", orders[opt().order], queues[opt().queues],
            (unsigned long long)opt().seed);
    fflush(stdout);
    fflush(stderr);
    _exit(86);
}

} // namespace cudaemu
