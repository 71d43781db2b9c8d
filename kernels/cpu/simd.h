/* simd.h - one source, compiled once per instruction set.
 *
 * A pass is written over `vf`, VW floats side by side in the channel direction, with GCC's vector extensions; the same
 * file becomes AVX-512, AVX2 or SSE4 code by its -march flag and NEON on aarch64, and backend.c picks at run time.  Symbols
 * that cross files carry the build's name: ISA(pack) is pack_avx512.  Only clamp, reciprocal and the
 * way between bytes and integers differ by instruction set. */
#ifndef EN_CPU_SIMD_H
#define EN_CPU_SIMD_H

#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
enum { VW = 16 };
#elif defined(__AVX2__)
enum { VW = 8 };
#else
enum { VW = 4 };
#endif

#define ISA_JOIN_(name, isa) name##_##isa
#define ISA_JOIN(name, isa)  ISA_JOIN_(name, isa)
#define ISA(name)            ISA_JOIN(name, EN_CPU_ISA)

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

#if defined(__AVX512F__)
#define VBYTES 64
#elif defined(__AVX2__)
#define VBYTES 32
#else
#define VBYTES 16
#endif
typedef float   vf  __attribute__((vector_size(VBYTES)));
typedef int32_t vi  __attribute__((vector_size(VBYTES)));
typedef double  vd  __attribute__((vector_size(2 * VBYTES)));
typedef float   vfu __attribute__((vector_size(VBYTES), aligned(4), may_alias));   /* in memory: any alignment */
typedef double  vdu __attribute__((vector_size(2 * VBYTES), aligned(8), may_alias));

INLINE vf   ld(const float *p)        { return *(const vfu *)p; }
INLINE void st(float *p, vf v)        { *(vfu *)p = v; }
/* Past the caches, for tensors that are not read before they would have fallen out of them: spares reading the line first.
 * p aligned to a vector.  stream_fence before another thread may read. */
#if defined(__AVX512F__)
INLINE void st_stream(float *p, vf v) { _mm512_stream_ps(p, (__m512)v); }
#elif defined(__AVX2__)
INLINE void st_stream(float *p, vf v) { _mm256_stream_ps(p, (__m256)v); }
#else
INLINE void st_stream(float *p, vf v) { st(p, v); }
#endif
INLINE void stream_fence(void)
{
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

/* VW bytes in memory as integers; the compiler's own conversion from 8 to 32 bits goes element by element. */
INLINE vi ld_u8(const uint8_t *p)
{
#if defined(__AVX512F__)
    return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p));
#elif defined(__AVX2__)
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p));
#elif defined(__SSE4_1__)
    int32_t four;
    memcpy(&four, p, sizeof four);
    return (vi)_mm_cvtepu8_epi32(_mm_cvtsi32_si128(four));
#else
    return (vi){ p[0], p[1], p[2], p[3] };
#endif
}
INLINE void st_u8(uint8_t *p, vi v)   /* 0 to 255 each */
{
#if defined(__AVX512F__)
    _mm_storeu_si128((void *)p, _mm512_cvtepi32_epi8((__m512i)v));
#elif defined(__AVX2__)
    const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    _mm_storel_epi64((void *)p, _mm_packus_epi16(half, half));
#elif defined(__SSE4_1__)
    const __m128i half = _mm_packs_epi32((__m128i)v, (__m128i)v);
    const int32_t four = _mm_cvtsi128_si32(_mm_packus_epi16(half, half));
    memcpy(p, &four, sizeof four);
#else
    for (int i = 0; i < VW; i++) p[i] = (uint8_t)v[i];
#endif
}

INLINE vf   splat(float f)            { return f - (vf){ 0 }; }
INLINE void add_f64(double *p, vf v)  { *(vdu *)p += __builtin_convertvector(v, vd); }   /* p[0..VW) += v, in double */

INLINE float hsum(vf v)               /* in lane order, pairwise */
{
    float s[VW];
    *(vfu *)s = v;
    for (int w = VW / 2; w > 0; w /= 2)
        for (int i = 0; i < w; i++) s[i] += s[i + w];
    return s[0];
}

INLINE vf clamp(vf t, float lo, float hi)     /* a NaN stays one: MINPS and MAXPS return their second operand then */
{
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)splat(lo), _mm512_min_ps((__m512)splat(hi), (__m512)t));
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)splat(lo), _mm256_min_ps((__m256)splat(hi), (__m256)t));
#elif defined(__SSE__)
    return (vf)_mm_max_ps((__m128)splat(lo), _mm_min_ps((__m128)splat(hi), (__m128)t));
#else
    vi m = t > splat(hi);
    t = (vf)((m & (vi)splat(hi)) | (~m & (vi)t));
    m = t < splat(lo);
    return (vf)((m & (vi)splat(lo)) | (~m & (vi)t));
#endif
}

INLINE vf reciprocal(vf d)
{
#if defined(__AVX512F__)              /* 14 bits, one Newton step: 2^-28 before rounding */
    const vf r = (vf)_mm512_rcp14_ps((__m512)d);
    return r * (2.f - d * r);
#else
    return 1.f / d;
#endif
}

/* sigmoid(z) = 1/(1 + 2^(-z*log2 e)).  2^t = 2^round(t) * 2^f with |f| <= 1/2: a degree-6 polynomial (Cephes exp2f) and an
 * exponent inserted as an integer.  Relative error below 1e-6 for |z| < 80; a NaN stays a NaN. */
INLINE vf sigmoid(vf z)
{
    const vf t = clamp(z * -1.44269504088896341f, -126.f, 126.f);
    const vf magic = splat(12582912.f), shifted = t + magic;              /* 1.5 * 2^23: rounds to an integer */
    const vf f = t - (shifted - magic);
    vf p = splat(1.535336188319500e-4f);
    p = p * f + 1.339887440266574e-3f;
    p = p * f + 9.618437357674640e-3f;
    p = p * f + 5.550332471162809e-2f;
    p = p * f + 2.402264791363012e-1f;
    p = p * f + 6.931472028550421e-1f;
    p = p * f + 1.f;
    const vi exponent = ((vi)shifted - (vi)magic) << 23;
    return reciprocal((vf)((vi)p + exponent) + 1.f);
}

/* silu(z), and silu with its derivative: silu'(z) = s + z*s*(1-s) with s = sigmoid(z). */
INLINE vf silu(vf z) { return z * sigmoid(z); }
INLINE vf silu_grad(vf z, vf *u)
{
    const vf s = sigmoid(z), a = z * s;
    *u = a;
    return s + a * (1.f - s);
}

/* 1 where 0 < z and, with six, z < 6; else 0, as in TensorFlow and PyTorch. */
INLINE vf step(vf z, bool six)
{
    vi inside = z > splat(0.f);
    if (six) inside &= z < splat(6.f);
    return (vf)(inside & (vi)splat(1.f));
}

/* act(z); and act'(z), with *u = act(z).  A NaN stays one. */
INLINE vf act_of(vf z, en_act act)
{
    if (__builtin_expect(act == EN_ACT_SILU, 1)) return silu(z);
    return act == EN_ACT_NONE ? z : clamp(z, 0.f, act == EN_ACT_RELU6 ? 6.f : __builtin_inff());
}
INLINE vf act_slope(vf z, vf *u, en_act act)
{
    if (__builtin_expect(act == EN_ACT_SILU, 1)) return silu_grad(z, u);
    *u = act_of(z, act);
    return act == EN_ACT_NONE ? splat(1.f) : step(z, act == EN_ACT_RELU6);
}

#endif
