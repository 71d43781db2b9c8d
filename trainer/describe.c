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

static const char *act_name(en_act a)
{
    static const char *const names[] = { [EN_ACT_NONE] = "", [EN_ACT_SILU] = ", silu", [EN_ACT_RELU] = ", relu", [EN_ACT_RELU6] = ", relu6" };
    return names[a];
}

static int64_t count_at(const en_model *m, int tensor) { return tensor < 0 ? 0 : en_tensor_count(&m->tensors[tensor]); }
static int64_t area(shape s)                           { return s.h * s.w; }

static void line(table *t, const char *name, const char *op, int kernel, int stride, shape in, shape out, int64_t params, int64_t macs)
{
    char geometry[16] = "", from[40], to[40], params_text[32], macs_text[32];
    if (kernel) snprintf(geometry, sizeof geometry, "%dx%d /%d", kernel, kernel, stride);
    snprintf(from, sizeof from, "%" PRId64 "x%" PRId64 "x%" PRId64, in.h, in.w, in.c);
    snprintf(to, sizeof to, "%" PRId64 "x%" PRId64 "x%" PRId64, out.h, out.w, out.c);
    printf("%-21s %-29s %-7s %14s -> %-13s %13s %17s\n", name, op, geometry, from, to, grouped(params, params_text), grouped(macs, macs_text));
    t->params += params;
    t->macs += macs;
}

/* A weight, under its own name, and what comes with it: a batch norm's gamma and beta, or a bias.  positions: of the kernel. */
static void weight_line(table *t, int weight, const char *op, int kernel, int stride, shape in, shape out, int64_t more_params, int64_t positions)
{
    char name[sizeof t->m->tensors->name];
    snprintf(name, sizeof name, "%s", t->m->tensors[weight].name);
    char *suffix = strrchr(name, '.');
    if (suffix) *suffix = '\0';
    const int64_t n = count_at(t->m, weight);
    line(t, name, op, kernel, stride, in, out, n + more_params, n * positions);
}

static void block_lines(table *t, const en_block *k)
{
    const en_model *m = t->m;
    const shape in = { k->h, k->w, k->ci }, wide = { k->eh, k->ew, k->expand ? k->mid : k->ci }, small = { k->oh, k->ow, k->mid },
                out = { k->oh, k->ow, k->co }, pooled = { 1, 1, k->mid };
    const char *add = k->skip ? ", + input" : k->w_shortcut >= 0 ? ", + shortcut" : "";
    char op[64];
    if (k->expand) {
        snprintf(op, sizeof op, "%s, bn%s", k->kind == EN_BLOCK_BOTTLENECK ? "reduce" : "expand", act_name(m->act));
        weight_line(t, k->w_expand, op, 1, k->expand_stride, in, wide, 2 * k->bn_expand.c, area(wide));
    }
    snprintf(op, sizeof op, "%s, bn%s%s", en_block_is_depthwise(k) ? "depthwise" : "conv", act_name(m->act), k->w_project < 0 ? add : "");
    weight_line(t, k->w_spatial, op, k->kernel, k->stride, wide, small, 2 * k->bn_spatial.c, area(small));
    if (k->q) {
        char name[64];
        const int64_t weights = count_at(m, k->w_se_reduce) + count_at(m, k->w_se_expand);
        snprintf(name, sizeof name, "%s.se", k->name);
        snprintf(op, sizeof op, "squeeze to %" PRId64 ", gate", k->q);
        line(t, name, op, 0, 0, pooled, pooled, weights + count_at(m, k->b_se_reduce) + count_at(m, k->b_se_expand), weights);
    }
    if (k->w_project >= 0) {
        snprintf(op, sizeof op, "project, bn%s%s%s", act_name(k->act_project), add, act_name(k->act_out));
        weight_line(t, k->w_project, op, 1, 1, small, out, 2 * k->bn_project.c, area(out));
    }
    if (k->w_shortcut >= 0) weight_line(t, k->w_shortcut, "shortcut, bn", 1, k->stride * k->expand_stride, in, out, 2 * k->bn_shortcut.c, area(out));
}

static void stem_lines(table *t)
{
    const en_model *m = t->m;
    const shape image = { m->stem.h, m->stem.w, 3 }, stem = { m->stem.oh, m->stem.ow, m->stem.oc }, pool = { m->pool.oh, m->pool.ow, m->stem.oc };
    char op[64];
    snprintf(op, sizeof op, "conv, bn%s", act_name(m->act));
    weight_line(t, m->stem.weight, op, m->stem.kernel, m->stem.stride, image, stem, 2 * m->stem.bn.c, area(stem));
    if (m->pool.kernel) line(t, "maxpool", "largest", m->pool.kernel, m->pool.stride, stem, pool, 0, 0);
}

static void head_lines(table *t)
{
    const en_model *m = t->m;
    const shape last = { m->head.h, m->head.w, m->head.ci }, head = { m->head.h, m->head.w, m->head.co }, pooled = { 1, 1, m->head.co },
                logits = { 1, 1, m->classes };
    char op[64];
    snprintf(op, sizeof op, "conv, bn%s, mean", act_name(m->act));
    if (m->head.weight >= 0) weight_line(t, m->head.weight, op, 1, 1, last, head, 2 * m->head.bn.c, area(last));
    else line(t, "global_pool", "mean", 0, 0, last, pooled, 0, 0);
    weight_line(t, m->head.fc_weight, "dropout, dense", 0, 0, pooled, logits, count_at(m, m->head.fc_bias), 1);
}

static en_status print_layers(const en_model *m)
{
    table t = { .m = m };
    char a[32], b[32], c[32];
    printf("%s: %d x %d x 3 in, %d classes out, width %.4g, depth %.4g, %d blocks, dropout %.4g, drop path %.4g\n", m->name,
           m->resolution, m->resolution, m->classes, m->width, m->depth, m->n_blocks, (double)m->dropout, (double)m->drop_path);
    printf("padding %s, batch norm with epsilon %g and momentum %g%s; its authors train at %d px, evaluate at %d\n\n",
           m->same_padding ? "SAME" : "symmetric", (double)m->bn_eps, (double)m->bn_momentum,
           m->bn_unbiased_running ? ", running variance n/(n-1)" : "", m->row->resolution, m->row->eval_resolution);
    printf("%-21s %-29s %-7s %14s    %-13s %13s %17s\n", "layer", "operation", "kernel", "in", "out", "parameters", "multiply-adds");
    stem_lines(&t);
    for (int i = 0; i < m->n_blocks; i++) block_lines(&t, &m->blocks[i]);
    head_lines(&t);
    EN_REQUIRE(t.params == m->params_trainable && t.macs == m->macs, EN_EINVAL,
               "the lines add up to %" PRId64 " parameters and %" PRId64 " multiply-adds, the model says %" PRId64 " and %" PRId64,
               t.params, t.macs, m->params_trainable, m->macs);
    printf("%-21s %-70s %13s %17s\n\n", "total", "", grouped(m->params_trainable, a), grouped(m->macs, b));
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
    else printf("%-18s %-6s %7s %7s %13s %17s %8s\n", "model", "short", "trained", "at eval", "parameters", "multiply-adds", "dropout");
    const en_model_row *row;
    const en_model_overrides at_evaluation = { .dropout = -1, .drop_path = -1, .evaluation = true };
    for (int i = 0; (row = en_model_row_at(i)); i++) {
        en_model *m;
        EN_TRY(en_model_build(row, &at_evaluation, ALIGN, &m), "building %s", row->name);
        if (json) {
            printf(i ? ",\n " : "\n ");
            print_json(m);
        } else {
            printf("%-18s %-6s %7d %7d %13s %17s %8.4g\n", row->name, row->alias, row->resolution, row->eval_resolution,
                   grouped(m->params_trainable, a), grouped(m->macs, b), (double)m->dropout);
        }
        en_model_free(m);
    }
    printf(json ? "\n]}\n" : "\nMultiply-adds are those of one image at evaluation.  Any of them takes --width, --depth, --resolution, --phi,\n"
                              "--image-size and --classes.\n");
    return EN_OK;
}

en_status en_command_describe(const en_options *o)
{
    EN_REQUIRE(!o->operands || !en_option_given(o, "model"), EN_EUSAGE, "the model is named twice, '%s' and --model %s: leave one out",
               o->operand[0], o->model);
    EN_REQUIRE(!o->json || !o->memory, EN_EUSAGE, "--memory prints a table; leave out --json or --memory");
    EN_REQUIRE(o->memory || !*o->freeze, EN_EUSAGE, "--freeze changes the memory plan: give --memory too, or leave it out");
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
