/* synthetic.c - the dataset "synthetic[:N]": N pictures that exist only while they are read.
 *
 * They are encoded and decoded again like any file, so that everything behind the disk is exercised: a benchmark on them
 * is one of the program with infinitely fast storage.  Sample i is picture i / 10 of class i % 10; training and validation
 * draw from different seeds. */
#include "synth.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIDE = 128, DEFAULT_SAMPLES = 1024 };
static const int64_t most_samples = (int64_t)1 << 28;

typedef struct { uint64_t seed; char *paths; } synthetic;

static en_status synthetic_read(const en_dataset *ds, int64_t i, uint8_t **buf, size_t *capacity, size_t *n)
{
    const synthetic *impl = ds->impl;
    EN_REQUIRE(i >= 0 && i < ds->samples, EN_EINVAL, "sample %" PRId64 " of %" PRId64, i, ds->samples);
    EN_TRY(en_synth_jpeg((int)(i % EN_SYNTH_CLASSES), SIDE, impl->seed, (uint64_t)i / EN_SYNTH_CLASSES, buf, capacity, n),
           "making %s", ds->files[i]);
    return EN_OK;
}

static void synthetic_close(en_dataset *ds)
{
    synthetic *impl = ds->impl;
    if (impl) free(impl->paths);
    free(impl);
    for (int64_t c = 0; ds->class_names && c < ds->classes; c++) free(ds->class_names[c]);
    free(ds->class_names);
    free(ds->files);
    free(ds->labels);
}

static const struct en_dataset_ops synthetic_ops = { .read = synthetic_read, .close = synthetic_close };

en_status en_synthetic_open(const char *what, const char *split, const en_dataset *classes_like, en_dataset **out)
{
    int64_t samples = DEFAULT_SAMPLES;
    const char *number = strchr(what, ':');
    if (number) {
        char *end;
        errno = 0;
        samples = strtoll(number + 1, &end, 10);
        EN_REQUIRE(number[1] >= '0' && number[1] <= '9' && *end == '\0' && errno == 0 && samples >= 1 && samples <= most_samples,
                   EN_EDATA,
                   "\"%s\": the number of made-up pictures is 1 to %" PRId64 ", as in synthetic:1024", what, most_samples);
    }
    int64_t label[EN_SYNTH_CLASSES], classes = classes_like ? classes_like->classes : EN_SYNTH_CLASSES;
    for (int c = 0; c < EN_SYNTH_CLASSES; c++) {
        label[c] = classes_like ? -1 : c;
        for (int64_t k = 0; classes_like && k < classes; k++)
            if (strcmp(classes_like->class_names[k], en_synth_names[c]) == 0) label[c] = k;
        EN_REQUIRE(label[c] >= 0, EN_EDATA,
                   "the class \"%s\" of the made-up pictures is not among the %" PRId64 " of %s; use data of the same classes",
                   en_synth_names[c], classes, *classes_like->source ? classes_like->source : "the trained network");
    }
    enum { PATH_BYTES = 48 };
    en_dataset *ds = calloc(1, sizeof *ds);
    synthetic *impl = calloc(1, sizeof *impl);
    if (ds) {
        ds->ops = &synthetic_ops;
        ds->impl = impl;
        ds->samples = samples;
        ds->classes = classes;
        ds->class_names = calloc((size_t)classes, sizeof *ds->class_names);
        ds->files = calloc((size_t)samples, sizeof *ds->files);
        ds->labels = calloc((size_t)samples, sizeof *ds->labels);
        if (impl) impl->paths = malloc((size_t)samples * PATH_BYTES);
    } else free(impl);
    bool whole = ds && impl && ds->class_names && ds->files && ds->labels && impl->paths;
    for (int64_t c = 0; whole && c < classes; c++)
        whole = (ds->class_names[c] = strdup(classes_like ? classes_like->class_names[c] : en_synth_names[c])) != NULL;
    if (!whole) {
        en_dataset_close(ds);
        return en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory for %" PRId64 " made-up pictures", samples);
    }
    snprintf(ds->source, sizeof ds->source, "%s", what);
    impl->seed = strcmp(split, "val") == 0;
    for (int64_t i = 0; i < samples; i++) {
        const int c = (int)(i % EN_SYNTH_CLASSES);
        ds->files[i] = impl->paths + i * PATH_BYTES;
        snprintf(ds->files[i], PATH_BYTES, "synthetic/%s/%s/%09" PRId64 ".jpg", split, en_synth_names[c], i / EN_SYNTH_CLASSES);
        ds->labels[i] = (int32_t)label[c];
    }
    *out = ds;
    return EN_OK;
}
