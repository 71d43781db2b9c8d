/* search/report.c - the ranking of a search: table, search.csv, search.json, search.svg. */
#include "trainer/search/search.h"

#include "trainer/json.h"
#include "trainer/plot/plot.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const en_grid *sorted;                                /* what the order is of; qsort has no room for it */

static int by(double a, double b) { return (a > b) - (a < b); }

static int compare(const void *left, const void *right)
{
    const int i = *(const int *)left, k = *(const int *)right;
    const en_candidate *a = &sorted->c[i], *b = &sorted->c[k];
    static const int place[] = { [EN_DONE] = 0, [EN_OPEN] = 1, [EN_FAILED] = 2 };
    int first = place[a->result.outcome] - place[b->result.outcome];
    if (!first && a->result.outcome == EN_DONE) first = by(b->result.top1, a->result.top1);
    if (!first && a->result.outcome == EN_DONE) first = by(b->result.top5, a->result.top5);
    if (!first && a->result.outcome == EN_DONE) first = by((double)a->macs, (double)b->macs);
    return first ? first : i - k;
}

void en_search_rank(const en_grid *g, int *order)
{
    for (int i = 0; i < g->n; i++) order[i] = i;
    sorted = g;
    qsort(order, (size_t)g->n, sizeof *order, compare);
}

/* "b0 --width 0.5": what the factors are of */
static const char *base_of(const en_options *o, char text[160])
{
    int n = snprintf(text, 80, "%.70s", o->model);
    if (o->width > 0) n += snprintf(text + n, 24, " --width %.6g", o->width);
    if (o->depth > 0) n += snprintf(text + n, 24, " --depth %.6g", o->depth);
    if (o->image_size > 0) snprintf(text + n, 32, " --image-size %d", (int)o->image_size);
    return text;
}

static const char *outcome_of(const en_candidate *c)
{
    static const char *const names[] = { [EN_OPEN] = "open", [EN_DONE] = "done", [EN_FAILED] = "failed" };
    return names[c->result.outcome];
}

/* ---- table ------------------------------------------------------------------------------------------------------------- */

static void print_size(FILE *f, const en_candidate *c)
{
    fprintf(f, "%6.4g %6.4g %6.4g  %7.4f  %10.3f %13.2f %5d px", c->alpha, c->beta, c->gamma, c->product, (double)c->params / 1e6, (double)c->macs / 1e6, c->side);
}

static const char *const head = " alpha   beta  gamma  product  parameters multiply-adds     side";
static const char *const unit = "                                       M             M";

void en_search_print(const en_options *o, const en_grid *g, void *stream)
{
    FILE *f = stream;
    char base[160];
    int *order = malloc((size_t)g->n * sizeof *order);
    if (!order) return;
    en_search_rank(g, order);
    fprintf(f, "\nrank %s   top-1   top-5  images/s\n     %s               %%       %%\n", head, unit);
    for (int i = 0; i < g->n; i++) {
        const en_candidate *c = &g->c[order[i]];
        if (c->result.outcome == EN_DONE) fprintf(f, "%4d ", i + 1);
        else fprintf(f, "   - ");
        print_size(f, c);
        if (c->result.outcome == EN_DONE) fprintf(f, " %7.2f %7.2f %9.0f\n", 100 * c->result.top1, 100 * c->result.top5, c->result.images_per_s);
        else if (c->result.outcome == EN_FAILED) fprintf(f, "   failed: %s\n", c->result.reason);
        else fprintf(f, "   not trained yet\n");
    }
    const en_candidate *best = &g->c[order[0]];
    if (best->result.outcome == EN_DONE)
        fprintf(f, "\nThe best: --alpha %.7g --beta %.7g --gamma %.7g; with them `effnet train --model %s --phi 2` spends about four times the base's multiply-adds, --phi 3 eight times.\n",
                best->alpha, best->beta, best->gamma, base_of(o, base));
    free(order);
}

void en_search_list(const en_options *o, const en_grid *g)
{
    if (o->json) {
        en_search_print_json(o, g, stdout);
        return;
    }
    printf("%s\n%s\n", head, unit);
    for (int i = 0; i < g->n; i++) {
        print_size(stdout, &g->c[i]);
        if (g->c[i].result.outcome == EN_FAILED) printf("   cannot be trained: %s", g->c[i].result.reason);
        printf("\n");
    }
    printf("\n%d candidate%s of a grid of %" PRId64 ": alpha * beta^2 * gamma^2 within %g of 2.  Multiply-adds are those of one training image.\n", g->n, g->n == 1 ? "" : "s",
           g->grid, o->tolerance);
}

/* ---- JSON ---------------------------------------------------------------------------------------------------------------- */

static void put_text(FILE *f, const char *text)
{
    char c[EN_JSON_CHAR];
    fputc('"', f);
    for (; *text; text++) fputs(en_json_char(*text, c), f);
    fputc('"', f);
}

static void put_result(FILE *f, const en_result *r)
{
    if (r->outcome == EN_FAILED) fprintf(f, ", \"reason\": "), put_text(f, r->reason);
    if (r->outcome != EN_DONE) return;
    fprintf(f, ", \"step\": %" PRId64 ", \"top1\": %.17g, \"top5\": %.17g, \"loss\": ", r->step, r->top1, r->top5);
    fprintf(f, isfinite(r->loss) ? "%.17g" : "null", r->loss);
    fprintf(f, ", \"images_per_s\": %.6g, \"seconds\": %.6g, \"weights\": \"%016" PRIx64 "\"", r->images_per_s, r->seconds, r->weights);
}

void en_search_print_json(const en_options *o, const en_grid *g, void *stream)
{
    FILE *f = stream;
    char budget[48];
    int *order = malloc((size_t)g->n * sizeof *order);
    if (!order) return;
    en_search_rank(g, order);
    en_span_write(&o->budget, budget, sizeof budget);
    fprintf(f, "{\"model\": "), put_text(f, o->model);
    fprintf(f, ", \"width\": %.9g, \"depth\": %.9g, \"budget\": \"%s\", \"tolerance\": %.9g, \"global_batch\": %" PRId64 ", \"candidates\": [", o->width, o->depth, budget,
            o->tolerance, o->global_batch);
    for (int i = 0; i < g->n; i++) {
        const en_candidate *c = &g->c[order[i]];
        fprintf(f, "%s\n{\"name\": \"%s\", \"outcome\": \"%s\"", i ? "," : "", c->name, outcome_of(c));
        if (c->result.outcome == EN_DONE) fprintf(f, ", \"rank\": %d", i + 1);
        fprintf(f, ", \"alpha\": %.7g, \"beta\": %.7g, \"gamma\": %.7g, \"product\": %.9g, \"resolution\": %d, \"params_trainable\": %" PRId64 ", \"macs\": %" PRId64, c->alpha,
                c->beta, c->gamma, c->product, c->side, c->params, c->macs);
        put_result(f, &c->result);
        fputc('}', f);
    }
    fprintf(f, "\n]}\n");
    free(order);
}

/* ---- files ------------------------------------------------------------------------------------------------------------------ */

static void put_csv(const en_grid *g, void *stream)
{
    FILE *f = stream;
    int *order = malloc((size_t)g->n * sizeof *order);
    if (!order) return;
    en_search_rank(g, order);
    fprintf(f, "rank,alpha,beta,gamma,product,params_trainable,macs,resolution,outcome,top1,top5,loss,step,images_per_s,seconds,weights,reason\n");
    for (int i = 0; i < g->n; i++) {
        const en_candidate *c = &g->c[order[i]];
        const en_result *r = &c->result;
        if (r->outcome == EN_DONE) fprintf(f, "%d", i + 1);
        fprintf(f, ",%.7g,%.7g,%.7g,%.9g,%" PRId64 ",%" PRId64 ",%d,%s,", c->alpha, c->beta, c->gamma, c->product, c->params, c->macs, c->side, outcome_of(c));
        if (r->outcome == EN_DONE) fprintf(f, "%.9g,%.9g,%.9g,%" PRId64 ",%.6g,%.6g,%016" PRIx64 ",\n", r->top1, r->top5, r->loss, r->step, r->images_per_s, r->seconds, r->weights);
        else {
            fprintf(f, ",,,,,,,\"");
            for (const char *p = r->reason; *p; p++) fputs(*p == '"' ? "\"\"" : (char[]){ *p == '\n' ? ' ' : *p, 0 }, f);
            fprintf(f, "\"\n");
        }
    }
    free(order);
}

static en_status write_whole(const char *path, const en_options *o, const en_grid *g, bool json)
{
    char tmp[4200];
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    FILE *f = fopen(tmp, "we");
    EN_REQUIRE(f, EN_EIO, "cannot create %s: %s", tmp, strerror(errno));
    if (json) en_search_print_json(o, g, f);
    else put_csv(g, f);
    errno = 0;
    bool ok = !ferror(f);
    int error = ok ? 0 : EIO;
    if (fclose(f) != 0) ok = false, error = errno;
    if (ok && rename(tmp, path) != 0) ok = false, error = errno;
    if (!ok) remove(tmp);
    EN_REQUIRE(ok, EN_EIO, "cannot write %s: %s", path, strerror(error));
    return EN_OK;
}

static en_status draw(const char *path, const en_options *o, const en_grid *g)
{
    double *x = calloc((size_t)g->n, sizeof *x), *y = calloc((size_t)g->n, sizeof *y);
    char (*text)[64] = calloc((size_t)g->n, sizeof *text), title[240], base[160], note[300], budget[48];
    const char **label = calloc((size_t)g->n, sizeof *label);
    en_status status = EN_OK;
    EN_REQUIRE_OUT(x && y && text && label, EN_ENOMEM, "no memory for %s", path);
    int done = 0;
    for (int i = 0; i < g->n; i++) {
        const en_candidate *c = &g->c[i];
        if (c->result.outcome != EN_DONE) continue;
        x[done] = (double)c->macs / 1e6, y[done] = 100 * c->result.top1;
        snprintf(text[done], sizeof *text, "%.4g \xc2\xb7 %.4g \xc2\xb7 %.4g", c->alpha, c->beta, c->gamma);
        label[done] = text[done];
        done++;
    }
    en_span_write(&o->budget, budget, sizeof budget);
    snprintf(title, sizeof title, "Compound scaling of %s: accuracy against multiply-adds", base_of(o, base));
    snprintf(note, sizeof note, "effnet search: %d of %d candidates, each trained for %s%s, %" PRId64 " images a step. Beside each point: alpha \xc2\xb7 beta \xc2\xb7 gamma (depth, "
             "width, resolution).", done, g->n, budget, o->budget.unit == EN_SPAN_STEPS ? " steps" : "", o->global_batch);
    const en_plot_series s = { .style = EN_PLOT_POINTS, .x = x, .y = y, .n = done, .label = label };
    EN_TRY_OUT(en_plot_write(path, &(en_plot){ .title = title, .x_title = "million multiply-adds a training image", .y_title = "validation top-1, %", .note = note, .series = &s,
                                               .n_series = 1 }), "the figure");
out:
    free(x);
    free(y);
    free(text);
    free(label);
    return status;
}

en_status en_search_write(const en_options *o, const en_grid *g)
{
    char path[4100];
    snprintf(path, sizeof path, "%s/search.csv", o->run);
    EN_TRY(write_whole(path, o, g, false), "the table");
    snprintf(path, sizeof path, "%s/search.json", o->run);
    EN_TRY(write_whole(path, o, g, true), "the table");
    snprintf(path, sizeof path, "%s/search.svg", o->run);
    EN_TRY(draw(path, o, g), "the figure");
    return EN_OK;
}
