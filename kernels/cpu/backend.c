/* backend.c - opening the CPU: which instruction-set build runs here, and the memory that its passes work in. */
#include "backend.h"
#include "conv.h"
#include "kernels/host.h"

#include <omp.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

extern const en_backend_ops cpu_ops_avx512, cpu_ops_avx2, cpu_ops_sse4, cpu_ops_generic;

static bool always(void) { return true; }

/* fastest first */
static const struct { const char *name; bool (*runs_here)(void); const en_backend_ops *ops; } builds[] = {
#if defined(__x86_64__)
    { "avx512", en_runs_avx512, &cpu_ops_avx512 }, { "avx2", en_runs_avx2, &cpu_ops_avx2 }, { "sse4", en_runs_sse4, &cpu_ops_sse4 },
#endif
    { "generic", always, &cpu_ops_generic },
};
enum { N_BUILDS = sizeof builds / sizeof *builds };

const char *en_backend_isa(int index, bool *runs_here)
{
    if (index < 0 || index >= N_BUILDS) return NULL;
    if (runs_here) *runs_here = builds[index].runs_here();
    return builds[index].name;
}

en_status cpu_open(const en_backend_config *config, en_backend **out)
{
    *out = NULL;
    EN_REQUIRE(!config || config->precision != EN_PRECISION_BF16, EN_ENOTSUP, "--precision bf16 needs --device cuda: on a processor activations are fp32");
    const char *isa = config && config->isa ? config->isa : getenv("EN_ISA");
    int pick = -1;
    for (int i = 0; i < N_BUILDS && pick < 0; i++) {
        if (isa && *isa && strcmp(isa, builds[i].name) != 0) continue;
        if (builds[i].runs_here()) pick = i;
        else EN_REQUIRE(!isa || !*isa, EN_ENOTSUP, "this processor has no %s", isa);
    }
    EN_REQUIRE(pick >= 0, EN_ENOTSUP, "no instruction set '%s': avx512, avx2, sse4, generic", isa ? isa : "");

    en_backend *be = calloc(1, sizeof *be);
    cpu_engine *e = calloc(1, sizeof *e);
    const int threads = config && config->threads > 0 ? config->threads : omp_get_max_threads();
    const int lanes = config && config->lanes > 0 ? config->lanes : threads;
    struct cpu_lane *lane = calloc((size_t)lanes, sizeof *lane);
    if (!be || !e || !lane) {
        free(be); free(e); free(lane);
        return en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory for a backend of %d lanes", lanes);
    }
    e->lane = lane;
    *be = (en_backend){ .name = "cpu", .isa = builds[pick].name, .ops = builds[pick].ops, .channel_align = CHANNEL_ALIGN, .dtype = EN_F32,
                        .threads = threads, .lanes = lanes, .slots = 1, .impl = e };
    omp_set_dynamic(0);
    *out = be;
    const en_status s = cpu_reserve(be, &(en_conv_geom){ .n = 1, .h = 1, .w = 1, .oh = 1, .ow = 1, .c = 16, .oc = 16, .stride = 1 });
    if (s != EN_OK) { cpu_close(be); *out = NULL; }
    return s;
}

void cpu_close(en_backend *be)
{
    free(engine(be)->memory);
    free(engine(be)->norms);
    free(engine(be)->lane);
    free(engine(be));
    free(be);
}

/* ---- memory --------------------------------------------------------------------------------------------------------- */

/* 2 MiB alignment and huge pages where the size is worth it: one large tensor is thousands of 4 KiB pages. */
static void *take(size_t bytes)
{
    const size_t huge = (size_t)2 << 20, align = bytes >= huge ? huge : 64;
    bytes = (bytes + align - 1) / align * align;
    void *p = aligned_alloc(align, bytes ? bytes : align);
    if (!p) return NULL;
    if (align == huge) madvise(p, bytes, MADV_HUGEPAGE);
    memset(p, 0, bytes ? bytes : align);
    return p;
}

en_status cpu_alloc(en_backend *be, size_t bytes, void **out)
{
    (void)be;
    *out = take(bytes);
    EN_REQUIRE(*out, EN_ENOMEM, "%.1f MiB of memory are not to be had; a smaller --micro-batch needs less", (double)bytes / 1048576);
    return EN_OK;
}

void cpu_free(en_backend *be, void *p) { (void)be; free(p); }

en_status cpu_upload(en_backend *be, void *dst, const void *host, size_t bytes)
{
    (void)be;
    if (bytes) memcpy(dst, host, bytes);
    return EN_OK;
}

en_status cpu_download(en_backend *be, void *host, const void *src, size_t bytes) { return cpu_upload(be, host, src, bytes); }

en_status cpu_zero(en_backend *be, void *dst, size_t bytes)
{
    FOR_EACH_LANE(be, l) {
        const cpu_range r = lane_range((int64_t)(bytes / 64), l, be->lanes);
        memset((char *)dst + r.first * 64, 0, (size_t)(r.last - r.first) * 64);
    }
    memset((char *)dst + bytes / 64 * 64, 0, bytes % 64);
    return EN_OK;
}

en_status cpu_copy(en_backend *be, void *dst, const void *src, size_t bytes) { return cpu_upload(be, dst, src, bytes); }

en_status cpu_synchronize(en_backend *be) { (void)be; return EN_OK; }

static void grow(size_t *have, int64_t need) { if ((size_t)need > *have) *have = (size_t)need; }
static size_t padded(size_t floats) { return (floats + 64 + 63) / 64 * 64; }     /* a cache line of slack behind each buffer */

/* The scratch of every pass that could see this geometry; the comment at each line names the hungriest one. */
en_status cpu_reserve(en_backend *be, const en_conv_geom *g)
{
    cpu_engine *e = engine(be);
    cpu_sizes s = e->size;
    const int64_t c = (g->c + 15) / 16 * 16, oc = g->oc, k = g->kernel, widest = max64(c, oc);
    grow(&s.stats, 6 * widest);                                            /* join_backward; see row_sums            */
    grow(&s.image, 2 * g->n * widest);                                     /* se_project_backward: dpre and dhid     */
    if (k == 0) {                                                          /* pointwise, projection                  */
        grow(&s.packed, c * oc);
        grow(&s.wgrad, c * oc);
        grow(&s.block, BLOCK_ROWS * widest);
    } else if (g->dense) {                                                 /* conv; see conv.c                       */
        const conv_cut cut = cut_conv(g);
        grow(&s.packed, k * k * c * oc);
        grow(&s.wgrad, k * k * c * oc);
        grow(&s.rows, conv_u_floats(&cut, g) + conv_d_floats(&cut, g));
    } else if (g->c == 3) {                                                /* stem                                   */
        const int64_t window = (k * k * 3 + 7) / 8 * 8;
        grow(&s.packed, window * oc);
        grow(&s.wgrad, window * oc);
        grow(&s.block, BLOCK_ROWS * oc);
        grow(&s.rows, BLOCK_ROWS * window);
    } else {                                                               /* depthwise; see depthwise.c             */
        const int64_t uw = max64((g->ow - 1) * g->stride + k, g->pad + g->w);
        const int64_t dw = max64((g->w - 1 + g->pad) / g->stride, g->ow - 1) + k, ring = (k + g->stride - 1) / g->stride;
        grow(&s.wgrad, k * k * c);
        grow(&s.rows, max64((k + 1) * uw, (ring + 1) * dw + uw + g->w) * c);
    }
    if (memcmp(&s, &e->size, sizeof s) == 0 && e->memory) return EN_OK;

    const size_t per_lane = 2 * padded(s.block) + padded(s.rows) + padded(s.wgrad) + padded(2 * s.stats);
    const size_t floats = padded(s.packed) + padded(s.image) + (size_t)be->lanes * per_lane;
    float *p = take(floats * sizeof(float));
    EN_REQUIRE(p, EN_ENOMEM, "%.1f MiB of scratch memory are not to be had", (double)floats * sizeof(float) / 1048576);
    free(e->memory);
    e->memory = p;
    e->size = s;
    be->scratch_bytes = floats * sizeof(float);
    e->packed = p;     p += padded(s.packed);
    e->per_image = p;  p += padded(s.image);
    for (int l = 0; l < be->lanes; l++) {
        struct cpu_lane *me = &e->lane[l];
        me->block_a = p; p += padded(s.block);
        me->block_b = p; p += padded(s.block);
        me->rows = p;    p += padded(s.rows);
        me->wgrad = p;   p += padded(s.wgrad);
        me->stats = (double *)(void *)p; p += padded(2 * s.stats);
    }
    return EN_OK;
}
