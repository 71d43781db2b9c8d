/* net_help.h - models and weights for tests of whole networks. */
#ifndef EN_TESTS_NET_HELP_H
#define EN_TESTS_NET_HELP_H

#include "oracle_net.h"
#include "trainer/net.h"

/* B0 or another row with overrides, channels aligned to `align`; a failure ends the test. */
en_model *model_make(const char *row, const en_model_overrides *o, int align);

/* The formula of golden/make_golden.py, which both sides follow to the last bit.  Element e of tensor t is
 *
 *     float(a + b*s),   s = 2*k/2^24 - 1,   k = the upper 24 bits of word e%4 of philox(seed, EN_RNG_TEST, when 0, sample e/4, layer t)
 *
 * convolution: a 0, b sqrt(6/(kh*kw*O)), depthwise sqrt(6/(kh*kw));  classifier: a 0, b 1/sqrt(classes);  bias, beta and
 * running_mean: a 0, b 0.1;  gamma and running_var: a 1, b 0.2.  Images: a 0, b 1.5, layer 65535. */
double formula(uint64_t seed, uint32_t layer, int64_t e, double a, double b);
/* Images (n, size, size, 3) by the formula.  With `bytes` each value v gives way to the nearest that a byte k can mean,
 *     float((k - mean[d])/std[d]),   k = round(v*std[d] + mean[d]), 0 to 255      with that norm */
double *formula_images(uint64_t seed, int64_t n, int size, bool bytes, const en_normalise *norm);
void   formula_tensors(const en_model *m, uint64_t seed, double *const *tensors);

/* Sign p (0..15) of element e, and sample k, of tensor t: 1 for bit p of word e%4 of philox(seed, EN_RNG_TEST, when 1, e/4, t). */
uint32_t formula_signs(uint64_t seed, uint32_t layer, int64_t e);
int64_t  formula_index(uint64_t seed, uint32_t layer, int64_t k, int64_t elems);

/* tensors -> arenas (of a model with any alignment) and back; doubles hold floats exactly */
void to_arenas(const en_model *m, double *const *tensors, float *params, float *stats);
void from_arenas(const en_model *m, const float *params, const float *stats, double *const *tensors);

/* gamma's other half is its beta, and the reverse; -1 for every other tensor.  Gradients of the two are sums of the same
 * terms dz, one of them weighted: errors of either are measured by the norm of both, because the gradient of a beta may be
 * exactly 0 - a constant added to a block's output is removed by the batch norms of all that read it. */
int partner(const en_model *m, int tensor);

/* The program's net over one batch, `passes` times: forward, loss with smoothing 0.1 and, when training, backward.  `recorded`: one
 * pass that is replayed from a recording, made after passes over other noise (now.step + 1) and hard labels.  mixing: a net that is
 * opened for mates and shares, which may be NULL all the same.  frozen: so many layers are (freeze.h). */
typedef struct { const char *device, *isa, *folds; en_precision precision; int lanes, threads; bool training, recorded; int64_t max_images; en_now now;
                 int passes; bool mixing; const int32_t *mates; const float *shares; int frozen; } net_way;

/* What this program tests on in a precision, k = 0, 1, ...: sets device, instruction set and folds of `way`, and tells their name;
 * NULL after the last.  The processor's instruction sets that run here; built with EN_TEST_CUDA: cuda, folded and not, where
 * EN_PRECISION_BF16 is one more. */
const char *net_device(en_precision precision, int k, net_way *way);
extern const int net_align;              /* channel alignment of its models                                     */
typedef struct {
    double loss, top1, images;           /* sums as en_net_loss leaves them                                     */
    int folded;                          /* expansions that were folded, where the device can                   */
    double *logits;                      /* (n, classes)                                                        */
    double **answers;                    /* per tensor: gradient, or the running statistic afterwards           */
    double *dropout, **drop;             /* the masks that the net drew, as oracle_batch takes them, or NULL    */
} net_result;
net_result net_run(const en_model *m, const net_way *way, double *const *tensors, int64_t n, const double *images, const int32_t *labels);
void       net_result_free(const en_model *m, net_result *r);

#endif
