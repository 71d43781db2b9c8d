/* device_math.h - cached loads and stores, and the arithmetic that plain g++ does not know.
 *
 * Approximate functions (__expf, __fdividef, rsqrtf) are computed exactly rounded or by libm: a test's tolerance must come
 * from the documented error of the hardware's version, not from what is seen here. */
#pragma once

using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;

#define EMU_LOAD(name)  template <class T> EMU_FN T name(const T *p) { return *p; }
#define EMU_STORE(name) template <class T> EMU_FN void name(T *p, typename emu_same<T>::type v) { *p = v; }
EMU_LOAD(__ldg) EMU_LOAD(__ldcs) EMU_LOAD(__ldcg) EMU_LOAD(__ldca) EMU_LOAD(__ldlu) EMU_LOAD(__ldcv)
EMU_STORE(__stcs) EMU_STORE(__stcg) EMU_STORE(__stwt) EMU_STORE(__stwb)

// glibc has functions of these names already, hence macros
#define __expf(x)     expf(x)
#define __logf(x)     logf(x)
#define __log2f(x)    log2f(x)
#define __log10f(x)   log10f(x)
#define __sinf(x)     sinf(x)
#define __cosf(x)     cosf(x)
#define __tanf(x)     tanf(x)
#define __tanhf(x)    tanhf(x)
#define __exp10f(x)   exp10f(x)
#define __powf(x, y)  powf(x, y)
#define __sincosf(x, s, c) sincosf(x, s, c)
EMU_FN float  __fdividef(float a, float b) { return b > 0x1p126f || b < -0x1p126f ? (std::isinf(a) ? NAN : 0.f) : a / b; }
EMU_FN float  __fdiv_rn(float a, float b) { return a / b; }
EMU_FN float  __frcp_rn(float a) { return 1.0f / a; }
EMU_FN float  __fsqrt_rn(float a) { return sqrtf(a); }
EMU_FN float  __frsqrt_rn(float a) { return (float)(1.0 / sqrt((double)a)); }
EMU_FN float  rsqrtf(float a) { return (float)(1.0 / sqrt((double)a)); }
EMU_FN double rsqrt(double a) { return 1.0 / sqrt(a); }
EMU_FN float  __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
EMU_FN float  __fadd_rn(float a, float b) { return a + b; }
EMU_FN float  __fsub_rn(float a, float b) { return a - b; }
EMU_FN float  __fmul_rn(float a, float b) { return a * b; }
EMU_FN double __dadd_rn(double a, double b) { return a + b; }
EMU_FN double __dmul_rn(double a, double b) { return a * b; }
EMU_FN double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
EMU_FN float  __saturatef(float a) { return a > 0.f ? (a < 1.f ? a : 1.f) : 0.f; }

template <class To, class From> EMU_FN To emu_bits(From f)
{
    static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps the size");
    To t;
    memcpy(&t, &f, sizeof t);
    return t;
}
EMU_FN unsigned  __float_as_uint(float f) { return emu_bits<unsigned>(f); }
EMU_FN int       __float_as_int(float f) { return emu_bits<int>(f); }
EMU_FN float     __uint_as_float(unsigned u) { return emu_bits<float>(u); }
EMU_FN float     __int_as_float(int i) { return emu_bits<float>(i); }
EMU_FN long long __double_as_longlong(double d) { return emu_bits<long long>(d); }
EMU_FN double    __longlong_as_double(long long i) { return emu_bits<double>(i); }

template <class I> EMU_FN I emu_to_int(double v)             // CUDA saturates, C++ leaves it undefined; NaN becomes 0
{
    const double lo = (double)std::numeric_limits<I>::min(), hi = (double)std::numeric_limits<I>::max();
    return std::isnan(v) ? 0 : v <= lo ? std::numeric_limits<I>::min() : v >= hi ? std::numeric_limits<I>::max() : (I)v;
}
EMU_FN int       __float2int_rn(float f) { return emu_to_int<int>(nearbyint(f)); }
EMU_FN int       __float2int_rz(float f) { return emu_to_int<int>(trunc(f)); }
EMU_FN int       __float2int_rd(float f) { return emu_to_int<int>(floor(f)); }
EMU_FN int       __float2int_ru(float f) { return emu_to_int<int>(ceil(f)); }
EMU_FN unsigned  __float2uint_rn(float f) { return emu_to_int<unsigned>(nearbyint(f)); }
EMU_FN unsigned  __float2uint_rz(float f) { return emu_to_int<unsigned>(trunc(f)); }
EMU_FN int       __double2int_rn(double f) { return emu_to_int<int>(nearbyint(f)); }
EMU_FN long long __double2ll_rn(double f) { return emu_to_int<long long>(nearbyint(f)); }
EMU_FN float     __int2float_rn(int i) { return (float)i; }
EMU_FN float     __uint2float_rn(unsigned i) { return (float)i; }
EMU_FN float     __ll2float_rn(long long i) { return (float)i; }
EMU_FN float     __ull2float_rn(unsigned long long i) { return (float)i; }
EMU_FN float     __double2float_rn(double d) { return (float)d; }

EMU_FN int      __popc(unsigned x) { return __builtin_popcount(x); }
EMU_FN int      __popcll(unsigned long long x) { return __builtin_popcountll(x); }
EMU_FN int      __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
EMU_FN int      __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
EMU_FN int      __ffs(int x) { return __builtin_ffs(x); }
EMU_FN unsigned __brev(unsigned x) { unsigned r = 0; for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i); return r; }
EMU_FN unsigned __byte_perm(unsigned a, unsigned b, unsigned s)
{
    const unsigned long long ab = (unsigned long long)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned n = s >> 4 * i & 15, byte = (unsigned)(ab >> 8 * (n & 7)) & 255;
        r |= (n & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return r;
}
EMU_FN unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned s)
{
    return (unsigned)((((unsigned long long)hi << 32 | lo) << (s & 31)) >> 32);
}
EMU_FN unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned s)
{
    return (unsigned)(((unsigned long long)hi << 32 | lo) >> (s & 31));
}
EMU_FN unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
EMU_FN int      __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
EMU_FN int      __mul24(int a, int b) { return (int)((unsigned)((a << 8) >> 8) * (unsigned)((b << 8) >> 8)); }
EMU_FN unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
EMU_FN long long __mul64hi(long long a, long long b) { return (long long)((__int128)a * b >> 64); }

// min and max with CUDA's overloads: a mixture of signs is unsigned, long and int do not mix
#define EMU_MINMAX(R, A, B)                                                                                             \
    EMU_FN constexpr R min(A a, B b) { return (R)b < (R)a ? (R)b : (R)a; }                                              \
    EMU_FN constexpr R max(A a, B b) { return (R)b > (R)a ? (R)b : (R)a; }
EMU_MINMAX(int, int, int) EMU_MINMAX(unsigned, unsigned, unsigned) EMU_MINMAX(unsigned, int, unsigned)
EMU_MINMAX(unsigned, unsigned, int) EMU_MINMAX(long, long, long) EMU_MINMAX(unsigned long, unsigned long, unsigned long)
EMU_MINMAX(long long, long long, long long) EMU_MINMAX(unsigned long long, unsigned long long, unsigned long long)
EMU_FN float  min(float a, float b) { return fminf(a, b); }
EMU_FN float  max(float a, float b) { return fmaxf(a, b); }
EMU_FN double min(double a, double b) { return fmin(a, b); }
EMU_FN double max(double a, double b) { return fmax(a, b); }
EMU_FN double min(float a, double b) { return fmin(a, b); }
EMU_FN double max(float a, double b) { return fmax(a, b); }
EMU_FN double min(double a, float b) { return fmin(a, b); }
EMU_FN double max(double a, float b) { return fmax(a, b); }

// ---- bf16 functions that cuda_bf16.h keeps from plain C++ ------------------------------------------------------------
EMU_FN __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c)
{
    return __float2bfloat16_rn(fmaf(__bfloat162float(a), __bfloat162float(b), __bfloat162float(c)));
}
EMU_FN __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c)
{
    return __nv_bfloat162(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}
EMU_FN __nv_bfloat16 hexp(__nv_bfloat16 a) { return __float2bfloat16_rn(expf(__bfloat162float(a))); }
EMU_FN __nv_bfloat16 hrsqrt(__nv_bfloat16 a) { return __float2bfloat16_rn(rsqrtf(__bfloat162float(a))); }
