/* cuda.h - what the files of the CUDA backend share: the engine, errors, scratch, loads and stores, two-stage sums.
 *
 * Everything is queued on one compute stream.  Kernels are `static __global__`, launched by the pass that is declared with
 * its mathematics in kernels.h.  Rules that keep the same sources running under tests/cudaemu, and fast on a GPU:
 *
 *   1. Activations are T = float or __nv_bfloat16, weights and statistics float; arithmetic is float with explicit fmaf;
 *      a sum over rows is float within a thread over at most SUM_RUN values, double from there on.
 *   2. Global memory is touched 16 bytes at a time where rows allow it (load8/store8): c % 8 == 0 is checked on the host.
 *   3. Sums run in two stages in a fixed order: partials[part][width] by the kernel, then `collect`.  No float atomics.
 *   4. Offsets are 64 bits wide.  No pass allocates or waits: it may stand inside a recording (capture_begin).
 *   5. Collectives of a warp (*_sync) take all 32 lanes, outside divergent code; nobody leaves before a barrier.
 *   6. Sums of batch norm are those of the values *as stored*: store8 hands back what it rounded. */
#ifndef EN_CUDA_H
#define EN_CUDA_H

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

#include "kernels/cuda/footprint.h"
#include "kernels/kernels.h"

typedef __nv_bfloat16 bf16;

struct gemm_cache;              /* gemm.cu */
struct weight_copy { const float *w; int64_t elems; bf16 *copy; };

struct cuda_engine {
    en_dtype     dtype;                         /* be->dtype                                                        */
    int          device, sms;
    size_t       shared_max;                    /* dynamic shared memory a block may ask for                        */
    unsigned     folds;
    cudaStream_t compute, copy;
    char        *scratch; size_t scratch_bytes; /* of the pass at hand, by `reserve`; from its start in every pass  */
    struct weight_copy kept[4];                 /* keep_weights                                                     */
    bf16        *cast; size_t cast_elems;       /* other weights, converted by the pass that reads them             */
    cublasLtHandle_t lt; void *lt_workspace; size_t lt_workspace_bytes;
    struct gemm_cache *gemms;
    struct optimizer_table *chunks;             /* optimizer.cu */
    struct backend_state *state;                /* backend.cu: slots, marks, graphs */
};
static inline cuda_engine *engine(en_backend *be) { return (cuda_engine *)be->impl; }
static inline bool folds(en_backend *be, unsigned which) { return (engine(be)->folds & which) != 0; }

/* ---- errors ------------------------------------------------------------------------------------------------------------ */

en_status cuda_status(cudaError_t e);           /* EN_ENOMEM for memory, else EN_ENOTSUP                              */
#define CU_TRY(call, ...)                                                                                              \
    do { const cudaError_t e_ = (call);                                                                                \
         if (e_ != cudaSuccess) {                                                                                      \
             (void)cudaGetLastError();                                                                                 \
             en_raise(cuda_status(e_), __FILE__, __LINE__, __func__, "%s: %s", cudaGetErrorName(e_), cudaGetErrorString(e_)); \
             return en_raise(cuda_status(e_), __FILE__, __LINE__, __func__, __VA_ARGS__); } } while (0)
/* after a launch */
#define CU_LAUNCHED(...) CU_TRY(cudaGetLastError(), __VA_ARGS__)

#define CU_CHANNELS(c) EN_REQUIRE((c) > 0 && (c) % 8 == 0, EN_EINVAL, "%lld channels: not a multiple of 8", (long long)(c))

/* ---- scratch ----------------------------------------------------------------------------------------------------------- */

/* Pieces of the engine's scratch for one pass: `carve` from offset 0 up; with base NULL it counts (for reserve). */
struct scratch_carver {
    char *base; size_t used;
    template <typename T> T *take(int64_t n)
    {
        T *p = base ? (T *)(base + used) : nullptr;
        used += ((size_t)(n > 0 ? n : 0) * sizeof(T) + 255) / 256 * 256;
        return p;
    }
};
/* The carver of a pass; its total is checked by SCRATCH_FITS once everything is taken. */
static inline scratch_carver carver_of(en_backend *be) { return { engine(be)->scratch, 0 }; }
#define SCRATCH_FITS(be, carver)                                                                                       \
    EN_REQUIRE((carver).used <= engine(be)->scratch_bytes, EN_EINVAL, "scratch holds %zu bytes, this shape needs %zu",    \
               engine(be)->scratch_bytes, (carver).used)

/* Scratch bytes of the passes of each file for a geometry (as `reserve` gets it; kernel 0: pointwise c -> oc). */
size_t scratch_of_norm(const cuda_engine *e, const en_conv_geom *g);
size_t scratch_of_pointwise(const cuda_engine *e, const en_conv_geom *g);
size_t scratch_of_depthwise(const cuda_engine *e, const en_conv_geom *g);
size_t scratch_of_conv(const cuda_engine *e, const en_conv_geom *g);
size_t scratch_of_stem(const cuda_engine *e, const en_conv_geom *g);
size_t scratch_of_project(const cuda_engine *e, const en_conv_geom *g);
size_t scratch_of_head(const cuda_engine *e, const en_conv_geom *g);
size_t scratch_of_optimizer(const cuda_engine *e);

/* What some files keep in the engine */
en_status gemm_open(cuda_engine *e);
void      gemm_close(cuda_engine *e);           /* also of an engine that gemm_open has not seen */
void      optimizer_close(cuda_engine *e);

/* ---- two-stage sums (norm.cu) ------------------------------------------------------------------------------------------- */

enum { SUM_RUN = 256 };
/* out[i] (=, or += with add) = sum over parts, in order, of partials[part*width + i];  fixed order, double inside */
en_status collect(en_backend *be, const double *partials, int64_t parts, int64_t width, double *out);
en_status collect_add(en_backend *be, const float *partials, int64_t parts, int64_t width, float *out);
/* by batch: out[b][i] (=) = sum over parts of partials[b][part][i] */
en_status collect_each(en_backend *be, const float *partials, int64_t batches, int64_t parts, int64_t width, float *out);
/* bn->local = { the 2c sums, rows } in one launch: collect and set_rows together */
en_status collect_rows(en_backend *be, const double *partials, int64_t parts, en_bn *bn, int64_t rows);
/* bn->local[2c] = rows; with rows == 0 also all sums = 0 */
en_status set_rows(en_backend *be, en_bn *bn, int64_t rows);
/* bn->local = sums of y (rows, c) about running_mean, rows: a sweep over y, for passes whose kernel does not take them */
en_status sweep_sums(en_backend *be, int64_t rows, int64_t c, const void *y, en_bn *bn);
/* out (rows, c) = dy by en_grad's formula, all of its forms: for passes that need dy as a tensor.  out may be d->stored. */
en_status form_gradient(en_backend *be, const en_grad *d, int64_t rows, int64_t c, void *out);
/* out (rows, c) = act(bn(x)) * (gate ? gate[row / hw] : 1) */
en_status form_operand(en_backend *be, const en_operand *x, const float *gate, int64_t rows, int64_t hw, int64_t c, void *out);

/* ---- GEMMs (gemm.cu) ---------------------------------------------------------------------------------------------------- */

/* Row-major D (m,n) = alpha * op(A) op(B) + beta * C + bias[n]; A (m,k) or, ta, (k,m); B (k,n) or, tb, (n,k); types by
 * operand; C NULL: D; C may be D.  bias (n) in D's type, or NULL.  Tuned once per shape outside of recordings, then cached. */
struct gemm_call { bool ta, tb; int64_t m, n, k; const void *a, *b, *c; void *d; en_dtype a_type, b_type, d_type; float beta; const void *bias;
                   int64_t lda, ldb, ldd; /* 0: dense */ };
en_status gemm(en_backend *be, const gemm_call *call);
/* Weights in the type the GEMMs read: the float pointer itself in f32; a kept copy; or converted into engine->cast. */
en_status weights_for_gemm(en_backend *be, const float *w, int64_t elems, const void **out);
/* dwt (ci,co) += x^T dy over rows, x (rows,ci) and dy (rows,co) activations (tall.cu, or gemm where both sides are wide). */
en_status weight_gradient(en_backend *be, scratch_carver *scratch, int64_t rows, int64_t ci, int64_t co, const void *x, const void *dy, float *dwt);
size_t    weight_gradient_scratch(const cuda_engine *e, int64_t rows, int64_t ci, int64_t co);

#ifdef __CUDACC__
#define EN_DEVICE        static __device__ __forceinline__
#define EN_DEVICE_MEMBER __device__ __forceinline__
#elif defined(CUDAEMU)
#define EN_DEVICE        static inline
#define EN_DEVICE_MEMBER inline
#endif

#ifdef EN_DEVICE
/* ---- inside kernels ------------------------------------------------------------------------------------------------------ */

EN_DEVICE float as_float(float v) { return v; }
EN_DEVICE float as_float(bf16 v)  { return __bfloat162float(v); }
template <typename T> EN_DEVICE T as_stored(float v);
template <> __device__ __forceinline__ float as_stored<float>(float v) { return v; }
template <> __device__ __forceinline__ bf16  as_stored<bf16>(float v)  { return __float2bfloat16_rn(v); }

/* 8 neighbouring channels */
EN_DEVICE void load8(const float *p, float v[8])
{
    const float4 a = ((const float4 *)p)[0], b = ((const float4 *)p)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
EN_DEVICE void load8(const bf16 *p, float v[8])
{
    const uint4 a = *(const uint4 *)p;
    const unsigned w[4] = { a.x, a.y, a.z, a.w };
#pragma unroll
    for (int i = 0; i < 4; i++) {               /* a bf16 is the upper half of a float */
        v[2 * i]     = __uint_as_float(w[i] << 16);
        v[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
    }
}
/* v becomes what was stored */
EN_DEVICE void store8(float *p, float v[8])
{
    ((float4 *)p)[0] = make_float4(v[0], v[1], v[2], v[3]);
    ((float4 *)p)[1] = make_float4(v[4], v[5], v[6], v[7]);
}
EN_DEVICE void store8(bf16 *p, float v[8])
{
    unsigned w[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const __nv_bfloat162 h = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
        w[i] = *(const unsigned *)&h;
        v[2 * i]     = __uint_as_float(w[i] << 16);
        v[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
    }
    *(uint4 *)p = make_uint4(w[0], w[1], w[2], w[3]);
}

/* One instruction each, subnormal numbers are 0.  __expf and __fdividef take four more, to keep them. */
#ifdef CUDAEMU
EN_DEVICE float approx_exp2(float v)       { return exp2f(v); }
EN_DEVICE float approx_reciprocal(float v) { return 1.f / v; }
#else
EN_DEVICE float approx_exp2(float v)       { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v)); return r; }
EN_DEVICE float approx_reciprocal(float v) { float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v)); return r; }
#endif

/* Accurate where activations are float (tests hold it to 4e-6), quick where they are bf16 anyway. */
template <typename T> EN_DEVICE float sigmoid(float v);
template <> __device__ __forceinline__ float sigmoid<float>(float v) { return 1.f / (1.f + expf(-v)); }
template <> __device__ __forceinline__ float sigmoid<bf16>(float v)  { return approx_reciprocal(1.f + approx_exp2(-1.4426950408889634f * v)); }
/* ReLU and ReLU6; a NaN stays one */
EN_DEVICE float rectified(en_act act, float z)       { return z < 0.f ? 0.f : act == EN_ACT_RELU6 && z > 6.f ? 6.f : z; }
EN_DEVICE float rectified_slope(en_act act, float z) { return z > 0.f && (act != EN_ACT_RELU6 || z < 6.f) ? 1.f : 0.f; }
template <typename T> EN_DEVICE float act_value(en_act act, float z) 
{
    if (act == EN_ACT_SILU) return z * sigmoid<T>(z);
    return act == EN_ACT_NONE ? z : rectified(act, z);
}
/* d act / dz = s * (1 + z * (1 - s)), or 0 and 1 */
template <typename T> EN_DEVICE float act_slope(en_act act, float z)
{
    if (act != EN_ACT_SILU) return act == EN_ACT_NONE ? 1.f : rectified_slope(act, z);
    const float s = sigmoid<T>(z);
    return s * fmaf(z, 1.f - s, 1.f);
}
#endif

/* ---- launching ----------------------------------------------------------------------------------------------------------- */

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* BY_TYPE(be, T, statement): the statement once for each storage type */
#define BY_TYPE(be, T, ...)                                                                                            \
    do { if ((be)->dtype == EN_F32) { using T = float; __VA_ARGS__; } else { using T = bf16; __VA_ARGS__; } } while (0)

#endif
