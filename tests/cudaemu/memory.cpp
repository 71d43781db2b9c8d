/* memory.cpp - what a pointer is.
 *
 * Every allocation ends at a page that cannot be touched (up to the 256 bytes of cudaMalloc's alignment; the bytes between
 * hold a pattern that is checked later, or are poisoned under AddressSanitizer), begins as NaN, and after cudaFree faults.
 * With CUDAEMU_PROTECT=1 device memory is unreadable except while device work runs: a host dereference faults at once. */
#include "runtime.h"
#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

namespace cudaemu {

constexpr size_t PAGE = 4096, FRONT = 256;
constexpr unsigned char CANARY = 0xa5;
static auto &allocs = *new std::map<uintptr_t, Alloc>;
static const Alloc *last_found;
static size_t device_used[64];
static long mallocs;

const Alloc *find_alloc(const void *p)
{
    const char *q = static_cast<const char *>(p);
    if (last_found && q >= last_found->p && q < last_found->p + last_found->n) return last_found;
    auto i = allocs.upper_bound((uintptr_t)p);
    if (i == allocs.begin()) return nullptr;
    --i;
    if (q >= i->second.p + i->second.n) return nullptr;
    return last_found = &i->second;
}
UNCHECKED void fill_garbage(void *p, size_t n)       // a NaN as float and as bf16
{
    if (!opt().fill) {
        memset(p, 0, n);
        return;
    }
    volatile uint32_t *q = static_cast<volatile uint32_t *>(p);
    for (size_t i = 0; i < n / 4; i++) q[i] = 0xffc1ffc1u;
    for (size_t i = n / 4 * 4; i < n; i++) static_cast<volatile unsigned char *>(p)[i] = 0xff;
}
void check_device_range(const void *p, size_t n, const char *what)
{
    if (!n) return;
    const Alloc *a = find_alloc(p);
    if (!a) fail("%s: %p is not device memory", what, p);
    if (static_cast<const char *>(p) + n > a->p + a->n)
        fail("%s: %zu bytes from %p run %zu bytes past an allocation of %zu", what, n, p,
             (size_t)(static_cast<const char *>(p) + n - (a->p + a->n)), a->n);
}

// ---- protection ------------------------------------------------------------------------------------------------------
static int open_depth;
static void protect(int how)
{
    for (auto &a : allocs)
        if (a.second.kind == DEVICE) mprotect(a.second.map, a.second.map_bytes - PAGE, how);
}
DeviceOpen::DeviceOpen()
{
    if (!open_depth++ && opt().protect) protect(PROT_READ | PROT_WRITE);
}
DeviceOpen::~DeviceOpen()
{
    if (!--open_depth && opt().protect) protect(PROT_NONE);
}
#if !defined(__SANITIZE_ADDRESS__)                   // AddressSanitizer has a better report of its own
static void on_fault(int, siginfo_t *si, void *)
{
    if (cur)
        fail("the kernel touches %p, which is nowhere (out of bounds, freed, or not aligned for a vector access)", si->si_addr);
    const char *q = static_cast<const char *>(si->si_addr);
    for (auto &a : allocs)
        if (q >= a.second.map && q < a.second.map + a.second.map_bytes) fail("host code touches device memory at %p", si->si_addr);
    signal(SIGSEGV, SIG_DFL);                        // not ours: the next fault is the program's own
}
__attribute__((constructor)) static void watch_faults()
{
    static char stack[64 << 10];
    stack_t ss = {};
    ss.ss_sp = stack;
    ss.ss_size = sizeof stack;
    sigaltstack(&ss, nullptr);
    struct sigaction sa = {};
    sa.sa_sigaction = on_fault;
    sa.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &sa, nullptr);
    sigaction(SIGBUS, &sa, nullptr);
}
#endif

// ---- allocation ------------------------------------------------------------------------------------------------------
UNCHECKED static void check_canary(const Alloc &a)
{
#if !defined(__SANITIZE_ADDRESS__)
    if (a.kind == REGISTERED) return;
    DeviceOpen open;
    const unsigned char *end = reinterpret_cast<unsigned char *>(a.map + a.map_bytes - PAGE);
    const unsigned char *q = reinterpret_cast<unsigned char *>(a.p);
    for (size_t i = 1; i <= FRONT; i++)
        if (*(q - i) != CANARY) fail("something wrote %zu bytes before an allocation of %zu bytes", i, a.n);
    for (q += a.n; q < end; q++)
        if (*q != CANARY) fail("something wrote %zu bytes past the end of an allocation of %zu bytes",
                               (size_t)((const char *)q - (a.p + a.n)) + 1, a.n);
#else
    (void)a;
#endif
}
__attribute__((destructor)) static void check_canaries()
{
    for (auto &a : allocs) check_canary(a.second);
}
static cudaError_t allocate(void **out, size_t n, Kind kind)
{
    if (int e = no_device()) return note((cudaError_t)e);
    if (!out) return note(cudaErrorInvalidValue);
    *out = nullptr;
    if (!n) return cudaSuccess;
    const int device = current_device();
    if (kind == DEVICE && ((++mallocs == opt().malloc_fail_at) || n > opt().memory - device_used[device]))
        return note(cudaErrorMemoryAllocation);
    const size_t room = (n + opt().align - 1) / opt().align * opt().align;
    const size_t bytes = (room + FRONT + PAGE - 1) / PAGE * PAGE + PAGE;
    char *m = static_cast<char *>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (m == MAP_FAILED) return note(cudaErrorMemoryAllocation);
    char *p = m + bytes - PAGE - room;
    mprotect(m + bytes - PAGE, PAGE, PROT_NONE);
    memset(p - FRONT, CANARY, FRONT);
    memset(p + n, CANARY, room - n);
    fill_garbage(p, n);
    POISON(m, bytes);
    UNPOISON(p, n);
    allocs[(uintptr_t)p] = {p, n, m, bytes, kind, device};
    if (kind == DEVICE) device_used[device] += n;
    if (kind == DEVICE && opt().protect && !open_depth) mprotect(m, bytes - PAGE, PROT_NONE);
    *out = p;
    return cudaSuccess;
}
static cudaError_t release(void *p, Kind kind)
{
    auto i = allocs.find((uintptr_t)p);
    if (i == allocs.end() || i->second.kind != kind) fail("%p is freed, but was not allocated so", p);
    const Alloc a = i->second;
    check_canary(a);
    if (kind == DEVICE) device_used[a.device] -= a.n;
    allocs.erase(i);
    last_found = nullptr;
    if (kind != REGISTERED) {
        POISON(a.map, a.map_bytes);
        mprotect(a.map, a.map_bytes, PROT_NONE);     // the addresses are not given out again
        madvise(a.map, a.map_bytes, MADV_DONTNEED);
    }
    return cudaSuccess;
}

} // namespace cudaemu
using namespace cudaemu;

extern "C" {
cudaError_t cudaMalloc(void **p, size_t n)
{
    Api api;
    if (cudaError_t e = unsafe_call("cudaMalloc")) return e;
    return allocate(p, n, DEVICE);
}
cudaError_t cudaMallocHost(void **p, size_t n)
{
    Api api;
    if (cudaError_t e = unsafe_call("cudaMallocHost")) return e;
    return allocate(p, n, PINNED);
}
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned) { return cudaMallocHost(p, n); }
cudaError_t cudaFree(void *p)
{
    Api api;
    if (int e = no_device()) return note((cudaError_t)e);
    if (cudaError_t e = unsafe_call("cudaFree")) return e;
    if (!p) return cudaSuccess;
    finish_device(true);                             // cudaFree waits for the whole device
    return release(p, DEVICE);
}
cudaError_t cudaFreeHost(void *p)
{
    Api api;
    if (cudaError_t e = unsafe_call("cudaFreeHost")) return e;
    if (!p) return cudaSuccess;
    finish_device(true);
    return release(p, PINNED);
}
cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s)
{
    Api api;
    if (capturing(s)) return note(cudaErrorNotSupported);
    return allocate(p, n, DEVICE);
}
cudaError_t cudaFreeAsync(void *p, cudaStream_t s)
{
    Api api;
    return submit(s, "cudaFreeAsync", [p] { release(p, DEVICE); });
}
cudaError_t cudaHostRegister(void *p, size_t n, unsigned)
{
    Api api;
    allocs[(uintptr_t)p] = {static_cast<char *>(p), n, static_cast<char *>(p), n, REGISTERED, 0};
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *p)
{
    Api api;
    finish_device(true);
    return release(p, REGISTERED);
}
cudaError_t cudaHostGetDevicePointer(void **d, void *h, unsigned)
{
    *d = h;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    Api api;
    if (int e = no_device()) return note((cudaError_t)e);
    *total = opt().memory;
    *free_bytes = opt().memory - device_used[current_device()];
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p)
{
    Api api;
    const Alloc *m = find_alloc(p);
    *a = {};
    a->type = !m ? cudaMemoryTypeUnregistered : m->kind == DEVICE ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    a->device = m ? m->device : -2;
    a->devicePointer = m ? const_cast<void *>(p) : nullptr;
    a->hostPointer = m && m->kind == DEVICE ? nullptr : const_cast<void *>(p);
    return cudaSuccess;
}
}
