/* passes.h - the passes of one instruction-set build, gathered by table.c; declared with their mathematics in kernels.h. */
#ifndef EN_CPU_PASSES_H
#define EN_CPU_PASSES_H

#include "cpu.h"
#include "simd.h"

#define cpu_bn_finalize          ISA(bn_finalize)
#define cpu_bn_from_running      ISA(bn_from_running)
#define cpu_bn_backward_local    ISA(bn_backward_local)
#define cpu_bn_backward_finalize ISA(bn_backward_finalize)
#define cpu_stem_forward         ISA(stem_forward)
#define cpu_stem_backward        ISA(stem_backward)
#define cpu_pointwise_forward    ISA(pointwise_forward)
#define cpu_pointwise_backward   ISA(pointwise_backward)
#define cpu_depthwise_forward    ISA(depthwise_forward)
#define cpu_depthwise_backward   ISA(depthwise_backward)
#define cpu_conv_forward         ISA(conv_forward)
#define cpu_conv_backward        ISA(conv_backward)
#define cpu_se_project_forward   ISA(se_project_forward)
#define cpu_se_project_backward  ISA(se_project_backward)
#define cpu_residual_forward     ISA(residual_forward)
#define cpu_residual_backward    ISA(residual_backward)
#define cpu_join_forward         ISA(join_forward)
#define cpu_join_backward        ISA(join_backward)
#define cpu_max_pool_forward     ISA(max_pool_forward)
#define cpu_max_pool_backward    ISA(max_pool_backward)
#define cpu_mean_backward        ISA(mean_backward)
#define cpu_activation_backward  ISA(activation_backward)
#define cpu_pool_forward         ISA(pool_forward)
#define cpu_pool_backward        ISA(pool_backward)
#define cpu_dense_forward        ISA(dense_forward)
#define cpu_dense_backward       ISA(dense_backward)
#define cpu_softmax_loss         ISA(softmax_loss)
#define cpu_rmsprop_update       ISA(rmsprop_update)
#define cpu_sgd_update           ISA(sgd_update)
#define cpu_lars_update          ISA(lars_update)
#define cpu_adamw_update         ISA(adamw_update)
#define cpu_ema_update           ISA(ema_update)
#define form_gradient            ISA(form_gradient)

en_status cpu_bn_finalize(en_backend *, en_bn *);
en_status cpu_bn_from_running(en_backend *, en_bn *);
en_status cpu_bn_backward_local(en_backend *, en_bn *);
en_status cpu_bn_backward_finalize(en_backend *, en_bn *);
en_status cpu_stem_forward(en_backend *, const en_conv_geom *, const en_pixels *, const float *, void *, en_bn *);
en_status cpu_stem_backward(en_backend *, const en_conv_geom *, const en_pixels *, const en_grad *, float *);
en_status cpu_pointwise_forward(en_backend *, int64_t, int64_t, int64_t, const void *, const float *, void *, en_bn *);
en_status cpu_pointwise_backward(en_backend *, int64_t, int64_t, int64_t, const void *, const float *, const en_grad *, const void *, void *,
                             float *);
en_status cpu_depthwise_forward(en_backend *, const en_conv_geom *, const en_operand *, const float *, void *, en_bn *);
en_status cpu_depthwise_backward(en_backend *, const en_conv_geom *, const en_operand *, const float *, const en_grad *, const void *, void *,
                             float *, en_bn *);
en_status cpu_conv_forward(en_backend *, const en_conv_geom *, const en_operand *, const float *, void *, en_bn *);
en_status cpu_conv_backward(en_backend *, const en_conv_geom *, const en_operand *, const float *, const en_grad *, const void *, void *, float *,
                            en_bn *);
en_status cpu_se_project_forward(en_backend *, int64_t, int64_t, int64_t, int64_t, const en_operand *, const en_se *, const float *, void *,
                             en_bn *);
en_status cpu_se_project_backward(en_backend *, int64_t, int64_t, int64_t, int64_t, const en_operand *, const en_se *, const float *,
                              const en_grad *, void *, float *, en_bn *);
en_status cpu_residual_forward(en_backend *, int64_t, int64_t, int64_t, const en_operand *, const float *, const en_operand *, void *);
en_status cpu_residual_backward(en_backend *, int64_t, int64_t, int64_t, const void *, const float *, const void *, en_bn *);
en_status cpu_join_forward(en_backend *, int64_t, int64_t, int64_t, const en_operand *, const float *, const en_operand *, en_act, void *);
en_status cpu_join_backward(en_backend *, int64_t, int64_t, int64_t, const void *, const void *, en_act, const float *, const void *, en_bn *,
                            const void *, en_bn *, void *);
en_status cpu_max_pool_forward(en_backend *, const en_conv_geom *, const en_operand *, void *, uint8_t *);
en_status cpu_max_pool_backward(en_backend *, const en_conv_geom *, const en_operand *, const uint8_t *, const void *, void *, en_bn *);
en_status cpu_mean_backward(en_backend *, int64_t, int64_t, int64_t, const float *, const float *, void *);
en_status cpu_activation_backward(en_backend *, int64_t, int64_t, int64_t, const void *, const float *, const en_operand *, void *, en_bn *);
en_status cpu_pool_forward(en_backend *, int64_t, int64_t, int64_t, const en_operand *, const float *, float *);
en_status cpu_pool_backward(en_backend *, int64_t, int64_t, int64_t, float *, const float *, const en_operand *, en_bn *);
en_status cpu_dense_forward(en_backend *, int64_t, int64_t, int64_t, const float *, const float *, const float *, float *);
en_status cpu_dense_backward(en_backend *, int64_t, int64_t, int64_t, const float *, const float *, const float *, float *, float *, float *);
en_status cpu_softmax_loss(en_backend *, int64_t, int64_t, int64_t, const float *, const en_targets *, float, float, float *, double *);
en_status cpu_rmsprop_update(en_backend *, const en_rmsprop *, const en_now *, const en_segment *, int64_t, float *, const float *, float *,
                             float *, float *, double *);
en_status cpu_sgd_update(en_backend *, const en_sgd *, const en_now *, const en_segment *, int64_t, float *, const float *, float *, float *, double *);
en_status cpu_lars_update(en_backend *, const en_lars *, const en_now *, const en_segment *, int64_t, float *, const float *, float *, float *, double *);
en_status cpu_adamw_update(en_backend *, const en_adamw *, const en_now *, const en_segment *, int64_t, float *, const float *, float *, float *,
                           float *, int64_t *, double *);
en_status cpu_ema_update(en_backend *, const en_now *, int64_t, const float *, float *, const double *);

/* out (rows, c) = dy of rows [row, row + rows), by en_grad's formula */
void form_gradient(const en_grad *dy, int64_t row, int64_t rows, int64_t c, float *out);

/* act(bn(v)) with scale a and shift b already loaded */
INLINE vf activate(vf v, vf a, vf b, en_act act)
{
    return act_of(v * a + b, act);
}

#endif
