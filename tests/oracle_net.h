/* oracle_net.h - a whole network of any kind of block (model.h) in double precision, built from oracle.h alone: forward, loss, every
 * gradient.
 *
 * Of the model it reads the table of blocks and the names' places; padding it works out itself (TensorFlow SAME, or symmetric), and
 * tensors are logical, in the checkpoint's order (O,I,kh,kw), so that arena layouts and alignment play no part. */
#ifndef EN_TESTS_ORACLE_NET_H
#define EN_TESTS_ORACLE_NET_H

#include "oracle.h"
#include "trainer/model.h"

typedef struct {
    int64_t n;
    const double  *images;               /* (n, resolution, resolution, 3)                                   */
    const int32_t *labels, *mates;       /* (n); mates and                                                   */
    const float   *shares;               /* (n) of the labels, both NULL: every label is hard                */
    double         smoothing;
    const double  *dropout;              /* (n, features), factors on the pooled vector; NULL: none          */
    double *const *drop;                 /* [block] -> (n), factors on the branch; NULL, or NULL entries: none */
    bool           frozen;               /* evaluation: running statistics in place of the batch's; no answers */
} oracle_batch;

/* The mean loss over the batch.  tensors[i] is tensor i of the model.  logits (n, classes) =, NULL: not
 * wanted.  answers, NULL: forward only; answers[i] = the gradient of tensor i, or the new value of a running statistic. */
double oracle_net(const en_model *m, double *const *tensors, const oracle_batch *b, double *logits, double *const *answers);

/* One array per tensor of the model, logical elements, zeroed. */
double **oracle_tensors(const en_model *m);
void     oracle_tensors_free(const en_model *m, double **t);

#endif
