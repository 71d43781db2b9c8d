/* program_files.c - what runs are given, and what they leave behind: pictures; metrics, and checkpoints as tensors. */
#include "program_inside.h"

#include <dirent.h>
#include <math.h>

#include <hdf5.h>

#include "trainer/checkpoint/checkpoint.h"

/* ---- pictures -------------------------------------------------------------------------------------------------------- */

const char *drawn(const char *options)
{
    static const char *made;
    if (!made) {
        made = at("data");
        run(0, 0, "synth %s %s", made, options);
    }
    return made;
}

/* ---- metrics --------------------------------------------------------------------------------------------------------- */

static const char *value_of(const char *json, const char *key)
{
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *p = strstr(json, quoted);
    if (!p) return NULL;
    p += strlen(quoted);
    return p + strspn(p, " ");
}

double number_in(const char *json, const char *key)
{
    const char *v = value_of(json, key);
    char *end = NULL;
    const double x = v ? strtod(v, &end) : NAN;
    if (!v || end == v) fail_msg("no number \"%s\" in: %s", key, json);
    return x;
}

metric *metrics(const char *run_dir, const char *kind, size_t *n)
{
    char path[PATH], mark[32], *rest;
    snprintf(path, sizeof path, "%s/metrics.jsonl", run_dir);
    snprintf(mark, sizeof mark, "\"kind\":\"%s\"", kind);
    char *text = read_file(path, NULL);
    size_t room = 0;
    for (const char *p = text; *p; p++) room += *p == '\n';
    metric *m = keep(calloc(room + 1, sizeof *m));
    *n = 0;
    for (char *l = strtok_r(text, "\n", &rest); l; l = strtok_r(NULL, "\n", &rest)) {
        if (!strstr(l, mark)) continue;
        metric *q = &m[(*n)++];
        q->step = (int64_t)number_in(l, "step");
        q->loss = number_in(l, "loss");
        const char *v = value_of(l, "loss");
        snprintf(q->text, sizeof q->text, "%.*s", (int)strcspn(v, ",}"), v);
        if (strcmp(kind, "eval") == 0) {
            q->top1 = number_in(l, "top1");
            q->top5 = number_in(l, "top5");
            q->images = (int64_t)number_in(l, "images");
        }
    }
    return m;
}

/* ---- HDF5 ------------------------------------------------------------------------------------------------------------ */

typedef struct { tensor *t; size_t n, room; } tensor_list;

static void read_dataset(tensor_list *list, hid_t id, const char *name)
{
    hid_t space = H5Dget_space(id), type = H5Dget_type(id);
    if (H5Tget_class(type) == H5T_FLOAT) {
        if (list->n == list->room) list->t = realloc(list->t, (list->room = 2 * list->room + 64) * sizeof *list->t);
        tensor *t = &list->t[list->n++];
        snprintf(t->name, sizeof t->name, "%s", name);
        t->n = (size_t)H5Sget_simple_extent_npoints(space);
        t->v = keep(malloc(t->n * sizeof *t->v + 1));
        if (H5Dread(id, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, t->v) < 0) fail_msg("%s cannot be read", name);
    }
    H5Tclose(type);
    H5Sclose(space);
}

static void read_group(tensor_list *list, hid_t id, const char *prefix)
{
    H5G_info_t info;
    if (H5Gget_info(id, &info) < 0) fail_msg("%s cannot be read", prefix);
    for (hsize_t i = 0; i < info.nlinks; i++) {
        char name[128], full[PATH];
        if (H5Lget_name_by_idx(id, ".", H5_INDEX_NAME, H5_ITER_INC, i, name, sizeof name, H5P_DEFAULT) < 0) fail_msg("%s cannot be read", prefix);
        hid_t member = H5Oopen(id, name, H5P_DEFAULT);
        snprintf(full, sizeof full, "%s/%s", prefix, name);
        if (H5Iget_type(member) == H5I_GROUP) read_group(list, member, full);
        else read_dataset(list, member, full);
        H5Oclose(member);
    }
}

static int by_name(const void *a, const void *b) { return strcmp(((const tensor *)a)->name, ((const tensor *)b)->name); }

tensor *tensors(const char *path, const char *group, size_t *n)
{
    tensor_list list = { 0 };
    hid_t f = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    if (f < 0) fail_msg("%s cannot be opened", path);
    hid_t g = H5Oopen(f, group, H5P_DEFAULT);
    if (g < 0) fail_msg("%s has no %s", path, group);
    if (H5Iget_type(g) == H5I_GROUP) read_group(&list, g, group);
    else read_dataset(&list, g, group);
    H5Oclose(g);
    H5Fclose(f);
    if (list.n == 0) fail_msg("%s: nothing in %s", path, group);
    qsort(list.t, list.n, sizeof *list.t, by_name);
    *n = list.n;
    return keep(list.t);
}

static size_t both(const char *a, const char *b, const char *group, tensor **x, tensor **y)
{
    size_t n, m;
    *x = tensors(a, group, &n);
    *y = tensors(b, group, &m);
    if (n != m) fail_msg("%zu tensors in %s of %s, %zu of %s", n, group, a, m, b);
    for (size_t i = 0; i < n; i++)
        if (strcmp((*x)[i].name, (*y)[i].name) != 0 || (*x)[i].n != (*y)[i].n) fail_msg("%s stands against %s", (*x)[i].name, (*y)[i].name);
    return n;
}

double largest_deviation(const char *a, const char *b, const char *group, char worst[160])
{
    tensor *x, *y;
    double most = -1;
    const size_t n = both(a, b, group, &x, &y);
    for (size_t i = 0; i < n; i++) {
        double d = 0, s = 0;
        for (size_t k = 0; k < x[i].n; k++) {
            const double e = (double)x[i].v[k] - y[i].v[k];
            d += e * e;
            s += (double)y[i].v[k] * y[i].v[k];
        }
        const double relative = sqrt(d / (double)x[i].n) / fmax(sqrt(s / (double)x[i].n), 0.01);
        if (!(relative <= most)) {               /* a NaN is the worst */
            most = relative;
            snprintf(worst, 160, "%s", x[i].name);
            if (isnan(relative)) break;
        }
    }
    return most;
}

void same_bits(const char *a, const char *b)
{
    static const char *const groups[] = { "/model", "/ema", "/optimizer" };
    for (size_t g = 0; g < 3; g++) {
        tensor *x, *y;
        const size_t n = both(a, b, groups[g], &x, &y);
        for (size_t i = 0; i < n; i++)
            if (memcmp(x[i].v, y[i].v, x[i].n * sizeof(float)) != 0) {
                size_t differ = 0;
                for (size_t k = 0; k < x[i].n; k++) differ += memcmp(&x[i].v[k], &y[i].v[k], sizeof(float)) != 0;
                fail_msg("%s: %zu of %zu values of %s are other bits than in %s", a, differ, x[i].n, x[i].name, b);
            }
    }
}

/* ---- checkpoints ----------------------------------------------------------------------------------------------------- */

const char *checkpoint_of(const char *run_dir, int64_t step)
{
    return textf("%s/checkpoints/step-%08" PRId64 ".h5", run_dir, step);
}

int64_t newest_checkpoint(const char *run_dir)
{
    char path[PATH];
    int64_t newest = -1;
    snprintf(path, sizeof path, "%s/checkpoints", run_dir);
    DIR *d = opendir(path);
    for (const struct dirent *e; d && (e = readdir(d));) {
        int64_t step;
        int end = 0;
        if (sscanf(e->d_name, "step-%" SCNd64 ".h5%n", &step, &end) == 1 && end > 0 && !e->d_name[end] && step > newest) newest = step;
    }
    if (d) closedir(d);
    return newest;
}

void is_whole(const char *path, int64_t step)
{
    en_checkpoint_info info = { 0 };
    en_error_clear();
    if (en_checkpoint_inspect(path, true, &info) != EN_OK) fail_msg("%s is not whole: %s", path, en_error_text());
    const int64_t holds = info.state.step;
    en_checkpoint_info_free(&info);
    if (holds != step) fail_msg("%s holds step %" PRId64 " instead of %" PRId64, path, holds, step);
}
