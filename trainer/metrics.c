#include "trainer/metrics.h"

#include "trainer/json.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_MAX_BYTES = 4096, LINE_BYTES = 4096 };

struct en_metrics { int fd; char path[PATH_MAX_BYTES + 32]; };

/* ---- opening -------------------------------------------------------------------------------------------------------- */

/* The number behind "step": on the line, or -1 when there is none. */
static int64_t step_of(const char *line)
{
    const char *p = strstr(line, "\"step\"");
    if (!p) return -1;
    for (p += 6; isspace((unsigned char)*p); p++) continue;
    if (*p++ != ':') return -1;
    while (isspace((unsigned char)*p)) p++;
    return isdigit((unsigned char)*p) ? strtoll(p, NULL, 10) : -1;
}

static bool keeps(const char *line, size_t n, int64_t resume_step)
{
    if (n == 0 || line[n - 1] != '\n') return false;               /* torn                                             */
    if (memchr(line, '\0', n)) return false;                       /* what some file systems leave after a power cut   */
    return step_of(line) <= resume_step || step_of(line) < 0;
}

/* Copies the lines that stay; *dropped says whether any did not.  0 or an errno. */
static int filter(FILE *from, FILE *to, int64_t resume_step, bool *dropped)
{
    char *line = NULL;
    size_t capacity = 0;
    ssize_t n;
    int error = 0;
    *dropped = false;
    errno = 0;
    while (!error && (n = getline(&line, &capacity, from)) > 0) {
        if (!keeps(line, (size_t)n, resume_step)) *dropped = true;
        else if (to && fwrite(line, 1, (size_t)n, to) != (size_t)n) error = errno ? errno : EIO;
    }
    if (!error && ferror(from)) error = errno ? errno : EIO;
    free(line);
    return error;
}

static en_status drop_stale_lines(const char *path, int64_t resume_step)
{
    FILE *from = fopen(path, "re");
    if (!from && errno == ENOENT) return EN_OK;
    EN_REQUIRE(from, EN_EIO, "cannot read %s: %s", path, strerror(errno));
    char tmp[PATH_MAX_BYTES + 64];
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    bool dropped;
    int error = filter(from, NULL, resume_step, &dropped);
    if (!error && dropped) {
        rewind(from);
        struct stat st;
        FILE *to = fopen(tmp, "we");
        error = to ? filter(from, to, resume_step, &dropped) : errno;
        if (to && !error && fstat(fileno(from), &st) == 0 && fchmod(fileno(to), st.st_mode & 07777) != 0) error = errno;
        if (to && !error && (fflush(to) != 0 || fsync(fileno(to)) != 0)) error = errno;
        if (to && fclose(to) != 0 && !error) error = errno;
        if (!error && rename(tmp, path) != 0) error = errno;
        if (error && to) unlink(tmp);
    }
    fclose(from);
    EN_REQUIRE(!error, EN_EIO, "cannot take the lines after step %" PRId64 " out of %s: %s", resume_step, path, strerror(error));
    return EN_OK;
}

en_status en_metrics_open(const char *run_dir, int64_t resume_step, en_metrics **out)
{
    *out = NULL;
    EN_REQUIRE(strlen(run_dir) < PATH_MAX_BYTES, EN_EUSAGE, "the path %.100s... is too long", run_dir);
    en_metrics *m = calloc(1, sizeof *m);
    EN_REQUIRE(m, EN_ENOMEM, "no memory for the metrics of %s", run_dir);
    m->fd = -1;
    en_status status = EN_OK;
    snprintf(m->path, sizeof m->path, "%s/metrics.jsonl", run_dir);
    EN_TRY_OUT(drop_stale_lines(m->path, resume_step), "opening the metrics of a run that goes on from step %" PRId64, resume_step);
    m->fd = open(m->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    EN_REQUIRE_OUT(m->fd >= 0, EN_EIO, "cannot write %s: %s", m->path, strerror(errno));
    *out = m;
    return EN_OK;
out:
    free(m);
    return status;
}

void en_metrics_close(en_metrics *m)
{
    if (!m) return;
    close(m->fd);
    free(m);
}

/* ---- lines ----------------------------------------------------------------------------------------------------------- */

typedef struct { char text[LINE_BYTES]; size_t used; } json_line;

static void put(json_line *l, const char *text)
{
    const size_t n = strlen(text);
    if (l->used + n >= sizeof l->text) return;                     /* no record comes near                             */
    memcpy(l->text + l->used, text, n + 1);
    l->used += n;
}

static void put_name(json_line *l, const char *name)
{
    put(l, l->used > 1 ? ",\"" : "\"");
    put(l, name);
    put(l, "\":");
}

static void put_number(json_line *l, const char *name, double value)
{
    char text[40] = "null";                                        /* JSON has no NaN and no infinity                  */
    if (isfinite(value)) snprintf(text, sizeof text, "%.9g", value);
    for (char *p = text; *p; p++)
        if (*p == ',') *p = '.';                                   /* whatever the locale says                         */
    put_name(l, name);
    put(l, text);
}

static void put_integer(json_line *l, const char *name, int64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, value);
    put_name(l, name);
    put(l, text);
}

static void put_text(json_line *l, const char *name, const char *value)
{
    put_name(l, name);
    put(l, "\"");
    char c[EN_JSON_CHAR];
    for (const char *p = value ? value : ""; *p; p++) put(l, en_json_char(*p, c));
    put(l, "\"");
}

static en_status append(en_metrics *m, json_line *l)
{
    put(l, "}\n");
    struct stat st;
    const off_t before = fstat(m->fd, &st) == 0 ? st.st_size : -1;
    ssize_t n;
    do n = write(m->fd, l->text, l->used);
    while (n < 0 && errno == EINTR);
    if (n == (ssize_t)l->used) return EN_OK;
    const int error = n < 0 ? errno : ENOSPC;
    if (n > 0 && before >= 0 && ftruncate(m->fd, before) != 0)     /* take the half line back; else open drops it      */
        return en_raise(EN_EIO, __FILE__, __LINE__, __func__, "a line of %s was cut short: %s", m->path, strerror(error));
    return en_raise(EN_EIO, __FILE__, __LINE__, __func__, "cannot write to %s: %s", m->path, strerror(error));
}

en_status en_metrics_train(en_metrics *m, const en_train_record *r)
{
    json_line l = { "{", 1 };
    put_text(&l, "kind", "train");
    put_integer(&l, "step", r->step);
    put_number(&l, "epoch", r->epoch);
    put_number(&l, "loss", r->loss);
    put_number(&l, "lr", r->lr);
    put_number(&l, "images_per_s", r->images_per_s);
    put_number(&l, "data_s", r->data_s);
    put_number(&l, "forward_s", r->forward_s);
    put_number(&l, "backward_s", r->backward_s);
    put_number(&l, "bn_comm_s", r->bn_comm_s);
    put_number(&l, "grad_comm_exposed_s", r->grad_comm_exposed_s);
    put_number(&l, "optimizer_s", r->optimizer_s);
    put_number(&l, "grad_norm", r->grad_norm);
    put_number(&l, "read_s", r->read_s);
    put_number(&l, "decode_s", r->decode_s);
    put_number(&l, "resize_s", r->resize_s);
    put_number(&l, "augment_s", r->augment_s);
    put_integer(&l, "rss_bytes", r->rss_bytes);
    put_integer(&l, "skipped", r->skipped);
    put_number(&l, "straggler_s", r->straggler_s);
    put_integer(&l, "slowest_rank", r->slowest_rank);
    put_integer(&l, "image_size", r->stage.size);
    const struct { const char *name; double value; } scheduled[] = { { "magnitude", r->stage.magnitude }, { "mixup", r->stage.mixup },
                                                                     { "cutmix", r->stage.cutmix }, { "dropout", r->stage.dropout } };
    for (size_t i = 0; i < sizeof scheduled / sizeof *scheduled; i++)
        if (scheduled[i].value >= 0) put_number(&l, scheduled[i].name, scheduled[i].value);
    return append(m, &l);
}

en_status en_metrics_eval(en_metrics *m, const en_eval_record *r)
{
    json_line l = { "{", 1 };
    put_text(&l, "kind", "eval");
    put_integer(&l, "step", r->step);
    put_number(&l, "epoch", r->epoch);
    put_number(&l, "top1", r->top1);
    put_number(&l, "top5", r->top5);
    put_number(&l, "loss", r->loss);
    put_integer(&l, "images", r->images);
    put_text(&l, "weights", r->weights);
    return append(m, &l);
}

en_status en_metrics_back(en_metrics *m, int64_t step, int64_t from, double lr_factor)
{
    json_line l = { "{", 1 };
    put_text(&l, "kind", "back");
    put_integer(&l, "step", step);
    put_integer(&l, "from_step", from);
    put_number(&l, "lr_factor", lr_factor);
    return append(m, &l);
}

en_status en_metrics_checkpoint(en_metrics *m, const en_checkpoint_record *r)
{
    json_line l = { "{", 1 };
    put_text(&l, "kind", "checkpoint");
    put_integer(&l, "step", r->step);
    put_number(&l, "wait_s", r->wait_s);
    put_number(&l, "snapshot_s", r->snapshot_s);
    put_integer(&l, "best", r->best);
    return append(m, &l);
}

static void put_spread(json_line *l, const char *key, const en_spread *s)
{
    char name[48];
    put_number(l, key, s->mean);
    snprintf(name, sizeof name, "%s_least", key);
    put_number(l, name, s->low);
    snprintf(name, sizeof name, "%s_most", key);
    put_number(l, name, s->high);
}

en_status en_metrics_account(en_metrics *m, int64_t step, const en_account_report *r)
{
    json_line l = { "{", 1 };
    put_text(&l, "kind", "account");
    put_integer(&l, "step", step);
    put_integer(&l, "steps", r->steps);
    put_integer(&l, "ranks", r->ranks);
    put_spread(&l, "wall_s", &r->wall);
    for (int i = 0; i < EN_COSTS; i++) put_spread(&l, en_cost_key[i], &r->of[i]);
    return append(m, &l);
}
