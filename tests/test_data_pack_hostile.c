/* Damage to any byte of a packed file is found, and a file made to do harm is refused with a reason. */
#define _GNU_SOURCE
#include "pack_help.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <hdf5.h>
#include <zlib.h>

/* ---- damage -------------------------------------------------------------------------------------------------------------------------- */

static en_status open_and_verify(const char *path)
{
    en_pack_report r;
    en_dataset *ds = NULL;
    en_error_clear();
    const en_status o = en_dataset_open(path, "train", NULL, &ds), v = en_pack_verify(path, 1, true, &r);
    en_dataset_close(ds);
    if (o != EN_OK && v == EN_OK) fail_msg("opening says %s, verifying nothing", en_status_name(o));
    return v;
}

/* Two files in two classes: small, so that each byte can have its turn. */
static bytes small_file(void)
{
    put_file(dir, "d/cat/1.jpg", "meow", 4);
    put_file(dir, "d/dog/2.jpg", "wuff!", 5);
    en_pack_config c = config_of(in_dir("d"), in_dir("small.h5"));
    en_pack_report r;
    c.max_bad = 1;
    OK(en_pack(&c, &r));
    return slurp(in_dir("small.h5"));
}

static void no_byte_is_without_a_checksum(void **state)
{
    (void)state;
    bytes b = small_file();
    int unseen = 0;
    char list[512] = "";
    const int fd = open(in_dir("small.h5"), O_RDWR);
    for (size_t i = 0; i < b.n; i++)
        for (int bit = 0; bit < 8; bit += 7) {
            const uint8_t flipped = (uint8_t)(b.at[i] ^ (1 << bit));
            assert_int_equal(pwrite(fd, &flipped, 1, (off_t)i), 1);
            const en_status s = open_and_verify(in_dir("small.h5"));
            if (s == EN_OK && strlen(list) < 480) snprintf(list + strlen(list), 32, " %zu", i);
            unseen += s == EN_OK;
            if (s != EN_OK && s != EN_EDATA) fail_msg("byte %zu: %s: %s", i, en_status_name(s), en_error_text());
            assert_int_equal(pwrite(fd, &b.at[i], 1, (off_t)i), 1);
        }
    close(fd);
    if (unseen) fail_msg("%d of %zu flipped bits were not seen, in bytes%s", unseen, 2 * b.n, list);
    bytes_free(&b);
}

static void a_file_of_another_length_is_refused(void **state)
{
    (void)state;
    bytes b = small_file();
    for (size_t n = 0; n < b.n; n++) {
        assert_int_equal(truncate(in_dir("small.h5"), (off_t)n), 0);
        if (open_and_verify(in_dir("small.h5")) != EN_EDATA) fail_msg("%zu of %zu bytes", n, b.n);
        if (n > 48 && !strstr(en_error_message(), "cut off")) fail_msg("%s", en_error_message());
        put_file("", in_dir("small.h5"), b.at, b.n);
    }
    bytes_insert(&b, b.n, "x", 1);
    put_file("", in_dir("small.h5"), b.at, b.n);
    assert_int_equal(open_and_verify(in_dir("small.h5")), EN_EDATA);
    bytes_free(&b);
}

/* ---- files made to do harm --------------------------------------------------------------------------------------------------------------- */

static hid_t edit(void)
{
    const hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(fapl, H5F_LIBVER_V18, H5F_LIBVER_V18);
    const hid_t file = H5Fopen(in_dir("small.h5"), H5F_ACC_RDWR, fapl);
    H5Pclose(fapl);
    assert_true(file >= 0);
    return file;
}

/* Replaces a dataset by one with these values and the right checksum. */
static void replace(hid_t file, const char *name, hid_t type, int ndim, hsize_t n, const void *values, hid_t plist)
{
    const hsize_t extent[2] = { n, 1 };
    H5Ldelete(file, name, H5P_DEFAULT);
    const hid_t space = H5Screate_simple(ndim, extent, NULL), set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, plist, H5P_DEFAULT);
    assert_true(set >= 0);
    if (values) {
        const uint32_t crc = (uint32_t)crc32(0, values, (uInt)(n * H5Tget_size(type)));
        const hid_t scalar = H5Screate(H5S_SCALAR), attr = H5Acreate2(set, "crc32", H5T_STD_U32LE, scalar, H5P_DEFAULT, H5P_DEFAULT);
        assert_true(H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0 && H5Awrite(attr, H5T_NATIVE_UINT32, &crc) >= 0);
        H5Aclose(attr);
        H5Sclose(scalar);
    }
    H5Dclose(set);
    H5Sclose(space);
}

static void says(const char *what, const char *needle)
{
    en_dataset *ds = NULL;
    en_error_clear();
    const en_status s = en_dataset_open(in_dir("small.h5"), "train", NULL, &ds);
    if (s != EN_EDATA || !strstr(en_error_message(), needle))
        fail_msg("%s: %s: \"%s\", not \"%s\"", what, en_status_name(s), en_error_message(), needle);
    assert_null(ds);
}

typedef void change(hid_t file);
static void no_labels(hid_t f)      { H5Ldelete(f, "/labels", H5P_DEFAULT); }
static void no_bytes(hid_t f)       { H5Ldelete(f, "/bytes", H5P_DEFAULT); }
static void wrong_type(hid_t f)     { replace(f, "/labels", H5T_STD_I64LE, 1, 2, (int64_t[]){ 0, 1 }, H5P_DEFAULT); }
static void wrong_order(hid_t f)    { replace(f, "/labels", H5T_STD_I32BE, 1, 2, (int32_t[]){ 0, 1 }, H5P_DEFAULT); }
static void wrong_rank(hid_t f)     { replace(f, "/labels", H5T_STD_I32LE, 2, 2, (int32_t[]){ 0, 1 }, H5P_DEFAULT); }
static void wrong_length(hid_t f)   { replace(f, "/offsets", H5T_STD_I64LE, 1, 2, (int64_t[]){ 0, 9 }, H5P_DEFAULT); }
static void label_below(hid_t f)    { replace(f, "/labels", H5T_STD_I32LE, 1, 2, (int32_t[]){ 0, -1 }, H5P_DEFAULT); }
static void label_above(hid_t f)    { replace(f, "/labels", H5T_STD_I32LE, 1, 2, (int32_t[]){ 0, 2 }, H5P_DEFAULT); }
static void descending(hid_t f)     { replace(f, "/offsets", H5T_STD_I64LE, 1, 3, (int64_t[]){ 0, 12, 9 }, H5P_DEFAULT); }
static void negative(hid_t f)       { replace(f, "/offsets", H5T_STD_I64LE, 1, 3, (int64_t[]){ 0, INT64_MIN, 9 }, H5P_DEFAULT); }
static void beyond(hid_t f)         { replace(f, "/offsets", H5T_STD_I64LE, 1, 3, (int64_t[]){ 0, 4, INT64_MAX }, H5P_DEFAULT); }
static void from_one(hid_t f)       { replace(f, "/offsets", H5T_STD_I64LE, 1, 3, (int64_t[]){ 1, 4, 9 }, H5P_DEFAULT); }
static void uncovered(hid_t f)      { replace(f, "/split_offsets", H5T_STD_I64LE, 1, 2, (int64_t[]){ 0, 1 }, H5P_DEFAULT); }
static void split_beyond(hid_t f)   { replace(f, "/split_offsets", H5T_STD_I64LE, 1, 2, (int64_t[]){ 0, 1 << 30 }, H5P_DEFAULT); }
static void texts(hid_t f, const char *name, hsize_t n, size_t width, const char *values, H5T_str_t pad)
{
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, width);
    H5Tset_strpad(type, pad);
    replace(f, name, type, 1, n, values, H5P_DEFAULT);
    H5Tclose(type);
}
static void no_class_name(hid_t f)  { texts(f, "/classes", 2, 3, "\0\0\0dog", H5T_STR_NULLPAD); }
static void unsorted(hid_t f)       { texts(f, "/classes", 2, 3, "dogcat", H5T_STR_NULLPAD); }
static void twice(hid_t f)          { texts(f, "/classes", 2, 3, "catcat", H5T_STR_NULLPAD); }
static void a_path(hid_t f)         { texts(f, "/classes", 2, 3, "../dog", H5T_STR_NULLPAD); }
static void no_file_name(hid_t f)   { texts(f, "/files", 2, 3, "a\0\0\0\0\0", H5T_STR_NULLPAD); }
static void padded(hid_t f)         { texts(f, "/files", 2, 3, "a  b  ", H5T_STR_SPACEPAD); }
static void wide(hid_t f)           { char *v = calloc(2, 70000); v[0] = v[70000] = 'a'; texts(f, "/files", 2, 70000, v, H5T_STR_NULLPAD); free(v); }
static void unknown_split(hid_t f)  { texts(f, "/splits", 1, 8, "test\0\0\0", H5T_STR_NULLPAD); }
static void endless_split(hid_t f)  { texts(f, "/splits", 1, 8, "trainval", H5T_STR_NULLPAD); }
static void many_splits(hid_t f)    { char v[800] = "train"; texts(f, "/splits", 100, 8, v, H5T_STR_NULLPAD); }
static void variable(hid_t f)
{
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, H5T_VARIABLE);
    const hsize_t n = 2;
    H5Ldelete(f, "/files", H5P_DEFAULT);
    const hid_t space = H5Screate_simple(1, &n, NULL), set = H5Dcreate2(f, "/files", type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    const char *v[] = { "a", "b" };
    H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, v);
    H5Dclose(set);
    H5Sclose(space);
    H5Tclose(type);
}
static void chunked(hid_t f)
{
    const hid_t plist = H5Pcreate(H5P_DATASET_CREATE);
    const hsize_t chunk = 9;
    H5Pset_chunk(plist, 1, &chunk);
    replace(f, "/bytes", H5T_STD_U8LE, 1, 9, "meowwuff!", plist);
    H5Pclose(plist);
}
static void compact(hid_t f)
{
    const hid_t plist = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_layout(plist, H5D_COMPACT);
    replace(f, "/bytes", H5T_STD_U8LE, 1, 9, "meowwuff!", plist);
    H5Pclose(plist);
}
static void external(hid_t f)
{
    const hid_t plist = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_external(plist, "/etc/passwd", 0, 9);
    replace(f, "/bytes", H5T_STD_U8LE, 1, 9, NULL, plist);
    H5Pclose(plist);
}
static void huge(hid_t f)                                          /* 2^60 values that were never allocated */
{
    const hid_t plist = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_alloc_time(plist, H5D_ALLOC_TIME_LATE);
    replace(f, "/labels", H5T_STD_I32LE, 1, (hsize_t)1 << 60, NULL, plist);
    H5Pclose(plist);
}
static void soft(hid_t f)
{
    H5Lmove(f, "/labels", f, "/other", H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_soft("/other", f, "/labels", H5P_DEFAULT, H5P_DEFAULT);
}
static void elsewhere(hid_t f)
{
    H5Ldelete(f, "/labels", H5P_DEFAULT);
    H5Lcreate_external("/etc/passwd", "/labels", f, "/labels", H5P_DEFAULT, H5P_DEFAULT);
}
static void a_group(hid_t f)
{
    H5Ldelete(f, "/labels", H5P_DEFAULT);
    H5Gclose(H5Gcreate2(f, "/labels", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
}
static void no_format(hid_t f)      { H5Adelete(f, "format"); }
static void number(hid_t f, const char *name, int64_t v)
{
    const hid_t attr = H5Aopen(f, name, H5P_DEFAULT);
    H5Awrite(attr, H5T_NATIVE_INT64, &v);
    H5Aclose(attr);
}
static void newer(hid_t f)          { number(f, "version", 2); }
static void incomplete(hid_t f)     { number(f, "complete", 0); }
static void no_sum(hid_t f)
{
    const hid_t set = H5Dopen2(f, "/labels", H5P_DEFAULT);
    H5Adelete(set, "crc32");
    H5Dclose(set);
}

static void hostile_files_are_refused_with_a_reason(void **state)
{
    (void)state;
    static const struct { change *by; const char *name, *says; } cases[] = {
        { no_labels, "no_labels", "has no dataset /labels" }, { no_bytes, "no_bytes", "has no dataset /bytes" },
        { wrong_type, "wrong_type", "/labels is of another type" }, { wrong_order, "wrong_order", "/labels is of another type" },
        { wrong_rank, "wrong_rank", "/labels is not one-dimensional" }, { wrong_length, "wrong_length", "/offsets has 2 values and should have 3" },
        { label_below, "label_below", "sample 1 is of class -1 of 2" }, { label_above, "label_above", "sample 1 is of class 2 of 2" },
        { descending, "descending", "sample 0 is from byte 0 to 12 of 9" }, { negative, "negative", "sample 0 is from byte 0 to -" },
        { beyond, "beyond", "do not cover /bytes" }, { from_one, "from_one", "do not cover /bytes" },
        { uncovered, "uncovered", "do not cover the samples" }, { split_beyond, "split_beyond", "do not cover the samples" },
        { no_class_name, "no_class_name", "class 0 has no usable name" }, { unsorted, "unsorted", "not in byte order" },
        { twice, "twice", "not in byte order" }, { a_path, "a_path", "class 0 has no usable name" },
        { no_file_name, "no_file_name", "sample 1 has no name" }, { padded, "padded", "/files is of another type" },
        { wide, "wide", "/files lies outside" }, { unknown_split, "unknown_split", "other parts than" },
        { endless_split, "endless_split", "other parts than" }, { many_splits, "many_splits", "/splits has 100 parts" },
        { variable, "variable", "/files is of another type" }, { chunked, "chunked", "/bytes is not stored in one piece" },
        { compact, "compact", "/bytes is not stored in one piece" }, { external, "external", "/bytes is not stored in one piece" },
        { huge, "huge", "/labels lies outside the file" }, { soft, "soft", "has no dataset /labels" },
        { elsewhere, "elsewhere", "has no dataset /labels" }, { a_group, "a_group", "/labels cannot be opened" },
        { no_format, "no_format", "no packed dataset" }, { newer, "newer", "format version 2" }, { incomplete, "incomplete", "not complete" },
        { no_sum, "no_sum", "/labels has no checksum" } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        unlink(in_dir("small.h5"));
        bytes b = small_file();
        bytes_free(&b);
        const hid_t file = edit();
        cases[i].by(file);
        assert_true(H5Fclose(file) >= 0);
        says(cases[i].name, cases[i].says);
    }
    unlink(in_dir("small.h5"));                                    /* another program's file, in the oldest format */
    const hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(fapl, H5F_LIBVER_EARLIEST, H5F_LIBVER_LATEST);
    H5Fclose(H5Fcreate(in_dir("small.h5"), H5F_ACC_TRUNC, H5P_DEFAULT, fapl));
    H5Pclose(fapl);
    says("old", "not as `effnet pack` writes it");
}

static void open_small(void *argument)
{
    en_dataset *ds = NULL;
    (void)argument;
    if (en_dataset_open(in_dir("small.h5"), "train", NULL, &ds) == EN_OK) fail();
}

static void hdf5_prints_nothing_by_itself(void **state)
{
    (void)state;
    bytes b = small_file();
    b.at[60] ^= 1;
    put_file("", in_dir("small.h5"), b.at, b.n);
    H5Eset_auto2(H5E_DEFAULT, (H5E_auto2_t)H5Eprint2, stderr);
    char *said = stderr_of(open_small, NULL);
    assert_string_equal(said, "");
    free(said);
    bytes_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_A_FOLDER(no_byte_is_without_a_checksum),
        IN_A_FOLDER(a_file_of_another_length_is_refused),
        IN_A_FOLDER(hostile_files_are_refused_with_a_reason),
        IN_A_FOLDER(hdf5_prints_nothing_by_itself),
    };
    return cmocka_run_group_tests_name("pack_hostile", tests, NULL, NULL);
}
