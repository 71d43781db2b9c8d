/* describe.c - what a model is: its layers, its counts, its memory. */
#include "trainer/commands.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { ALIGN = 16 };                           /* of the widest build; counts do not depend on it */

/* 385814752 -> "385,814,752" */
static const char *grouped(int64_t n, char out[32])
{
    char digits[24];
    int written = 0;
    const int length = snprintf(digits, sizeof digits, "%" PRId64, n);
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0 && digits[i - 1] != '-') out[written++] = ',';
        out[written++] = digits[i];
    }
    out[written] = '\0';
    return out;
}

/* ---- the layer table ------------------------------------------------------------------------------------------------ */

typedef struct { int64_t h, w, c; } shape;

typedef struct { const en_model *m; int64_t params, macs; } table;   /* sums of the lines, which the totals must equal */

static int64_t count_at(const en_model *m, int tensor) { return tensor < 0 ? 0 : en_tensor_count(&m->tensors[tensor]); }
static int64_t bn_count(const en_bn_ref *bn)           { return 2 * bn->c; }

static void line(table *t, const char *prefix, const char *name, const char *op, int kernel, int stride, shape in, shape out,
                 int64_t params, int64_t macs)
{
    char full[64], geometry[16] = "", from[40], to[40], params_text[32], macs_text[32];
    snprintf(full, sizeof full, "%s%s%s", prefix, *prefix ? "." : "", name);
    if (kernel) snprintf(geometry, sizeof geometry, "%dx%d /%d", kernel, kernel, stride);
    snprintf(from, sizeof from, "%" PRId64 "x%" PRId64 "x%" PRId64, in.h, in.w, in.c);
    snprintf(to, sizeof to, "%" PRId64 "x%" PRId64 "x%" PRId64, out.h, out.w, out.c);
    printf("%-21s %-20s %-7s %14s -> %-13s %13s %17s\n", full, op, geometry, from, to, grouped(params, params_text),
           grouped(macs, macs_text));
    t->params += params;
    t->macs += macs;
}

static void block_lines(table *t, const en_block *k)
{
    const en_model *m = t->m;
    const shape in = { k->h, k->w, k->ci }, wide = { k->h, k->w, k->mid }, small = { k->oh, k->ow, k->mid },
                out = { k->oh, k->ow, k->co }, pooled = { 1, 1, k->mid };
    char op[40];
    if (k->expand)
        line(t, k->name, "conv_pw", "expand, bn, silu", 1, 1, in, wide, count_at(m, k->w_expand) + bn_count(&k->bn_expand),
             k->h * k->w * k->ci * k->mid);
    line(t, k->name, "conv_dw", "depthwise, bn, silu", k->kernel, k->stride, wide, small, count_at(m, k->w_dw) + bn_count(&k->bn_dw),
         k->oh * k->ow * k->mid * k->kernel * k->kernel);
    if (k->q) {
        snprintf(op, sizeof op, "squeeze to %" PRId64 ", gate", k->q);
        line(t, k->name, "se", op, 0, 0, pooled, pooled, count_at(m, k->w_se_reduce) + count_at(m, k->b_se_reduce)
             + count_at(m, k->w_se_expand) + count_at(m, k->b_se_expand), 2 * k->q * k->mid);
    }
    if (k->skip) snprintf(op, sizeof op, "project, bn, + input");
    else snprintf(op, sizeof op, "project, bn");
    line(t, k->name, k->expand ? "conv_pwl" : "conv_pw", op, 1, 1, small, out, count_at(m, k->w_project) + bn_count(&k->bn_project),
         k->oh * k->ow * k->mid * k->co);
}

static en_status print_layers(const en_model *m)
{
    table t = { .m = m };
    char a[32], b[32], c[32];
    printf("%s: %d x %d x 3 in, %d classes out, width %.4g, depth %.4g, %d blocks, dropout %.4g, drop path %.4g\n\n", m->name,
           m->resolution, m->resolution, m->classes, m->width, m->depth, m->n_blocks, (double)m->dropout, (double)m->drop_path);
    printf("%-21s %-20s %-7s %14s    %-13s %13s %17s\n", "layer", "operation", "kernel", "in", "out", "parameters", "multiply-adds");
    const shape image = { m->stem.h, m->stem.w, 3 }, stem = { m->stem.oh, m->stem.ow, m->stem.oc };
    line(&t, "", "conv_stem", "conv, bn, silu", m->stem.kernel, m->stem.stride, image, stem,
         count_at(m, m->stem.weight) + bn_count(&m->stem.bn), stem.h * stem.w * stem.c * 3 * m->stem.kernel * m->stem.kernel);
    for (int i = 0; i < m->n_blocks; i++) block_lines(&t, &m->blocks[i]);
    const shape last = { m->head.h, m->head.w, m->head.ci }, head = { m->head.h, m->head.w, m->head.co },
                pooled = { 1, 1, m->head.co }, logits = { 1, 1, m->classes };
    line(&t, "", "conv_head", "conv, bn, silu, mean", 1, 1, last, head, count_at(m, m->head.weight) + bn_count(&m->head.bn),
         last.h * last.w * last.c * head.c);
    line(&t, "", "classifier", "dropout, dense", 0, 0, pooled, logits, count_at(m, m->head.fc_weight) + count_at(m, m->head.fc_bias),
         pooled.c * logits.c);
    EN_REQUIRE(t.params == m->params_trainable && t.macs == m->macs, EN_EINVAL,
               "the lines add up to %" PRId64 " parameters and %" PRId64 " multiply-adds, the model says %" PRId64 " and %" PRId64,
               t.params, t.macs, m->params_trainable, m->macs);
    printf("%-21s %-61s %13s %17s\n\n", "total", "", grouped(m->params_trainable, a), grouped(m->macs, b));
    printf("batch-norm statistics %s, which are not trained; multiply-adds are those of one image, convolutions and classifier\n",
           grouped(m->params_bn_stats, c));
    return EN_OK;
}

/* ---- memory ----------------------------------------------------------------------------------------------------------- */

static void print_state_memory(const en_model *m)
{
    const double mib = 1.0 / (1 << 20), params = 4.0 * (double)m->param_elems * mib, stats = 4.0 * (double)m->stat_elems * mib;
    static const char *const copies[] = { "weights", "gradients", "mean square (RMSProp)", "momentum (RMSProp)", "averaged weights (--ema)" };
    printf("\nmemory of a rank, MiB, with channels aligned to %d\n", m->channel_align);
    for (size_t i = 0; i < sizeof copies / sizeof *copies; i++) printf("  %-42s %10.1f\n", copies[i], params);
    printf("  %-42s %10.1f\n", "running statistics and their average", 2 * stats);
    printf("  %-42s %10.1f\n", "state in all", (double)(sizeof copies / sizeof *copies) * params + 2 * stats);
}

/* ---- the command ------------------------------------------------------------------------------------------------------- */

static void print_json(const en_model *m)
{
    printf("{\"model\": \"%s\", \"resolution\": %d, \"params_trainable\": %" PRId64 ", \"params_bn_stats\": %" PRId64
           ", \"macs\": %" PRId64 "}", m->row->name, m->resolution, m->params_trainable, m->params_bn_stats, m->macs);
}

static en_status print_list(bool json)
{
    char a[32], b[32];
    if (json) printf("{\"models\": [");
    else printf("%-18s %-6s %10s %13s %17s %8s\n", "model", "short", "resolution", "parameters", "multiply-adds", "dropout");
    const en_model_row *row;
    for (int i = 0; (row = en_model_row_at(i)); i++) {
        en_model *m;
        EN_TRY(en_model_build(row, NULL, ALIGN, &m), "building %s", row->name);
        if (json) {
            printf(i ? ",\n " : "\n ");
            print_json(m);
        } else {
            printf("%-18s %-6s %10d %13s %17s %8.4g\n", row->name, row->alias, m->resolution, grouped(m->params_trainable, a),
                   grouped(m->macs, b), (double)m->dropout);
        }
        en_model_free(m);
    }
    printf(json ? "\n]}\n" : "\nAny of them takes --width, --depth, --phi, --image-size and --classes.\n");
    return EN_OK;
}

en_status en_command_describe(const en_options *o)
{
    EN_REQUIRE(!o->operands || !en_option_given(o, "model"), EN_EUSAGE, "the model is named twice, '%s' and --model %s: leave one out",
               o->operand[0], o->model);
    EN_REQUIRE(!o->json || !o->memory, EN_EUSAGE, "--memory prints a table; leave out --json or --memory");
    if (o->list) return print_list(o->json);

    en_model *m;
    en_status status = EN_OK;
    EN_TRY(en_model_from_options(o, 0, ALIGN, &m), "describing it");
    if (o->json) {
        print_json(m);
        putchar('\n');
    } else if (o->memory) {
        printf("%s: %d x %d x 3 in, %d classes out\n", m->name, m->resolution, m->resolution, m->classes);
        print_state_memory(m);
        EN_TRY_OUT(en_plan_describe(o, stdout), "planning the memory of %s", m->name);
    } else {
        EN_TRY_OUT(print_layers(m), "listing the layers of %s", m->name);
    }
out:
    en_model_free(m);
    return status;
}
