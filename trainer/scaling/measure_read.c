/* scaling/measure_read.c - what runs wrote, as numbers: lines of metrics.jsonl, and what `effnet bench comm --json` printed.
 *
 * Both are this program's own words, with flat objects and known names, so a name is looked for within its object.  What is missing or no
 * number is refused with the place, since a run that was killed leaves half a file. */
#define _GNU_SOURCE
#include "trainer/scaling/measure.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BYTES = 1 << 28, SHOWN = 80 };

en_status en_text_read(const char *path, char **text)
{
    en_status status = EN_OK;
    size_t used = 0, room = 1 << 16;
    *text = malloc(room + 1);
    EN_REQUIRE(*text, EN_ENOMEM, "no memory for %s", path);
    FILE *f = fopen(path, "rb");
    EN_REQUIRE_OUT(f, EN_EIO, "%s cannot be read: %s", path, strerror(errno));
    for (size_t got; (got = fread(*text + used, 1, room - used, f)) > 0;) {
        used += got;
        if (used < room) continue;
        char *more = room < MOST_BYTES ? realloc(*text, 2 * room + 1) : NULL;
        EN_REQUIRE_OUT(more, EN_ENOMEM, "%s is too long", path);
        *text = more;
        room *= 2;
    }
    EN_REQUIRE_OUT(!ferror(f), EN_EIO, "%s cannot be read: %s", path, strerror(errno));
    (*text)[used] = 0;
    fclose(f);
    return EN_OK;
out:
    if (f) fclose(f);
    free(*text);
    *text = NULL;
    return status;
}

/* The number behind "name": in [object, end); NAN: null, or it is not there. */
static double number_of(const char *object, const char *end, const char *name)
{
    char key[80];
    snprintf(key, sizeof key, "\"%s\":", name);
    const char *at = memmem(object, (size_t)(end - object), key, strlen(key));
    if (!at) return NAN;
    at += strlen(key);
    char *rest;
    const double v = strchr("-0123456789", *at) && *at ? strtod(at, &rest) : NAN;
    return isfinite(v) && rest <= end ? v : NAN;
}

static bool says(const char *object, const char *end, const char *what)
{
    return memmem(object, (size_t)(end - object), what, strlen(what)) != NULL;
}

/* ---- metrics.jsonl --------------------------------------------------------------------------------------------------------- */

static en_status take_step(const char *path, const char *p, const char *end, int64_t warm, en_run_lines *out)
{
    const double step = number_of(p, end, "step");
    EN_REQUIRE(step == out->n_losses + 1, EN_EDATA, "%s: step %d is missing or stands twice: '%.*s'", path, out->n_losses + 1, (int)(end - p < SHOWN ? end - p : SHOWN), p);
    const en_step_line l = { .step = out->n_losses + 1, .loss = number_of(p, end, "loss"), .images_per_s = number_of(p, end, "images_per_s"),
                             .forward_s = number_of(p, end, "forward_s"), .backward_s = number_of(p, end, "backward_s"),
                             .bn_s = number_of(p, end, "bn_comm_s"), .grads_s = number_of(p, end, "grad_comm_exposed_s"),
                             .update_s = number_of(p, end, "optimizer_s") };
    EN_REQUIRE(l.images_per_s > 0 && l.forward_s >= 0 && l.backward_s >= 0 && l.grads_s >= 0 && l.update_s >= 0, EN_EDATA,
               "%s: step %" PRId64 " lacks a time", path, l.step);
    double *losses = realloc(out->loss, (size_t)(out->n_losses + 1) * sizeof *losses);
    EN_REQUIRE(losses, EN_ENOMEM, "no memory for %s", path);
    out->loss = losses;
    losses[out->n_losses++] = l.loss;
    if (l.step <= warm) return EN_OK;
    en_step_line *lines = realloc(out->line, (size_t)(out->n + 1) * sizeof *lines);
    EN_REQUIRE(lines, EN_ENOMEM, "no memory for %s", path);
    out->line = lines;
    lines[out->n++] = l;
    return EN_OK;
}

static bool add_spread(const char *p, const char *end, const char *key, en_spread *to)
{
    char name[64];
    const double mean = number_of(p, end, key);
    snprintf(name, sizeof name, "%s_least", key);
    const double low = number_of(p, end, name);
    snprintf(name, sizeof name, "%s_most", key);
    const double high = number_of(p, end, name);
    to->mean += mean, to->low += low, to->high += high;
    return isfinite(mean) && isfinite(low) && isfinite(high);
}

static en_status take_account(const char *path, const char *p, const char *end, int64_t warm, en_account_report *out)
{
    const double step = number_of(p, end, "step"), steps = number_of(p, end, "steps"), ranks = number_of(p, end, "ranks");
    EN_REQUIRE(step >= 1 && steps >= 1 && steps <= step && ranks >= 1, EN_EDATA, "%s: an account of nobody's steps: '%.*s'", path, (int)(end - p < SHOWN ? end - p : SHOWN), p);
    if (step <= (double)warm) return EN_OK;
    EN_REQUIRE(step - steps >= (double)warm, EN_EDATA, "%s: an account of the steps up to %g begins within the warm-up", path, step);
    bool whole = add_spread(p, end, "wall_s", &out->wall);
    for (int i = 0; i < EN_COSTS; i++) whole &= add_spread(p, end, en_cost_key[i], &out->of[i]);
    EN_REQUIRE(whole, EN_EDATA, "%s: the account of the steps up to %g lacks a time", path, step);
    out->steps += (int64_t)steps;
    out->ranks = (int)ranks;
    return EN_OK;
}

en_status en_run_lines_parse(const char *path, const char *text, int64_t warm, en_run_lines *out)
{
    en_status status = EN_OK;
    *out = (en_run_lines){ 0 };
    for (const char *p = text, *end; *p; p = end + 1) {
        end = strchrnul(p, '\n');
        EN_REQUIRE_OUT(*end && *p == '{' && end[-1] == '}', EN_EDATA, "%s: '%.*s' is no line of metrics", path, (int)(end - p < SHOWN ? end - p : SHOWN), p);
        if (says(p, end, "\"kind\":\"train\"")) EN_TRY_OUT(take_step(path, p, end, warm, out), "a step");
        else if (says(p, end, "\"kind\":\"account\"")) EN_TRY_OUT(take_account(path, p, end, warm, &out->account), "an account");
    }
    EN_REQUIRE_OUT(out->n > 0 && out->account.steps == out->n, EN_EDATA, "%s: %d steps after the first %" PRId64 ", and accounts of %" PRId64, path, out->n, warm,
                   out->account.steps);
    return EN_OK;
out:
    en_run_lines_free(out);
    return status;
}

en_status en_meetings_parse(const char *path, const char *text, int64_t warm, double **seconds, int *n)
{
    static const char head[] = "step,seconds\n";
    EN_REQUIRE(strncmp(text, head, sizeof head - 1) == 0, EN_EDATA, "%s is not what `effnet train --alone` writes", path);
    int64_t wanted = 1;
    for (const char *p = text + sizeof head - 1; *p; wanted++) {
        char *end;
        const int64_t step = strtoll(p, &end, 10);
        const double s = *end == ',' ? strtod(end + 1, &end) : NAN;
        EN_REQUIRE(step == wanted && s > 0 && isfinite(s) && *end == '\n', EN_EDATA, "%s: step %" PRId64 " is missing: '%.*s'", path, wanted, (int)strcspn(p, "\n"), p);
        p = end + 1;
        if (step <= warm) continue;
        double *more = realloc(*seconds, (size_t)(*n + 1) * sizeof *more);
        EN_REQUIRE(more, EN_ENOMEM, "no memory for %s", path);
        *seconds = more;
        more[(*n)++] = s;
    }
    return EN_OK;
}

void en_run_lines_free(en_run_lines *l)
{
    free(l->line);
    free(l->loss);
    *l = (en_run_lines){ 0 };
}

/* "  device      cuda (sm_90), bf16, ..." */
bool en_log_says_bf16(const char *log)
{
    const char *line = strstr(log, "\n  device   ");
    return line && says(line, strchrnul(line + 1, '\n'), ", bf16");
}

/* ---- bench comm ------------------------------------------------------------------------------------------------------------- */

static void take_sum(const char *p, const char *end, const char *role, en_measured_sums *out)
{
    char key[40];
    snprintf(key, sizeof key, "\"role\":\"%s\"", role);
    if (!says(p, end, key)) return;
    const bool gradients = says(p, end, "\"op\":\"sum_f32\""), small = says(p, end, "\"op\":\"sum_f64\"");
    const double queued = number_of(p, end, "queued_us"), us = isfinite(queued) ? queued : number_of(p, end, "median_us"), bytes = number_of(p, end, "bytes");
    int *n = gradients ? &out->n_gradients : &out->n_small;
    if ((!gradients && !small) || !(us > 0) || !(bytes > 0) || *n == EN_MOST_SUMS) return;
    (gradients ? out->gradients : out->small)[(*n)++] = (en_measured_sum){ .bytes = bytes, .seconds = 1e-6 * us };
}

en_status en_measured_sums_parse(const char *path, const char *text, en_measured_sums *out, bool *nccl, int64_t *wrong)
{
    const char *end = text + strlen(text), *rows = strstr(text, "\"rows\":["), *fits = rows ? strstr(rows, "\"fits\":[") : NULL;
    *out = (en_measured_sums){ 0 };
    EN_REQUIRE(fits, EN_EDATA, "%s is not what `effnet bench comm --json` prints", path);
    const double ranks = number_of(text, rows, "ranks"), nodes = number_of(text, rows, "nodes"), bad = number_of(fits, end, "wrong");
    EN_REQUIRE(ranks >= 1 && nodes >= 1 && isfinite(bad), EN_EDATA, "%s is not what `effnet bench comm --json` prints", path);
    const char *role = says(rows, fits, "\"role\":\"tensor\"") ? "tensor" : "control";
    out->ranks = (int)ranks;
    out->nodes = (int)nodes;
    *nccl = says(text, rows, "\"tensor\":\"nccl\"");
    *wrong = (int64_t)bad;
    for (const char *p = rows; (p = strchr(p, '{')) && p < fits; ) {
        const char *close = strchr(p, '}');
        if (!close || close > fits) break;
        take_sum(p, close, role, out);
        p = close;
    }
    EN_REQUIRE(ranks == 1 || (out->n_gradients > 1 && out->n_small > 1), EN_EDATA, "%s has fewer than two sizes of a sum", path);
    return EN_OK;
}
