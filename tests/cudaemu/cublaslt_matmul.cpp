/* cublaslt_matmul.cpp - cublasLtMatmul with plain loops.
 *
 *     D = alpha op(A) op(B) + beta C (+ bias)        op(A) (m, k)    op(B) (k, n)    C, D (m, n)
 *
 * bf16, f16 and f32 operands; sums in float, as tensor cores keep them, in an order that the algorithm decides: k in
 * sequence, in blocks of 32, or in two halves that meet in the workspace.  The halves are two steps of the queue, and the
 * workspace really holds the first meanwhile, so two streams that share one are found out.  CUBLAS_COMPUTE_32F_FAST_TF32
 * rounds f32 operands to 10 bits of fraction first.
 * Refused as the library refuses: dimensions or leading dimensions that do not fit, missing pointers, workspaces that are too
 * small or not 256-byte aligned (INVALID_VALUE); operands less aligned than the algorithm was found for, combinations of
 * types, and epilogues on a row-major D (NOT_SUPPORTED; the last is our caution, not documented). */
#include "cublaslt.h"
#include <cstring>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace cudaemu {

static size_t size_of(cudaDataType_t t) { return t == CUDA_R_32F ? 4 : 2; }
static float load(const void *p, cudaDataType_t t, size_t i)
{
    if (t == CUDA_R_16BF) return __bfloat162float(static_cast<const __nv_bfloat16 *>(p)[i]);
    if (t == CUDA_R_16F) return __half2float(static_cast<const __half *>(p)[i]);
    return static_cast<const float *>(p)[i];
}
static void store(void *p, cudaDataType_t t, size_t i, float v)
{
    if (t == CUDA_R_16BF) static_cast<__nv_bfloat16 *>(p)[i] = __float2bfloat16_rn(v);
    else if (t == CUDA_R_16F) static_cast<__half *>(p)[i] = __float2half_rn(v);
    else static_cast<float *>(p)[i] = v;
}
static size_t at(const Layout &l, int64_t r, int64_t c)
{
    return (size_t)(l.order == CUBLASLT_ORDER_ROW ? r * l.ld + c : c * l.ld + r);
}
static size_t extent(const Layout &l)                // bytes from the first element to after the last
{
    const size_t last = at(l, (int64_t)l.rows - 1, (int64_t)l.cols - 1) + (size_t)(l.batch > 1 ? (l.batch - 1) * l.stride : 0);
    return (last + 1) * size_of(l.type);
}
static float to_tf32(float v)
{
    uint32_t u;
    memcpy(&u, &v, 4);
    if ((u & 0x7f800000u) != 0x7f800000u) u = (u + 0xfffu + (u >> 13 & 1)) & ~0x1fffu;
    memcpy(&v, &u, 4);
    return v;
}

static bool sane(const Layout &l)
{
    return l.rows && l.cols && (l.order == CUBLASLT_ORDER_COL || l.order == CUBLASLT_ORDER_ROW) && l.batch >= 1 &&
           l.ld >= (int64_t)(l.order == CUBLASLT_ORDER_COL ? l.rows : l.cols);
}
cublasStatus_t check_problem(Problem *p, const MatmulDesc &d, const Layout &a, const Layout &b, const Layout &c, const Layout &o)
{
    *p = {d, a, b, c, o, (int64_t)o.rows, (int64_t)o.cols, (int64_t)(d.transa ? a.rows : a.cols)};
    if (!sane(a) || !sane(b) || !sane(c) || !sane(o)) return CUBLAS_STATUS_INVALID_VALUE;
    if ((int64_t)(d.transa ? a.cols : a.rows) != p->m || (int64_t)(d.transb ? b.rows : b.cols) != p->n ||
        (int64_t)(d.transb ? b.cols : b.rows) != p->k || c.rows != o.rows || c.cols != o.cols)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (a.batch != o.batch || b.batch != o.batch || c.batch != o.batch) return CUBLAS_STATUS_INVALID_VALUE;
    const bool half = a.type == CUDA_R_16BF || a.type == CUDA_R_16F;
    if ((!half && a.type != CUDA_R_32F) || b.type != a.type || (o.type != CUDA_R_32F && o.type != a.type) || c.type != o.type ||
        c.order != o.order || d.scale != CUDA_R_32F || d.pointer_mode != CUBLASLT_POINTER_MODE_HOST)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (d.compute != CUBLAS_COMPUTE_32F && d.compute != CUBLAS_COMPUTE_32F_PEDANTIC &&
        !(d.compute == CUBLAS_COMPUTE_32F_FAST_TF32 && a.type == CUDA_R_32F))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    switch (d.epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT: return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_EPILOGUE_BIAS: case CUBLASLT_EPILOGUE_BGRADA: case CUBLASLT_EPILOGUE_BGRADB: break;
    default: return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (d.bias_type >= 0 && d.bias_type != (int32_t)o.type) return CUBLAS_STATUS_NOT_SUPPORTED;
    return o.order == CUBLASLT_ORDER_COL ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
size_t split_workspace(const Problem &p) { return (size_t)(p.m * p.n * p.o.batch) * sizeof(float); }

struct Matmul {
    Problem p;
    float alpha, beta;
    const char *a, *b, *c;
    char *o;
    int id;
    float *workspace;
    bool half_done = false;

    // sums (m, n) += op(A) op(B) over k in [k0, k1)
    void add(int z, int64_t k0, int64_t k1, float *sums) const
    {
        const bool tf32 = p.d.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
        const char *pa = a + (size_t)(z * p.a.stride) * size_of(p.a.type), *pb = b + (size_t)(z * p.b.stride) * size_of(p.b.type);
        std::vector<float> row((size_t)p.n);
        for (int64_t k = k0; k < k1; k++) {
            for (int64_t j = 0; j < p.n; j++) {
                const float v = load(pb, p.b.type, p.d.transb ? at(p.b, j, k) : at(p.b, k, j));
                row[(size_t)j] = tf32 ? to_tf32(v) : v;
            }
            for (int64_t i = 0; i < p.m; i++) {
                float v = load(pa, p.a.type, p.d.transa ? at(p.a, k, i) : at(p.a, i, k));
                if (tf32) v = to_tf32(v);
                float *s = sums + i * p.n;
                for (int64_t j = 0; j < p.n; j++) s[j] += v * row[(size_t)j];
            }
        }
    }
    void bias_gradient(int z) const                  // sums over k: of op(A)'s rows, or op(B)'s columns
    {
        const bool of_a = p.d.epilogue == CUBLASLT_EPILOGUE_BGRADA;
        const Layout &l = of_a ? p.a : p.b;
        const char *x = (of_a ? a : b) + (size_t)(z * l.stride) * size_of(l.type);
        const bool k_is_row = of_a ? p.d.transa : !p.d.transb;
        for (int64_t i = 0; i < (of_a ? p.m : p.n); i++) {
            float s = 0;
            for (int64_t k = 0; k < p.k; k++) s += load(x, l.type, k_is_row ? at(l, k, i) : at(l, i, k));
            store(p.d.bias, p.o.type, (size_t)i, s);
        }
    }
    void finish(int z, const float *sums) const
    {
        const char *pc = c + (size_t)(z * p.c.stride) * size_of(p.c.type);
        char *po = o + (size_t)(z * p.o.stride) * size_of(p.o.type);
        for (int64_t i = 0; i < p.m; i++) {
            const float bias = p.d.epilogue == CUBLASLT_EPILOGUE_BIAS ? load(p.d.bias, p.o.type, (size_t)i) : 0;
            for (int64_t j = 0; j < p.n; j++) {
                float v = alpha * sums[i * p.n + j];
                if (beta != 0) v += beta * load(pc, p.c.type, at(p.c, i, j));
                store(po, p.o.type, at(p.o, i, j), v + bias);
            }
        }
        if (p.d.epilogue == CUBLASLT_EPILOGUE_BGRADA || p.d.epilogue == CUBLASLT_EPILOGUE_BGRADB) bias_gradient(z);
    }
    bool step()
    {
        const size_t size = (size_t)(p.m * p.n);
        std::vector<float> sums(size), part(size);
        for (int z = 0; z < p.o.batch; z++) {
            float *half = workspace + (size_t)z * size;
            if (id == SPLIT_K && !half_done) {
                std::fill(half, half + size, 0.0f);
                add(z, 0, p.k / 2, half);
                continue;
            }
            std::fill(sums.begin(), sums.end(), 0.0f);
            if (id == BLOCKED) {
                for (int64_t k = 0; k < p.k; k += 32) {
                    std::fill(part.begin(), part.end(), 0.0f);
                    add(z, k, std::min(p.k, k + 32), part.data());
                    for (size_t i = 0; i < size; i++) sums[i] += part[i];
                }
            } else if (id == SPLIT_K) {
                add(z, p.k / 2, p.k, sums.data());
                for (size_t i = 0; i < size; i++) sums[i] += half[i];
            } else {
                add(z, 0, p.k, sums.data());
            }
            finish(z, sums.data());
        }
        if (id == SPLIT_K && !half_done) return !(half_done = true);
        return true;
    }
};

} // namespace cudaemu
using namespace cudaemu;

extern "C" cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t d, const void *alpha, const void *a,
                                         cublasLtMatrixLayout_t la, const void *b, cublasLtMatrixLayout_t lb, const void *beta,
                                         const void *c, cublasLtMatrixLayout_t lc, void *o, cublasLtMatrixLayout_t lo,
                                         const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes,
                                         cudaStream_t stream)
{
    Api api;
    if (!h) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!d || !la || !lb || !lc || !lo || !alpha || !beta || !a || !b || !o) return CUBLAS_STATUS_INVALID_VALUE;
    Matmul w = {};
    const cublasStatus_t s = check_problem(&w.p, *inside<MatmulDesc>(d), *inside<Layout>(la), *inside<Layout>(lb),
                                           *inside<Layout>(lc), *inside<Layout>(lo));
    if (s != CUBLAS_STATUS_SUCCESS) return s;
    const Problem &p = w.p;
    memcpy(&w.alpha, alpha, 4);
    memcpy(&w.beta, beta, 4);
    if ((w.beta != 0 && !c) || (c == o && memcmp(&p.c, &p.o, sizeof p.c))) return CUBLAS_STATUS_INVALID_VALUE;
    if (p.d.epilogue != CUBLASLT_EPILOGUE_DEFAULT && !p.d.bias) return CUBLAS_STATUS_INVALID_VALUE;
    const uintptr_t all = (uintptr_t)a | (uintptr_t)b | (uintptr_t)o | (w.beta != 0 ? (uintptr_t)c : 0);
    if (all % size_of(p.a.type) || (uintptr_t)o % size_of(p.o.type)) return CUBLAS_STATUS_INVALID_VALUE;
    w.id = all % 16 ? UNALIGNED : IN_SEQUENCE;
    if (algo) {
        if (inside<const Algo>(algo)->magic != ALGO_MAGIC) return CUBLAS_STATUS_INVALID_VALUE;
        w.id = inside<const Algo>(algo)->id;
        if (w.id != UNALIGNED && all % 16) return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (workspace_bytes && (!workspace || (uintptr_t)workspace % 256)) return CUBLAS_STATUS_INVALID_VALUE;
    if (w.id == SPLIT_K && workspace_bytes < split_workspace(p)) return CUBLAS_STATUS_INVALID_VALUE;
    check_device_range(a, extent(p.a), "cublasLtMatmul A");
    check_device_range(b, extent(p.b), "cublasLtMatmul B");
    check_device_range(o, extent(p.o), "cublasLtMatmul D");
    if (w.beta != 0) check_device_range(c, extent(p.c), "cublasLtMatmul C");
    if (workspace_bytes) check_device_range(workspace, workspace_bytes, "cublasLtMatmul workspace");
    if (p.d.epilogue != CUBLASLT_EPILOGUE_DEFAULT)
        check_device_range(p.d.bias, (size_t)(p.d.epilogue == CUBLASLT_EPILOGUE_BGRADB ? p.n : p.m) * size_of(p.o.type),
                           "cublasLtMatmul bias");
    w.a = static_cast<const char *>(a);
    w.b = static_cast<const char *>(b);
    w.c = static_cast<const char *>(c);
    w.o = static_cast<char *>(o);
    w.workspace = static_cast<float *>(workspace);
    const cudaError_t e = submit(stream, {"cublasLtMatmul", [w]() -> Work {
        auto work = std::make_shared<Matmul>(w);
        return [work] { return work->step(); };
    }});
    return e == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
