/* pointwise.cu - 1x1 convolutions: matrix products on the rows of NHWC, by cuBLASLt (gemm.cu) and tall.cu.
 *
 * The library reads plain tensors and writes plain tensors.  So what the table of passes wants on load and on store stands
 * beside the products, as sweeps over the wide tensor, or is folded into them:
 *
 *     forward     y = x W        sums of y by a sweep                          or from x^T x (fold.cu, FOLD_GRAM)
 *     backward    dy formed in the workspace, dx = dy W^T (+ add), dwt += x^T dy    or without dy (fold.cu, FOLD_EXPAND)
 *
 * A fold needs en_bn.fold and a shape where it pays; everything else, the pooled gradient of the head too, takes the sweeps. */
#include "fold.h"
#include "passes.h"

static int64_t rows_of(const en_conv_geom *g) { return g->n * g->h * g->w; }

size_t scratch_of_pointwise(const cuda_engine *e, const en_conv_geom *g)
{
    if (g->kernel != 0) return 0;
    const size_t folded = fold_scratch(e, rows_of(g), g->c, g->oc), unfolded = weight_gradient_scratch(e, rows_of(g), g->c, g->oc);
    return folded > unfolded ? folded : unfolded;
}

en_status cuda_pointwise_forward(en_backend *be, int64_t rows, int64_t ci, int64_t co, const void *x, const float *wt, void *y, en_bn *bn)
{
    CU_CHANNELS(ci);
    CU_CHANNELS(co);
    if (rows == 0) return bn ? set_rows(be, bn, 0) : EN_OK;
    const void *w = NULL;
    EN_TRY(weights_for_gemm(be, wt, ci * co, &w), "weights");
    gemm_call product = {};
    product.m = rows, product.n = co, product.k = ci, product.a = x, product.b = w, product.d = y;
    product.a_type = product.b_type = product.d_type = be->dtype;
    EN_TRY(gemm(be, &product), "1x1 convolution");
    if (!bn) return EN_OK;
    const bool pays = bn->fold && fold_pays(engine(be), rows, ci, co), gram = pays && folds(be, FOLD_GRAM);
    if (pays) EN_TRY(fold_forward(be, rows, ci, co, x, w, bn, gram), "batch norm of a folded 1x1 convolution");
    return gram ? EN_OK : sweep_sums(be, rows, co, y, bn);
}

en_status cuda_pointwise_backward(en_backend *be, int64_t rows, int64_t ci, int64_t co, const void *x, const float *wt, const en_grad *dy,
                                  const void *add, void *dx, float *dwt)
{
    CU_CHANNELS(ci);
    CU_CHANNELS(co);
    if (rows == 0) return EN_OK;
    const void *w = NULL;
    EN_TRY(weights_for_gemm(be, wt, ci * co, &w), "weights");
    if (folds(be, FOLD_EXPAND) && dy->stored && !dy->drop && !dy->gated && dy->bn && dy->bn->fold && fold_pays(engine(be), rows, ci, co))
        return fold_backward(be, rows, ci, co, x, w, dy, add, dx, dwt);

    EN_REQUIRE(be->workspace, EN_EINVAL, "the gradient of (%lld,%lld) needs a workspace", (long long)rows, (long long)co);
    EN_TRY(form_gradient(be, dy, rows, co, be->workspace), "gradient of a 1x1 convolution");
    gemm_call back = {};
    back.tb = true, back.m = rows, back.n = ci, back.k = co, back.a = be->workspace, back.b = w, back.c = add, back.d = dx, back.beta = add ? 1.f : 0.f;
    back.a_type = back.b_type = back.d_type = be->dtype;
    EN_TRY(gemm(be, &back), "1x1 convolution, backward");
    scratch_carver scratch = carver_of(be);
    return weight_gradient(be, &scratch, rows, ci, co, x, be->workspace, dwt);
}
