/* table.cu - the table of the CUDA backend. */
#include "passes.h"

extern const en_backend_ops cuda_ops;
const en_backend_ops cuda_ops = {
    .close = cuda_close, .alloc = cuda_alloc, .free = cuda_free, .host_alloc = cuda_host_alloc, .host_free = cuda_host_free, .upload = cuda_upload,
    .download = cuda_download, .zero = cuda_zero, .copy = cuda_copy, .synchronize = cuda_synchronize, .memory_available = cuda_memory_available,
    .keep_weights = cuda_keep_weights, .stage = cuda_stage, .stage_ready = cuda_stage_ready, .stage_done = cuda_stage_done,
    .stage_wait = cuda_stage_wait, .capture_begin = cuda_capture_begin, .capture_end = cuda_capture_end,
    .graph_launch = cuda_graph_launch, .graph_free = cuda_graph_free, .mark = cuda_mark, .elapsed = cuda_elapsed,
    .reserve = cuda_reserve, .workspace_bytes = cuda_workspace_bytes, .fold_floats = cuda_fold_floats,
    .drop_path_masks = cuda_drop_path_masks, .dropout_mask = cuda_dropout_mask, .note = cuda_note,
    .bn_finalize = cuda_bn_finalize, .bn_from_running = cuda_bn_from_running, .bn_backward_local = cuda_bn_backward_local,
    .bn_backward_finalize = cuda_bn_backward_finalize, .stem_forward = cuda_stem_forward,
    .pointwise_forward = cuda_pointwise_forward, .depthwise_forward = cuda_depthwise_forward, .conv_forward = cuda_conv_forward,
    .se_project_forward = cuda_se_project_forward, .residual_forward = cuda_residual_forward,
    .join_forward = cuda_join_forward, .max_pool_forward = cuda_max_pool_forward, .pool_forward = cuda_pool_forward,
    .dense_forward = cuda_dense_forward, .softmax_loss = cuda_softmax_loss, .dense_backward = cuda_dense_backward,
    .pool_backward = cuda_pool_backward, .mean_backward = cuda_mean_backward, .join_backward = cuda_join_backward,
    .max_pool_backward = cuda_max_pool_backward, .pointwise_backward = cuda_pointwise_backward,
    .residual_backward = cuda_residual_backward, .activation_backward = cuda_activation_backward, .se_project_backward = cuda_se_project_backward,
    .depthwise_backward = cuda_depthwise_backward, .conv_backward = cuda_conv_backward,
    .stem_backward = cuda_stem_backward, .scale = cuda_scale,
    .rmsprop_update = cuda_rmsprop_update, .sgd_update = cuda_sgd_update, .lars_update = cuda_lars_update,
    .adamw_update = cuda_adamw_update,
    .ema_update = cuda_ema_update,
};
