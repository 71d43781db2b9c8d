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
 * Exact problems.  With small integers everywhere (and no activation) every sum is an integer below 2^24: a float
 * computation in any order is exact, so is its test.  A lost, doubled or misplaced term cannot hide in a tolerance.
 *
 * Verdict.  Besides wrong elements, or a tensor whose norm is off, a problem fails as MISTRUSTED when most of its answer
 * is zero or its bounds are wide compared with the answer; when a byte around any buffer, or an input, has changed; when
 * something unwritten is left in an output; and when variants with equal lanes give different bits. */
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

#define UNIT          0x1p-24
#define SIGMOID_ERROR 4e-6

enum { ALIGN = 16 };                                           /* physical channels in the tests: multiples of this */
static inline int64_t phys(int64_t c) { return (c + ALIGN - 1) / ALIGN * ALIGN; }

/* ---- memory of one problem; all of it zeroed, all of it gone at the next problem() --------------------------------- */
void   *mem(size_t bytes);
float  *mem_f(int64_t n);
double *mem_d(int64_t n);

/* ---- problems ------------------------------------------------------------------------------------------------------- */

/* Names the problem and forgets the last one; false when EN_TEST_PROBLEM is set and is no part of the name (skip it). */
bool problem(bool exact, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool is_exact(void);
void expect_zeros(void);                                       /* this problem's answer is mostly zero by intent     */
void failed(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void verdict(void);                                            /* ends a test: fails it if any of its problems failed */

double uniform(void);                                          /* (-1, 1); a small integer in an exact problem       */
int    below(int n);
float *random_rows(int64_t rows, int64_t c, int64_t logical);  /* (rows, c); zero from channel `logical` on          */

/* ---- backends ------------------------------------------------------------------------------------------------------- */

/* One way to run: an instruction set with lanes and threads.  The list is every set that this machine runs times
 * (lanes, threads) = (1,1) (1,2) (3,1) (3,2) (4,1) (4,2) (4,3). */
typedef struct variant { en_backend *be; const char *isa; int lanes, threads; uint64_t hash; bool ran; void *buffers; } variant;

int open_variants(void **state);                               /* cmocka group setup and teardown                    */
int close_variants(void **state);
/* for (variant *v = first(work); v; v = next(v)): `work` in multiply-adds; big problems run on fewer variants.  next()
 * checks the buffers of the variant it leaves, and after the last one that equal lanes gave equal bits. */
variant *first(int64_t work);
variant *next(variant *v);

const void *up(variant *v, const void *host, int64_t bytes);   /* an input: must not change; NULL stays NULL         */
void       *both(variant *v, const void *host, int64_t bytes); /* read and written                                   */
void       *out(variant *v, int64_t bytes);                    /* written only: starts as NaN                        */
void       *down(variant *v, const void *dev, int64_t bytes);  /* back, into the problem's memory; joins the hash    */
void        reserve(variant *v, const en_conv_geom *g);        /* ops->reserve; kernel 0 for a pointwise pass         */
#define UP_F(v, host, n)   ((const float *)up(v, host, (n) * (int64_t)sizeof(float)))
#define BOTH_F(v, host, n) ((float *)both(v, host, (n) * (int64_t)sizeof(float)))
#define OUT_F(v, n)        ((float *)out(v, (n) * (int64_t)sizeof(float)))
#define DOWN_F(v, dev, n)  ((float *)down(v, dev, (n) * (int64_t)sizeof(float)))
#define DOWN_D(v, dev, n)  ((double *)down(v, dev, (n) * (int64_t)sizeof(double)))

/* Calls the pass and waits; anything but EN_OK fails the problem and prints the trace. */
#define RUN(v, call)                                                                                                   \
    do { en_error_clear();                                                                                             \
         if ((call) != EN_OK || (v)->be->ops->synchronize((v)->be) != EN_OK)                                           \
             failed("%s: %s", #call, en_error_text()); } while (0)

/* ---- bounded values ------------------------------------------------------------------------------------------------- */

typedef struct { double *v, *e; int64_t n; } bounded;

double  rounding(double m);                                    /* gamma_m                                            */
bounded exactly(const float *x, int64_t n);
bounded bilinear(oracle_bilinear *f, const en_conv_geom *g, bounded l, bounded r, int64_t n_out, int64_t m);
bounded times(bounded a, bounded b);
bounded plus(bounded a, bounded b);
bounded accumulated(bounded a, const float *start, int64_t m); /* start + a, the start rounded with the m products   */
bounded activated(en_act act, bounded z);
bounded slope(en_act act, bounded z);
bounded sigmoid(bounded z);
bounded scaled_rows(bounded x, int64_t rows_per, int64_t c, bounded by); /* x[r,i] * by[r/rows_per, i]                */
bounded pooled_rows(bounded x, int64_t n, int64_t hw, int64_t c);        /* mean over hw                              */

/* got against want; c columns of which `logical` are not padding (whose answers are exactly zero). */
void check(const variant *v, const char *what, const float *got, bounded want, int64_t c, int64_t logical);
void check_sums(const variant *v, const char *what, const double *got, bounded want, int64_t c, int64_t logical);
void check_same(const variant *v, const char *what, const void *got, const void *want, int64_t bytes);

/* ---- batch norm, operands and gradients on load ------------------------------------------------------------------- */

typedef struct { int64_t c, logical, rows; float eps, momentum; bool unbiased;
                 float *gamma, *beta, *running_mean, *running_var, *mean, *rstd, *scale, *shift, *ga, *gb, *gc; } host_bn;
host_bn *bn_make(int64_t c, int64_t logical);                  /* arbitrary numbers: the fields need not agree       */
en_bn    bn_up(variant *v, const host_bn *h);                  /* inputs, but local: NaN                             */

typedef struct { float *y; host_bn *bn; en_act act; int64_t rows, c; } host_operand;
host_operand operand_make(int64_t rows, int64_t c, int64_t logical, bool with_bn, en_act act);
bounded    operand_raw(const host_operand *x);                 /* bn(y)                                              */
bounded    operand_value(const host_operand *x);               /* act(bn(y))                                         */
bounded    operand_slope(const host_operand *x);               /* act'(bn(y))                                        */
en_operand operand_up(variant *v, const host_operand *x, en_bn *bn);   /* *bn must live as long as the operand       */

typedef struct { float *stored, *drop, *dpooled; host_operand of; int64_t n, hw; } host_grad;
enum { PLAIN = 0, DROP = 1, POOLED = 2 };
host_grad grad_make(int64_t n, int64_t hw, int64_t c, int64_t logical, int kind);
bounded   grad_dz(const host_grad *d);
bounded   grad_dy(const host_grad *d);
en_grad   grad_up(variant *v, const host_grad *d, en_bn *bn);

/* {sum(y-s), sum((y-s)^2), r} of the y that the pass wrote. */
void check_forward_sums(variant *v, const en_bn *bn, const host_bn *h, const float *y, int64_t rows);
/* {sum dz, sum dz*(y-mean)} */
void check_backward_sums(variant *v, const en_bn *bn, const host_bn *h, bounded dz, const float *y, int64_t rows);

/* ---- shapes --------------------------------------------------------------------------------------------------------- */

/* Every distinct MBConv row of B0 and B7 (their tables at 224 and 600 pixels); B7's come after B0's. */
typedef struct { int kernel, stride, expand; int64_t ci, mid, co, q; } mbconv_row;
extern const mbconv_row mbconv_rows[];
extern const int n_mbconv_rows;

#endif
