/* fixture.c - what runs a problem: memory that lives as long as it does, its random numbers, and the backends it runs on.  What its
 * answers may be is in fixture_bounds.c, what passes take in fixture_operands.c. */
#include "fixture_inside.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/plugin.h"

/* ---- memory --------------------------------------------------------------------------------------------------------- */

typedef struct chunk { struct chunk *before; double align[]; } chunk;
static chunk *chunks;

void *mem(size_t bytes)
{
    chunk *c = calloc(1, sizeof *c + bytes + 1);
    if (!c) fail_msg("out of memory");
    c->before = chunks;
    chunks = c;
    return c->align;
}

float  *mem_f(int64_t n) { return mem((size_t)n * sizeof(float)); }
double *mem_d(int64_t n) { return mem((size_t)n * sizeof(double)); }

static void forget_until(chunk *mark)
{
    while (chunks != mark) {
        chunk *before = chunks->before;
        free(chunks);
        chunks = before;
    }
}

/* ---- problems ------------------------------------------------------------------------------------------------------- */

struct en_problem now;
static int n_variants;
bool some_bf16;                          /* a variant stores bf16 */

bool problem(bool exact, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(now.name, sizeof now.name - 8, fmt, ap);
    va_end(ap);
    if (exact) strcat(now.name, " exact");
    forget_until(NULL);
    now.exact = exact;
    now.zeros = now.floats = false;
    now.random = 0x9E3779B97F4A7C15ull;
    for (const char *p = now.name; *p; p++) now.random = (now.random ^ (uint64_t)*p) * 0x100000001B3ull;
    const char *only = getenv("EN_TEST_PROBLEM");
    const bool run = !only || strstr(now.name, only);
    now.ran += run;
    return run;
}

bool is_exact(void)     { return now.exact; }
void expect_zeros(void) { now.zeros = true; }
void floats_only(void)  { now.floats = true; }

/* A fiber per thread costs a thousandfold: an emulated device says what it can bear. */
static int64_t bearable(void)
{
    const char *limit = getenv("EN_TEST_WORK");
    return limit ? (int64_t)atof(limit) : INT64_MAX;
}

bool affordable(int64_t work)
{
    if (work <= bearable()) return true;
    now.left_out++;
    return false;
}

int64_t fitting(int64_t count, int64_t work_each)
{
    const int64_t most = bearable() / (work_each > 0 ? work_each : 1);
    return count <= most ? count : most > 1 ? most : 1;
}

void failed(const char *fmt, ...)
{
    now.failures++;
    if (now.printed++ >= 12) return;
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    print_error("  %s: %s\n", now.name, text);
}

void verdict(void)
{
    const int failures = now.failures, ran = now.ran, left_out = now.left_out;
    now.failures = now.printed = now.ran = now.left_out = 0;
    forget_until(NULL);
    if (left_out) print_message("# %d of %d problems left out: more work than EN_TEST_WORK=%s\n", left_out, ran, getenv("EN_TEST_WORK"));
    if (failures) fail_msg("%d findings", failures);
    if (!ran || !n_variants) skip();
}

static uint64_t word(void)                      /* splitmix64 */
{
    uint64_t z = now.random += 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

int    below(int n)  { return (int)((word() >> 33) % (uint64_t)n); }
double uniform(void) { return now.exact ? below(2) ? 1 + below(3) : -1 - below(3) : (double)(word() >> 11) * 0x1p-52 - 1.0; }

float as_bf16(float x)
{
    uint32_t w;
    memcpy(&w, &x, 4);
    if (!isnan(x)) w = (w + 0x7fff + (w >> 16 & 1)) & 0xffff0000u;     /* to nearest, ties to even */
    memcpy(&x, &w, 4);
    return x;
}

float *storable(float *x, int64_t n)
{
    for (int64_t i = 0; some_bf16 && !now.floats && i < n; i++) x[i] = as_bf16(x[i]);
    return x;
}

float *random_floats(int64_t rows, int64_t c, int64_t logical)
{
    float *x = mem_f(rows * c);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < logical; i++) x[r * c + i] = (float)uniform();
    return x;
}

float *random_rows(int64_t rows, int64_t c, int64_t logical) { return storable(random_floats(rows, c, logical), rows * c); }

/* ---- backends ------------------------------------------------------------------------------------------------------- */

enum { MAX_VARIANTS = 64, GUARD = 256 };
static variant variants[MAX_VARIANTS];
static int64_t problem_work;
static chunk *before_variant;

static variant *add_variant(int kin, int rank, const char *name)
{
    variant *v = &variants[n_variants];
    *v = (variant){ .kin = kin, .rank = rank };
    snprintf(v->name, sizeof v->name, "%s", name);
    return v;
}

#ifdef EN_TEST_CUDA
static int open_all(void)
{
    static const struct { en_precision precision; const char *folds; int rank; } ways[] = {
        { EN_PRECISION_F32,  "none", 0 }, { EN_PRECISION_BF16, "all",       0 }, { EN_PRECISION_F32,  "all",      1 }, { EN_PRECISION_BF16, "none",   1 },
        { EN_PRECISION_BF16, "all",  1 }, { EN_PRECISION_F32,  "none",      2 }, { EN_PRECISION_BF16, "gram",     2 }, { EN_PRECISION_BF16, "expand", 2 },
        { EN_PRECISION_BF16, "five_sum", 2 }, { EN_PRECISION_BF16, "depthwise", 2 }, { EN_PRECISION_F32, "gram",  2 }, { EN_PRECISION_F32, "expand",  2 },
        { EN_PRECISION_F32,  "five_sum", 2 }, { EN_PRECISION_F32,  "depthwise", 2 } };
    char why[256] = "";
    const char *only = getenv("EN_TEST_VARIANT");
    if (!en_cuda_probe(why, sizeof why)) return print_message("# cuda: SKIPPED, %s\n", why), 0;
    for (size_t k = 0; k < sizeof ways / sizeof *ways; k++) {
        char name[48];
        int kin = (int)k;
        for (size_t j = 0; j < k; j++)
            if (ways[j].precision == ways[k].precision && !strcmp(ways[j].folds, ways[k].folds)) kin = (int)j;
        const bool narrow = ways[k].precision == EN_PRECISION_BF16;
        snprintf(name, sizeof name, "%s folds %s%s", narrow ? "bf16" : "f32", ways[k].folds, kin < (int)k ? " again" : "");
        if (only && !strstr(name, only)) continue;
        variant *v = add_variant(kin, only ? 0 : ways[k].rank, name);
        v->gram = !strcmp(ways[k].folds, "all") || !strcmp(ways[k].folds, "gram");
        if (en_cuda_open(&(en_backend_config){ .precision = ways[k].precision, .folds = ways[k].folds }, &v->be) != EN_OK) return print_error("%s", en_error_text()), -1;
        n_variants++;
        if (ALIGN % v->be->channel_align || (v->be->dtype == EN_BF16) != narrow) return print_error("asked for %s, opened another type\n", name), -1;
        some_bf16 |= narrow;
    }
    return 0;
}
#else
static int open_all(void)
{
    static const struct { int lanes, threads, rank; } ways[] = { { 1, 1, 1 }, { 1, 2, 2 }, { 3, 1, 1 }, { 3, 2, 0 }, { 4, 1, 2 }, { 4, 2, 2 }, { 4, 3, 2 } };
    bool runs;
    const char *only = getenv("EN_TEST_ISA");
    for (int i = 0; en_backend_isa(i, &runs); i++) {
        const char *isa = en_backend_isa(i, &runs);
        print_message("# %s: %s\n", isa, runs ? "tested" : "SKIPPED, this machine cannot run it");
        for (size_t k = 0; runs && (!only || !strcmp(only, isa)) && k < sizeof ways / sizeof *ways; k++) {
            const en_backend_config config = { .lanes = ways[k].lanes, .threads = ways[k].threads, .isa = isa };
            char name[48];
            snprintf(name, sizeof name, "%s lanes %d threads %d", isa, config.lanes, config.threads);
            variant *v = add_variant(16 * i + config.lanes, ways[k].rank, name);
            if (en_backend_open("cpu", &config, &v->be) != EN_OK) return print_error("%s", en_error_text()), -1;
            n_variants++;
            if (ALIGN % v->be->channel_align || v->be->lanes != config.lanes || v->be->threads != config.threads ||
                (!getenv("EN_ISA") && strcmp(v->be->isa, isa)))
                return print_error("asked for %s; opened %s, %d, %d, channels by %d\n", name, v->be->isa, v->be->lanes, v->be->threads,
                                   v->be->channel_align), -1;
        }
    }
    return n_variants ? 0 : -1;
}
#endif

int open_variants(void **state)
{
    (void)state;
    mallopt(M_MMAP_THRESHOLD, 1 << 30);                        /* thousands of short-lived buffers: keep their pages */
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    return open_all();
}

bool some_gated(void)
{
    for (int i = 0; i < n_variants; i++) if (variants[i].be->gated) return true;
    return false;
}

int close_variants(void **state)
{
    (void)state;
    for (int i = 0; i < n_variants; i++) en_backend_close(variants[i].be);
    n_variants = 0;
    some_bf16 = false;
    forget_until(NULL);
    return 0;
}

/* A device buffer between two guards; all of it 0xff (NaN as float and as double) before the contents. */
typedef struct buffer { struct buffer *next; uint8_t *base; int64_t bytes; const void *expect; } buffer;

static void *place(variant *v, const void *host, int64_t bytes, bool changes)
{
    buffer *b = mem(sizeof *b);
    uint8_t *image = mem((size_t)(bytes + 2 * GUARD));
    memset(image, 0xff, (size_t)(bytes + 2 * GUARD));
    if (host) memcpy(image + GUARD, host, (size_t)bytes);
    *b = (buffer){ .next = v->buffers, .bytes = bytes, .expect = changes ? NULL : image + GUARD };
    if (v->be->ops->alloc(v->be, (size_t)(bytes + 2 * GUARD), (void **)&b->base) != EN_OK ||
        v->be->ops->upload(v->be, b->base, image, (size_t)(bytes + 2 * GUARD)) != EN_OK) fail_msg("alloc or upload: %s", en_error_text());
    v->buffers = b;
    return b->base + GUARD;
}

const void *up(variant *v, const void *host, int64_t bytes)   { return host ? place(v, host, bytes, false) : NULL; }
void       *both(variant *v, const void *host, int64_t bytes) { return host ? place(v, host, bytes, true) : NULL; }
void       *out(variant *v, int64_t bytes)                    { return place(v, NULL, bytes, true); }

void *down(variant *v, const void *dev, int64_t bytes)
{
    uint8_t *host = mem((size_t)bytes);
    if (bytes && v->be->ops->download(v->be, host, dev, (size_t)bytes) != EN_OK) fail_msg("download: %s", en_error_text());
    for (int64_t i = 0; i + 2 <= bytes; i += 4) {
        uint32_t w = 0;
        memcpy(&w, host + i, i + 4 <= bytes ? 4 : 2);
        v->hash = (v->hash ^ w) * 0x100000001B3ull;
    }
    return host;
}

/* Activations there: n numbers of be->dtype. */
static int64_t bytes_a(const variant *v, int64_t n) { return n * (int64_t)en_dtype_bytes(v->be->dtype); }

static const void *narrowed(const variant *v, const float *host, int64_t n)
{
    if (!host || !bf16(v)) return host;
    uint16_t *half = mem((size_t)(n + 1) * sizeof *half);
    for (int64_t i = 0; i < n; i++) {
        uint32_t w;
        memcpy(&w, host + i, 4);
        half[i] = (uint16_t)(w >> 16);
        if (w & 0xffff) { failed("the test's input %.9g is no bf16 number", (double)host[i]); break; }
    }
    return half;
}

const void *up_a(variant *v, const float *host, int64_t n)   { return up(v, narrowed(v, host, n), bytes_a(v, n)); }
void       *both_a(variant *v, const float *host, int64_t n) { return both(v, narrowed(v, host, n), bytes_a(v, n)); }
void       *out_a(variant *v, int64_t n)                     { return out(v, bytes_a(v, n)); }
const void *row_a(const variant *v, const void *dev, int64_t elems) { return (const uint8_t *)dev + bytes_a(v, elems); }

float *down_a(variant *v, const void *dev, int64_t n)
{
    void *raw = down(v, dev, bytes_a(v, n));
    if (!bf16(v)) return raw;
    float *wide = mem_f(n);
    for (int64_t i = 0; i < n; i++) {
        const uint32_t w = (uint32_t)((const uint16_t *)raw)[i] << 16;
        memcpy(wide + i, &w, 4);
    }
    return wide;
}

void workspace(variant *v, en_work kind, const en_conv_geom *g)
{
    const size_t bytes = v->be->ops->workspace_bytes(v->be, kind, g);
    v->be->workspace = bytes ? out(v, (int64_t)bytes) : NULL;
}

void reserve(variant *v, const en_conv_geom *g)
{
    if (v->be->ops->reserve(v->be, g) != EN_OK) failed("reserve: %s", en_error_text());
}

static void leave(variant *v)
{
    for (buffer *b = v->buffers; b; b = b->next) {
        uint8_t *image = mem((size_t)(b->bytes + 2 * GUARD));
        if (v->be->ops->download(v->be, image, b->base, (size_t)(b->bytes + 2 * GUARD)) != EN_OK) fail_msg("download: %s", en_error_text());
        for (int i = 0; i < GUARD; i++)
            if (image[i] != 0xff || image[GUARD + b->bytes + i] != 0xff) {
                failed("[%s] wrote outside a buffer of %d bytes", v->name, (int)b->bytes);
                break;
            }
        if (b->expect && memcmp(image + GUARD, b->expect, (size_t)b->bytes))
            failed("[%s] changed an input of %d bytes", v->name, (int)b->bytes);
        v->be->ops->free(v->be, b->base);
    }
    v->buffers = NULL;
    v->be->workspace = NULL;
    forget_until(before_variant);
}

/* Up to 2e6 multiply-adds: everything.  Up to 2e7: some.  Beyond: the core alone.  Less where EN_TEST_WORK says so. */
static bool chosen(const variant *v)
{
    const int64_t most = bearable();
    const int64_t all = most / 16 < 2000000 ? most / 16 : 2000000, some = most / 4 < 20000000 ? most / 4 : 20000000;
    return v->rank <= (problem_work <= all ? 2 : problem_work <= some ? 1 : 0) && !(now.floats && bf16(v));
}

static variant *from(variant *v)
{
    while (v < variants + n_variants && !chosen(v)) v++;
    if (v == variants + n_variants) return NULL;
    v->hash = 0xcbf29ce484222325ull;
    v->ran = true;
    return v;
}

variant *first(int64_t work)
{
    problem_work = work;
    before_variant = chunks;
    for (int i = 0; i < n_variants; i++) variants[i].ran = false;
    return from(variants);
}

variant *next(variant *v)
{
    leave(v);
    variant *after = from(v + 1);
    if (after) return after;
    for (const variant *a = variants; a < variants + n_variants; a++)
        for (const variant *b = variants; b < a; b++)
            if (a->ran && b->ran && a->kin == b->kin && a->hash != b->hash) failed("[%s] other bits than [%s]", a->name, b->name);
    return NULL;
}

/* ---- shapes --------------------------------------------------------------------------------------------------------- */

const mbconv_row mbconv_rows[] = {
    /* k s e   ci   mid   co    q        B0 */
    { 3, 1, 1,  32,   32,  16,   8 }, { 3, 2, 6,  16,   96,  24,   4 }, { 3, 1, 6,  24,  144,  24,   6 }, { 5, 2, 6,  24,  144,  40,   6 },
    { 5, 1, 6,  40,  240,  40,  10 }, { 3, 2, 6,  40,  240,  80,  10 }, { 3, 1, 6,  80,  480,  80,  20 }, { 5, 1, 6,  80,  480, 112,  20 },
    { 5, 1, 6, 112,  672, 112,  28 }, { 5, 2, 6, 112,  672, 192,  28 }, { 5, 1, 6, 192, 1152, 192,  48 }, { 3, 1, 6, 192, 1152, 320,  48 },
    /*                                   B7 */
    { 3, 1, 1,  64,   64,  32,  16 }, { 3, 1, 1,  32,   32,  32,   8 }, { 3, 2, 6,  32,  192,  48,   8 }, { 3, 1, 6,  48,  288,  48,  12 },
    { 5, 2, 6,  48,  288,  80,  12 }, { 5, 1, 6,  80,  480,  80,  20 }, { 3, 2, 6,  80,  480, 160,  20 }, { 3, 1, 6, 160,  960, 160,  40 },
    { 5, 1, 6, 160,  960, 224,  40 }, { 5, 1, 6, 224, 1344, 224,  56 }, { 5, 2, 6, 224, 1344, 384,  56 }, { 5, 1, 6, 384, 2304, 384,  96 },
    { 3, 1, 6, 384, 2304, 640,  96 }, { 3, 1, 6, 640, 3840, 640, 160 },
};
const int n_mbconv_rows = sizeof mbconv_rows / sizeof *mbconv_rows;
