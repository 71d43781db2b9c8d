/* cublaslt_objects.cpp - handles, descriptors, layouts, preferences, and the search for an algorithm.
 *
 * The heuristic offers up to four algorithms that add in different orders, so that a program which measures and chooses has
 * something to choose from, and whose choice changes the last bits.  One needs a workspace.  Operands without 16-byte
 * alignment, or promised none by the preference, are left with the slowest. */
#include "cublaslt.h"
#include <cstring>

namespace cudaemu {

template <class T> static cublasStatus_t put(T *field, const void *buf, size_t bytes)
{
    if (!buf || bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(field, buf, sizeof(T));
    return CUBLAS_STATUS_SUCCESS;
}
template <class T> static cublasStatus_t get(const T *field, void *buf, size_t bytes, size_t *written)
{
    if (written) *written = sizeof(T);
    if (!bytes && written) return CUBLAS_STATUS_SUCCESS;
    if (!buf || bytes < sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(buf, field, sizeof(T));
    return CUBLAS_STATUS_SUCCESS;
}
// Calls f with the field that an attribute names.
template <class F> static cublasStatus_t field(MatmulDesc *d, cublasLtMatmulDescAttributes_t a, F f)
{
    switch (a) {
    case CUBLASLT_MATMUL_DESC_TRANSA: return f(&d->transa);
    case CUBLASLT_MATMUL_DESC_TRANSB: return f(&d->transb);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return f(&d->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return f(&d->bias);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return f(&d->bias_type);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE: return f(&d->pointer_mode);
    default: break;
    }
    fprintf(stderr, "CUDAEMU: cublasLt matmul attribute %d is not emulated\n", (int)a);
    return CUBLAS_STATUS_NOT_SUPPORTED;
}
template <class F> static cublasStatus_t field(Layout *l, cublasLtMatrixLayoutAttribute_t a, F f)
{
    switch (a) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE: return f(&l->type);
    case CUBLASLT_MATRIX_LAYOUT_ORDER: return f(&l->order);
    case CUBLASLT_MATRIX_LAYOUT_ROWS: return f(&l->rows);
    case CUBLASLT_MATRIX_LAYOUT_COLS: return f(&l->cols);
    case CUBLASLT_MATRIX_LAYOUT_LD: return f(&l->ld);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT: return f(&l->batch);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET: return f(&l->stride);
    default: break;
    }
    fprintf(stderr, "CUDAEMU: cublasLt layout attribute %d is not emulated\n", (int)a);
    return CUBLAS_STATUS_NOT_SUPPORTED;
}
template <class F> static cublasStatus_t field(Preference *p, cublasLtMatmulPreferenceAttributes_t a, F f)
{
    switch (a) {
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE: return f(&p->search_mode);
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: return f(&p->max_workspace);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: return f(&p->reduction_mask);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: return f(&p->align[0]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: return f(&p->align[1]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: return f(&p->align[2]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: return f(&p->align[3]);
    default: break;
    }
    fprintf(stderr, "CUDAEMU: cublasLt preference %d is not emulated\n", (int)a);
    return CUBLAS_STATUS_NOT_SUPPORTED;
}

} // namespace cudaemu
using namespace cudaemu;
#define DONE return CUBLAS_STATUS_SUCCESS

extern "C" {
size_t cublasLtGetVersion(void) { return CUBLAS_VERSION; }
size_t cublasLtGetCudartVersion(void) { return CUDART_VERSION; }
const char *cublasLtGetStatusName(cublasStatus_t s)
{
    switch (s) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "CUBLAS_STATUS_INTERNAL_ERROR";
    }
}
const char *cublasLtGetStatusString(cublasStatus_t s) { return cublasLtGetStatusName(s); }
cublasStatus_t cublasLtCreate(cublasLtHandle_t *h)
{
    if (no_device()) return CUBLAS_STATUS_NOT_INITIALIZED;
    *h = reinterpret_cast<cublasLtHandle_t>(new char);
    DONE;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h)
{
    delete reinterpret_cast<char *>(h);
    DONE;
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t d, size_t, cublasComputeType_t compute, cudaDataType_t scale)
{
    *inside<MatmulDesc>(d) = {compute, scale, CUBLASLT_POINTER_MODE_HOST, 0, 0, CUBLASLT_EPILOGUE_DEFAULT, -1, nullptr};
    DONE;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute, cudaDataType_t scale)
{
    *d = new cublasLtMatmulDescOpaque_t();
    return cublasLtMatmulDescInit_internal(*d, sizeof **d, compute, scale);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d)
{
    delete d;
    DONE;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a, const void *buf, size_t n)
{
    return field(inside<MatmulDesc>(d), a, [=](auto *f) { return put(f, buf, n); });
}
cublasStatus_t cublasLtMatmulDescGetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a, void *buf, size_t n,
                                              size_t *w)
{
    return field(inside<MatmulDesc>(d), a, [=](auto *f) { return get(f, buf, n, w); });
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t l, size_t, cudaDataType type, uint64_t rows, uint64_t cols,
                                                 int64_t ld)
{
    *inside<Layout>(l) = {type, CUBLASLT_ORDER_COL, rows, cols, ld, 1, 0};
    DONE;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType type, uint64_t rows, uint64_t cols, int64_t ld)
{
    *l = new cublasLtMatrixLayoutOpaque_t();
    return cublasLtMatrixLayoutInit_internal(*l, sizeof **l, type, rows, cols, ld);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l)
{
    delete l;
    DONE;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t a, const void *buf,
                                                size_t n)
{
    return field(inside<Layout>(l), a, [=](auto *f) { return put(f, buf, n); });
}
cublasStatus_t cublasLtMatrixLayoutGetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t a, void *buf, size_t n,
                                                size_t *w)
{
    return field(inside<Layout>(l), a, [=](auto *f) { return get(f, buf, n, w); });
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t p, size_t)
{
    *inside<Preference>(p) = {0, 0, {256, 256, 256, 256}, 0};
    DONE;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p)
{
    *p = new cublasLtMatmulPreferenceOpaque_t();
    return cublasLtMatmulPreferenceInit_internal(*p, sizeof **p);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p)
{
    delete p;
    DONE;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t a,
                                                    const void *buf, size_t n)
{
    return field(inside<Preference>(p), a, [=](auto *f) { return put(f, buf, n); });
}

static bool wide(const Layout &l, uint32_t promised)
{
    const uint64_t size = l.type == CUDA_R_32F ? 4 : 2;
    return promised >= 16 && (uint64_t)l.ld * size % 16 == 0 && (l.batch <= 1 || (uint64_t)l.stride * size % 16 == 0);
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t o,
                                              cublasLtMatmulPreference_t pref, int want, cublasLtMatmulHeuristicResult_t *out,
                                              int *got)
{
    *got = 0;
    if (!h) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (want < 1) return CUBLAS_STATUS_INVALID_VALUE;
    const Preference f = pref ? *inside<Preference>(pref) : Preference{0, 0, {256, 256, 256, 256}, 0};
    Problem p;
    cublasStatus_t s = check_problem(&p, *inside<MatmulDesc>(d), *inside<Layout>(a), *inside<Layout>(b), *inside<Layout>(c),
                                     *inside<Layout>(o));
    if (s != CUBLAS_STATUS_SUCCESS) return s;
    const bool aligned = wide(p.a, f.align[0]) && wide(p.b, f.align[1]) && wide(p.c, f.align[2]) && wide(p.o, f.align[3]);
    for (int id = aligned ? 0 : UNALIGNED; id < ALGOS && *got < want; id++) {
        const size_t workspace = id == SPLIT_K ? split_workspace(p) : 0;
        if (workspace > f.max_workspace || (id == SPLIT_K && p.k < 2)) continue;
        cublasLtMatmulHeuristicResult_t *r = &out[(*got)++];
        memset(r, 0, sizeof *r);
        *inside<Algo>(&r->algo) = {ALGO_MAGIC, id};
        r->workspaceSize = workspace;
        r->state = CUBLAS_STATUS_SUCCESS;
        r->wavesCount = 1.0f + 0.1f * (float)id;
    }
    DONE;
}
cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo, cublasLtMatmulAlgoConfigAttributes_t a,
                                                    void *buf, size_t n, size_t *w)
{
    const int32_t id = inside<const Algo>(algo)->id;
    return a == CUBLASLT_ALGO_CONFIG_ID ? get(&id, buf, n, w) : CUBLAS_STATUS_NOT_SUPPORTED;
}
}
