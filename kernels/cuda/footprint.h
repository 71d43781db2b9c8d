/* footprint.h - what a pass on cuda takes of the memory that the caller plans, in plain C: known without a GPU, so that
 * `effnet describe --memory --device cuda` can plan for one.  The backend asks the same functions. */
#ifndef EN_CUDA_FOOTPRINT_H
#define EN_CUDA_FOOTPRINT_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The folds (README.md): algebra that saves sweeps, each switchable, each beside its unfolded twin. */
enum { FOLD_GRAM      = 1,      /* statistics of an expansion from x^T x instead of from y1                       */
       FOLD_FIVE_SUM  = 2,      /* gate gradient and batch-norm sums in one sweep; dz2 is formed by its reader (be->gated) */
       FOLD_DEPTHWISE = 4,      /* one kernel for both gradients of a depthwise convolution                        */
       FOLD_EXPAND    = 8,      /* batch norm's gradient inside the GEMMs of the expansion; dy1 is never stored    */
       FOLD_ROWS      = 16,     /* depthwise forward walks down the image; off: one thread per output, sums by a sweep */
       FOLD_ALL = 31 };

/* "all", "none", or names joined by ','; NULL or "": all.  $EN_FOLDS before `text`.  EN_EUSAGE: another name. */
en_status en_cuda_folds(const char *text, unsigned *out);

/* Does an expansion of this size gain by folding?  The answer is the same in both directions.  Below $EN_FOLD_LEAST values of y
 * (8 Mi) a sweep costs no more than the launches, and y still lies in L2. */
bool    en_cuda_fold_pays(unsigned folds, int64_t rows, int64_t ci, int64_t co);
int64_t en_cuda_fold_floats(unsigned folds, int64_t rows, int64_t ci, int64_t co);         /* en_bn.fold */
size_t  en_cuda_workspace(en_dtype type, unsigned folds, en_work kind, const en_conv_geom *g);

/* z2 (rows, ci), then dy3 (rows, co): where dy3 begins in the workspace of a projection */
size_t  en_cuda_project_dy(en_dtype type, int64_t rows, int64_t ci);

/* u = act(bn(x)) (n,h,w,c), then dy (n,oh,ow,oc): where dy begins in the workspace of a dense convolution */
size_t  en_cuda_conv_dy(en_dtype type, const en_conv_geom *g);

/* A backend that can be planned for and nothing else: dtype, alignment, workspace_bytes, fold_floats.  Closed as any. */
en_status en_cuda_plan_open(const en_backend_config *config, en_backend **out);

#ifdef __cplusplus
}
#endif

#endif
