#include "fixture.h"

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

static struct { char name[256]; bool exact, zeros, floats; int failures, printed, ran, left_out; uint64_t random; } now;
static int n_variants;
static bool some_bf16;                          /* a variant stores bf16 */

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

/* ---- bounded values ------------------------------------------------------------------------------------------------- */

double rounding(double m) { return fmin(m * UNIT / (1 - m * UNIT), expm1(10 * sqrt(m) * UNIT + m * UNIT * UNIT)); }

bounded fresh(int64_t n) { return (bounded){ .v = mem_d(n), .e = mem_d(n), .x = mem_d(n), .s = mem_d(n), .q = mem_d(n), .n = n }; }

bounded exactly(const float *x, int64_t n)
{
    bounded b = fresh(n);
    for (int64_t i = 0; i < n; i++) b.v[i] = x[i];
    return b;
}

static double *magnitude(const double *x, int64_t n)
{
    double *a = mem_d(n);
    for (int64_t i = 0; i < n; i++) a[i] = fabs(x[i]);
    return a;
}

static bool nonzero(const double *x, int64_t n) { for (int64_t i = 0; i < n; i++) if (x[i] != 0) return true; return false; }

void carry(bounded *to, int64_t i, bounded from, int64_t j, double by)
{
    to->x[i] += fabs(by) * from.x[j];
    to->s[i] += fabs(by) * from.s[j];
    to->q[i] += fabs(by) * from.q[j];
}

static bounded copied(bounded x)
{
    bounded b = fresh(x.n);
    b.inexact = x.inexact;
    for (int64_t i = 0; i < x.n; i++) b.v[i] = x.v[i], b.e[i] = x.e[i], carry(&b, i, x, i, 1);
    return b;
}

bounded stored(bounded x)
{
    if (!some_bf16) return x;
    bounded b = copied(x);
    for (int64_t i = 0; i < x.n; i++) {
        const bool known = now.exact && !x.inexact && x.s[i] == 0;      /* which rounding this is */
        const double by = known ? fabs(x.v[i] - (double)as_bf16((float)x.v[i])) : STORED_UNIT * (fabs(x.v[i]) + x.e[i] + x.x[i] + x.s[i]);
        b.s[i] += by;
        b.q[i] = hypot(b.q[i], by);
    }
    return b;
}

bounded either(bounded a, bounded b)
{
    bounded w = copied(a);
    w.inexact |= b.inexact;
    for (int64_t i = 0; i < a.n; i++)
        w.e[i] = fmax(a.e[i], b.e[i]), w.x[i] = fmax(a.x[i], b.x[i]), w.s[i] = fmax(a.s[i], b.s[i]), w.q[i] = fmax(a.q[i], b.q[i]);
    return w;
}

static double *squared(const double *x, int64_t n)
{
    double *s = mem_d(n);
    for (int64_t i = 0; i < n; i++) s[i] = x[i] * x[i];
    return s;
}

/* Adds to b what the errors of one factor make of it, f(l, r) being the sums of that error with the other's magnitude:
 * el, er name the arrays of errors, of which one is the magnitude in truth. */
static void add_sums(double *to, oracle_bilinear *f, const en_conv_geom *g, const double *l, const double *r, int64_t n, bool root, double by)
{
    double *part = mem_d(n);
    f(g, l, r, part);
    for (int64_t i = 0; i < n; i++) to[i] = root ? hypot(to[i], sqrt(part[i]) * by) : to[i] + part[i] * by;
}

bounded bilinear(oracle_bilinear *f, const en_conv_geom *g, bounded l, bounded r, int64_t n_out, int64_t m)
{
    bounded b = fresh(n_out);
    f(g, l.v, r.v, b.v);
    const double *al = magnitude(l.v, l.n), *ar = magnitude(r.v, r.n), more = 1 + 2 * STORED_UNIT;       /* the other factor is off too */
    if (some_bf16) {
        if (nonzero(l.x, l.n)) add_sums(b.x, f, g, l.x, ar, n_out, false, 1);
        if (nonzero(r.x, r.n)) add_sums(b.x, f, g, al, r.x, n_out, false, 1);
        if (nonzero(l.s, l.n)) add_sums(b.s, f, g, l.s, ar, n_out, false, more), add_sums(b.q, f, g, squared(l.q, l.n), squared(ar, r.n), n_out, true, more);
        if (nonzero(r.s, r.n)) add_sums(b.s, f, g, al, r.s, n_out, false, more), add_sums(b.q, f, g, squared(al, l.n), squared(r.q, r.n), n_out, true, more);
    }
    if (now.exact) return b;
    add_sums(b.e, f, g, al, ar, n_out, false, rounding((double)m));
    if (nonzero(l.e, l.n)) add_sums(b.e, f, g, l.e, ar, n_out, false, 1);
    if (nonzero(r.e, r.n)) add_sums(b.e, f, g, al, r.e, n_out, false, 1);
    return b;
}

bounded times(bounded a, bounded b)
{
    bounded p = fresh(a.n);
    for (int64_t i = 0; i < a.n; i++) {
        p.v[i] = a.v[i] * b.v[i];
        p.e[i] = fabs(a.v[i]) * b.e[i] + a.e[i] * fabs(b.v[i]) + a.e[i] * b.e[i] + UNIT * fabs(p.v[i]);
        carry(&p, i, a, i, fabs(b.v[i]) + b.e[i] + b.x[i] + b.s[i]);
        carry(&p, i, b, i, fabs(a.v[i]) + a.e[i]);
    }
    return p;
}

bounded plus(bounded a, bounded b)
{
    bounded s = fresh(a.n);
    for (int64_t i = 0; i < a.n; i++) {
        s.v[i] = a.v[i] + b.v[i];
        s.e[i] = a.e[i] + b.e[i] + UNIT * (fabs(s.v[i]) + a.e[i] + b.e[i]);
        carry(&s, i, a, i, 1), carry(&s, i, b, i, 1);
    }
    return s;
}

bounded accumulated(bounded a, const float *start, int64_t m)
{
    bounded s = fresh(a.n);
    const double gamma = rounding((double)m + 1);
    s.inexact = a.inexact;
    for (int64_t i = 0; i < a.n; i++) {
        s.v[i] = a.v[i] + start[i];
        s.e[i] = a.e[i] + UNIT * fabs(a.v[i]) + gamma * fabs(start[i]);
        carry(&s, i, a, i, 1);
    }
    return s;
}

#define WORSE_SIGMOID (some_bf16 ? SIGMOID_ERROR_STORED - SIGMOID_ERROR : 0)

/* silu = z*sigma: |silu''| <= 1/2 bounds what a wrong z does beyond first order. */
bounded activated(en_act act, bounded z)
{
    if (act == EN_ACT_NONE) return z;
    bounded a = fresh(z.n);
    for (int64_t i = 0; i < z.n; i++) {
        const double d = fabs(oracle_dact(act, z.v[i]));
        a.v[i] = oracle_act(act, z.v[i]);
        a.e[i] = d * z.e[i] + 0.25 * z.e[i] * z.e[i] + (SIGMOID_ERROR + 2 * UNIT) * fabs(a.v[i]);
        a.x[i] = WORSE_SIGMOID * fabs(a.v[i]);
        carry(&a, i, z, i, d + 0.25 * (z.s[i] + z.x[i] + 2 * z.e[i]));
    }
    return a;
}

/* silu' = sigma*(1 + z*(1-sigma)); its derivative by sigma is 1 + z*(1-sigma) - z*sigma. */
bounded slope(en_act act, bounded z)
{
    bounded a = fresh(z.n);
    for (int64_t i = 0; i < z.n; i++) {
        const double s = oracle_sigmoid(z.v[i]), az = fabs(z.v[i]);
        a.v[i] = oracle_dact(act, z.v[i]);
        if (act == EN_ACT_NONE) continue;
        a.e[i] = 0.5 * z.e[i] + SIGMOID_ERROR * s * (1 + az) + 4 * UNIT * s * (1 + az);
        a.x[i] = WORSE_SIGMOID * s * (1 + az);
        carry(&a, i, z, i, 0.5);
    }
    return a;
}

bounded sigmoid(bounded z)
{
    bounded a = fresh(z.n);
    for (int64_t i = 0; i < z.n; i++) {
        a.v[i] = oracle_sigmoid(z.v[i]);
        a.e[i] = a.v[i] * (1 - a.v[i]) * z.e[i] + 0.05 * z.e[i] * z.e[i] + SIGMOID_ERROR * a.v[i];      /* |sigma''| < 0.1 */
        a.x[i] = WORSE_SIGMOID * a.v[i];
        carry(&a, i, z, i, a.v[i] * (1 - a.v[i]) + 0.05 * (z.s[i] + z.x[i] + 2 * z.e[i]));
    }
    return a;
}

bounded scaled_rows(bounded x, int64_t rows_per, int64_t c, bounded by)
{
    bounded wide = fresh(x.n);
    for (int64_t i = 0; i < x.n; i++) {
        const int64_t k = i / c / rows_per * c + i % c;
        wide.v[i] = by.v[k];
        wide.e[i] = by.e[k];
        carry(&wide, i, by, k, 1);
    }
    return times(x, wide);
}

bounded pooled_rows(bounded x, int64_t n, int64_t hw, int64_t c)
{
    bounded p = fresh(n * c);
    double *part = mem_d(n * c), *square = mem_d(n * c);
    oracle_pool(n, hw, c, x.v, p.v);
    oracle_pool(n, hw, c, magnitude(x.v, x.n), p.e);
    oracle_pool(n, hw, c, x.e, part);
    oracle_pool(n, hw, c, x.x, p.x);
    oracle_pool(n, hw, c, x.s, p.s);
    oracle_pool(n, hw, c, squared(x.q, x.n), square);
    for (int64_t i = 0; i < p.n; i++) {
        p.e[i] = rounding((double)hw + 2) * p.e[i] + part[i];
        p.q[i] = sqrt(square[i] / (double)hw);
    }
    return p;
}

/* ---- verdicts ------------------------------------------------------------------------------------------------------- */

/* Bounds that are WIDE compared with the answers prove nothing.  They widen where one pass strings several long sums
 * together, as if all roundings conspired; that they do not is a bound of its own: the tensor as a whole may be off by
 * TOGETHER of its norm, which a few roundings of size u*sqrt(m), m < 4000, and SIGMOID_ERROR stay well below.  With bf16
 * a tail of 8 deviations, each about STORED_UNIT / 2, is wide by itself; the whole is off by a few such deviations. */
#define WIDE            0.05
#define WIDE_STORED     0.2
#define TOGETHER        2e-5
#define TOGETHER_STORED 0x1p-7
#define TAIL            8.0

/* An exact problem's sums are exact in float as long as they stay below 2^24; its sums of squares may not. */
static double allowed(const variant *v, bounded want, int64_t i)
{
    return (now.exact && !want.inexact && fabs(want.v[i]) < 0x1p23 ? 0 : want.e[i]) +
           (bf16(v) ? want.x[i] + fmin(want.s[i], TAIL * want.q[i]) : 0);
}

static void judge(const variant *v, const char *what, const float *got_f, const double *got_d, bounded want, int64_t c, int64_t logical)
{
    int64_t bad = 0, worst = -1, zeros = 0, counted = 0, row_zeros = 0, row_counted = 0;
    const bool rounded = bf16(v) && nonzero(want.s, want.n);
    const double wide = rounded ? WIDE_STORED : WIDE, together = rounded ? TOGETHER_STORED : TOGETHER;
    const int64_t few = rounded ? 64 : 8;                       /* of which one sum that cancels may be most */
    double excess = 0, sum_e = 0, sum_v = 0, square_off = 0, square_v = 0;
    for (int64_t i = 0; i < want.n; i++) {
        const double got = got_f ? (double)got_f[i] : got_d[i], bound = allowed(v, want, i), off = fabs(got - want.v[i]);
        if (!(off <= bound)) {
            const double x = isnan(off) ? INFINITY : off / (bound + 1e-300);
            bad++;
            if (worst < 0 || x > excess) worst = i, excess = x;
        }
        if (i % c == 0) row_counted = row_zeros = 0;
        if (i % c < logical) row_counted++, row_zeros += want.v[i] == 0;
        if ((i % c == c - 1 || i == want.n - 1) && row_zeros < row_counted) counted += row_counted, zeros += row_zeros;
        sum_e += bound;
        sum_v += fabs(want.v[i]);
        square_off += off * off;
        square_v += want.v[i] * want.v[i];
    }
    if (bad)
        failed("[%s] %s: %d of %d wrong, the worst at (%d,%d): got %.9g want %.9g bound %.3g", v->name,
               what, (int)bad, (int)want.n, (int)(worst / c), (int)(worst % c), got_f ? (double)got_f[worst] : got_d[worst], want.v[worst],
               allowed(v, want, worst));
    if (!bad && want.n / c * logical > few && square_off > together * together * square_v)
        failed("[%s] %s: each element within its bound, all together %.3g off", v->name, what,
               sqrt(square_off / square_v));
    if (now.zeros || want.n / c * logical <= few || logical == 0) return;      /* rows of padding alone are not counted */
    if (counted == 0 || (double)zeros > 0.75 * (double)counted) failed("MISTRUSTED: %d of the %d answers in %s are zero", (int)zeros, (int)counted, what);
    if (sum_e > wide * sum_v) failed("MISTRUSTED: the bounds of %s are %.2g of its answers on [%s]", what, sum_e / sum_v, v->name);
}

void check(const variant *v, const char *what, const float *got, bounded want, int64_t c, int64_t logical)       { judge(v, what, got, NULL, want, c, logical); }
void check_sums(const variant *v, const char *what, const double *got, bounded want, int64_t c, int64_t logical) { judge(v, what, NULL, got, want, c, logical); }

void check_same(const variant *v, const char *what, const void *got, const void *want, int64_t bytes)
{
    if (memcmp(got, want, (size_t)bytes)) failed("[%s] %s changed", v->name, what);
}

/* ---- batch norm, operands and gradients on load ------------------------------------------------------------------- */

host_bn *bn_make(int64_t c, int64_t logical)
{
    host_bn *h = mem(sizeof *h);
    *h = (host_bn){ .c = c, .logical = logical, .eps = 1e-3f, .momentum = 0.01f };
    float **all[] = { &h->gamma, &h->beta, &h->running_mean, &h->running_var, &h->mean, &h->rstd, &h->scale, &h->shift, &h->ga, &h->gb, &h->gc };
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) *all[k] = random_floats(1, c, logical);
    for (int64_t i = 0; i < logical; i++) {
        if (now.exact) {                                        /* integers; products of two of them and a sum stay small */
            h->scale[i] = (float)(1 + below(2));
            h->ga[i] = (float)(1 + below(2));
            h->gb[i] = (float)(below(3) - 1);
        } else {
            h->running_var[i] = 1.5f + h->running_var[i];
            h->rstd[i] = 1.5f + h->rstd[i];
            h->scale[i] = copysignf(0.5f + fabsf(h->scale[i]), h->scale[i]);
        }
    }
    return h;
}

en_bn bn_up(variant *v, const host_bn *h)
{
    const int64_t c = h->c;
#define F(field) .field = (float *)UP_F(v, h->field, c)
    return (en_bn){ .c = c, .eps = h->eps, .momentum = h->momentum, .unbiased_running = h->unbiased,
                    F(gamma), F(beta), F(running_mean), F(running_var), F(mean), F(rstd), F(scale), F(shift), F(ga), F(gb), F(gc),
                    .dgamma = OUT_F(v, c), .dbeta = OUT_F(v, c),
                    .local = out(v, (2 * c + 1) * (int64_t)sizeof(double)), .total = out(v, (2 * c + 1) * (int64_t)sizeof(double)) };
#undef F
}

host_operand operand_make(int64_t rows, int64_t c, int64_t logical, bool with_bn, en_act act)
{
    return (host_operand){ .y = random_rows(rows, c, logical), .bn = with_bn ? bn_make(c, logical) : NULL, .act = act, .rows = rows, .c = c };
}

bounded operand_raw(const host_operand *x)
{
    bounded z = exactly(x->y, x->rows * x->c);
    if (x->bn)
        for (int64_t i = 0; i < z.n; i++) {
            const double s = (double)x->bn->scale[i % x->c] * z.v[i], t = x->bn->shift[i % x->c];
            z.v[i] = s + t;
            z.e[i] = rounding(2) * (fabs(s) + fabs(t));
        }
    return z;
}

bounded operand_value(const host_operand *x) { return activated(x->act, operand_raw(x)); }
bounded operand_slope(const host_operand *x) { return slope(x->act, operand_raw(x)); }

en_operand operand_up(variant *v, const host_operand *x, en_bn *bn)
{
    if (x->bn) *bn = bn_up(v, x->bn);
    return (en_operand){ .y = up_a(v, x->y, x->rows * x->c), .bn = x->bn ? bn : NULL, .act = x->act };
}

host_grad grad_make(int64_t n, int64_t hw, int64_t c, int64_t logical, int kind)
{
    host_grad d = { .of = operand_make(n * hw, c, logical, true, kind == POOLED || (kind >= GATED && !now.exact) ? EN_ACT_SILU : EN_ACT_NONE), .n = n, .hw = hw };
    d.gated = kind >= GATED;
    if (kind == GATED) d.gate = random_floats(n, c, logical), d.dgate = random_floats(n, c, logical);
    if (kind == POOLED) d.dpooled = random_floats(n, c, logical);
    else d.stored = random_rows(n * hw, c, logical);
    if (kind == DROP) {
        d.drop = mem_f(n);                                      /* the first image dropped, the others by chance */
        for (int64_t b = 1; b < n; b++) d.drop[b] = b == 1 || below(2) ? 2.f : 0.f;
    }
    return d;
}

bounded spread_rows(bounded x, int64_t rows_per, int64_t c)
{
    bounded wide = fresh(x.n * rows_per);
    wide.inexact = x.inexact;
    for (int64_t i = 0; i < wide.n; i++) {
        const int64_t k = i / c / rows_per * c + i % c;
        wide.v[i] = x.v[k], wide.e[i] = x.e[k];
        carry(&wide, i, x, k, 1);
    }
    return wide;
}

bounded grad_dz(const host_grad *d)
{
    const int64_t c = d->of.c;
    if (d->stored) {
        bounded dz = exactly(d->stored, d->n * d->hw * c);
        if (d->gate) dz = plus(scaled_rows(dz, d->hw, c, exactly(d->gate, d->n * c)), spread_rows(exactly(d->dgate, d->n * c), d->hw, c));
        if (d->gated) return d->of.act == EN_ACT_NONE ? dz : times(dz, operand_slope(&d->of));
        if (!d->drop) return dz;
        float *wide = mem_f(d->n * c);
        for (int64_t i = 0; i < d->n * c; i++) wide[i] = d->drop[i / c];
        return scaled_rows(dz, d->hw, c, exactly(wide, d->n * c));
    }
    bounded dp = exactly(d->dpooled, d->n * c);
    for (int64_t i = 0; i < dp.n; i++) dp.v[i] /= (double)d->hw, dp.e[i] = 2 * UNIT * fabs(dp.v[i]);
    return scaled_rows(operand_slope(&d->of), d->hw, c, dp);
}

bounded grad_dy(const host_grad *d)
{
    bounded dz = grad_dz(d), dy = fresh(dz.n);
    const host_bn *bn = d->of.bn;
    for (int64_t i = 0; i < dz.n; i++) {
        const int64_t k = i % d->of.c;
        const double a = (double)bn->ga[k] * dz.v[i], b = (double)bn->gb[k] * d->of.y[i], c = bn->gc[k];
        dy.v[i] = a + b + c;
        carry(&dy, i, dz, i, bn->ga[k]);
        dy.e[i] = fabs(bn->ga[k]) * dz.e[i] + rounding(3) * (fabs(a) + fabs(b) + fabs(c));
    }
    return dy;
}

en_grad grad_up(variant *v, const host_grad *d, en_bn *bn)
{
    const int64_t c = d->of.c;
    *bn = bn_up(v, d->of.bn);
    return (en_grad){ .stored = up_a(v, d->stored, d->n * d->hw * c), .drop = UP_F(v, d->drop, d->n), .dpooled = UP_F(v, d->dpooled, d->n * c),
                      .act = d->of.act, .gated = d->gated, .gate = UP_F(v, d->gate, d->n * c), .dgate = UP_F(v, d->dgate, d->n * c),
                      .y = up_a(v, d->of.y, d->n * d->hw * c), .bn = bn, .hw = d->hw };
}

bounded forward_sums(const host_bn *h, const float *y, int64_t rows)
{
    const int64_t c = h->c;
    const double gamma = rounding((double)rows + 3);            /* the sum, the subtraction, the square */
    bounded want = fresh(2 * c + 1);
    for (int64_t i = 0; i < rows * c; i++) {
        const double t = (double)y[i] - h->running_mean[i % c];
        want.v[i % c] += t;
        want.e[i % c] += gamma * fabs(t);
        want.v[c + i % c] += t * t;
        want.e[c + i % c] += gamma * t * t;
    }
    want.v[2 * c] = (double)rows;
    return want;
}

void check_forward_sums(variant *v, const en_bn *bn, const host_bn *h, const float *y, int64_t rows)
{
    check_sums(v, "bn->local", DOWN_D(v, bn->local, 2 * h->c + 1), forward_sums(h, y, rows), h->c, h->logical);
}

void check_backward_sums(variant *v, const en_bn *bn, const host_bn *h, bounded dz, const float *y, int64_t rows)
{
    const int64_t c = h->c;
    const double gamma = rounding((double)rows + 3);
    bounded want = fresh(2 * c);
    for (int64_t i = 0; i < rows * c; i++) {
        const double t = (double)y[i] - h->mean[i % c];
        want.v[i % c] += dz.v[i];
        want.e[i % c] += gamma * fabs(dz.v[i]) + dz.e[i];
        carry(&want, i % c, dz, i, 1);
        want.v[c + i % c] += dz.v[i] * t;
        want.e[c + i % c] += gamma * fabs(dz.v[i] * t) + dz.e[i] * fabs(t);
        carry(&want, c + i % c, dz, i, t);
    }
    check_sums(v, "bn->local", DOWN_D(v, bn->local, 2 * c), want, c, h->logical);
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
