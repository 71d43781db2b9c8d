/* kernels.h - devices and the table of passes.
 *
 * EfficientNet is bound by memory traffic, so the unit of this interface is not a textbook layer but a *pass*: one sweep
 * that touches each tensor once.  The tensors in memory are those that a convolution wrote, raw, before their batch norm:
 *
 *     - whoever reads a raw tensor applies batch norm, activation and gate on load           (en_operand)
 *     - the pass that writes a raw tensor leaves the sums that its batch norm needs          (en_bn.local)
 *     - backward mirrors it: the pass that writes dz, the gradient at the output of a batch norm, leaves the two sums
 *       that the batch-norm gradient needs; whoever needs dy, the gradient of the raw tensor, forms it on load (en_grad)
 *
 * Between the pass that leaves sums and the pass that uses them stands the caller's all-reduce, local -> total: that is
 * synchronised batch norm, and it is the caller's because this folder knows no ranks.  One MBConv block is
 *
 *     x ──pointwise──▶ y1 ──depthwise──▶ y2 ──se_project──▶ y3 ──residual──▶ o            (forward)
 *     dx ◀─pointwise── dz1 ◀──depthwise── dz2 ◀──se_project── g = do, y3 ◀──── g          (backward)
 *
 * Shapes are NHWC.  Every channel count c, ci, co here is *physical*: a multiple of be->channel_align.  Channels that
 * exist only for alignment have zero weights, gamma and beta; every pass then keeps them exactly zero, in both
 * directions, so no pass needs a mask.  n may be 0 (an empty shard): a pass then writes nothing but its sums (zeros).
 * Activations (void *) are stored in be->dtype; weights, gradients of weights, statistics are float, sums of batch norm
 * double.  "=" means the output is overwritten, "+=" that it is added to.  Work is split over be->lanes fixed
 * partitions and summed in lane order, so the bits depend on lanes, not on the number of threads that carry them.
 * Every pass returns EN_OK, or EN_EINVAL with nothing written when a shape breaks the rules above; on cuda work is
 * queued, not done, and the buffers stay borrowed until the stream has passed this point. */
#ifndef EN_KERNELS_H
#define EN_KERNELS_H

#include <stdint.h>

#include "kernels/rng.h"
#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { EN_F32, EN_BF16 } en_dtype;              /* of activations; arithmetic and sums are float or wider         */
/* identity; x * sigmoid(x); max(x, 0); min(max(x, 0), 6).  The slope of the last two is 0 where they bend. */
typedef enum { EN_ACT_NONE, EN_ACT_SILU, EN_ACT_RELU, EN_ACT_RELU6 } en_act;

static inline size_t en_dtype_bytes(en_dtype t) { return t == EN_F32 ? 4 : 2; }

/* A convolution's geometry.  `pad` counts the zero rows above (and columns left); below and right follow from oh, ow, so
 * TensorFlow SAME, even where it is lopsided, and symmetric padding are the same thing.  `dense` is for `reserve` alone: a
 * geometry of conv_forward, not of depthwise_forward. */
typedef struct { int64_t n, h, w, c, oh, ow, oc; int kernel, stride, pad; bool dense; } en_conv_geom;

/* Images (n, h, w, 3): floats as the network reads them, or (u8) bytes, normalised on load: (v - mean[d]) / std[d]. */
typedef struct { const void *data; bool u8; float mean[3], std[3]; } en_pixels;

/* One batch-norm layer over c physical channels (arXiv:1502.03167, algorithms 1 and 2), r = n*h*w values a channel:
 *
 *     mean = sum(y)/r    var = sum((y - mean)^2)/r (biased)    rstd = 1/sqrt(var + eps)    bn(y) = scale*y + shift
 *     scale = gamma*rstd    shift = beta - mean*scale          running = (1 - momentum)*running + momentum*batch
 *
 * running_var takes the biased var when !unbiased_running (TensorFlow's TPU path, the reference), else r/(r-1) of it.
 * Sums are taken about running_mean, which all ranks share: sum(y^2) - mean^2 cancels when |mean| >> sigma.  All device
 * pointers, borrowed; c floats each unless said otherwise. */
typedef struct {
    int64_t c;
    float   eps, momentum;
    bool    unbiased_running;
    const float *gamma, *beta;
    float  *dgamma, *dbeta;              /* +=, by bn_backward_local                                                        */
    float  *running_mean, *running_var;  /* updated by bn_finalize                                                          */
    double *local, *total;               /* 2c+1: forward {sum(y-s), sum((y-s)^2), r} with s = running_mean;                */
                                         /* 2c in backward {sum dz, sum dz*(y-mean)}, and r stays.  The caller reduces      */
                                         /* local into total; alone, both may be the same memory.                           */
    float  *mean, *rstd, *scale, *shift; /* of this batch, or of the running statistics (bn_from_running)                   */
    float  *ga, *gb, *gc;                /* dy = ga*dz + gb*y + gc, by bn_backward_finalize                                 */
    float  *fold;                        /* NULL, or fold_floats() floats: what pointwise_forward leaves pointwise_backward */
} en_bn;

/* A raw tensor together with what is applied on load: act(bn(y)).  bn NULL: no batch norm (y is a plain tensor). */
typedef struct { const void *y; const en_bn *bn; en_act act; } en_operand;

/* The gradient of a raw tensor y, formed on load:  dy = ga*dz + gb*y + gc  with bn's ga, gb, gc and
 *     dz = stored[row] * (drop ? drop[image] : 1)                       when `stored` is set
 *     dz = dpooled[image] / hw * act'(bn(y))                            when `dpooled` is set (a pooled layer: the head)
 *     dz = (stored[row]*gate[image] + dgate[image]) * act'(bn(y))       when `gated`: what se_project_backward stores on a
 *                                                                       backend that is be->gated (gate NULL: 1 and 0) */
typedef struct {
    const void  *stored;  const float *drop;
    const float *dpooled; en_act act;
    bool gated;           const float *gate, *dgate;    /* (n, c) each */
    const void  *y; const en_bn *bn;
    int64_t hw;                          /* rows of one image */
} en_grad;

/* Squeeze-and-excitation (arXiv:1709.01507) as MBConv uses it:  gate = sigmoid(we^T silu(wr mean_hw(u) + br) + be).
 * q is the squeezed width (not padded).  pooled, hidden and gate are kept for backward. */
typedef struct {
    int64_t q;
    const float *wr, *br, *we, *be;      /* (q, c), (q), (q, c), (c)                                              */
    float *dwr, *dbr, *dwe, *dbe;        /* +=                                                                    */
    float *pooled, *hidden, *gate;       /* (n, c) mean of u; (n, q) before silu; (n, c)                          */
    float *dgate;                        /* (n, c) =: dloss/dpooled / hw, left by backward when be->gated         */
} en_se;

/* What changes from one step to the next.  It lies in device memory, so that a step recorded once (capture_begin) can be
 * replayed with other values. */
typedef struct {
    uint64_t seed;
    int64_t  step, first;                /* optimizer step; place of image 0 of this call in the global batch */
    double   failed;                     /* 1: this rank's input failed, its images are missing; see `note`    */
    float    lr, ema_decay;
} en_now;

/* What a step leaves behind, doubles in device memory; those before EN_TALLY_SUMS are summed over ranks. */
enum { EN_TALLY_LOSS, EN_TALLY_TOP1, EN_TALLY_TOP5, EN_TALLY_IMAGES, EN_TALLY_FAILED, EN_TALLY_SUMS, EN_TALLY_GRAD_SQUARE = EN_TALLY_SUMS, EN_TALLY };

/* The optimizers.  Their formulas stand at the passes, *_update; weight_decay is for the segments that decay. */
typedef struct {                         /* RMSProp as TensorFlow defines it (tensorflow/core/kernels/training_ops.cc) */
    float rho, momentum, eps;            /* ms starts at 1, mom at 0; eps inside the root; lr inside the accumulator   */
    float weight_decay;                  /* coupled: g + weight_decay*w goes through ms                                */
} en_rmsprop;

typedef struct {                         /* SGD with momentum as PyTorch (torch.optim.SGD, dampening 0) and TensorFlow (ApplyMomentum) define it */
    float momentum;                      /* the accumulator starts at 0, lr outside of it; 0: there is no accumulator  */
    bool  nesterov;                      /* g + momentum*mom instead of mom; wants momentum > 0                        */
    float weight_decay;                  /* coupled: through the accumulator                                           */
} en_sgd;

typedef struct {                         /* LARS (arXiv:1708.03888) as the EfficientNet reference runs it (tensorflow/tpu, lars_optimizer.py) */
    float momentum;                      /* the accumulator starts at 0, lr and trust ratio inside of it               */
    bool  nesterov;
    float trust, eps;                    /* trust coefficient, 0.001 in the paper; eps beside the norms, 0 there       */
    float weight_decay;                  /* coupled, and part of the trust ratio                                       */
} en_lars;

typedef struct {                         /* AdamW (arXiv:1711.05101, algorithm 2) as PyTorch defines it (torch.optim.AdamW) */
    double beta1, beta2;                 /* doubles: 1 - 0.999f is off by 5e-5                                         */
    float  eps;                          /* outside the root; m and v start at 0                                       */
    float  weight_decay;                 /* decoupled: w shrinks by lr*weight_decay, the gradient knows nothing of it  */
} en_adamw;

/* What images show: image i is `label`, or mixed of two pictures (mixup, arXiv:1710.09412; cutmix, arXiv:1905.04899), a part
 * shares[i] of `label` and the rest of `mate`.  mates and shares NULL, both: every label is hard. */
typedef struct { const int32_t *labels, *mates; const float *shares; } en_targets;         /* (n) each, borrowed */

typedef struct { void *dst; const void *host; size_t bytes; } en_copy;

/* The tensor-sized workspace of a pass (be->workspace), by what it is for; geometry as in `reserve`. */
typedef enum { EN_WORK_POINTWISE_BACKWARD,      /* ci -> co with en_grad.stored         */
               EN_WORK_POOLED_BACKWARD,         /* ci -> co with en_grad.dpooled        */
               EN_WORK_PROJECT,                 /* se_project, forward and backward     */
               EN_WORK_DEPTHWISE_BACKWARD,
               EN_WORK_CONV } en_work;          /* conv, forward and backward           */

/* Parameters [offset, offset + elems) of the arenas.  decay: weight decay applies.  adapt: LARS gives them a rate of their own by
 * their norms; then a segment is one tensor, where else it may be a run of them. */
typedef struct { int64_t offset, elems; bool decay, adapt; } en_segment;

typedef struct en_backend en_backend;

struct en_backend_ops {
    void      (*close)(en_backend *be);                                     /* by en_backend_close                       */
    /* ---- memory and order ------------------------------------------------------------------------------------ */
    en_status (*alloc)(en_backend *be, size_t bytes, void **out);           /* zeroed, 64-byte aligned; free by `free`   */
    void      (*free)(en_backend *be, void *p);
    en_status (*host_alloc)(en_backend *be, size_t bytes, void **out);      /* host memory that `stage` reads fast; host_free */
    void      (*host_free)(en_backend *be, void *p);
    en_status (*upload)(en_backend *be, void *dst, const void *host, size_t bytes);     /* host may be reused at once */
    en_status (*download)(en_backend *be, void *host, const void *src, size_t bytes);   /* waits                     */
    en_status (*zero)(en_backend *be, void *dst, size_t bytes);
    en_status (*copy)(en_backend *be, void *dst, const void *src, size_t bytes);        /* dst = src, both of the device, apart */
    en_status (*synchronize)(en_backend *be);
    int64_t   (*memory_available)(en_backend *be);          /* bytes the device may still give; 0: ask the host      */
    /* The weights at w (elems floats) change by `upload` and the optimizers only, from now on: a backend that computes with
     * another type keeps its copy of them.  Other weights are converted by the pass that reads them.  elems 0: forget. */
    en_status (*keep_weights)(en_backend *be, float *w, int64_t elems);

    /* Input travels beside the compute: a slot is what one call of the net reads.  be->slots slots, each in this circle:
     *     stage (queues the copies)   stage_ready (passes queued from here see them)   stage_done (the slot may be filled again)
     *     stage_wait (the host memory may be changed) */
    en_status (*stage)(en_backend *be, int slot, const en_copy *copies, int n);
    en_status (*stage_ready)(en_backend *be, int slot);
    en_status (*stage_done)(en_backend *be, int slot);
    en_status (*stage_wait)(en_backend *be, int slot);

    /* be->captures: what is queued between begin and end is recorded, not done; graph_launch queues all of it again.
     * Pointers and sizes are fixed by the recording, contents of memory are not.  Nothing between them may wait. */
    en_status (*capture_begin)(en_backend *be);
    en_status (*capture_end)(en_backend *be, void **graph);
    en_status (*graph_launch)(en_backend *be, void *graph);
    void      (*graph_free)(en_backend *be, void *graph);

    /* Marks 0..EN_MARKS-1 on the way of the queue, also inside a recording; seconds between two, after `synchronize`. */
    en_status (*mark)(en_backend *be, int i);
    double    (*elapsed)(en_backend *be, int from, int to);

    /* Announces the largest geometry a pass will see (kernel 0: a pointwise pass of n*h*w rows, c -> oc), so that the
     * scratch memory can be taken before the first step; be->scratch_bytes tells how much.  No pass allocates. */
    en_status (*reserve)(en_backend *be, const en_conv_geom *g);
    /* Bytes that be->workspace must have while a pass of this kind runs (the caller plans it beside the tensors). */
    size_t    (*workspace_bytes)(en_backend *be, en_work kind, const en_conv_geom *g);
    /* Floats of en_bn.fold for a pointwise layer, 0: the backend would not use them.  Where it is not 0, a layer whose way back is asked
     * for has them: workspace_bytes of EN_WORK_POINTWISE_BACKWARD counts on it. */
    int64_t   (*fold_floats)(en_backend *be, int64_t rows, int64_t ci, int64_t co);

    /* ---- noise and tally ----------------------------------------------------------------------------------------- */
    /* mask[l,i] = keep[l] < 1 ? (u < keep[l] ? 1/keep[l] : 0) : 1     (layers, n) =     keep (layers), mask: device
     * with u the uniform of en_rng_at(now->seed, EN_RNG_DROP_PATH, now->step, now->first + i, l)  (arXiv:1603.09382) */
    en_status (*drop_path_masks)(en_backend *be, const en_now *now, int64_t layers, int64_t n, const float *keep, float *mask);
    /* mask[i,c] = c < logical ? (u_c < keep ? 1/keep : 0) : 0     (n, c) =
     * with u_c the c-th uniform of en_rng_at(now->seed, EN_RNG_DROPOUT, now->step, now->first + i, 0) */
    en_status (*dropout_mask)(en_backend *be, const en_now *now, int64_t n, int64_t c, int64_t logical, float keep, float *mask);
    /* tally[FAILED] += now->failed */
    en_status (*note)(en_backend *be, const en_now *now, double *tally);

    /* ---- batch norm: between the passes ------------------------------------------------------------------------ */
    /* training: total -> mean, rstd, scale, shift (=), running statistics.  An empty group leaves the running
     * statistics alone and normalises with them. */
    en_status (*bn_finalize)(en_backend *be, en_bn *bn);
    /* evaluation: running statistics -> mean, rstd, scale, shift (=) */
    en_status (*bn_from_running)(en_backend *be, en_bn *bn);
    /* before the all-reduce: dbeta += local[0..c), dgamma += rstd*local[c..2c)   (the ranks' shares add up later) */
    en_status (*bn_backward_local)(en_backend *be, en_bn *bn);
    /* after it: with S1 = total[0..c), S2 = rstd*total[c..2c), r = total[2c] (1 when 0)
     *     dy = gamma*rstd*(dz - S1/r - xhat*S2/r)   as   ga = gamma*rstd, gb = -ga*rstd*S2/r, gc = -ga*S1/r - gb*mean */
    en_status (*bn_backward_finalize)(en_backend *be, en_bn *bn);

    /* ---- forward --------------------------------------------------------------------------------------------------- */
    /* Dense k x k convolution of normalised images, the stem:
     *     y[n,i,j,o] = sum_{a,b<k, d<3} image[n, i*s-p+a, j*s-p+b, d] * wt[a,b,d,o]          (0 outside the image)
     *   image (n,h,w,3)   wt (k,k,3,oc)   y (n,oh,ow,oc) =   bn->local = sums of y (NULL: none)             g->c == 3 */
    en_status (*stem_forward)(en_backend *be, const en_conv_geom *g, const en_pixels *image, const float *wt, void *y, en_bn *bn);
    /* 1x1 convolution: y[r,o] = sum_i x[r,i] * wt[i,o], r over n*h*w rows.
     *   x (rows,ci)   wt (ci,co)   y (rows,co) =   bn->local = sums of y (bn NULL: none); bn->fold = for the way back */
    en_status (*pointwise_forward)(en_backend *be, int64_t rows, int64_t ci, int64_t co, const void *x, const float *wt,
                                   void *y, en_bn *bn);
    /* Depthwise convolution (arXiv:1704.04861, eq. 3) of u = act(bn(x->y)); zeros outside u, that is after bn and act:
     *     y[n,i,j,c] = sum_{a,b<k} u[n, i*s-p+a, j*s-p+b, c] * wt[a,b,c]
     *   x (n,h,w,c)   wt (k,k,c)   y (n,oh,ow,c) =   bn->local = sums of y.  Kernels 3, 5, 7; strides 1, 2.
     * EN_EINVAL: other kernels or strides, a window that misses the image, an activation of x without batch norm. */
    en_status (*depthwise_forward)(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, void *y, en_bn *bn);
    /* Dense convolution of u = act(bn(x->y)); zeros outside u, that is after bn and act:
     *     y[n,i,j,o] = sum_{a,b<k, d<c} u[n, i*s-p+a, j*s-p+b, d] * wt[a,b,d,o]
     *   x (n,h,w,c)   wt (k,k,c,oc)   y (n,oh,ow,oc) =   bn->local = sums of y.  Kernels 1, 3, 5, 7; strides 1, 2.
     * EN_EINVAL: other kernels or strides, a window that misses the image, an activation of x without batch norm. */
    en_status (*conv_forward)(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, void *y, en_bn *bn);
    /* Squeeze-and-excitation and the projection, with u = act(bn(x->y)), per image of hw rows:
     *     se->pooled = mean_hw(u)   se->hidden, se->gate as en_se says   y[r,o] = sum_i u[r,i]*gate[image,i]*wt[i,o]
     *   x (n,hw,ci)   wt (ci,co)   y (n,hw,co) =   bn->local = sums of y.   se NULL: gate 1.
     * EN_EINVAL: x->bn NULL. */
    en_status (*se_project_forward)(en_backend *be, int64_t n, int64_t hw, int64_t ci, int64_t co, const en_operand *x,
                                    const en_se *se, const float *wt, void *y, en_bn *bn);
    /* End of a block: o = act(bn(y)) * (drop ? drop[image] : 1) + (x ? act(bn(x)) : 0), each with its operand's own.  drop is stochastic depth: 0 or 1/p
     * (arXiv:1603.09382).   y, o (n,hw,c), o =   x NULL or (n,hw,c)   drop NULL or (n)
     * EN_EINVAL: y->bn NULL, or an activation of x without batch norm. */
    en_status (*residual_forward)(en_backend *be, int64_t n, int64_t hw, int64_t c, const en_operand *y, const float *drop,
                                  const en_operand *x, void *o);
    /* End of a bottleneck (arXiv:1512.03385), whose activation follows the sum:
     *     o = out(bn(y) * (drop ? drop[image] : 1) + (x->bn ? bn(x) : x))          y, x, o (n,hw,c), o =   drop NULL or (n)
     * o may be y or x.  EN_EINVAL: y->bn NULL, an activation in y or x, out other than relu or relu6 (the way back reads the slope off o). */
    en_status (*join_forward)(en_backend *be, int64_t n, int64_t hw, int64_t c, const en_operand *y, const float *drop,
                              const en_operand *x, en_act out, void *o);
    /* Largest of k x k of u = act(bn(x->y)), places outside the image left out:  y[n,i,j,c] = max_{a,b<k} u[n, i*s-p+a, j*s-p+b, c]
     *   x (n,h,w,c)   y (n,oh,ow,c) =   at: NULL, or (n,oh,ow,c) bytes =: a*k + b of the first largest one (a NaN is larger than all but a NaN).
     * u is compared before it is rounded for y.
     * EN_EINVAL: k < 2 or > 7, stride < 1, pad < 0 or >= k, g->c != g->oc, a window that misses the image, an activation of x without batch norm. */
    en_status (*max_pool_forward)(en_backend *be, const en_conv_geom *g, const en_operand *x, void *y, uint8_t *at);
    /* Global average pooling and dropout: pooled[n,c] = mean_hw(act(bn(x))) * (mask ? mask[n,c] : 1), float (n,c) = */
    en_status (*pool_forward)(en_backend *be, int64_t n, int64_t hw, int64_t c, const en_operand *x, const float *mask, float *pooled);
    /* logits[n,k] = bias[k] + sum_i x[n,i]*wt[i,k]     x (n,ci)   wt (ci,k)   logits (n,k) =, all float */
    en_status (*dense_forward)(en_backend *be, int64_t n, int64_t ci, int64_t k, const float *x, const float *wt,
                               const float *bias, float *logits);
    /* Softmax cross-entropy over the first `classes` of k columns (the rest are padding); targets are mixed, then smoothed by e:
     *     target[j] = (1-e)*(share*[j == label] + (1-share)*[j == mate]) + e/classes       (hard labels: share 1)
     *     loss = -sum_j target[j]*log softmax(logits)[j]
     *   dlogits[n,j] = (softmax(logits)[j] - target[j]) * grad_scale, 0 in padding; NULL when only evaluating.
     *   targets: pointers to device memory.  tally += loss, top-1 and top-5 hits, images.  The loss is NaN where a share lies outside
     *   [0,1], and where a label or mate that has a share is out of range.  A hit at K: fewer than K logits are larger than that of the
     *   label with the larger share (of the first one when they are equal), ties counted against the lower index; a row with a NaN
     *   hits nothing.
     * EN_EINVAL: one of mates and shares without the other. */
    en_status (*softmax_loss)(en_backend *be, int64_t n, int64_t k, int64_t classes, const float *logits, const en_targets *targets,
                              float smoothing, float grad_scale, float *dlogits, double *tally);

    /* ---- backward -------------------------------------------------------------------------------------------------- */
    /* dx[n,i] = sum_k dlogits[n,k]*wt[i,k] (=)   dwt[i,k] += sum_n x[n,i]*dlogits[n,k]   dbias[k] += sum_n dlogits[n,k] */
    en_status (*dense_backward)(en_backend *be, int64_t n, int64_t ci, int64_t k, const float *x, const float *wt,
                                const float *dlogits, float *dx, float *dwt, float *dbias);
    /* dpooled *= mask (in place, mask NULL: none); bn->local = {sum dz, sum dz*(y-mean)} with
     * dz = dpooled[image]/hw * act'(bn(y)); dz itself is formed again on load (en_grad.dpooled). */
    en_status (*pool_backward)(en_backend *be, int64_t n, int64_t hw, int64_t c, float *dpooled, const float *mask,
                               const en_operand *x, en_bn *bn);
    /* Back through the mean over an image of a plain tensor (pool_forward with bn NULL): dx[r,c] = dpooled[image,c] * (mask ? mask[image,c] : 1) / hw
     *   dpooled, mask NULL or (n,c) floats, read   dx (n,hw,c) = */
    en_status (*mean_backward)(en_backend *be, int64_t n, int64_t hw, int64_t c, const float *dpooled, const float *mask, void *dx);
    /* Back through join_forward's activation; the gradients of both summands are dz (y's times drop, see en_grad):
     *     dz[r,c] = g[r,c] * out'(o[r,c])  (=, dz may be g)      out' read off o as stored: 0 < o (relu6: and o < 6)
     *     ybn->local = {sum dz*drop, sum dz*drop*(y-mean)}      xbn NULL, or xbn->local = {sum dz, sum dz*(x-mean)}
     *   g, o, y, dz (n,hw,c); x (n,hw,c), where xbn is not NULL.   EN_EINVAL: out other than relu or relu6, xbn without x. */
    en_status (*join_backward)(en_backend *be, int64_t n, int64_t hw, int64_t c, const void *g, const void *o, en_act out, const float *drop,
                               const void *y, en_bn *ybn, const void *x, en_bn *xbn, void *dz);
    /* Back through max_pool_forward and the activation before it, `at` being what that left:
     *     dx[n,i,j,c] = act'(bn(x)) * sum of dy over the windows whose largest is (i,j)  (=, n,h,w,c)
     *     xbn NULL where x->bn is, else xbn->local = {sum dx, sum dx*(x-mean)} of dx as stored.       dy (n,oh,ow,c)   EN_EINVAL: as forward. */
    en_status (*max_pool_backward)(en_backend *be, const en_conv_geom *g, const en_operand *x, const uint8_t *at, const void *dy, void *dx,
                                   en_bn *xbn);
    /* With dy from en_grad:   dx[r,i] = sum_o dy[r,o]*wt[i,o] + (add ? add[r,i] : 0)  (=)   dwt[i,o] += sum_r x[r,i]*dy[r,o]
     * dx may be `add` itself.  bn->fold of dy is what forward left for these x and wt, or NULL. */
    en_status (*pointwise_backward)(en_backend *be, int64_t rows, int64_t ci, int64_t co, const void *x, const float *wt,
                                    const en_grad *dy, const void *add, void *dx, float *dwt);
    /* bn->local = {sum dz, sum dz*(y-mean)} with dz = g * (drop ? drop[image] : 1)            g, y (n,hw,c) */
    en_status (*residual_backward)(en_backend *be, int64_t n, int64_t hw, int64_t c, const void *g, const float *drop,
                                   const void *y, en_bn *bn);
    /* Where y has an activation, whose way back is needed by a convolution too:  dz = g * (drop ? drop[image] : 1) * act'(bn(y)) (=),
     * bn->local = {sum dz, sum dz*(y-mean)} of dz as stored.   g, dz (n,hw,c)   bn: y's, to be written   dz may be g itself.
     * EN_EINVAL: y->bn NULL. */
    en_status (*activation_backward)(en_backend *be, int64_t n, int64_t hw, int64_t c, const void *g, const float *drop, const en_operand *y,
                                     void *dz, en_bn *bn);
    /* Back through projection, gate, squeeze-and-excitation and activation.  dy (n,hw,co) from en_grad, u = act(bn(x->y)):
     *     dwt[i,o] += sum u*gate*dy      ds[r,i] = sum_o dy[r,o]*wt[i,o]      dgate = sum_hw ds*u  -> se's gradients, dp
     *     dz[r,i] = (ds*gate + dp/hw) * act'(bn(x->y))  (=, n,hw,ci)     xbn->local = {sum dz, sum dz*(y-mean)}
     * where xbn is x->bn, writable.  When be->gated, `dz` receives ds and se->dgate receives dp/hw instead: the next pass
     * forms dz on load (en_grad.gated); the sums are those of dz all the same. */
    en_status (*se_project_backward)(en_backend *be, int64_t n, int64_t hw, int64_t ci, int64_t co, const en_operand *x,
                                     const en_se *se, const float *wt, const en_grad *dy, void *dz, float *dwt, en_bn *xbn);
    /* Back through a depthwise convolution of u = act(bn(x->y)) and through that activation:
     *     dwt[a,b,c] += sum u[...]*dy      du = conv^T(dy) + (add ? add : 0)
     *     dx = du * act'(bn(x->y))  (=, n,h,w,c)   and, when x->bn, xbn->local = {sum dx, sum dx*(y-mean)}
     * so that dx is dz of x's batch norm, or plainly the gradient of x where x->bn is NULL.
     * EN_EINVAL: as forward; dx is `add`; dy has drop or dpooled (a depthwise output is neither dropped nor pooled). */
    en_status (*depthwise_backward)(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt,
                                    const en_grad *dy, const void *add, void *dx, float *dwt, en_bn *xbn);
    /* Back through a dense convolution of u = act(bn(x->y)) and through that activation:
     *     dwt[a,b,d,o] += sum u[...,d]*dy[...,o]      du = conv^T(dy) + (add ? add : 0)
     *     dx = du * act'(bn(x->y))  (=, n,h,w,c)   and, when x->bn, xbn->local = {sum dx, sum dx*(y-mean)}
     * dy takes every form of en_grad (gated only where be->gated); dx may be `add` itself.      EN_EINVAL: as forward. */
    en_status (*conv_backward)(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt,
                               const en_grad *dy, const void *add, void *dx, float *dwt, en_bn *xbn);
    /* dwt[a,b,d,o] += sum image[...]*dy; the image needs no gradient. */
    en_status (*stem_backward)(en_backend *be, const en_conv_geom *g, const en_pixels *image, const en_grad *dy, float *dwt);

    /* ---- optimizer ------------------------------------------------------------------------------------------------- */
    /* x *= factor */
    en_status (*scale)(en_backend *be, int64_t elems, float factor, float *x);
    /* The optimizers update the elements of each segment; what lies between segments is not touched.  For all of them:
     *   - after w has its new value, ema -= (1-ema_decay)*(ema - w)   (ema NULL: none);  lr and ema_decay are now's;
     *   - tally[GRAD_SQUARE] = sum of grad^2 over all segments: not finite exactly when a gradient is not;
     *   - nothing but that changes when tally[FAILED] > 0, or tally[LOSS] or tally[GRAD_SQUARE] is not finite;
     *   - `segments` is host memory that stays as it is while it is passed here; wd is weight_decay where a segment decays, else 0;
     *   - a sweep over grad for its squares, then one over the arenas, bandwidth-bound: each is read once, and each but grad written once.
     * EN_EINVAL: an accumulator that the settings need is NULL, momentum is 0 where they need it.
     *
     * RMSProp:   g = grad + wd*w;  ms += (g^2 - ms)*(1-rho);  mom = momentum*mom + lr*g/sqrt(ms + eps);  w -= mom */
    en_status (*rmsprop_update)(en_backend *be, const en_rmsprop *h, const en_now *now, const en_segment *segments, int64_t n_segments,
                                float *w, const float *grad, float *ms, float *mom, float *ema, double *tally);
    /* SGD:       g = grad + wd*w;  mom = momentum*mom + g;  w -= lr*(nesterov ? g + momentum*mom : mom)       mom NULL where momentum is 0 */
    en_status (*sgd_update)(en_backend *be, const en_sgd *h, const en_now *now, const en_segment *segments, int64_t n_segments,
                            float *w, const float *grad, float *mom, float *ema, double *tally);
    /* LARS:      rate = lr * trust * |w| / (|grad| + wd*|w| + eps) for a segment that adapts, both norms > 0;  else rate = lr
     *            g = grad + wd*w;  mom = momentum*mom + rate*g;  w -= nesterov ? rate*g + momentum*mom : mom
     * with Euclidean norms over the segment, summed in double in a fixed order: a sweep over w and grad before the other.  The reference
     * neither adapts nor decays batch norms and biases. */
    en_status (*lars_update)(en_backend *be, const en_lars *h, const en_now *now, const en_segment *segments, int64_t n_segments,
                             float *w, const float *grad, float *mom, float *ema, double *tally);
    /* AdamW:     m += (grad - m)*(1-beta1);  v += (grad^2 - v)*(1-beta2);  t = *updates + 1
     *            w -= lr*wd*w;  w -= lr/(1 - beta1^t) * m / (sqrt(v/(1 - beta2^t)) + eps)
     * updates (device, one number): the updates made so far, t from now on where this one is made.  It lies on the device because the host,
     * which sends `now` while the step before is still under way, cannot know whether that one will count. */
    en_status (*adamw_update)(en_backend *be, const en_adamw *h, const en_now *now, const en_segment *segments, int64_t n_segments,
                              float *w, const float *grad, float *m, float *v, float *ema, int64_t *updates, double *tally);
    /* shadow -= (1 - ema_decay)*(shadow - x): the moving average of what no optimizer touches (running statistics); under the
     * same condition */
    en_status (*ema_update)(en_backend *be, const en_now *now, int64_t elems, const float *x, float *shadow, const double *tally);
};

struct en_backend {
    const char                  *name;           /* "cpu"                                                         */
    const char                  *isa;            /* "avx512", "avx2", ...: what the passes were compiled for      */
    const struct en_backend_ops *ops;            /* every entry set                                               */
    int                          channel_align;  /* physical channels are multiples of this                       */
    en_dtype                     dtype;          /* of activations                                                */
    int                          threads, lanes; /* lanes: partitions of every sum; part of a run's identity      */
    size_t                       scratch_bytes;  /* after `reserve`                                               */
    bool                         captures;       /* capture_begin works                                           */
    bool                         gated;          /* se_project_backward leaves ds, see there                      */
    bool                         u8;             /* wants its images as bytes                                     */
    int                          slots;          /* of `stage`                                                    */
    void                        *workspace;      /* set by the caller before a pass: workspace_bytes of it        */
    char                         device[64];     /* what tells two devices of a host apart: PCI bus id; "" on cpu */
    /* A host that waits for the device asks this every few milliseconds (NULL: nothing): not EN_OK ends the wait. */
    en_status                  (*watch)(void *watcher); void *watcher;
    void                        *impl;           /* owned by the backend                                          */
};

typedef enum { EN_PRECISION_AUTO, EN_PRECISION_F32, EN_PRECISION_BF16 } en_precision;   /* auto: f32 on cpu, bf16 on cuda */
enum { EN_MARKS = 2048 };                   /* 16 for the caller of a net, the rest for its sums (net.h) */

typedef struct {                             /* 0 and NULL: choose                                                 */
    int threads, lanes; const char *isa;     /* cpu.  lanes 0: = threads                                           */
    en_precision precision;
    int local_rank;                          /* cuda: picks the device, local_rank % devices                       */
    const char *folds;                       /* cuda: "all", "none", or names joined by ',' (kernels/cuda/README.md) */
} en_backend_config;

/* Opens "cpu" or "cuda"; "auto" takes cuda where there is one.  Environment, for tests: EN_ISA (avx512, avx2, sse4, generic),
 * EN_FOLDS override the configuration.  EN_ENOTSUP with the reason when this machine cannot; *out is NULL then. */
en_status en_backend_open(const char *name, const en_backend_config *config, en_backend **out);
void      en_backend_close(en_backend *be);  /* NULL is fine */

/* Why cuda cannot be opened here, in words ("no driver", ...); NULL when it can. */
const char *en_cuda_missing(void);
/* The GPUs that this process sees: "0: NVIDIA H200, sm_90, 139.8 GiB; 1: ..." */
void en_cuda_devices(char *text, size_t size);
/* A function of the plugin that holds the cuda backend (plugin.h), NULL where there is none. */
void *en_cuda_symbol(const char *name);

/* What each instruction-set build is called and whether this machine runs it; NULL after the last. */
const char *en_backend_isa(int index, bool *runs_here);

#ifdef __cplusplus
}
#endif

#endif
