/* search/state.c - what a search keeps, so that the same command goes on.
 *
 *     RUN/search.txt               the options of the first start; what decides over results must stay as it was
 *     RUN/<candidate>/             a run's folder like any other: checkpoints, metrics.jsonl, run.txt; log.txt has what it printed
 *     RUN/<candidate>/result.json  what came of it: such a candidate is not trained again
 *
 * Whoever loses a result.json loses no training: the candidate's newest checkpoint is at the end of its budget, and is evaluated again.
 * So a result that is damaged is passed over. */
#include "trainer/search/search.h"
#include "trainer/sorted.h"

#include "trainer/json.h"
#include "trainer/json_read.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 4200, MOST_BYTES = 1 << 16 };

/* ---- files ------------------------------------------------------------------------------------------------------------- */

/* malloc'd, 0-terminated; NULL: there is none, or it is too large to be one of ours.  *there: there is a file. */
static char *slurp(const char *path, size_t *n, bool *there)
{
    FILE *f = fopen(path, "re");
    *there = f != NULL;
    char *text = f ? malloc(MOST_BYTES + 1) : NULL;
    *n = text ? fread(text, 1, MOST_BYTES + 1, f) : 0;
    if (f) fclose(f);
    if (!text || *n > MOST_BYTES) {
        free(text);
        return NULL;
    }
    text[*n] = 0;
    return text;
}

/* Whole or not at all, and on disk before it bears its name */
static en_status write_whole(const char *path, const char *text)
{
    char tmp[PATH_BYTES + 8];
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    FILE *f = fopen(tmp, "we");
    EN_REQUIRE(f, EN_EIO, "cannot create %s: %s", tmp, strerror(errno));
    errno = 0;
    bool ok = fputs(text, f) >= 0 && fflush(f) == 0 && fsync(fileno(f)) == 0;
    int error = errno;
    if (fclose(f) != 0 && ok) ok = false, error = errno;
    if (ok && rename(tmp, path) != 0) ok = false, error = errno;
    if (!ok) remove(tmp);
    EN_REQUIRE(ok, EN_EIO, "cannot write %s: %s", path, strerror(error));
    return EN_OK;
}

/* ---- options ------------------------------------------------------------------------------------------------------------- */

/* Another grid adds candidates, other places and speeds change none. */
static bool may_change(const char *line, size_t name)
{
    static const char *const names[] = { "alphas", "betas", "gammas", "tolerance", "candidate-ranks", "data", "val", "run", "threads", "workers", "log-every", "prefetch", "cache",
                                         "cache-side", "checkpoint-every", "compare-every", "keep", "stop-after", "stall-timeout", "list", "json", "inject" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strlen(names[i]) == name && strncmp(line, names[i], name) == 0) return true;
    return false;
}

static en_status compare(const char *path, const char *then, const char *now)
{
    char name[64], before[4096], after[4096];
    for (const char *line = now; *line; line += strcspn(line, "\n") + 1) {
        const size_t n = strcspn(line, "=");
        if (may_change(line, n)) continue;
        snprintf(name, sizeof name, "%.*s", (int)n, line);
        if (!en_options_text_find(now, name, after, sizeof after)) continue;
        const bool known = en_options_text_find(then, name, before, sizeof before);
        EN_REQUIRE(known, EN_EDATA, "%s does not say --%s: it is damaged, or of another version; remove it to go on with what lies there, or take another --run", path, name);
        EN_REQUIRE(strcmp(before, after) == 0, EN_EUSAGE, "this search was begun with --%s %s, now it is %s: give the same, or take another --run (%s)", name, before, after, path);
    }
    return EN_OK;
}

bool en_search_begun(const char *run)
{
    char path[PATH_BYTES];
    bool begun = false;
    DIR *dir = opendir(run);
    for (const struct dirent *e; dir && !begun && (e = readdir(dir)); ) {
        if (e->d_name[0] == '.') continue;
        const int n = snprintf(path, sizeof path, "%s/%s/result.json", run, e->d_name);
        if (n >= (int)sizeof path) continue;
        begun = access(path, F_OK) == 0;
        snprintf(path, sizeof path, "%s/%s/checkpoints", run, e->d_name);
        DIR *files = begun ? NULL : opendir(path);
        for (const struct dirent *f; files && !begun && (f = readdir(files)); ) {
            const char *end = strrchr(f->d_name, '.');
            begun = strncmp(f->d_name, "step-", 5) == 0 && end && strcmp(end, ".h5") == 0;
        }
        if (files) closedir(files);
    }
    if (dir) closedir(dir);
    return begun;
}

en_status en_search_keep_options(const en_options *o)
{
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/search.txt", o->run);
    size_t n;
    bool there;
    const bool begun = en_search_begun(o->run);              /* else what was refused or stopped early would bind what nothing depends on */
    char *now = en_options_text(o), *then = slurp(path, &n, &there);
    en_status status = EN_OK;
    EN_REQUIRE_OUT(now, EN_ENOMEM, "no memory for the options");
    EN_REQUIRE_OUT(then || !there || !begun, EN_EDATA, "%s is not what a search writes: remove it to go on with what lies there, or take another --run", path);
    if (then && begun) EN_TRY_OUT(compare(path, then, now), "comparing with the first start");
    else EN_TRY_OUT(write_whole(path, now), "keeping the options");
out:
    free(now);
    free(then);
    return status;
}

int64_t en_search_recall(const char *run, const char *name)
{
    char path[PATH_BYTES], value[32] = "";
    snprintf(path, sizeof path, "%s/search.txt", run);
    size_t n;
    bool there;
    char *then = slurp(path, &n, &there);
    if (then) en_options_text_find(then, name, value, sizeof value);
    free(then);
    return strtoll(value, NULL, 10);
}

/* ---- results --------------------------------------------------------------------------------------------------------------- */

/* JSON has no NaN: a loss that is none is null. */
static void put_number(FILE *f, const char *name, double v)
{
    if (isfinite(v)) fprintf(f, ",\"%s\":%.17g", name, v);
    else fprintf(f, ",\"%s\":null", name);
}

en_status en_result_write(const char *folder, const en_candidate *c)
{
    char path[PATH_BYTES], *text = NULL, mark[EN_JSON_CHAR];
    size_t bytes = 0;
    snprintf(path, sizeof path, "%s/result.json", folder);
    FILE *f = open_memstream(&text, &bytes);
    EN_REQUIRE(f, EN_ENOMEM, "no memory for %s", path);
    const en_result *r = &c->result;
    fprintf(f, "{\"candidate\":\"%s\",\"outcome\":\"%s\",\"step\":%" PRId64, c->name, r->outcome == EN_DONE ? "done" : "failed", r->step);
    put_number(f, "top1", r->top1), put_number(f, "top5", r->top5), put_number(f, "loss", r->loss);
    put_number(f, "images_per_s", r->images_per_s), put_number(f, "seconds", r->seconds);
    fprintf(f, ",\"weights\":\"%016" PRIx64 "\",\"reason\":\"", r->weights);
    for (const char *p = r->reason; *p; p++) fputs(en_json_char(*p, mark), f);
    fputs("\"}\n", f);
    en_status status = EN_OK;
    EN_REQUIRE_OUT(fclose(f) == 0, EN_ENOMEM, "no memory for %s", path);
    EN_TRY_OUT(write_whole(path, text), "keeping the result");
out:
    free(text);
    return status;
}

static bool take_number(en_json_cursor *c, double *v)
{
    char *end;
    while (c->p < c->end && *c->p == ' ') c->p++;
    if (strncmp(c->p, "null", 4) == 0) {
        *v = NAN, c->p += 4;
        return true;
    }
    *v = strtod(c->p, &end);                                 /* the text ends with a 0 */
    const bool good = end != c->p && strspn(c->p, "+-0123456789.eE") == (size_t)(end - c->p) && isfinite(*v);
    c->p = end;
    if (!good) c->why = "a number is missing";
    return good;
}

static bool is_share(double v) { return v >= 0 && v <= 1; }

static bool parse(en_json_cursor *c, const char *name, en_result *r, const char **what)
{
    char *key, *text, *end;
    unsigned seen = 0;
    static const char *const keys[] = { "candidate", "outcome", "step", "top1", "top5", "loss", "images_per_s", "seconds", "weights", "reason" };
    enum { N = sizeof keys / sizeof *keys };
    double *const number[N] = { [3] = &r->top1, &r->top5, &r->loss, &r->images_per_s, &r->seconds };
    if (!en_json_take(c, '{')) return false;
    do {
        if (!en_json_string(c, &key) || !en_json_take(c, ':')) return false;
        unsigned k = 0;
        while (k < N && strcmp(keys[k], key) != 0) k++;
        c->why = "a name that is not of a result";
        if (k == N || seen >> k & 1) return false;
        seen |= 1u << k;
        if (k == 2 ? !en_json_count(c, &r->step) : number[k] ? !take_number(c, number[k]) : !en_json_string(c, &text)) return false;
        if (k == 0 && strcmp(text, name) != 0) return *what = "it is of another candidate", false;
        if (k == 1) r->outcome = strcmp(text, "done") == 0 ? EN_DONE : strcmp(text, "failed") == 0 ? EN_FAILED : EN_OPEN;
        if (k == 8) r->weights = strtoull(text, &end, 16);
        if (k == 8 && (*end || strlen(text) != 16)) return *what = "its weights are no hash", false;
        if (k == 9) snprintf(r->reason, sizeof r->reason, "%s", text);
    } while (en_json_next(c, ','));
    if (!en_json_take(c, '}') || !en_json_end(c)) return false;
    c->why = "something is missing from it";
    if (seen != (1u << N) - 1 || r->outcome == EN_OPEN) return false;
    *what = "its numbers cannot be";
    return r->outcome == EN_FAILED || (is_share(r->top1) && is_share(r->top5) && r->top1 <= r->top5 && r->step > 0 && r->images_per_s >= 0 && r->seconds >= 0);
}

void en_result_read(const char *folder, en_candidate *c, char why[300])
{
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/result.json", folder);
    why[0] = 0;
    size_t n;
    bool there;
    char *text = slurp(path, &n, &there);
    if (!there) return;
    en_result r = { 0 };
    const char *what = NULL;
    en_json_cursor cursor = { .start = text, .p = text, .end = text + n };
    if (text && parse(&cursor, c->name, &r, &what)) c->result = r;
    else snprintf(why, 300, "%.180s is passed over: %s; its checkpoints tell again", path, !text ? "it is too large" : what ? what : cursor.why ? cursor.why : "damaged");
    free(text);
}

/* ---- pace -------------------------------------------------------------------------------------------------------------------- */

static bool number_behind(const char *line, const char *key, double *v)
{
    const char *p = strstr(line, key);
    char *end;
    if (!p) return false;
    *v = strtod(p + strlen(key), &end);
    return end != p + strlen(key) && isfinite(*v);
}

void en_search_pace(const char *folder, int64_t step, int64_t global_batch, double *seconds, double *images_per_s)
{
    char path[PATH_BYTES], *line = NULL;
    size_t room = 0, n = 0, most = 0;
    double *rates = NULL, at, rate;
    *seconds = *images_per_s = 0;
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    FILE *f = fopen(path, "re");
    while (f && getline(&line, &room, f) > 0) {
        if (strncmp(line, "{\"kind\":\"train\"", 15) != 0 || !number_behind(line, "\"step\":", &at) || at > (double)step) continue;
        if (!number_behind(line, "\"images_per_s\":", &rate) || rate <= 0) continue;
        if (n == most) {
            double *more = realloc(rates, (most = most ? 2 * most : 1024) * sizeof *rates);
            if (!more) break;
            rates = more;
        }
        rates[n++] = rate;
        *seconds += (double)global_batch / rate;
    }
    if (n > 0) {
        en_sort(rates, n);
        *images_per_s = en_quantile(rates, n, 0.5);
    }
    if (f) fclose(f);
    free(rates);
    free(line);
}
