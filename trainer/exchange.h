/* exchange.h - weights under the names of other programs: `export`, `import`, and what a training may begin with (--init).
 *
 * Frameworks agree on the networks and on the layout of their tensors, and differ in things that a file of weights does not show: the side
 * of the image that gets the odd row of zeros, the epsilon of batch norm and its momentum, what numbers pixels become and which part of a
 * picture is evaluated.  Weights that are evaluated with another padding, epsilon or pixels lose accuracy, silently.  So these travel with
 * the weights: as texts of an exported file, as attributes of a checkpoint. */
#ifndef EN_EXCHANGE_H
#define EN_EXCHANGE_H

#include "trainer/checkpoint/checkpoint.h"
#include "trainer/safetensors.h"

typedef enum { EN_KEYS_TIMM, EN_KEYS_TORCHVISION } en_keys;     /* whose names of the tensors */
enum { EN_KEY_SIZE = 160 };

const char *en_keys_name(en_keys keys);          /* "timm", "torchvision" */
/* The name of tensor `i` of the model.  EN_ENOTSUP, naming the model, when that library has no such network. */
en_status en_key_of(const en_model *m, int i, en_keys keys, char key[EN_KEY_SIZE]);

/* What that library trains and evaluates this network with: its tf_* models as TensorFlow does, in timm, but for pixels of V2 S to XL,
 * which are EN_NORMALISE_UNIT's; torchvision pads symmetrically and has PyTorch's eps and momentum (B0 to B4), TensorFlow's (B5 and
 * larger), or TensorFlow's eps alone (V2), and ImageNet's pixels but for V2-L.  Evaluation crops are the network's own (0). */
typedef struct { float bn_eps, bn_momentum; en_padding padding; en_normalising normalise; en_eval_crop eval_crop; } en_variant;
en_variant en_variant_of(const en_model_row *row, en_keys keys);

/* ---- weights from a file (import_read.c) --------------------------------------------------------------------------- */

typedef struct {                                 /* what the command line knows of the file; 0, NULL: not given        */
    const char *model;
    double width, depth;
    int    resolution;
    const char *from;                            /* "timm", "torchvision"                                              */
    en_variant variant;                          /* 0, EN_PADDING_OWN: as the file or the library says                 */
} en_foreign;

typedef struct {
    en_model   *model;                           /* owned; as the file's weights want to be evaluated, channels not aligned */
    en_snapshot weights;                         /* params, stats and, of a checkpoint, the averaged ones              */
    char      **class_names;                     /* owned, model->classes of them, or NULL                             */
    char       *resize;                          /* owned; "bicubic-aa", or NULL: not known                            */
    en_keys     keys;
    bool        ours;                            /* written by `effnet export`                                         */
} en_brought;

/* A safetensors file.  EN_EDATA, with path and reason: damaged (safetensors.h), tensors missing, left over or of another shape (with
 * their names), values of a type that is not read, a padding or another property that this program does not have. */
en_status en_brought_read(const char *path, const en_foreign *known, en_brought *out);
void      en_brought_free(en_brought *b);

#endif
