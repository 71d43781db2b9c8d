/* import_read.c - a safetensors file, whoever wrote it, becomes a model and its weights.
 *
 * What the file says of itself (the texts of `effnet export`) and what the command line says must not contradict each other; what
 * neither says is the library's whose names it has.  Then every tensor of the network must be there, in its shape, and no other:
 * a file of another network or another size is refused before a value is read, with the names that do not fit.  PyTorch's counters of
 * batches (num_batches_tracked) are passed over. */
#include "trainer/exchange.h"
#include "trainer/json_read.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAMED = 4, WHY = 900 };                           /* so many names of a kind are told */

/* ---- what the file says ------------------------------------------------------------------------------------------------- */

static en_status text_number(const en_safetensors *f, const char *key, double low, double high, double *out)
{
    const char *text = en_safetensors_text_of(f, key);
    char *end;
    if (!text) return EN_OK;
    *out = strtod(text, &end);
    EN_REQUIRE(end != text && !*end && *out >= low && *out <= high, EN_EDATA, "%s says %s is '%.40s'; %g to %g are possible", f->path, key, text, low, high);
    return EN_OK;
}

/* "[0.485, 0.456, 0.406]", as shares of 255: are they these?  To four digits, as many as people write. */
static bool are_three(const char *text, const float three[3])
{
    float v[3];
    int end = 0;
    if (!text || sscanf(text, " [%f ,%f ,%f ]%n", &v[0], &v[1], &v[2], &end) != 3 || !end || text[end]) return false;
    for (int c = 0; c < 3; c++)
        if (!(fabsf(v[c] - three[c] / 255) < 5e-5f)) return false;
    return true;
}

/* Other pixels than those that weights were trained with would cost accuracy silently; so would another crop, less. */
static en_status pixels_of(const en_safetensors *f, en_variant *v)
{
    const char *mean = en_safetensors_text_of(f, "mean"), *std = en_safetensors_text_of(f, "std"), *crop = en_safetensors_text_of(f, "eval_crop");
    const en_normalising asked = v->normalise;
    if (mean || std) {
        int i = EN_NORMALISES - 1;
        while (i > 0 && !(are_three(mean, en_normalise_by((en_normalising)i)->mean) && are_three(std, en_normalise_by((en_normalising)i)->std))) i--;
        EN_REQUIRE(i > 0, EN_ENOTSUP, "%s wants pixels with mean %.60s and std %.60s, and this program has ImageNet's ([0.485, 0.456, 0.406] and [0.229, 0.224, 0.225]), "
                   "0.5 and 0.5, and 128/255 both", f->path, mean ? mean : "-", std ? std : "-");
        v->normalise = (en_normalising)i;
        EN_REQUIRE(!asked || asked == v->normalise, EN_EUSAGE, "%s wants pixels as --normalise %s makes them, not %s: leave --normalise out", f->path,
                   en_normalise_name(v->normalise), en_normalise_name(asked));
    }
    if (!crop || v->eval_crop) return EN_OK;
    v->eval_crop = en_eval_crop_named(crop);
    EN_REQUIRE(v->eval_crop, EN_ENOTSUP, "%s wants the evaluation crop '%.40s', and this program has reference, none and v2", f->path, crop);
    return EN_OK;
}

static en_status padding_of(const en_safetensors *f, en_padding *out)
{
    const char *text = en_safetensors_text_of(f, "padding");
    if (!text) return EN_OK;
    const bool same = strcmp(text, "tf_same") == 0;
    EN_REQUIRE(same || strcmp(text, "symmetric") == 0, EN_ENOTSUP, "%s wants the padding '%.40s', and this program has tf_same and symmetric", f->path, text);
    *out = same ? EN_PADDING_SAME : EN_PADDING_SYMMETRIC;
    return EN_OK;
}

/* The texts of an exported file, into what is not known yet.  What was given and differs is refused: one of them is wrong. */
static en_status believe(const en_safetensors *f, en_foreign *k)
{
    const char *model = en_safetensors_text_of(f, "model");
    double width = 0, depth = 0, resolution = 0, eps = 0, momentum = 0;
    EN_REQUIRE(model || k->model, EN_EUSAGE, "%s does not say which network it is: --model NAME", f->path);
    const en_model_row *said = NULL, *asked = NULL;
    if (model) EN_TRY(en_model_row_find(model, &said), "the network of %s", f->path);
    if (k->model) EN_TRY(en_model_row_find(k->model, &asked), "--model %s", k->model);
    EN_REQUIRE(!said || !asked || said == asked, EN_EUSAGE, "%s says it is %s, and --model says %s: leave --model out, or name another file", f->path,
               said->name, k->model);
    if (!k->model) k->model = model;
    EN_TRY(text_number(f, "width", 1e-3, 32, &width), "reading %s", f->path);
    EN_TRY(text_number(f, "depth", 1e-3, 32, &depth), "reading %s", f->path);
    EN_TRY(text_number(f, "resolution", 32, 4096, &resolution), "reading %s", f->path);
    EN_TRY(text_number(f, "bn_eps", 1e-12, 1, &eps), "reading %s", f->path);
    EN_TRY(text_number(f, "bn_momentum", 1e-12, 1, &momentum), "reading %s", f->path);
    EN_TRY(pixels_of(f, &k->variant), "reading %s", f->path);
    if (k->width <= 0) k->width = width;
    if (k->depth <= 0) k->depth = depth;
    if (k->resolution <= 0) k->resolution = (int)resolution;
    if (k->variant.bn_eps <= 0) k->variant.bn_eps = (float)eps;
    if (k->variant.bn_momentum <= 0) k->variant.bn_momentum = (float)momentum;
    if (k->variant.padding == EN_PADDING_OWN) EN_TRY(padding_of(f, &k->variant.padding), "reading %s", f->path);
    return EN_OK;
}

/* ["cat","dog"] */
static en_status read_class_names(const en_safetensors *f, int classes, char ***out)
{
    const char *text = en_safetensors_text_of(f, "class_names");
    if (!text) return EN_OK;
    char *copy = strdup(text), **names = calloc((size_t)classes, sizeof *names), *name;
    en_status status = EN_OK;
    int n = 0;
    EN_REQUIRE_OUT(copy && names, EN_ENOMEM, "no memory for %d class names", classes);
    en_json_cursor c = { .start = copy, .p = copy, .end = copy + strlen(copy) };
    bool ok = en_json_take(&c, '[');
    for (; ok && n < classes && (n == 0 || (ok = en_json_take(&c, ','))) && (ok = en_json_string(&c, &name)); n++) {
        EN_REQUIRE_OUT(*name && !strpbrk(name, "\n\r\t\033"), EN_EDATA, "%s: the name of class %d is empty, or not one line", f->path, n);
        EN_REQUIRE_OUT((names[n] = strdup(name)), EN_ENOMEM, "no memory for %d class names", classes);
    }
    ok = ok && en_json_take(&c, ']') && en_json_end(&c);
    EN_REQUIRE_OUT(ok, EN_EDATA, "%s: its class names are not a list of the %d names that its classifier has outputs for: %s", f->path, classes, c.why);
    *out = names;
    names = NULL;
out:
    for (int i = 0; names && i < n; i++) free(names[i]);
    free(names);
    free(copy);
    return status;
}

/* ---- which network ------------------------------------------------------------------------------------------------------- */

/* By a tensor that only one of the libraries calls so. */
static en_status keys_of(const en_safetensors *f, const char *asked, en_keys *out)
{
    if (asked) {
        *out = strcmp(asked, "torchvision") == 0 ? EN_KEYS_TORCHVISION : EN_KEYS_TIMM;
        return EN_OK;
    }
    const char *text = en_safetensors_text_of(f, "names");
    const bool torchvision = text ? strcmp(text, "torchvision") == 0 : en_safetensors_find(f, "features.0.0.weight") != NULL;
    EN_REQUIRE(!text || torchvision || strcmp(text, "timm") == 0, EN_EDATA, "%s says its names are those of '%.40s'; timm's and torchvision's are known", f->path, text);
    *out = torchvision ? EN_KEYS_TORCHVISION : EN_KEYS_TIMM;
    return EN_OK;
}

/* The rows of the classifier, whatever its name. */
static en_status classes_of(const en_safetensors *f, int *out)
{
    static const char *const names[] = { "classifier.weight", "classifier.1.weight", "fc.weight" };
    const en_safetensor *t = NULL;
    for (size_t i = 0; !t && i < sizeof names / sizeof *names; i++) t = en_safetensors_find(f, names[i]);
    EN_REQUIRE(t, EN_EDATA, "%s has no classifier (%s, %s or %s): it is no classification network, or its names are another library's", f->path, names[0],
               names[1], names[2]);
    EN_REQUIRE(t->ndim == 2 && t->shape[0] >= 1 && t->shape[0] <= 1000000, EN_EDATA, "%s: %s is no matrix of classes and features", f->path, t->name);
    *out = (int)t->shape[0];
    return EN_OK;
}

static en_status build(const en_safetensors *f, const en_foreign *k, en_brought *b)
{
    const en_model_row *row;
    int classes = 0;
    EN_TRY(en_model_row_find(k->model, &row), "the model of %s", f->path);
    EN_TRY(keys_of(f, k->from, &b->keys), "opening %s", f->path);
    EN_TRY(classes_of(f, &classes), "opening %s", f->path);
    const en_variant theirs = en_variant_of(row, b->keys);
    const en_model_overrides o = { .width = k->width, .depth = k->depth, .resolution = k->resolution, .classes = classes, .dropout = -1, .drop_path = -1,
                                   .bn_eps = k->variant.bn_eps > 0 ? k->variant.bn_eps : theirs.bn_eps,
                                   .bn_momentum = k->variant.bn_momentum > 0 ? k->variant.bn_momentum : theirs.bn_momentum,
                                   .padding = k->variant.padding != EN_PADDING_OWN ? k->variant.padding : theirs.padding,
                                   .normalise = k->variant.normalise ? k->variant.normalise : theirs.normalise, .eval_crop = k->variant.eval_crop };
    return en_model_build(row, &o, 1, &b->model);
}

/* ---- does it fit --------------------------------------------------------------------------------------------------------- */

typedef struct { const char *what; int n; char text[WHY]; } complaint;

static void complain(complaint *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void complain(complaint *c, const char *fmt, ...)
{
    va_list ap;
    const size_t used = strlen(c->text);
    if (c->n++ < NAMED && used + 2 < WHY) {
        if (used) strcat(c->text, ", ");
        va_start(ap, fmt);
        vsnprintf(c->text + strlen(c->text), WHY - strlen(c->text), fmt, ap);
        va_end(ap);
    }
}

static void shape_text(int ndim, const int64_t *shape, char text[80])
{
    size_t used = (size_t)snprintf(text, 80, "(");
    for (int d = 0; d < ndim && used < 60; d++) used += (size_t)snprintf(text + used, 80 - used, d ? ",%" PRId64 : "%" PRId64, shape[d]);
    snprintf(text + used, 80 - used, ")");
}

static int by_text(const void *a, const void *b) { return strcmp(a, b); }

static bool is_counter(const char *name)
{
    const size_t n = strlen(name), m = strlen(".num_batches_tracked");
    return n > m && strcmp(name + n - m, ".num_batches_tracked") == 0;
}

/* Every tensor of the model in its shape, and nothing else but counters. */
static en_status check_tensors(const en_safetensors *f, const en_model *m, en_keys keys, char (*key)[EN_KEY_SIZE], char (*sorted)[EN_KEY_SIZE])
{
    complaint missing = { .what = "missing" }, other = { .what = "of another shape" }, surplus = { .what = "left over" };
    for (int i = 0; i < m->n_tensors; i++) {
        const en_tensor *t = &m->tensors[i];
        EN_TRY(en_key_of(m, i, keys, key[i]), "naming the tensors of %s", m->name);
        memcpy(sorted[i], key[i], EN_KEY_SIZE);
        const en_safetensor *s = en_safetensors_find(f, key[i]);
        if (!s) {
            complain(&missing, "%s", key[i]);
            continue;
        }
        bool same = s->ndim == t->ndim;
        for (int d = 0; same && d < t->ndim; d++) same = s->shape[d] == t->shape[d];
        if (same) continue;
        char has[80], wants[80];
        shape_text(s->ndim, s->shape, has);
        shape_text(t->ndim, t->shape, wants);
        complain(&other, "%s %s instead of %s", key[i], has, wants);
    }
    qsort(sorted, (size_t)m->n_tensors, EN_KEY_SIZE, by_text);
    for (size_t i = 0; i < f->n; i++)
        if (!is_counter(f->tensors[i].name) && !bsearch(f->tensors[i].name, sorted, (size_t)m->n_tensors, EN_KEY_SIZE, by_text))
            complain(&surplus, "%.80s", f->tensors[i].name);
    if (missing.n + other.n + surplus.n == 0) return EN_OK;

    char why[3 * WHY + 200];
    size_t used = 0;
    const complaint *const all[] = { &missing, &surplus, &other };
    for (int i = 0; i < 3; i++)
        if (all[i]->n > 0)
            used += (size_t)snprintf(why + used, sizeof why - used, "%s%d %s %s (%s%s)", used ? "; " : "", all[i]->n, all[i]->n == 1 ? "is" : "are", all[i]->what,
                                     all[i]->text, all[i]->n > NAMED ? ", ..." : "");
    return en_raise(EN_EDATA, __FILE__, __LINE__, __func__, "%s is not %s by %s's names: of its tensors, %s", f->path, m->name, en_keys_name(keys), why);
}

/* ---- values -------------------------------------------------------------------------------------------------------------- */

static en_status read_values(const en_safetensors *f, const char (*key)[EN_KEY_SIZE], en_brought *b)
{
    const en_model *m = b->model;
    int64_t largest = 1;
    en_status status = EN_OK;
    for (int i = 0; i < m->n_tensors; i++)
        if (en_tensor_count(&m->tensors[i]) > largest) largest = en_tensor_count(&m->tensors[i]);
    float *logical = malloc((size_t)largest * sizeof *logical);
    EN_REQUIRE_OUT(logical, EN_ENOMEM, "no memory to read %s", f->path);
    EN_TRY_OUT(en_snapshot_alloc(m, 0, NULL, false, &b->weights), "reading %s", f->path);
    for (int i = 0; i < m->n_tensors; i++) {
        const en_tensor *t = &m->tensors[i];
        EN_TRY_OUT(en_safetensors_read(f, en_safetensors_find(f, key[i]), logical), "reading %s", f->path);
        const bool variance = t->arena == EN_ARENA_STATS && strstr(t->name, "running_var");
        for (int64_t e = 0; variance && e < en_tensor_count(t); e++)
            EN_REQUIRE_OUT(logical[e] >= 0, EN_EDATA, "%s: %s has a variance of %g", f->path, key[i], (double)logical[e]);
        en_tensor_scatter(t, logical, t->arena == EN_ARENA_PARAMS ? b->weights.params : b->weights.stats);
    }
out:
    free(logical);
    return status;
}

en_status en_brought_read(const char *path, const en_foreign *known, en_brought *out)
{
    en_foreign k = *known;
    en_safetensors *f = NULL;
    char (*key)[EN_KEY_SIZE] = NULL, (*sorted)[EN_KEY_SIZE] = NULL;
    en_status status = EN_OK;
    *out = (en_brought){ 0 };
    EN_TRY_OUT(en_safetensors_open(path, &f), "opening %s", path);
    const char *program = en_safetensors_text_of(f, "program"), *resize = en_safetensors_text_of(f, "resize");
    out->ours = program && strncmp(program, "effnet ", 7) == 0;
    EN_TRY_OUT(believe(f, &k), "opening %s", path);
    EN_TRY_OUT(build(f, &k, out), "opening %s", path);
    key = calloc((size_t)out->model->n_tensors, sizeof *key);
    sorted = calloc((size_t)out->model->n_tensors, sizeof *sorted);
    EN_REQUIRE_OUT(key && sorted, EN_ENOMEM, "no memory for the names of %d tensors", out->model->n_tensors);
    EN_TRY_OUT(check_tensors(f, out->model, out->keys, key, sorted), "opening %s", path);
    EN_TRY_OUT(read_class_names(f, out->model->classes, &out->class_names), "opening %s", path);
    if (resize) EN_REQUIRE_OUT((out->resize = strdup(resize)), EN_ENOMEM, "no memory to read %s", path);
    EN_TRY_OUT(read_values(f, (const char (*)[EN_KEY_SIZE])key, out), "reading %s", path);
out:
    free(key);
    free(sorted);
    en_safetensors_close(f);
    if (status != EN_OK) en_brought_free(out);
    return status;
}

void en_brought_free(en_brought *b)
{
    if (!b) return;
    for (int i = 0; b->class_names && i < b->model->classes; i++) free(b->class_names[i]);
    free(b->class_names);
    free(b->resize);
    en_snapshot_free(&b->weights);
    en_model_free(b->model);
    *b = (en_brought){ 0 };
}
