/* passes.h - the passes of the CUDA backend, gathered by table.cu; declared with their mathematics in kernels.h. */
#ifndef EN_CUDA_PASSES_H
#define EN_CUDA_PASSES_H

#include "cuda.h"

/* backend.cu */
void cuda_close(en_backend *be);
en_status cuda_alloc(en_backend *be, size_t bytes, void **out);
void cuda_free(en_backend *be, void *p);
en_status cuda_host_alloc(en_backend *be, size_t bytes, void **out);
void cuda_host_free(en_backend *be, void *p);
en_status cuda_upload(en_backend *be, void *dst, const void *host, size_t bytes);
en_status cuda_download(en_backend *be, void *host, const void *src, size_t bytes);
en_status cuda_zero(en_backend *be, void *dst, size_t bytes);
en_status cuda_copy(en_backend *be, void *dst, const void *src, size_t bytes);
en_status cuda_synchronize(en_backend *be);
int64_t cuda_memory_available(en_backend *be);
en_status cuda_keep_weights(en_backend *be, float *w, int64_t elems);
en_status cuda_stage(en_backend *be, int slot, const en_copy *copies, int n);
en_status cuda_stage_ready(en_backend *be, int slot);
en_status cuda_stage_done(en_backend *be, int slot);
en_status cuda_stage_wait(en_backend *be, int slot);
en_status cuda_capture_begin(en_backend *be);
en_status cuda_capture_end(en_backend *be, void **graph);
en_status cuda_graph_launch(en_backend *be, void *graph);
void cuda_graph_free(en_backend *be, void *graph);
en_status cuda_mark(en_backend *be, int i);
double cuda_elapsed(en_backend *be, int from, int to);
en_status cuda_reserve(en_backend *be, const en_conv_geom *g);
en_status cuda_scale(en_backend *be, int64_t elems, float factor, float *x);
size_t cuda_workspace_bytes(en_backend *be, en_work kind, const en_conv_geom *g);
int64_t cuda_fold_floats(en_backend *be, int64_t rows, int64_t ci, int64_t co);

/* head.cu */
en_status cuda_pool_forward(en_backend *be, int64_t n, int64_t hw, int64_t c, const en_operand *x, const float *mask, float *pooled);
en_status cuda_dense_forward(en_backend *be, int64_t n, int64_t ci, int64_t k, const float *x, const float *wt, const float *bias,
    float *logits);
en_status cuda_softmax_loss(en_backend *be, int64_t n, int64_t k, int64_t classes, const float *logits, const en_targets *targets,
    float smoothing, float grad_scale, float *dlogits, double *tally);
en_status cuda_dense_backward(en_backend *be, int64_t n, int64_t ci, int64_t k, const float *x, const float *wt, const float *dlogits,
    float *dx, float *dwt, float *dbias);
en_status cuda_pool_backward(en_backend *be, int64_t n, int64_t hw, int64_t c, float *dpooled, const float *mask, const en_operand *x,
    en_bn *bn);
en_status cuda_mean_backward(en_backend *be, int64_t n, int64_t hw, int64_t c, const float *dpooled, const float *mask, void *dx);

/* optimizer.cu */
en_status cuda_rmsprop_update(en_backend *be, const en_rmsprop *h, const en_now *now, const en_segment *segments, int64_t n_segments,
    float *w, const float *grad, float *ms, float *mom, float *ema, double *tally);
en_status cuda_sgd_update(en_backend *be, const en_sgd *h, const en_now *now, const en_segment *segments, int64_t n_segments,
    float *w, const float *grad, float *mom, float *ema, double *tally);
en_status cuda_lars_update(en_backend *be, const en_lars *h, const en_now *now, const en_segment *segments, int64_t n_segments,
    float *w, const float *grad, float *mom, float *ema, double *tally);
en_status cuda_adamw_update(en_backend *be, const en_adamw *h, const en_now *now, const en_segment *segments, int64_t n_segments,
    float *w, const float *grad, float *m, float *v, float *ema, int64_t *updates, double *tally);
en_status cuda_ema_update(en_backend *be, const en_now *now, int64_t elems, const float *x, float *shadow, const double *tally);
en_status cuda_note(en_backend *be, const en_now *now, double *tally);
en_status cuda_drop_path_masks(en_backend *be, const en_now *now, int64_t layers, int64_t n, const float *keep, float *mask);
en_status cuda_dropout_mask(en_backend *be, const en_now *now, int64_t n, int64_t c, int64_t logical, float keep, float *mask);

/* norm.cu */
en_status cuda_bn_finalize(en_backend *be, en_bn *bn);
en_status cuda_bn_from_running(en_backend *be, en_bn *bn);
en_status cuda_bn_backward_local(en_backend *be, en_bn *bn);
en_status cuda_bn_backward_finalize(en_backend *be, en_bn *bn);
en_status cuda_residual_forward(en_backend *be, int64_t n, int64_t hw, int64_t c, const en_operand *y, const float *drop,
    const en_operand *x, void *o);
en_status cuda_residual_backward(en_backend *be, int64_t n, int64_t hw, int64_t c, const void *g, const float *drop, const void *y,
    en_bn *bn);
en_status cuda_activation_backward(en_backend *be, int64_t n, int64_t hw, int64_t c, const void *g, const float *drop, const en_operand *y, void *dz,
                                   en_bn *bn);

/* join.cu */
en_status cuda_join_forward(en_backend *be, int64_t n, int64_t hw, int64_t c, const en_operand *y, const float *drop, const en_operand *x, en_act out,
    void *o);
en_status cuda_join_backward(en_backend *be, int64_t n, int64_t hw, int64_t c, const void *g, const void *o, en_act out, const float *drop,
    const void *y, en_bn *ybn, const void *x, en_bn *xbn, void *dz);

/* maxpool.cu */
en_status cuda_max_pool_forward(en_backend *be, const en_conv_geom *g, const en_operand *x, void *y, uint8_t *at);
en_status cuda_max_pool_backward(en_backend *be, const en_conv_geom *g, const en_operand *x, const uint8_t *at, const void *dy, void *dx, en_bn *xbn);

/* stem.cu */
en_status cuda_stem_forward(en_backend *be, const en_conv_geom *g, const en_pixels *image, const float *wt, void *y, en_bn *bn);
en_status cuda_stem_backward(en_backend *be, const en_conv_geom *g, const en_pixels *image, const en_grad *dy, float *dwt);

/* depthwise.cu */
en_status cuda_depthwise_forward(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, void *y, en_bn *bn);
en_status cuda_depthwise_backward(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, const en_grad *dy,
    const void *add, void *dx, float *dwt, en_bn *xbn);

/* conv.cu */
en_status cuda_conv_forward(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, void *y, en_bn *bn);
en_status cuda_conv_backward(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, const en_grad *dy,
    const void *add, void *dx, float *dwt, en_bn *xbn);

/* pointwise.cu */
en_status cuda_pointwise_forward(en_backend *be, int64_t rows, int64_t ci, int64_t co, const void *x, const float *wt, void *y, en_bn *bn);
en_status cuda_pointwise_backward(en_backend *be, int64_t rows, int64_t ci, int64_t co, const void *x, const float *wt,
    const en_grad *dy, const void *add, void *dx, float *dwt);

/* project.cu */
en_status cuda_se_project_forward(en_backend *be, int64_t n, int64_t hw, int64_t ci, int64_t co, const en_operand *x, const en_se *se,
    const float *wt, void *y, en_bn *bn);
en_status cuda_se_project_backward(en_backend *be, int64_t n, int64_t hw, int64_t ci, int64_t co, const en_operand *x,
    const en_se *se, const float *wt, const en_grad *dy, void *dz, float *dwt, en_bn *xbn);

#endif
