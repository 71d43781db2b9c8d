/* single.h - one picture after the other through a checkpoint's network: what predict and cam have in common. */
#ifndef EN_SINGLE_H
#define EN_SINGLE_H

#include "data/image.h"
#include "trainer/net.h"
#include "trainer/options.h"
#include "trainer/weights.h"

typedef struct {                             /* what is kept from file to file                                     */
    const en_model *model;                   /* borrowed: of the weights                                           */
    en_net *net;
    en_decoder *decoder;
    en_resize_kernel kernel;
    uint8_t *bytes; size_t capacity;         /* owns: a file                                                       */
    float *pixels;                           /* owns: an image                                                     */
    en_image image; en_crop crop;            /* of the last file: borrowed from the decoder, and the part that was looked at */
} en_single;

en_status en_single_open(const en_options *o, en_weights *w, en_single *s);      /* w: borrowed until the close */
void      en_single_close(en_single *s);
/* logits (model->classes), not softmaxed.  EN_EDATA, EN_EIO: the file's fault, with its path. */
en_status en_single_logits(en_single *s, const char *path, float *logits);
/* logits -> probabilities, in place */
void      en_softmax(int n, float *p);

#endif
