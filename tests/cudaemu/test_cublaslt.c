/* test_cublaslt.c - cublasLtMatmul of the harness against a loop in double, and its refusals against the documentation. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <cublasLt.h>
#include <cuda_runtime_api.h>

enum { MAX = 64 * 64 };
static cublasLtHandle_t lt;

static float from_bf16(uint16_t h)
{
    const uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static uint16_t to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}
struct problem {
    int m, n, k, ta, tb, row, bf16_in, bf16_out;             /* row: all matrices row-major */
    cublasLtEpilogue_t epilogue;
    float alpha, beta;
};
static const struct problem problems[] = {
    {8, 16, 24, 0, 0, 0, 0, 0, CUBLASLT_EPILOGUE_DEFAULT, 1, 0},   {24, 8, 40, 1, 0, 0, 1, 1, CUBLASLT_EPILOGUE_DEFAULT, 1, 1},
    {16, 24, 8, 0, 1, 1, 1, 0, CUBLASLT_EPILOGUE_DEFAULT, 2, -1},  {8, 8, 64, 1, 1, 1, 0, 0, CUBLASLT_EPILOGUE_DEFAULT, 1, 0},
    {16, 8, 33, 0, 0, 0, 1, 1, CUBLASLT_EPILOGUE_BIAS, 1, 0},      {16, 8, 40, 1, 0, 0, 0, 0, CUBLASLT_EPILOGUE_BIAS, 1, 1},
    {16, 24, 40, 0, 1, 0, 1, 0, CUBLASLT_EPILOGUE_BGRADA, 1, 0},   {16, 24, 40, 1, 0, 0, 1, 0, CUBLASLT_EPILOGUE_BGRADB, 1, 0},
};
struct matrix {
    int rows, cols, ld, row, bf16;
    double v[MAX];                                            /* (rows, cols) */
    void *device;
    cublasLtMatrixLayout_t layout;
};
static size_t place(const struct matrix *x, int r, int c) { return (size_t)(x->row ? r * x->ld + c : c * x->ld + r); }
static void make(struct matrix *x, int rows, int cols, int row, int bf16, unsigned seed)
{
    const int32_t order = row ? CUBLASLT_ORDER_ROW : CUBLASLT_ORDER_COL;
    unsigned char host[4 * 2 * MAX] = {0};
    *x = (struct matrix){.rows = rows, .cols = cols, .ld = ((row ? cols : rows) + 15) / 8 * 8, .row = row, .bf16 = bf16};
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
            seed = seed * 1664525u + 1013904223u;
            const int small = (int)(seed >> 24) % 7 - 3;      /* small integers: every sum is exact in any order */
            const size_t i = place(x, r, c);
            const float f = (float)small;
            const uint16_t h = to_bf16(f);
            x->v[r * cols + c] = small;
            if (bf16) memcpy(host + 2 * i, &h, 2);
            else memcpy(host + 4 * i, &f, 4);
        }
    const size_t bytes = (size_t)x->ld * (size_t)(row ? rows : cols) * (bf16 ? 2 : 4);
    assert_int_equal(cudaMalloc(&x->device, bytes), cudaSuccess);
    assert_int_equal(cudaMemcpy(x->device, host, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    assert_int_equal(cublasLtMatrixLayoutCreate(&x->layout, bf16 ? CUDA_R_16BF : CUDA_R_32F, (uint64_t)rows, (uint64_t)cols,
                                                x->ld), 0);
    assert_int_equal(cublasLtMatrixLayoutSetAttribute(x->layout, CUBLASLT_MATRIX_LAYOUT_ORDER, &order, sizeof order), 0);
}
static double fetch(const struct matrix *x, const void *host, int r, int c)
{
    const size_t i = place(x, r, c);
    return x->bf16 ? from_bf16(((const uint16_t *)host)[i]) : ((const float *)host)[i];
}
static void drop(struct matrix *x)
{
    cublasLtMatrixLayoutDestroy(x->layout);
    cudaFree(x->device);
}

static void check(const struct problem *p, int algorithm)
{
    static struct matrix a, b, d, bias;
    static unsigned char out[4 * 2 * MAX];
    cublasLtMatmulDesc_t desc;
    cublasLtMatmulPreference_t pref;
    cublasLtMatmulHeuristicResult_t found[8];
    int n = 0;
    void *workspace;
    cudaStream_t stream;
    const int32_t ta = p->ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb = p->tb ? CUBLAS_OP_T : CUBLAS_OP_N;
    const size_t room = 1 << 20;
    make(&a, p->ta ? p->k : p->m, p->ta ? p->m : p->k, p->row, p->bf16_in, 1);
    make(&b, p->tb ? p->n : p->k, p->tb ? p->k : p->n, p->row, p->bf16_in, 2);
    make(&d, p->m, p->n, p->row, p->bf16_out, 3);
    make(&bias, p->m > p->n ? p->m : p->n, 1, 0, p->bf16_out, 4);
    assert_int_equal(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    assert_int_equal(cudaMalloc(&workspace, room), cudaSuccess);
    assert_int_equal(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), 0);
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof ta);
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof tb);
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &p->epilogue, sizeof p->epilogue);
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.device, sizeof bias.device);
    cublasLtMatmulPreferenceCreate(&pref);
    cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room, sizeof room);
    assert_int_equal(cublasLtMatmulAlgoGetHeuristic(lt, desc, a.layout, b.layout, d.layout, d.layout, pref, 8, found, &n), 0);
    assert_int_equal(n, 4);
    assert_int_equal(cublasLtMatmul(lt, desc, &p->alpha, a.device, a.layout, b.device, b.layout, &p->beta, d.device, d.layout,
                                    d.device, d.layout, &found[algorithm].algo, workspace, found[algorithm].workspaceSize,
                                    stream), 0);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);

    assert_int_equal(cudaMemcpy(out, d.device, (size_t)d.ld * (size_t)(p->row ? p->m : p->n) * (p->bf16_out ? 2 : 4),
                                cudaMemcpyDeviceToHost), cudaSuccess);
    for (int i = 0; i < p->m; i++)
        for (int j = 0; j < p->n; j++) {
            double s = p->beta * d.v[i * p->n + j];
            if (p->epilogue == CUBLASLT_EPILOGUE_BIAS) s += bias.v[i];
            for (int k = 0; k < p->k; k++)
                s += p->alpha * a.v[p->ta ? k * p->m + i : i * p->k + k] * b.v[p->tb ? j * p->k + k : k * p->n + j];
            assert_true(fetch(&d, out, i, j) == (p->bf16_out ? from_bf16(to_bf16((float)s)) : s));
        }
    if (p->epilogue == CUBLASLT_EPILOGUE_BGRADA || p->epilogue == CUBLASLT_EPILOGUE_BGRADB) {
        const int of_a = p->epilogue == CUBLASLT_EPILOGUE_BGRADA, size = of_a ? p->m : p->n;
        assert_int_equal(cudaMemcpy(out, bias.device, (size_t)size * (p->bf16_out ? 2 : 4), cudaMemcpyDeviceToHost), cudaSuccess);
        for (int i = 0; i < size; i++) {
            double s = 0;
            for (int k = 0; k < p->k; k++)
                s += of_a ? a.v[p->ta ? k * p->m + i : i * p->k + k] : b.v[p->tb ? i * p->k + k : k * p->n + i];
            assert_true(fetch(&bias, out, i, 0) == s);
        }
    }
    cublasLtMatmulPreferenceDestroy(pref);
    cublasLtMatmulDescDestroy(desc);
    cudaFree(workspace);
    cudaStreamDestroy(stream);
    drop(&a), drop(&b), drop(&d), drop(&bias);
}
static void every_algorithm_gives_the_exact_product_of_small_integers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof problems / sizeof *problems; i++)
        for (int algorithm = 0; algorithm < 4; algorithm++) check(&problems[i], algorithm);
}
static void what_the_library_refuses_is_refused(void **state)
{
    (void)state;
    static struct matrix a, b, d;
    const float one = 1, zero = 0;
    cublasLtMatmulDesc_t desc;
    make(&a, 16, 8, 0, 1, 1);
    make(&b, 8, 24, 0, 1, 2);
    make(&d, 16, 24, 0, 1, 3);
    assert_int_equal(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), 0);
#define MATMUL(pa, pd, ws, bytes)                                                                                       \
    cublasLtMatmul(lt, desc, &one, pa, a.layout, b.device, b.layout, &zero, pd, d.layout, pd, d.layout, NULL, ws, bytes, NULL)
    assert_int_equal(MATMUL(a.device, d.device, NULL, 0), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(MATMUL(NULL, d.device, NULL, 0), CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(MATMUL((char *)a.device + 1, d.device, NULL, 0), CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(MATMUL(a.device, d.device, NULL, 64), CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(MATMUL(a.device, d.device, (char *)b.device + 16, 64), CUBLAS_STATUS_INVALID_VALUE);
    const int64_t short_ld = 15;
    cublasLtMatrixLayoutSetAttribute(a.layout, CUBLASLT_MATRIX_LAYOUT_LD, &short_ld, sizeof short_ld);
    assert_int_equal(MATMUL(a.device, d.device, NULL, 0), CUBLAS_STATUS_INVALID_VALUE);
    const int64_t ld = a.ld;
    const uint64_t rows = 17;
    cublasLtMatrixLayoutSetAttribute(a.layout, CUBLASLT_MATRIX_LAYOUT_LD, &ld, sizeof ld);
    cublasLtMatrixLayoutSetAttribute(d.layout, CUBLASLT_MATRIX_LAYOUT_ROWS, &rows, sizeof rows);
    assert_int_equal(MATMUL(a.device, d.device, NULL, 0), CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &one, 1), CUBLAS_STATUS_INVALID_VALUE);
    cublasLtMatmulDescDestroy(desc);
    drop(&a), drop(&b), drop(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_algorithm_gives_the_exact_product_of_small_integers),
        cmocka_unit_test(what_the_library_refuses_is_refused),
    };
    if (cublasLtCreate(&lt) != CUBLAS_STATUS_SUCCESS) return 1;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    cublasLtDestroy(lt);
    return failed;
}
