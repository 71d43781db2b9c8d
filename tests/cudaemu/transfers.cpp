/* transfers.cpp - copies and fills.
 *
 * The direction must fit the pointers.  An asynchronous copy to or from pageable memory behaves as the documentation says:
 * from it, the source is staged before the call returns; to it, the call waits for the stream.  With pinned memory both
 * ends are read and written when the stream gets there, and not before. */
#include "runtime.h"
#include <cstring>

namespace cudaemu {

static bool on_device(const void *p)
{
    const Alloc *a = find_alloc(p);
    return a && a->kind == DEVICE;
}
static void check_copy(const void *dst, const void *src, size_t last, cudaMemcpyKind kind, const char *what)
{
    const bool d = on_device(dst), s = on_device(src);
    const bool fits = kind == cudaMemcpyHostToDevice ? d && !s : kind == cudaMemcpyDeviceToHost ? !d && s
                    : kind == cudaMemcpyDeviceToDevice ? d && s : kind == cudaMemcpyHostToHost ? !d && !s : true;
    if (!fits)
        fail("%s: direction %d does not fit the pointers: to %s, from %s", what, (int)kind, d ? "device" : "host",
             s ? "device" : "host");
    if (find_alloc(dst)) check_device_range(dst, last, what);
    if (find_alloc(src)) check_device_range(src, last, what);
}
struct Rect { char *dst; size_t dst_pitch; const char *src; size_t src_pitch, width, height; };
static void copy(const Rect &r)
{
    DeviceOpen open;
    for (size_t y = 0; y < r.height; y++) memmove(r.dst + y * r.dst_pitch, r.src + y * r.src_pitch, r.width);
}
static cudaError_t copy_async(const Rect &r, cudaMemcpyKind kind, cudaStream_t s, const char *what)
{
    if (int e = no_device()) return note((cudaError_t)e);
    if (!r.width || !r.height) return cudaSuccess;
    if (r.dst_pitch < r.width || r.src_pitch < r.width) return note(cudaErrorInvalidPitchValue);
    check_copy(r.dst, r.dst, (r.height - 1) * r.dst_pitch + r.width, cudaMemcpyDefault, what);
    check_copy(r.dst, r.src, r.width, kind, what);
    check_copy(r.src, r.src, (r.height - 1) * r.src_pitch + r.width, cudaMemcpyDefault, what);
    const bool to_pageable = !find_alloc(r.dst), from_pageable = !find_alloc(r.src);
    if (capturing(s) && (to_pageable || from_pageable)) {
        fprintf(stderr, "CUDAEMU: %s of pageable memory in a captured stream\n", what);
        return note(cudaErrorStreamCaptureUnsupported);
    }
    if (from_pageable && !to_pageable) {
        auto staged = std::make_shared<std::vector<char>>(r.width * r.height);
        for (size_t y = 0; y < r.height; y++) memcpy(staged->data() + y * r.width, r.src + y * r.src_pitch, r.width);
        return submit(s, what, [=] { copy({r.dst, r.dst_pitch, staged->data(), r.width, r.width, r.height}); });
    }
    const cudaError_t e = submit(s, what, [=] { copy(r); });
    return e != cudaSuccess || !to_pageable ? e : cudaStreamSynchronize(s);
}

} // namespace cudaemu
using namespace cudaemu;

extern "C" {
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n, enum cudaMemcpyKind kind, cudaStream_t s)
{
    Api api;
    return copy_async({static_cast<char *>(dst), n, static_cast<const char *>(src), n, n, 1}, kind, s, "cudaMemcpyAsync");
}
cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, size_t height,
                              enum cudaMemcpyKind kind, cudaStream_t s)
{
    Api api;
    return copy_async({static_cast<char *>(dst), dst_pitch, static_cast<const char *>(src), src_pitch, width, height}, kind, s,
                      "cudaMemcpy2DAsync");
}
cudaError_t cudaMemcpy(void *dst, const void *src, size_t n, enum cudaMemcpyKind kind)
{
    Api api;
    if (cudaError_t e = unsafe_call("cudaMemcpy")) return e;
    return copy_async({static_cast<char *>(dst), n, static_cast<const char *>(src), n, n, 1}, kind, nullptr, "cudaMemcpy");
}
cudaError_t cudaMemcpy2D(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, size_t height,
                         enum cudaMemcpyKind kind)
{
    Api api;
    if (cudaError_t e = unsafe_call("cudaMemcpy2D")) return e;
    return copy_async({static_cast<char *>(dst), dst_pitch, static_cast<const char *>(src), src_pitch, width, height}, kind,
                      nullptr, "cudaMemcpy2D");
}
cudaError_t cudaMemset2DAsync(void *p, size_t pitch, int value, size_t width, size_t height, cudaStream_t s)
{
    Api api;
    if (int e = no_device()) return note((cudaError_t)e);
    if (!width || !height) return cudaSuccess;
    check_device_range(p, (height - 1) * pitch + width, "cudaMemset2DAsync");
    return submit(s, "cudaMemset2DAsync", [=] {
        DeviceOpen open;
        for (size_t y = 0; y < height; y++) memset(static_cast<char *>(p) + y * pitch, value, width);
    });
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s) { return cudaMemset2DAsync(p, n, value, n, 1, s); }
cudaError_t cudaMemset(void *p, int value, size_t n)
{
    Api api;
    if (cudaError_t e = unsafe_call("cudaMemset")) return e;
    return cudaMemset2DAsync(p, n, value, n, 1, nullptr);
}
cudaError_t cudaMemcpyToSymbolAsync(const void *symbol, const void *src, size_t n, size_t offset, enum cudaMemcpyKind,
                                    cudaStream_t s)
{
    Api api;
    char *dst = static_cast<char *>(const_cast<void *>(symbol)) + offset;
    auto staged = std::make_shared<std::vector<char>>(static_cast<const char *>(src), static_cast<const char *>(src) + n);
    return submit(s, "cudaMemcpyToSymbolAsync", [=] { memcpy(dst, staged->data(), n); });
}
cudaError_t cudaMemcpyToSymbol(const void *symbol, const void *src, size_t n, size_t offset, enum cudaMemcpyKind kind)
{
    Api api;
    if (cudaError_t e = unsafe_call("cudaMemcpyToSymbol")) return e;
    return cudaMemcpyToSymbolAsync(symbol, src, n, offset, kind, nullptr);
}
}
