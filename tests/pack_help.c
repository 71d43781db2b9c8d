#define _GNU_SOURCE
#include "pack_help.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <hdf5.h>

char *dir;

/* HDF5 1.10 itself leaks a little when it meets a damaged header.  What it is asked to open and is not asked to close is ours, and counted. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:libhdf5"; }

int pack_setup(void **state) { (void)state; dir = temp_open(); return 0; }

int pack_teardown(void **state)
{
    (void)state;
    const ssize_t n = H5Fget_obj_count((hid_t)H5F_OBJ_ALL, H5F_OBJ_ALL);
    if (n != 0) fail_msg("%zd HDF5 files, datasets, attributes ... are still open", n);
    temp_close(dir);
    return 0;
}

const char *in_dir(const char *name)
{
    static char path[32][4096];
    static int turn;
    turn = (turn + 1) % 32;
    snprintf(path[turn], sizeof path[turn], "%s/%s", dir, name);
    return path[turn];
}

void shapes(const char *name, int classes)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    OK(en_synth_write(path, classes, 7, 3, 40, 1));
}

en_pack_config config_of(const char *source, const char *target)
{
    return (en_pack_config){ .source = source, .target = target, .split = "", .workers = 2, .quality = 95, .max_bad = 0.01, .quiet = true };
}

en_pack_report packed(const char *source, const char *target)
{
    const en_pack_config c = config_of(source, target);
    en_pack_report r = { 0 };
    OK(en_pack(&c, &r));
    return r;
}

void pack_fails(const en_pack_config *c, en_status code, const char *says)
{
    en_pack_report r;
    en_error_clear();
    const en_status s = en_pack(c, &r);
    if (s != code || !strstr(en_error_message(), says)) fail_msg("%s, \"%s\"; and not \"%s\"", en_status_name(s), en_error_message(), says);
}

bool there(const char *path) { struct stat st; return lstat(path, &st) == 0; }

void assert_equal_files(const char *a, const char *b)
{
    bytes x = slurp(a), y = slurp(b);
    if (x.n != y.n || memcmp(x.at, y.at, x.n) != 0) fail_msg("%s and %s differ", a, b);
    bytes_free(&x);
    bytes_free(&y);
}

en_dataset *opened(const char *path, const char *split, const en_dataset *like)
{
    en_dataset *ds = NULL;
    OK(en_dataset_open(path, split, like, &ds));
    return ds;
}

void assert_same_dataset(const en_dataset *folder, const en_dataset *file)
{
    uint8_t *a = NULL, *b = NULL;
    size_t room_a = 0, room_b = 0, n, m;
    assert_int_equal(folder->samples, file->samples);
    assert_int_equal(folder->classes, file->classes);
    for (int64_t c = 0; c < folder->classes; c++) assert_string_equal(folder->class_names[c], file->class_names[c]);
    for (int64_t i = 0; i < folder->samples; i++) {
        assert_int_equal(folder->labels[i], file->labels[i]);
        OK(folder->ops->read(folder, i, &a, &room_a, &n));
        OK(file->ops->read(file, i, &b, &room_b, &m));
        if (n != m || (n && memcmp(a, b, n) != 0)) fail_msg("%s and %s differ", folder->files[i], file->files[i]);
        char name[8192];
        snprintf(name, sizeof name, "%s:%s", file->source, folder->files[i] + strlen(folder->source) + 1);
        assert_string_equal(file->files[i], name);
        if (file->ops->expect) file->ops->expect(file, i);
    }
    free(a);
    free(b);
}

void assert_same(const char *folder, const char *file, const char *split, bool like_train)
{
    en_dataset *la = NULL, *lb = NULL;
    if (like_train) {
        la = opened(folder, "train", NULL);
        lb = opened(file, "train", NULL);
    }
    en_dataset *a = opened(folder, split, la), *b = opened(file, split, lb);
    assert_same_dataset(a, b);
    en_dataset_close(a);
    en_dataset_close(b);
    en_dataset_close(la);
    en_dataset_close(lb);
}

