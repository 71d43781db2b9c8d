/* table.c - the table of passes of one instruction-set build; memory and order come from backend.c. */
#include "passes.h"
#include "backend.h"

const en_backend_ops ISA(cpu_ops) = {
    .close = cpu_close, .alloc = cpu_alloc, .free = cpu_free, .host_alloc = cpu_alloc, .host_free = cpu_free, .upload = cpu_upload, .download = cpu_download, .zero = cpu_zero, .copy = cpu_copy,
    .synchronize = cpu_synchronize, .reserve = cpu_reserve,
    .memory_available = cpu_memory_available, .keep_weights = cpu_keep_weights,
    .stage = cpu_stage, .stage_ready = cpu_stage_step, .stage_done = cpu_stage_step, .stage_wait = cpu_stage_step,
    .capture_begin = cpu_capture_begin, .capture_end = cpu_capture_end, .graph_launch = cpu_graph_launch, .graph_free = cpu_graph_free,
    .mark = cpu_mark, .elapsed = cpu_elapsed, .workspace_bytes = cpu_workspace_bytes, .fold_floats = cpu_fold_floats,
    .drop_path_masks = cpu_drop_path_masks, .dropout_mask = cpu_dropout_mask, .note = cpu_note, .scale = cpu_scale,
    .bn_finalize = cpu_bn_finalize, .bn_from_running = cpu_bn_from_running,
    .bn_backward_local = cpu_bn_backward_local, .bn_backward_finalize = cpu_bn_backward_finalize,
    .stem_forward = cpu_stem_forward, .pointwise_forward = cpu_pointwise_forward, .depthwise_forward = cpu_depthwise_forward,
    .se_project_forward = cpu_se_project_forward, .residual_forward = cpu_residual_forward, .pool_forward = cpu_pool_forward,
    .join_forward = cpu_join_forward, .join_backward = cpu_join_backward,
    .max_pool_forward = cpu_max_pool_forward, .max_pool_backward = cpu_max_pool_backward, .mean_backward = cpu_mean_backward,
    .dense_forward = cpu_dense_forward, .softmax_loss = cpu_softmax_loss,
    .dense_backward = cpu_dense_backward, .pool_backward = cpu_pool_backward, .pointwise_backward = cpu_pointwise_backward,
    .residual_backward = cpu_residual_backward, .activation_backward = cpu_activation_backward, .se_project_backward = cpu_se_project_backward,
    .depthwise_backward = cpu_depthwise_backward, .conv_forward = cpu_conv_forward, .conv_backward = cpu_conv_backward,
    .stem_backward = cpu_stem_backward,
    .rmsprop_update = cpu_rmsprop_update, .sgd_update = cpu_sgd_update, .lars_update = cpu_lars_update, .adamw_update = cpu_adamw_update,
    .ema_update = cpu_ema_update,
};
