/* gemm.cu - matrix products by cuBLASLt: row-major, one plan per shape, and the weights in the type that they read.
 *
 * cuBLASLt counts columns first.  A row-major matrix (rows, cols) with leading dimension ld is, in memory, the column-major
 * (cols, rows) with the same ld, so D = op(A) op(B) row-major is asked for as D^T = op(B)^T op(A)^T: operands change places,
 * flags stay as they are, and the bias, one value per *row* of what the library computes, is one per channel for us.
 *
 * A plan is what the library needs beside pointers: descriptor, layouts, algorithm.  It is made when a shape first comes and kept
 * for the life of the engine, so that the same call gives the same bits from then on, recorded or not.
 *
 *     bits        f32 is computed in f32 (PEDANTIC: no TF32, no emulation).  Split-k is taken only where its parts are added
 *                 in a step of their own, in compute precision: no output depends on which block came first.
 *     algorithm   The fastest of the library's proposals, measured when a shape first comes outside of a recording, and kept
 *                 (gemm_choice.cu); EN_GEMM_TUNE=0: its first proposal.
 *     workspace   32 MiB, fixed: a recorded step holds pointers into it. */
#include "gemm.h"

#include <stdlib.h>
#include <string.h>

enum { WORKSPACE = 32 << 20, PROPOSALS = 8, PLANS_AT_FIRST = 256 };

static cudaDataType_t data_type(en_dtype t) { return t == EN_F32 ? CUDA_R_32F : CUDA_R_16BF; }

static int32_t alignment(const void *p)
{
    const uintptr_t a = (uintptr_t)p | 256;
    return (int32_t)(a & -a);
}

static uint64_t hash_of(const gemm_key &key)
{
    uint64_t h = 0xcbf29ce484222325ull;
    for (int64_t v : key.v) h = (h ^ (uint64_t)v) * 0x100000001b3ull, h ^= h >> 29;
    return h;
}

static void free_plan(gemm_plan *p)
{
    if (p->desc) (void)cublasLtMatmulDescDestroy(p->desc);
    if (p->a) (void)cublasLtMatrixLayoutDestroy(p->a);
    if (p->b) (void)cublasLtMatrixLayoutDestroy(p->b);
    if (p->d) (void)cublasLtMatrixLayoutDestroy(p->d);
    *p = gemm_plan{};
}

#define LT_TRY(call, ...)                                                                                              \
    do { const cublasStatus_t s_ = (call);                                                                             \
         if (s_ != CUBLAS_STATUS_SUCCESS) {                                                                            \
             en_raise(EN_ENOTSUP, __FILE__, __LINE__, __func__, "cuBLASLt: %s", cublasLtGetStatusString(s_));          \
             return en_raise(EN_ENOTSUP, __FILE__, __LINE__, __func__, __VA_ARGS__); } } while (0)

en_status gemm_open(cuda_engine *e)
{
    const char *tune = getenv("EN_GEMM_TUNE");
    e->gemms = (gemm_cache *)calloc(1, sizeof *e->gemms);
    EN_REQUIRE(e->gemms, EN_ENOMEM, "no memory for the plans of matrix products");
    e->gemms->tune = !tune || strcmp(tune, "0") != 0;
    e->gemms->room = PLANS_AT_FIRST;
    e->gemms->plans = (gemm_plan *)calloc(PLANS_AT_FIRST, sizeof *e->gemms->plans);
    EN_REQUIRE(e->gemms->plans, EN_ENOMEM, "no memory for the plans of matrix products");
    LT_TRY(cublasLtCreate(&e->lt), "opening cuBLASLt on GPU %d", e->device);
    CU_TRY(cudaMalloc(&e->lt_workspace, WORKSPACE), "%d MiB of workspace for cuBLASLt", WORKSPACE >> 20);
    e->lt_workspace_bytes = WORKSPACE;
    CU_TRY(cudaEventCreate(&e->gemms->begin), "event");
    CU_TRY(cudaEventCreate(&e->gemms->end), "event");
    return EN_OK;
}

void gemm_close(cuda_engine *e)
{
    if (e->gemms) {
        for (int i = 0; e->gemms->plans && i < e->gemms->room; i++) free_plan(&e->gemms->plans[i]);
        if (e->gemms->begin) (void)cudaEventDestroy(e->gemms->begin);
        if (e->gemms->end) (void)cudaEventDestroy(e->gemms->end);
        free(e->gemms->plans);
        free(e->gemms);
        e->gemms = NULL;
    }
    if (e->lt) (void)cublasLtDestroy(e->lt);
    if (e->lt_workspace) (void)cudaFree(e->lt_workspace);
    e->lt = NULL;
    e->lt_workspace = NULL;
    e->lt_workspace_bytes = 0;
}

/* ---- plans --------------------------------------------------------------------------------------------------------------- */

static gemm_plan *place_of(gemm_plan *plans, int room, const gemm_key &key)
{
    int i = (int)(hash_of(key) & (uint64_t)(room - 1));
    while (plans[i].used && memcmp(&plans[i].key, &key, sizeof key) != 0) i = (i + 1) & (room - 1);
    return &plans[i];
}

static en_status make_room(gemm_cache *cache)
{
    if (2 * (cache->held + 1) <= cache->room) return EN_OK;
    const int room = 2 * cache->room;
    gemm_plan *plans = (gemm_plan *)calloc((size_t)room, sizeof *plans);
    EN_REQUIRE(plans, EN_ENOMEM, "no memory for %d plans of matrix products", room);
    for (int i = 0; i < cache->room; i++)
        if (cache->plans[i].used) *place_of(plans, room, cache->plans[i].key) = cache->plans[i];
    free(cache->plans);
    cache->plans = plans;
    cache->room = room;
    return EN_OK;
}

static gemm_key key_of(const gemm_call *g, const void *c)
{
    gemm_key key;
    int64_t *v = key.v;
    v[KEY_M] = g->m, v[KEY_N] = g->n, v[KEY_K] = g->k;
    v[KEY_LDA] = g->lda ? g->lda : g->ta ? g->m : g->k;
    v[KEY_LDB] = g->ldb ? g->ldb : g->tb ? g->k : g->n;
    v[KEY_LDD] = g->ldd ? g->ldd : g->n;
    v[KEY_TA] = g->ta, v[KEY_TB] = g->tb, v[KEY_A_TYPE] = g->a_type, v[KEY_D_TYPE] = g->d_type;
    v[KEY_ADDS] = g->beta != 0, v[KEY_BIAS] = g->bias != NULL, v[KEY_IN_PLACE] = c == g->d;
    v[KEY_ALIGN_A] = alignment(g->a), v[KEY_ALIGN_B] = alignment(g->b), v[KEY_ALIGN_C] = alignment(c), v[KEY_ALIGN_D] = alignment(g->d);
    v[KEY_ALIGN_BIAS] = alignment(g->bias);
    return key;
}

static en_status describe(gemm_plan *p, cublasComputeType_t precision, const void *bias)
{
    const int64_t *v = p->key.v;
    const bool ta = v[KEY_TA] != 0, tb = v[KEY_TB] != 0;
    const cudaDataType_t in = data_type((en_dtype)v[KEY_A_TYPE]), out = data_type((en_dtype)v[KEY_D_TYPE]);
    const uint64_t m = (uint64_t)v[KEY_M], n = (uint64_t)v[KEY_N], k = (uint64_t)v[KEY_K];
    const int32_t opa = tb ? CUBLAS_OP_T : CUBLAS_OP_N, opb = ta ? CUBLAS_OP_T : CUBLAS_OP_N;
    LT_TRY(cublasLtMatmulDescCreate(&p->desc, precision, CUDA_R_32F), "descriptor");
    LT_TRY(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &opa, sizeof opa), "descriptor");
    LT_TRY(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &opb, sizeof opb), "descriptor");
    if (bias) {
        const uint32_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        LT_TRY(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue), "descriptor");
        LT_TRY(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias), "descriptor");
    }
    LT_TRY(cublasLtMatrixLayoutCreate(&p->a, in, tb ? k : n, tb ? n : k, v[KEY_LDB]), "layout");
    LT_TRY(cublasLtMatrixLayoutCreate(&p->b, in, ta ? m : k, ta ? k : m, v[KEY_LDA]), "layout");
    LT_TRY(cublasLtMatrixLayoutCreate(&p->d, out, n, m, v[KEY_LDD]), "layout");
    return EN_OK;
}

/* The library's proposals, best first by its own estimate; at least one. */
static cublasStatus_t propose(cuda_engine *e, const gemm_plan *p, cublasLtMatmulHeuristicResult_t out[PROPOSALS], int *got)
{
    cublasLtMatmulPreference_t pref = NULL;
    const uint64_t workspace = e->lt_workspace_bytes;
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const struct { cublasLtMatmulPreferenceAttributes_t which; int64_t bytes; } aligned[] = {
        { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, p->key.v[KEY_ALIGN_B] }, { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, p->key.v[KEY_ALIGN_A] },
        { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, p->key.v[KEY_ALIGN_C] }, { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, p->key.v[KEY_ALIGN_D] } };
    *got = 0;
    cublasStatus_t s = cublasLtMatmulPreferenceCreate(&pref);
    if (s != CUBLAS_STATUS_SUCCESS) return s;
    s = cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction);
    for (const auto &a : aligned) {
        const uint32_t bytes = (uint32_t)a.bytes;
        if (s == CUBLAS_STATUS_SUCCESS) s = cublasLtMatmulPreferenceSetAttribute(pref, a.which, &bytes, sizeof bytes);
    }
    if (s == CUBLAS_STATUS_SUCCESS) s = cublasLtMatmulAlgoGetHeuristic(e->lt, p->desc, p->a, p->b, p->d, p->d, pref, PROPOSALS, out, got);
    (void)cublasLtMatmulPreferenceDestroy(pref);
    int usable = 0;
    for (int i = 0; s == CUBLAS_STATUS_SUCCESS && i < *got; i++)
        if (out[i].state == CUBLAS_STATUS_SUCCESS) out[usable++] = out[i];
    *got = usable;
    return s == CUBLAS_STATUS_SUCCESS && usable == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : s;
}

cublasStatus_t gemm_run(cuda_engine *e, const gemm_plan *p, const cublasLtMatmulAlgo_t *algo, const gemm_call *g, const void *c, void *d)
{
    const float one = 1.f;
    return cublasLtMatmul(e->lt, p->desc, &one, g->b, p->a, g->a, p->b, &g->beta, c, p->d, d, p->d, algo, e->lt_workspace, e->lt_workspace_bytes,
                          e->compute);
}

static en_status make_plan(cuda_engine *e, gemm_plan *p, const gemm_call *g, const void *c)
{
    cublasLtMatmulHeuristicResult_t proposals[PROPOSALS];
    int got = 0;
    const gemm_key key = p->key;
    const bool f32 = key.v[KEY_A_TYPE] == EN_F32;
    EN_TRY(describe(p, f32 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F, g->bias), "describing it");
    cublasStatus_t s = propose(e, p, proposals, &got);
    if (s != CUBLAS_STATUS_SUCCESS && f32) {        /* not every epilogue is there in pedantic mode; f32 stays f32 in this one, too */
        free_plan(p);
        p->key = key;
        EN_TRY(describe(p, CUBLAS_COMPUTE_32F, g->bias), "describing it");
        s = propose(e, p, proposals, &got);
    }
    LT_TRY(s, "looking for an algorithm");
    gemm_choose(e, p, g, c, proposals, got);
    return EN_OK;
}

en_status gemm(en_backend *be, const gemm_call *g)
{
    cuda_engine *e = engine(be);
    if (g->m <= 0 || g->n <= 0) return EN_OK;
    EN_REQUIRE(g->k > 0 && g->a_type == g->b_type && (g->d_type == g->a_type || g->d_type == EN_F32), EN_EINVAL,
               "a product of %lld x %lld x %lld in types %d, %d, %d is not offered", (long long)g->m, (long long)g->n, (long long)g->k, g->a_type,
               g->b_type, g->d_type);
    const void *c = g->c ? g->c : g->d;
    const gemm_key key = key_of(g, c);
    gemm_plan *p = place_of(e->gemms->plans, e->gemms->room, key);
    if (!p->used) {
        EN_TRY(make_room(e->gemms), "gemm");
        p = place_of(e->gemms->plans, e->gemms->room, key);
        p->key = key;
        const en_status s = make_plan(e, p, g, c);
        if (s != EN_OK) {
            free_plan(p);
            return en_raise(s, __FILE__, __LINE__, __func__, "the product (%lld,%lld) = (%lld,%lld)%s (%lld,%lld)%s of %s", (long long)g->m,
                            (long long)g->n, (long long)(g->ta ? g->k : g->m), (long long)(g->ta ? g->m : g->k), g->ta ? "^T" : "",
                            (long long)(g->tb ? g->n : g->k), (long long)(g->tb ? g->k : g->n), g->tb ? "^T" : "", g->a_type == EN_F32 ? "f32" : "bf16");
        }
        p->used = true;
        e->gemms->held++;
    }
    if (g->bias) {
        const void *bias = g->bias;
        LT_TRY(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias), "bias");
    }
    LT_TRY(gemm_run(e, p, &p->algo, g, c, g->d), "the product (%lld,%lld) over %lld", (long long)g->m, (long long)g->n, (long long)g->k);
    return EN_OK;
}

/* ---- weights ---------------------------------------------------------------------------------------------------------------- */

/* grid (elems / 256, at most 4096), block 256: 6 bytes an element; no edge beyond the loop's. */
static __global__ void __launch_bounds__(256) narrow_weights(const float *w, bf16 *out, int64_t elems)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < elems; i += (int64_t)gridDim.x * blockDim.x)
        out[i] = __float2bfloat16_rn(w[i]);
}

en_status weights_for_gemm(en_backend *be, const float *w, int64_t elems, const void **out)
{
    cuda_engine *e = engine(be);
    *out = w;
    if (be->dtype == EN_F32) return EN_OK;
    for (const auto &k : e->kept)
        if (k.w && w >= k.w && w + elems <= k.w + k.elems && alignment(k.copy + (w - k.w)) >= 16) {
            *out = k.copy + (w - k.w);
            return EN_OK;
        }
    *out = e->cast;
    EN_REQUIRE((size_t)elems <= e->cast_elems, EN_EINVAL, "room for %zu converted weights, this shape needs %lld", e->cast_elems, (long long)elems);
    if (elems <= 0) return EN_OK;
    narrow_weights<<<(unsigned)min64(ceil_div(elems, 256), 4096), 256, 0, e->compute>>>(w, e->cast, elems);
    CU_LAUNCHED("converting %lld weights", (long long)elems);
    return EN_OK;
}
