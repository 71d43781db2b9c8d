#include "kernels/cuda/footprint.h"

#include <stdlib.h>
#include <string.h>

static const struct { const char *name; unsigned fold; } names[] = {
    { "gram", FOLD_GRAM }, { "five_sum", FOLD_FIVE_SUM }, { "depthwise", FOLD_DEPTHWISE }, { "expand", FOLD_EXPAND }, { "rows", FOLD_ROWS },
};

en_status en_cuda_folds(const char *text, unsigned *out)
{
    const char *named = getenv("EN_FOLDS");
    if (named && *named) text = named;
    *out = FOLD_ALL;
    if (!text || !*text || strcmp(text, "all") == 0) return EN_OK;
    *out = 0;
    if (strcmp(text, "none") == 0) return EN_OK;
    for (const char *p = text; *p;) {
        const size_t n = strcspn(p, ",");
        unsigned fold = 0;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            if (strlen(names[i].name) == n && strncmp(names[i].name, p, n) == 0) fold = names[i].fold;
        EN_REQUIRE(fold, EN_EUSAGE, "no fold '%.*s': all, none, or some of gram,five_sum,depthwise,expand,rows", (int)n, p);
        *out |= fold;
        p += n + (p[n] == ',');
    }
    return EN_OK;
}

static int64_t least_values(void)
{
    const char *named = getenv("EN_FOLD_LEAST");
    return named ? (int64_t)atof(named) : (int64_t)8 << 20;
}

bool en_cuda_fold_pays(unsigned folds, int64_t rows, int64_t ci, int64_t co)
{
    return (folds & (FOLD_GRAM | FOLD_EXPAND)) && rows > ci * ci / 40 && rows * co >= least_values();
}

int64_t en_cuda_fold_floats(unsigned folds, int64_t rows, int64_t ci, int64_t co)
{
    return en_cuda_fold_pays(folds, rows, ci, co) ? ci + co + ci * co : 0;
}

/* The most rows, up to these, that do not fold: a smaller batch than was planned for may have to form its gradient. */
static int64_t rows_unfolded(unsigned folds, int64_t rows, int64_t ci, int64_t co)
{
    if (!(folds & FOLD_EXPAND) || !en_cuda_fold_pays(folds, rows, ci, co)) return rows;
    const int64_t few = ci * ci / 40, small = (least_values() + co - 1) / co, most = few > small ? few : small;
    return most < rows ? most : rows;
}

static size_t piece(en_dtype type, int64_t values) { return ((size_t)values * en_dtype_bytes(type) + 255) / 256 * 256; }

size_t en_cuda_project_dy(en_dtype type, int64_t rows, int64_t ci) { return piece(type, rows * ci); }

size_t en_cuda_conv_dy(en_dtype type, const en_conv_geom *g) { return piece(type, g->n * g->h * g->w * g->c); }

size_t en_cuda_workspace(en_dtype type, unsigned folds, en_work kind, const en_conv_geom *g)
{
    const int64_t rows = g->n * g->h * g->w;
    switch (kind) {
    case EN_WORK_POINTWISE_BACKWARD: return piece(type, rows_unfolded(folds, rows, g->c, g->oc) * g->oc);               /* dy */
    case EN_WORK_POOLED_BACKWARD:    return piece(type, rows * g->oc);                                                  /* dy */
    case EN_WORK_PROJECT:            return en_cuda_project_dy(type, rows, g->c) + piece(type, rows * g->oc);
    case EN_WORK_DEPTHWISE_BACKWARD: return folds & FOLD_DEPTHWISE ? 0 : piece(type, g->n * g->oh * g->ow * g->oc);     /* dy */
    case EN_WORK_CONV:               return en_cuda_conv_dy(type, g) + piece(type, g->n * g->oh * g->ow * g->oc);
    }
    return 0;
}

/* ---- planning without a GPU ---------------------------------------------------------------------------------------------- */

static unsigned *folds_of(en_backend *be) { return be->impl; }
static size_t plan_workspace(en_backend *be, en_work kind, const en_conv_geom *g) { return en_cuda_workspace(be->dtype, *folds_of(be), kind, g); }
static int64_t plan_fold(en_backend *be, int64_t rows, int64_t ci, int64_t co)    { return en_cuda_fold_floats(*folds_of(be), rows, ci, co); }

static void plan_close(en_backend *be)
{
    free(be->impl);
    free(be);
}

en_status en_cuda_plan_open(const en_backend_config *config, en_backend **out)
{
    static const struct en_backend_ops ops = { .close = plan_close, .workspace_bytes = plan_workspace, .fold_floats = plan_fold };
    unsigned chosen;
    *out = NULL;
    EN_TRY(en_cuda_folds(config->folds, &chosen), "folds");
    en_backend *be = calloc(1, sizeof *be);
    unsigned *impl = malloc(sizeof *impl);
    if (!be || !impl) {
        free(be);
        free(impl);
        return en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory for a plan");
    }
    *impl = chosen;
    *be = (en_backend){ .name = "cuda", .isa = "", .ops = &ops, .channel_align = 8, .dtype = config->precision == EN_PRECISION_F32 ? EN_F32 : EN_BF16,
                        .threads = 1, .lanes = 1, .gated = (chosen & FOLD_FIVE_SUM) != 0, .slots = 2, .impl = impl };
    be->u8 = be->dtype == EN_BF16;
    *out = be;
    return EN_OK;
}
