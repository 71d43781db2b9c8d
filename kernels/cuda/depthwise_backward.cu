/* depthwise_backward.cu */
#include "depthwise.h"

size_t depthwise_workspace(const cuda_engine *e, const en_conv_geom *g)
{
    return e->folds & FOLD_DEPTHWISE ? 0 : (size_t)(g->n * g->oh * g->ow * g->c) * 4;
}
en_status cuda_depthwise_backward(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, const en_grad *dy,
                                   const void *add, void *dx, float *dwt, en_bn *xbn)
{
    EN_TRY(check_depthwise(g, x), "depthwise backward");
    return plain_depthwise_backward(be, g, x, wt, dy, add, dx, dwt, xbn);
}
size_t scratch_of_depthwise(const cuda_engine *e, const en_conv_geom *g) { return g->kernel < 3 || g->c % 8 ? 0 : scratch_of_plain_depthwise(e, g) + 4 * 1024 * 1024; }
