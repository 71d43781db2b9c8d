/* oracle.h - what the passes are compared with: textbook definitions, in double precision, one loop nest each.
 *
 * Nothing here knows of passes, operands, blocks, lanes or alignment; a reader checks every function against the paper it
 * names and against test_oracle.c, which checks the gradients by central differences.  Tensors are NHWC, row-major; every
 * output is "=" unless said otherwise.
 *
 * The convolutions share one signature (geometry, left, right, out), because all of them are bilinear: the same function
 * applied to absolute values gives the magnitude sum |x||w| of Higham's bounds, and applied to (error of x, |w|) the way
 * an error of x reaches the output.  fixture.h builds its tolerances from nothing else. */
#ifndef EN_TESTS_ORACLE_H
#define EN_TESTS_ORACLE_H

#include "kernels/kernels.h"

typedef void oracle_bilinear(const en_conv_geom *g, const double *left, const double *right, double *out);

/* y[n,i,j,o] = sum_{a,b<k, d<c} x[n, i*s-p+a, j*s-p+b, d] * wt[a,b,d,o]   (0 outside x); wt (k,k,c,oc) */
oracle_bilinear oracle_conv;        /* (x, wt)  -> y   */
oracle_bilinear oracle_conv_dx;     /* (dy, wt) -> dx  */
oracle_bilinear oracle_conv_dwt;    /* (x, dy)  -> dwt */
/* arXiv:1704.04861, eq. 3: y[n,i,j,c] = sum_{a,b<k} x[n, i*s-p+a, j*s-p+b, c] * wt[a,b,c]; wt (k,k,c), g->oc == g->c */
oracle_bilinear oracle_depthwise;
oracle_bilinear oracle_depthwise_dx;
oracle_bilinear oracle_depthwise_dwt;

/* A 1x1 convolution of `rows` rows as a geometry of oracle_conv. */
en_conv_geom oracle_rows(int64_t rows, int64_t ci, int64_t co);
/* TensorFlow SAME: oh = ceil(h/s), pad = max((oh-1)*s + k - h, 0) / 2, the rest below. */
en_conv_geom oracle_same(int64_t n, int64_t h, int64_t w, int64_t c, int64_t oc, int kernel, int stride);

double oracle_sigmoid(double x);
double oracle_act(en_act act, double x);
double oracle_dact(en_act act, double x);           /* derivative */

/* arXiv:1502.03167, algorithm 1: out = gamma*(y - mean)/sqrt(var + eps) + beta with mean and biased var over r rows. */
void oracle_bn(int64_t r, int64_t c, const double *y, const double *gamma, const double *beta, double eps,
               double *mean, double *var, double *out);
/* The same paper, section 3: the chain rule through mean and var, written as there. */
void oracle_bn_backward(int64_t r, int64_t c, const double *y, const double *gamma, double eps, const double *dout,
                        double *dy, double *dgamma, double *dbeta);

/* Squeeze-and-excitation (arXiv:1709.01507, eq. 2-4, swish in place of ReLU):
 * pooled (n,c) = mean_hw u;  hidden (n,q) = wr pooled + br;  gate (n,c) = sigmoid(we^T silu(hidden) + be);  out = u*gate
 * with wr, we (q,c). */
void oracle_se(int64_t n, int64_t hw, int64_t c, int64_t q, const double *u, const double *wr, const double *br,
               const double *we, const double *be, double *pooled, double *hidden, double *gate, double *out);
void oracle_se_backward(int64_t n, int64_t hw, int64_t c, int64_t q, const double *u, const double *wr, const double *we,
                        const double *pooled, const double *hidden, const double *gate, const double *dout,
                        double *du, double *dwr, double *dbr, double *dwe, double *dbe);

void oracle_pool(int64_t n, int64_t hw, int64_t c, const double *x, double *pooled);           /* mean over hw */
void oracle_pool_backward(int64_t n, int64_t hw, int64_t c, const double *dpooled, double *dx);

/* y[n,i,j,c] = max over the taps (a,b) inside x of x[n, i*s-p+a, j*s-p+b, c];  at = a*k + b of the first one that is it.  A NaN counts as
 * larger than all, the first of them as largest.  g->oc == g->c. */
void oracle_max_pool(const en_conv_geom *g, const double *x, double *y, uint8_t *at);
void oracle_max_pool_backward(const en_conv_geom *g, const uint8_t *at, const double *dy, double *dx);

void oracle_dense(int64_t n, int64_t ci, int64_t k, const double *x, const double *wt, const double *bias, double *y);
void oracle_dense_backward(int64_t n, int64_t ci, int64_t k, const double *x, const double *wt, const double *dy,
                           double *dx, double *dwt, double *dbias);

/* target (classes) = the mixture of two labels, a part `share` of the first, smoothed: (1-e)*mixture + e/classes. */
void   oracle_target(int64_t classes, int32_t label, int32_t mate, double share, double smoothing, double *target);
/* Cross-entropy of one row; dlogits = softmax - target (NULL: not wanted). */
double oracle_cross_entropy(int64_t classes, const double *logits, const double *target, double *dlogits);
/* Fewer than `at` logits stand before the label's; an equal logit stands before it when its index is lower. */
bool oracle_hit(int64_t classes, const float *logits, int32_t label, int at);

/* The optimizers, one parameter, each as the source that kernels.h names writes it; lr and ema_decay are now's.
 * slot: rmsprop { ms, mom }, sgd and lars { mom }, adamw { m, v }. */
typedef struct { double w, slot[2], ema; } oracle_state;
oracle_state oracle_rmsprop(const en_rmsprop *h, const en_now *now, bool decay, double grad, oracle_state s);
oracle_state oracle_sgd(const en_sgd *h, const en_now *now, bool decay, double grad, oracle_state s);
/* trust: oracle_trust of the parameter's tensor, from the norms of its weights and gradients; 1 where it does not adapt */
double       oracle_trust(const en_lars *h, bool decay, double w_norm, double grad_norm);
oracle_state oracle_lars(const en_lars *h, const en_now *now, bool decay, double trust, double grad, oracle_state s);
oracle_state oracle_adamw(const en_adamw *h, const en_now *now, bool decay, int64_t t, double grad, oracle_state s);    /* t: 1 at the first */
double oracle_ema(double shadow, double x, double decay);

#endif
