/* fold.h - batch norm of an expansion inside its matrix products (fold.cu), for pointwise.cu. */
#ifndef EN_CUDA_FOLD_H
#define EN_CUDA_FOLD_H

#include "cuda.h"

/* What an expansion (ci -> co) keeps from forward for backward, in en_bn.fold. */
struct fold_kept {
    float *mean;        /* (ci)      m, the mean of x over this rank's rows      */
    float *image;       /* (co)      m W                                        */
    float *product;     /* (ci, co)  P = Cov W                                  */
};
static inline fold_kept fold_kept_in(float *fold, int64_t ci, int64_t co) { return { fold, fold + ci, fold + ci + co }; }

static inline bool fold_pays(const cuda_engine *e, int64_t rows, int64_t ci, int64_t co) { return en_cuda_fold_pays(e->folds, rows, ci, co); }
size_t  fold_scratch(const cuda_engine *e, int64_t rows, int64_t ci, int64_t co);

/* w: as weights_for_gemm gives it.  Fills bn->fold; with `sums` bn->local as well. */
en_status fold_forward(en_backend *be, int64_t rows, int64_t ci, int64_t co, const void *x, const void *w, en_bn *bn, bool sums);
/* pointwise_backward for dy = ga*dz + gb*(x W) + gc, dz as stored. */
en_status fold_backward(en_backend *be, int64_t rows, int64_t ci, int64_t co, const void *x, const void *w, const en_grad *dy, const void *add,
                        void *dx, float *dwt);

#endif
