/* augment.h - what is done to a picture between its resize and its normalisation, and between two pictures.
 *
 * Everything here is a function of (seed, epoch, sample): no rank, thread or resume can change it. */
#ifndef EN_DATA_AUGMENT_H
#define EN_DATA_AUGMENT_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

/* ---- operations on 8-bit RGB ---------------------------------------------------------------------------------------- */

/* As the EfficientNet reference's autoaugment.py means them, geometry nearest with fill (128,128,128).  augment_ops.c begins with what is
 * odd about them. */
typedef enum {
    EN_OP_AUTOCONTRAST, EN_OP_EQUALIZE, EN_OP_INVERT, EN_OP_ROTATE, EN_OP_POSTERIZE, EN_OP_SOLARIZE, EN_OP_COLOR, EN_OP_CONTRAST,
    EN_OP_BRIGHTNESS, EN_OP_SHARPNESS, EN_OP_SHEAR_X, EN_OP_SHEAR_Y, EN_OP_TRANSLATE_X, EN_OP_TRANSLATE_Y, EN_OP_CUTOUT,
    EN_OP_SOLARIZE_ADD, EN_OPS
} en_op;
const char *en_op_name(en_op op);              /* "Rotate", as the reference spells it */

/* rgb (h,w,3) = op(rgb), in place; spare (h,w,3) is overwritten; w*h < 2^31/3.  argument: degrees, shear, pixels, factor, bits, threshold,
 * addend or half-size, as the op takes it; unused by AutoContrast, Equalize, Invert.  Bits are clamped to 0...8, thresholds to 0...256.
 * cx, cy: Cutout's centre, unused by the others. */
void en_op_apply(en_op op, double argument, int64_t cx, int64_t cy, int64_t w, int64_t h, uint8_t *rgb, uint8_t *spare);

/* ---- what a run asks for -------------------------------------------------------------------------------------------- */

typedef struct {
    enum { EN_POLICY_NONE, EN_POLICY_V0, EN_POLICY_PAPER, EN_POLICY_RAND } policy;
    int    rand_ops;                           /* RandAugment: operations a picture (2)                                   */
    double magnitude;                          /* and their level (10)                                                    */
    double erase;                              /* probability of random erasing (arXiv:1708.04896): area U[.02,1/3] of the  */
                                               /* picture, aspect log-uniform in [.3,1/.3], ten attempts                   */
    bool   erase_mean;                         /* filled with ImageNet's mean colour instead of noise N(mean, std) a value  */
    double mixup, cutmix;                      /* alpha of Beta(alpha, alpha); 0: off                                     */
} en_augment;

bool en_augments_pixels(const en_augment *a);  /* a policy or erasing: the picture goes through bytes */
bool en_augments_pairs(const en_augment *a);   /* mixup or cutmix                                      */

/* What the policy does to a picture: operations with their arguments, to be applied in order. */
enum { EN_POLICY_OPS = 16 };                   /* the most that a policy applies; rand_ops may not exceed it */
typedef struct { en_op op; double argument; int64_t cx, cy; } en_op_call;
int en_policy_draw(const en_augment *a, int size, uint64_t seed, uint64_t epoch, uint64_t sample, en_op_call call[EN_POLICY_OPS]);   /* how many */

/* The policy, then erasing, on rgb (size,size,3) in place; spare is as large. */
void en_augment_pixels(const en_augment *a, int size, uint64_t seed, uint64_t epoch, uint64_t sample, uint8_t *rgb, uint8_t *spare);

/* ---- pairs ----------------------------------------------------------------------------------------------------------- */

/* How a picture takes from its mate.  Mixup (arXiv:1710.09412): share*own + (1-share)*mate, share = max(l, 1-l), l ~ Beta.  Cutmix
 * (arXiv:1905.04899): the mate's pixels inside [x0,x1) x [y0,y1); share is the part of the area that stays.  The label follows share. */
typedef struct { float share; bool cut; int64_t x0, y0, x1, y1; } en_mix;

/* For the picture of `sample`, member of pair number `pair` of its step.  With both alphas set, even pairs are mixed and odd pairs cut. */
en_mix en_mix_draw(const en_augment *a, int size, int64_t pair, uint64_t seed, uint64_t epoch, uint64_t sample);
/* Both pictures of a pair (size,size,3) at once, in place: a = mix_a(a, b), b = mix_b(b, a) of what they were. */
void   en_mix_floats(const en_mix *mix_a, const en_mix *mix_b, int size, float *a, float *b);
void   en_mix_bytes(const en_mix *mix_a, const en_mix *mix_b, int size, uint8_t *a, uint8_t *b);   /* rounded to nearest */

#endif
