/* model_build.h - what model.c builds with, in model_tensors.c: one function for each kind of tensor. */
#ifndef EN_MODEL_BUILD_H
#define EN_MODEL_BUILD_H

#include "trainer/model.h"

typedef struct { en_model *m; const en_arch *arch; int capacity; bool full; } en_builder;   /* full: no memory for another tensor */

/* "blocks.1.0" and "conv_pw" make timm's key blocks.1.0.conv_pw.weight; outside the blocks the prefix is "". */
typedef struct { const char *prefix, *layer; } en_key;

/* Each adds a tensor in timm's order, without its place in the arena, and gives its index.  A convolution also counts its
 * multiply-adds: every element of the kernel once at each of `positions` = oh*ow. */
int en_add_conv(en_builder *b, en_key key, int k, int64_t ci, int64_t co, int64_t ci_p, int64_t co_p, int64_t positions);
int en_add_depthwise(en_builder *b, en_key key, int k, int64_t c, int64_t c_p, int64_t positions);
int en_add_se_reduce(en_builder *b, en_key key, int64_t q, int64_t c, int64_t c_p);
int en_add_se_expand(en_builder *b, en_key key, int64_t q, int64_t c, int64_t c_p);
int en_add_classifier(en_builder *b, en_key key, int64_t ci, int64_t classes, int64_t ci_p, int64_t classes_p);
int en_add_bias(en_builder *b, en_key key, int64_t c, int64_t c_p);
en_bn_ref en_add_bn(en_builder *b, en_key key, int64_t c, int64_t c_p);        /* gamma, beta, mean, var */

/* Gives every tensor its place: parameters from the last tensor to the first, as backward finishes them; statistics likewise. */
void en_lay_out(en_model *m);

#endif
