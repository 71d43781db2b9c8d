/* resize.c - what en_resize is asked for, as a job for the build of resize_plain.c and resize_antialiased.c that suits the processor. */
#include "resize.h"

#include <pthread.h>
#include <string.h>

#include "kernels/host.h"

const en_normalise en_imagenet_normalise = {
    .mean = { 255 * 0.485f, 255 * 0.456f, 255 * 0.406f },
    .std  = { 255 * 0.229f, 255 * 0.224f, 255 * 0.225f },
};
static const struct { const char *name; en_normalise by; } normalising[EN_NORMALISES] = {
    [EN_NORMALISE_OWN]      = { "", { { 0, 0, 0 }, { 1, 1, 1 } } },
    [EN_NORMALISE_IMAGENET] = { "imagenet", { { 255 * 0.485f, 255 * 0.456f, 255 * 0.406f }, { 255 * 0.229f, 255 * 0.224f, 255 * 0.225f } } },
    [EN_NORMALISE_HALF]     = { "half", { { 128, 128, 128 }, { 128, 128, 128 } } },
    [EN_NORMALISE_UNIT]     = { "unit", { { 127.5f, 127.5f, 127.5f }, { 127.5f, 127.5f, 127.5f } } },
};

const en_normalise *en_normalise_by(en_normalising how) { return how == EN_NORMALISE_OWN ? &en_imagenet_normalise : &normalising[how].by; }
const char *en_normalise_name(en_normalising how) { return normalising[how].name; }
en_normalising en_normalise_named(const char *name)
{
    int i = EN_NORMALISES - 1;
    while (i > 0 && strcmp(normalising[i].name, name) != 0) i--;
    return (en_normalising)i;
}

static const en_normalise as_is = { { 0, 0, 0 }, { 1, 1, 1 } };

/* ---- which build ---- */

static bool always(void) { return true; }

/* fastest first */
static const struct { bool (*runs_here)(void); const en_resize_build *build; } builds[] = {
#if defined(__x86_64__)
    { en_runs_avx512, &en_resize_avx512 }, { en_runs_avx2, &en_resize_avx2 },
#endif
    { always, &en_resize_generic },
};

const en_resize_build *en_resize_builds(int index)
{
    for (size_t i = 0; i < sizeof builds / sizeof *builds; i++)
        if (builds[i].runs_here() && index-- == 0) return builds[i].build;
    return NULL;
}

static const en_resize_build *fastest;
static en_bicubic_table table;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void prepare(void)
{
    const double a = -0.75;
    for (int i = 0; i <= EN_BICUBIC_TABLE; i++) {
        float x = (float)i / EN_BICUBIC_TABLE;     /* exact */
        table.near[i] = (float)(((a + 2) * x - (a + 3)) * x * x + 1);
        x += 1.0f;
        table.far[i] = (float)(((a * x - 5 * a) * x + 8 * a) * x - 4 * a);
    }
    fastest = en_resize_builds(0);
}

/* ---- the interface ---- */

en_resize_job en_resize_job_of(const en_image *img, const en_crop *crop, en_resize_kernel kernel, int64_t out_w, int64_t out_h)
{
    pthread_once(&once, prepare);
    return (en_resize_job){
        .origin = img->rgb + (crop->y * img->w + crop->x) * 3, .stride = img->w * 3, .w = crop->w, .h = crop->h,
        .left = crop->left, .top = crop->top,
        .span_w = (float)crop->w - crop->left - crop->right, .span_h = (float)crop->h - crop->top - crop->bottom,
        .out_w = out_w, .out_h = out_h, .flip = crop->flip, .kernel = kernel, .table = &table, .norm = &as_is,
    };
}

void en_resize_run(const en_resize_job *job) { fastest->resize(job); }

void en_resize(const en_image *img, const en_crop *crop, en_resize_kernel kernel, int size, const en_normalise *norm, float *out)
{
    en_resize_job job = en_resize_job_of(img, crop, kernel, size, size);
    job.norm = norm;
    job.floats = out;
    fastest->resize(&job);
}

void en_resize_bytes(const en_image *img, const en_crop *crop, en_resize_kernel kernel, int size, bool truncate, uint8_t *out)
{
    en_resize_job job = en_resize_job_of(img, crop, kernel, size, size);
    job.truncate = truncate;
    job.bytes = out;
    fastest->resize(&job);
}

void en_resize_bicubic(const en_image *img, const en_crop *crop, int size, const en_normalise *norm, float *out)
{
    en_resize(img, crop, EN_RESIZE_BICUBIC, size, norm, out);
}

void en_normalise_bytes(const uint8_t *in, size_t n, const en_normalise *norm, float *out)
{
    pthread_once(&once, prepare);
    fastest->normalise(in, n, norm, out);
}
