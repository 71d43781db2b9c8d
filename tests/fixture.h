/* fixture.h - how a pass is tested: its problem, the backends it runs on, its oracle with an error bound, its verdict.
 *
 * Bounds.  `bounded` pairs the exact result v (double) with a bound e on the error of a float computation of it.  Inputs
 * are exact.  A convolution, a matrix product, a weight gradient is bilinear, out = B(l, r), so
 *
 *     e_out = gamma_m * B(|l|, |r|) + B(e_l, |r|) + B(|l|, e_r)
 *
 * with m the products of one output: Higham, "Accuracy and Stability of Numerical Algorithms", 3.1, for the rounding, any
 * order of summation, and first-order propagation of what was wrong before.  Each of the three is the oracle itself,
 * applied to absolute values.  gamma_m is the smaller of m*u/(1-m*u) and of the probabilistic bound of Higham and Mary
 * (SIAM J. Sci. Comput. 41, 2019, theorem 2.4) exp(l*sqrt(m)*u + m*u^2) - 1 with l = 10, which fails with probability
 * 2*m*exp(-50): for m in the thousands the first bound would be wider than a lost term.
 *
 * The sigmoid may be wrong by SIGMOID_ERROR relatively: the passes use a short polynomial for exp.
 *
 * Storage.  A backend may store activations as bf16 (8 bits of significand, to nearest: STORED_UNIT of each value) and
 * compute in float all the same.  What that adds is kept apart from e and allowed to bf16 variants alone; `stored` marks
 * the points where a pass writes an activation, be it an output or an intermediate that the next kernel reads back:
 *
 *     pointwise   y, dx; dy                         project   u*gate, y; dy, ds, dz
 *     depthwise   y, dx; dy                         residual, pool, stem   what they write; dy
 *
 * and the sigmoid of a bf16 variant may be wrong by SIGMOID_ERROR_STORED.  Each rounding is a number of either sign, at most
 * STORED_UNIT of its value, and knows of no other, so by Hoeffding's inequality a sum with weights a_i of roundings r_i stays
 * below t*sqrt(sum (a_i r_i)^2) but for a probability 2*exp(-t^2/2); t = TAIL = 8, and the plain sum where that is smaller.
 * The folds (kernels/cuda/README.md) round other intermediates: the tests that meet them say which.
 *
 * All that a backend reads as bf16 is drawn as bf16 numbers where such variants run: one oracle serves both types.
 *
 * Exact problems.  With small integers everywhere (and no activation) every sum is an integer below 2^24: a float
 * computation in any order is exact, so is its test.  A lost, doubled or misplaced term cannot hide in a tolerance.  Where
 * the answer is stored as bf16 it must be the exact one, rounded.
 *
 * Verdict.  Besides wrong elements, or a tensor whose norm is off, a problem fails as MISTRUSTED when most of its answer
 * is zero or its bounds are wide compared with the answer; when a byte around any buffer, or an input, has changed; when
 * something unwritten is left in an output; and when variants that must give the same bits (on the cpu those with equal
 * lanes, on cuda a variant and its repetition) do not. */
#ifndef EN_TESTS_FIXTURE_H
#define EN_TESTS_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "oracle.h"

#define UNIT                 0x1p-24
#define STORED_UNIT          0x1p-8
#define SIGMOID_ERROR        4e-6
#define SIGMOID_ERROR_STORED 2e-5

#ifdef EN_TEST_CUDA                                            /* physical channels in the tests: multiples of this */
enum { ALIGN = 8 };
#else
enum { ALIGN = 16 };
#endif
static inline int64_t phys(int64_t c) { return (c + ALIGN - 1) / ALIGN * ALIGN; }

/* ---- memory of one problem; all of it zeroed, all of it gone at the next problem() --------------------------------- */
void   *mem(size_t bytes);
float  *mem_f(int64_t n);
double *mem_d(int64_t n);

/* ---- problems ------------------------------------------------------------------------------------------------------- */

/* Names the problem and forgets the last one; false when EN_TEST_PROBLEM is set and is no part of the name (skip it). */
bool problem(bool exact, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool is_exact(void);
void floats_only(void);                                        /* this problem is not for variants that store bf16    */
/* False when `work` (multiply-adds) is more than EN_TEST_WORK, which an emulated device sets: leave the problem out. */
bool affordable(int64_t work);
int64_t fitting(int64_t count, int64_t work_each);             /* as many of `count` as are affordable, 1 at least    */
void expect_zeros(void);                                       /* this problem's answer is mostly zero by intent     */
void failed(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void verdict(void);                                            /* ends a test: fails it if any of its problems failed */

double uniform(void);                                          /* (-1, 1); a small integer in an exact problem       */
int    below(int n);
float *random_rows(int64_t rows, int64_t c, int64_t logical);  /* (rows, c); zero from channel `logical` on          */
float *random_floats(int64_t rows, int64_t c, int64_t logical); /* the same, of what no backend ever stores as bf16   */
float *storable(float *x, int64_t n);                          /* rounds x to bf16 numbers where a variant stores them */
float  as_bf16(float x);

/* ---- backends ------------------------------------------------------------------------------------------------------- */

/* One way to run.  On the cpu: an instruction set with lanes and threads, (1,1) (1,2) (3,1) (3,2) (4,1) (4,2) (4,3) times
 * every set that this machine runs.  With EN_TEST_CUDA: a storage type with the folds all, none and each alone. */
typedef struct variant {
    en_backend *be;
    char name[48];
    int  kin;                                                  /* variants of one kin must give the same bits        */
    int  rank;                                                 /* 0: runs always, 1: not in big problems, 2: in small */
    bool gram;                                                 /* takes batch norm's sums of an expansion from x^T x  */
    uint64_t hash; bool ran; void *buffers;
} variant;

int open_variants(void **state);                               /* cmocka group setup and teardown                    */
int close_variants(void **state);
/* for (variant *v = first(work); v; v = next(v)): `work` in multiply-adds; big problems run on fewer variants.  next()
 * checks the buffers of the variant it leaves, and after the last one that kin gave equal bits. */
variant *first(int64_t work);
variant *next(variant *v);
bool some_gated(void);                                         /* a variant is be->gated                             */
static inline bool bf16(const variant *v) { return v->be->dtype == EN_BF16; }

const void *up(variant *v, const void *host, int64_t bytes);   /* an input: must not change; NULL stays NULL         */
void       *both(variant *v, const void *host, int64_t bytes); /* read and written                                   */
void       *out(variant *v, int64_t bytes);                    /* written only: starts as NaN                        */
void       *down(variant *v, const void *dev, int64_t bytes);  /* back, into the problem's memory; joins the hash    */
/* The same for n activations: floats here, be->dtype there (as which they must be representable). */
const void *up_a(variant *v, const float *host, int64_t n);
void       *both_a(variant *v, const float *host, int64_t n);
void       *out_a(variant *v, int64_t n);
float      *down_a(variant *v, const void *dev, int64_t n);
const void *row_a(const variant *v, const void *dev, int64_t elems);                 /* dev + elems activations       */

void        reserve(variant *v, const en_conv_geom *g);        /* ops->reserve; kernel 0 for a pointwise pass         */
void        workspace(variant *v, en_work kind, const en_conv_geom *g);   /* be->workspace, between guards, until next() */
#define UP_F(v, host, n)   ((const float *)up(v, host, (n) * (int64_t)sizeof(float)))
#define BOTH_F(v, host, n) ((float *)both(v, host, (n) * (int64_t)sizeof(float)))
#define OUT_F(v, n)        ((float *)out(v, (n) * (int64_t)sizeof(float)))
#define UP_D(v, host, n)   ((const double *)up(v, host, (n) * (int64_t)sizeof(double)))
#define DOWN_F(v, dev, n)  ((float *)down(v, dev, (n) * (int64_t)sizeof(float)))
#define DOWN_D(v, dev, n)  ((double *)down(v, dev, (n) * (int64_t)sizeof(double)))

/* Queues without a wait. */
#define RUN_ON(v, call) do { en_error_clear(); if ((call) != EN_OK) failed("[%s] %s: %s", (v)->name, #call, en_error_text()); } while (0)
/* Calls the pass and waits; anything but EN_OK fails the problem and prints the trace. */
#define RUN(v, call)                                                                                                   \
    do { en_error_clear();                                                                                             \
         if ((call) != EN_OK || (v)->be->ops->synchronize((v)->be) != EN_OK)                                           \
             failed("%s: %s", #call, en_error_text()); } while (0)

/* ---- bounded values ------------------------------------------------------------------------------------------------- */

/* On top of e, where activations are stored as bf16: x the sigmoid's, s the sum of all roundings of stored values that went
 * in, q the root of their sum of squares.  inexact: e counts in an exact problem too. */
typedef struct { double *v, *e, *x, *s, *q; int64_t n; bool inexact; } bounded;

double  rounding(double m);                                    /* gamma_m                                            */
bounded fresh(int64_t n);                                      /* zeros                                              */
bounded exactly(const float *x, int64_t n);
void    carry(bounded *to, int64_t i, bounded from, int64_t j, double by);    /* x, s, q of to[i] += |by| * those of from[j] */
bounded stored(bounded x);                                     /* written as an activation                           */
bounded either(bounded a, bounded b);                          /* a's values, the wider of both bounds               */
bounded bilinear(oracle_bilinear *f, const en_conv_geom *g, bounded l, bounded r, int64_t n_out, int64_t m);
bounded times(bounded a, bounded b);
bounded plus(bounded a, bounded b);
bounded accumulated(bounded a, const float *start, int64_t m); /* start + a, the start rounded with the m products   */
bounded activated(en_act act, bounded z);
bounded slope(en_act act, bounded z);
bounded sigmoid(bounded z);
bounded scaled_rows(bounded x, int64_t rows_per, int64_t c, bounded by); /* x[r,i] * by[r/rows_per, i]                */
bounded dropped(bounded x, const float *drop, int64_t n, int64_t hw, int64_t c);       /* x[r,i] * drop[r/hw]; drop NULL: x */
bounded spread_rows(bounded x, int64_t rows_per, int64_t c);             /* x[r/rows_per, i]                          */
bounded pooled_rows(bounded x, int64_t n, int64_t hw, int64_t c);        /* mean over hw                              */

/* got against want; c columns of which `logical` are not padding (whose answers are exactly zero). */
void check(const variant *v, const char *what, const float *got, bounded want, int64_t c, int64_t logical);
void check_sums(const variant *v, const char *what, const double *got, bounded want, int64_t c, int64_t logical);
void check_same(const variant *v, const char *what, const void *got, const void *want, int64_t bytes);

/* ---- batch norm, operands and gradients on load ------------------------------------------------------------------- */

typedef struct { int64_t c, logical; float eps, momentum; bool unbiased;
                 float *gamma, *beta, *running_mean, *running_var, *mean, *rstd, *scale, *shift, *ga, *gb, *gc; } host_bn;
host_bn *bn_make(int64_t c, int64_t logical);                  /* arbitrary numbers: the fields need not agree       */
en_bn    bn_up(variant *v, const host_bn *h);                  /* inputs, but local: NaN                             */

typedef struct { float *y; host_bn *bn; en_act act; int64_t rows, c; } host_operand;
host_operand operand_make(int64_t rows, int64_t c, int64_t logical, bool with_bn, en_act act);
bounded    operand_raw(const host_operand *x);                 /* bn(y)                                              */
bounded    operand_value(const host_operand *x);               /* act(bn(y))                                         */
bounded    operand_slope(const host_operand *x);               /* act'(bn(y))                                        */
en_operand operand_up(variant *v, const host_operand *x, en_bn *bn);   /* *bn must live as long as the operand       */

/* Factors of stochastic depth for n images: 0, 1.25 (exact problems: 2), 0, ...; NULL unless wanted */
float *drops(int64_t n, bool wanted);
typedef struct { float *stored, *drop, *dpooled, *gate, *dgate; bool gated; host_operand of; int64_t n, hw; } host_grad;
enum { PLAIN = 0, DROP = 1, POOLED = 2, GATED = 3, UNGATED = 4 };       /* the last two for variants that are be->gated alone */
host_grad grad_make(int64_t n, int64_t hw, int64_t c, int64_t logical, int kind);
bounded   grad_dz(const host_grad *d);
bounded   grad_dy(const host_grad *d);
en_grad   grad_up(variant *v, const host_grad *d, en_bn *bn);

/* {sum(y-s), sum((y-s)^2), r} of the y that the pass wrote. */
void check_forward_sums(variant *v, const en_bn *bn, const host_bn *h, const float *y, int64_t rows);
bounded forward_sums(const host_bn *h, const float *y, int64_t rows);
/* {sum dz, sum dz*(y-mean)} */
void check_backward_sums(variant *v, const en_bn *bn, const host_bn *h, bounded dz, const float *y, int64_t rows);

/* ---- shapes --------------------------------------------------------------------------------------------------------- */

/* Every distinct MBConv row of B0 and B7 (their tables at 224 and 600 pixels); B7's come after B0's. */
typedef struct { int kernel, stride, expand; int64_t ci, mid, co, q; } mbconv_row;
extern const mbconv_row mbconv_rows[];
extern const int n_mbconv_rows;

#endif
