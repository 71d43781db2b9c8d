/* scaling/times.c - reading what `effnet bench passes --json` printed: one object, in it "passes", a list of flat objects. */
#include "trainer/scaling/predict.h"

#include "trainer/json_read.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BYTES = 1 << 20, MOST_PASSES = 1024, SHOWN = 40 };

/* The number at the cursor; the text ends with a 0. */
static bool take_number(en_json_cursor *c, double *v)
{
    char *end;
    while (c->p < c->end && strchr(" \t\r\n", *c->p)) c->p++;
    *v = strtod(c->p, &end);
    if (end == c->p || !isfinite(*v) || strpbrk((char[]){ *c->p, 0 }, "+.iInN")) return c->why = "a number is missing", false;
    c->p = end;
    return true;
}

/* A text, a number, true or false: of what kind, the value in one of them. */
static bool take_value(en_json_cursor *c, char **text, double *number)
{
    static char none[] = "";
    *text = none;
    *number = NAN;
    while (c->p < c->end && strchr(" \t\r\n", *c->p)) c->p++;
    if (c->p < c->end && *c->p == '"') return en_json_string(c, text);
    if (c->end - c->p >= 4 && strncmp(c->p, "true", 4) == 0) return c->p += 4, true;
    if (c->end - c->p >= 5 && strncmp(c->p, "false", 5) == 0) return c->p += 5, true;
    return take_number(c, number);
}

static bool take_pass(en_json_cursor *c, en_pass_time *p)
{
    *p = (en_pass_time){ .us = NAN };
    if (!en_json_take(c, '{')) return false;
    do {
        char *name, *text;
        double number;
        if (!en_json_string(c, &name) || !en_json_take(c, ':') || !take_value(c, &text, &number)) return false;
        if (strcmp(name, "pass") == 0) snprintf(p->pass, sizeof p->pass, "%s", text);
        else if (strcmp(name, "shape") == 0) snprintf(p->shape, sizeof p->shape, "%s", text);
        else if (strcmp(name, "direction") == 0) p->backward = strcmp(text, "backward") == 0;
        else if (strcmp(name, "us") == 0) p->us = number;
    } while (en_json_next(c, ','));
    if (!en_json_take(c, '}')) return false;
    if (!p->pass[0] || !p->shape[0] || !(p->us >= 0)) return c->why = "a pass without name, shape or time", false;
    return true;
}

static bool take_passes(en_json_cursor *c, en_pass_times *out)
{
    if (!en_json_take(c, '[')) return false;
    do {
        if (out->n == MOST_PASSES) return c->why = "too many passes", false;
        if (!take_pass(c, &out->pass[out->n])) return false;
        out->n++;
    } while (en_json_next(c, ','));
    return en_json_take(c, ']');
}

static bool take_all(en_json_cursor *c, en_pass_times *out)
{
    if (!en_json_take(c, '{')) return false;
    do {
        char *name, *text;
        double number;
        if (!en_json_string(c, &name) || !en_json_take(c, ':')) return false;
        if (strcmp(name, "passes") == 0) {
            if (out->n || !take_passes(c, out)) return false;
            continue;
        }
        if (!take_value(c, &text, &number)) return false;
        if (strcmp(name, "model") == 0) snprintf(out->model, sizeof out->model, "%s", text);
        else if (strcmp(name, "device") == 0) snprintf(out->device, sizeof out->device, "%s", text);
        else if (strcmp(name, "resolution") == 0 && number >= 1 && number <= 65536) out->resolution = (int)number;
        else if (strcmp(name, "images") == 0 && number >= 1 && number <= 1e9) out->images = (int64_t)number;
    } while (en_json_next(c, ','));
    return en_json_take(c, '}') && en_json_end(c);
}

en_status en_pass_times_parse(const char *path, char *text, size_t bytes, en_pass_times *out)
{
    en_json_cursor c = { .start = text, .p = text, .end = text + bytes, .why = "something is missing" };
    en_status status = EN_OK;
    *out = (en_pass_times){ 0 };
    out->pass = calloc(MOST_PASSES, sizeof *out->pass);
    EN_REQUIRE(out->pass, EN_ENOMEM, "no memory for measured passes");
    EN_REQUIRE_OUT(bytes < MOST_BYTES && !memchr(text, 0, bytes) && take_all(&c, out), EN_EUSAGE,
                   "%s is not what `effnet bench passes --json` prints: %s at byte %zu, before '%.*s'", path, c.why, (size_t)(c.p - c.start), SHOWN, c.p);
    EN_REQUIRE_OUT(out->n > 0 && out->images > 0 && out->resolution > 0, EN_EUSAGE, "%s is not what `effnet bench passes --json` prints: %s missing",
                   path,
                   out->n == 0 ? "passes are" : "images or resolution is");
    return EN_OK;
out:
    en_pass_times_free(out);
    return status;
}

en_status en_pass_times_read(const char *path, en_pass_times *out)
{
    en_status status = EN_OK;
    char *text = malloc(MOST_BYTES + 1);
    *out = (en_pass_times){ 0 };
    EN_REQUIRE(text, EN_ENOMEM, "no memory for %s", path);
    FILE *f = fopen(path, "rb");
    EN_REQUIRE_OUT(f, EN_EIO, "%s cannot be read: %s; effnet bench passes --json > FILE makes one", path, strerror(errno));
    const size_t n = fread(text, 1, MOST_BYTES, f);
    EN_REQUIRE_OUT(!ferror(f), EN_EIO, "%s cannot be read: %s", path, strerror(errno));
    text[n] = '\0';
    EN_TRY_OUT(en_pass_times_parse(path, text, n, out), "measured passes");
out:
    if (f) fclose(f);
    free(text);
    return status;
}

void en_pass_times_free(en_pass_times *t)
{
    free(t->pass);
    *t = (en_pass_times){ 0 };
}
