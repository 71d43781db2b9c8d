/* test_checkpoint_dump.c - dumps: the values, shapes and types that other programs will read; whole or not at all. */
#include "test_checkpoint.h"

#include <hdf5.h>

#include "trainer/dump.h"

/* Reads /name as `type` and checks its shape, by HDF5's own calls. */
static void *read_back(const char *name, hid_t stored, hid_t type, int ndim, const int64_t *dims)
{
    const hid_t f = H5Fopen(path("d.h5"), H5F_ACC_RDONLY, H5P_DEFAULT), d = H5Dopen2(f, name, H5P_DEFAULT);
    assert_true(d >= 0);
    const hid_t space = H5Dget_space(d), t = H5Dget_type(d);
    hsize_t have[8];
    size_t n = 1;
    assert_int_equal(H5Sget_simple_extent_dims(space, have, NULL), ndim);
    for (int k = 0; k < ndim; k++) {
        assert_int_equal(have[k], dims[k]);
        n *= have[k];
    }
    if (stored >= 0) assert_true(H5Tequal(t, stored) > 0);
    const size_t size = H5Tget_size(t);
    char *data = calloc(n + 1, size);
    if (n) assert_true(H5Dread(d, type >= 0 ? type : t, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
    H5Tclose(t);
    H5Sclose(space);
    H5Dclose(d);
    H5Fclose(f);
    return data;
}

static void what_is_dumped_is_what_others_read(void **state)
{
    (void)state;
    en_dump *d;
    float images[24];
    int32_t labels[2] = { 7, -1 };
    int64_t big[3] = { 1, INT64_MIN, INT64_MAX };
    char *files[3] = { "a.jpg", "", "folder/K\xc3\xa4uzchen.jpg" };
    fill_arena(images, 24, 1);
    OK(en_dump_open(path("d.h5"), &d));
    OK(en_dump_f32(d, "/batch/images", 4, (int64_t[]){ 2, 2, 2, 3 }, images));
    OK(en_dump_i32(d, "/batch/labels", 1, (int64_t[]){ 2 }, labels));
    OK(en_dump_i64(d, "/samples", 1, (int64_t[]){ 3 }, big));
    OK(en_dump_f32(d, "/loss", 0, NULL, &(float){ 2.5f }));
    OK(en_dump_f32(d, "/logits", 2, (int64_t[]){ 0, 10 }, NULL));              /* no image: still there, and empty      */
    OK(en_dump_strings(d, "/files", 3, files));
    assert_false(exists(path("d.h5")));                                          /* whole or absent                       */
    OK(en_dump_close(d));
    assert_false(exists(path("d.h5.tmp")));

    void *p;
    p = read_back("/batch/images", H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, 4, (int64_t[]){ 2, 2, 2, 3 });
    assert_memory_equal(p, images, sizeof images);
    free(p);
    p = read_back("/batch/labels", H5T_STD_I32LE, H5T_NATIVE_INT32, 1, (int64_t[]){ 2 });
    assert_memory_equal(p, labels, sizeof labels);
    free(p);
    p = read_back("/samples", H5T_STD_I64LE, H5T_NATIVE_INT64, 1, (int64_t[]){ 3 });
    assert_memory_equal(p, big, sizeof big);
    free(p);
    p = read_back("/loss", H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, 0, NULL);
    assert_true(*(float *)p == 2.5f);
    free(p);
    free(read_back("/logits", H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, 2, (int64_t[]){ 0, 10 }));
    p = read_back("/files", -1, -1, 1, (int64_t[]){ 3 });
    const size_t width = strlen(files[2]);
    for (int k = 0; k < 3; k++) assert_true(!strncmp((char *)p + (size_t)k * width, files[k], width));
    free(p);
}

static void tensors_are_dumped_in_logical_shapes(void **state)
{
    (void)state;
    const en_model m = tiny_model();
    en_snapshot s;
    en_dump *d;
    OK(en_snapshot_alloc(&m, 0, NULL, false, &s));
    fill(&s, 3);
    OK(en_dump_open(path("d.h5"), &d));
    OK(en_dump_tensors(d, "/before", &m, s.params, s.stats));
    OK(en_dump_tensors(d, "/gradients", &m, s.params, NULL));
    OK(en_dump_close(d));
    float want[162];
    for (int i = 0; i < m.n_tensors; i++) {
        const en_tensor *t = &m.tensors[i];
        char name[128];
        en_tensor_gather(t, t->arena == EN_ARENA_PARAMS ? s.params : s.stats, want);
        snprintf(name, sizeof name, "/before/%s", t->name);
        void *p = read_back(name, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, t->ndim, t->shape);
        assert_memory_equal(p, want, (size_t)en_tensor_count(t) * 4);
        free(p);
    }
    const hid_t f = H5Fopen(path("d.h5"), H5F_ACC_RDONLY, H5P_DEFAULT), g = H5Gopen2(f, "/gradients", H5P_DEFAULT);
    H5G_info_t info;
    assert_true(H5Gget_info(g, &info) >= 0);
    assert_int_equal(info.nlinks, 4);
    H5Gclose(g);
    H5Fclose(f);
    en_snapshot_free(&s);
}

static void a_dump_that_failed_leaves_nothing(void **state)
{
    (void)state;
    en_dump *d;
    spill(path("d.h5"), "before", 6);
    OK(en_dump_open(path("d.h5"), &d));
    OK(en_dump_f32(d, "/loss", 0, NULL, &(float){ 1 }));
    REFUSED(EN_EINVAL, en_dump_f32(d, "/loss", 0, NULL, &(float){ 1 }), "/loss cannot be added");     /* twice           */
    REFUSED(EN_EIO, en_dump_close(d), "is not written");
    OK(en_dump_open(path("d.h5"), &d));
    en_dump_discard(d);
    en_dump_discard(NULL);
    size_t n;
    char *text = slurp(path("d.h5"), &n);
    assert_string_equal(text, "before");
    free(text);
    assert_false(exists(path("d.h5.tmp")));
    REFUSED(EN_EIO, en_dump_open(path("none/d.h5"), &d), "No such file or directory");
    assert_null(d);
    REFUSED(EN_EUSAGE, en_dump_open(folder, &d), "is not a file");
}

static void two_dumps_may_be_open_at_once(void **state)
{
    (void)state;
    en_dump *a, *b;
    OK(en_dump_open(path("a.h5"), &a));
    OK(en_dump_open(path("d.h5"), &b));
    OK(en_dump_i32(a, "/x", 0, NULL, &(int32_t){ 1 }));
    OK(en_dump_i32(b, "/x", 0, NULL, &(int32_t){ 2 }));
    OK(en_dump_close(a));
    OK(en_dump_close(b));
    int32_t *x = read_back("/x", H5T_STD_I32LE, H5T_NATIVE_INT32, 0, NULL);
    assert_int_equal(*x, 2);
    free(x);
}

#define IN_A_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_A_FOLDER(what_is_dumped_is_what_others_read),
        IN_A_FOLDER(tensors_are_dumped_in_logical_shapes),
        IN_A_FOLDER(a_dump_that_failed_leaves_nothing),
        IN_A_FOLDER(two_dumps_may_be_open_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
