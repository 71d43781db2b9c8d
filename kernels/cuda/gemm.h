/* gemm.h - what gemm.cu and gemm_choice.cu share: plans of matrix products. */
#ifndef EN_CUDA_GEMM_H
#define EN_CUDA_GEMM_H

#include "cuda.h"

/* What makes one plan differ from another.  Zeroed before it is filled: compared, hashed and kept as numbers of one kind. */
enum { KEY_M, KEY_N, KEY_K, KEY_LDA, KEY_LDB, KEY_LDD, KEY_TA, KEY_TB, KEY_A_TYPE, KEY_D_TYPE, KEY_ADDS, KEY_BIAS, KEY_IN_PLACE,
       KEY_ALIGN_A, KEY_ALIGN_B, KEY_ALIGN_C, KEY_ALIGN_D, KEY_ALIGN_BIAS, KEY_VALUES };     /* alignments: bytes, up to 256 */
struct gemm_key { int64_t v[KEY_VALUES]; };

struct gemm_plan {
    gemm_key key;
    bool used;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;             /* as the library sees them: its a is our B */
    cublasLtMatmulAlgo_t algo;
};

struct gemm_cache {
    gemm_plan  *plans;                          /* open addressing; room: a power of two, at most half full */
    int         room, held;
    bool        tune;
    cudaEvent_t begin, end;
};

cublasStatus_t gemm_run(cuda_engine *e, const gemm_plan *p, const cublasLtMatmulAlgo_t *algo, const gemm_call *g, const void *c, void *d);

/* Of the library's proposals, the one for this plan: what was chosen before for this key on this device, else the fastest, where
 * it may be measured (not while recording), else the first. */
void gemm_choose(cuda_engine *e, gemm_plan *p, const gemm_call *g, const void *c, const cublasLtMatmulHeuristicResult_t *proposals, int n);

#endif
