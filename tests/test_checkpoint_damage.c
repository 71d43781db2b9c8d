/* test_checkpoint_damage.c - every kind of file that is not a whole checkpoint is refused, in one line that says why. */
#include "test_checkpoint.h"

#include <fcntl.h>
#include <hdf5.h>
#include <sys/file.h>

/* HDF5 1.10 itself loses some 400 bytes for each object header whose checksum is wrong. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:libhdf5"; }

static en_model model;

static void write_tiny(const char *p)
{
    en_snapshot s;
    model = tiny_model();
    OK(en_snapshot_alloc(&model, 2, slots, true, &s));
    fill(&s, 42);
    s.class_names = tiny_classes;
    s.options = "lr=0.016\nmodel=b0\n";
    OK(en_checkpoint_write(p, &s));
    en_snapshot_free(&s);
}

static void what_is_no_hdf5_file_at_all(void **state)
{
    (void)state;
    en_checkpoint_info i;
    REFUSED(EN_EDATA, en_checkpoint_inspect(path("absent.h5"), true, &i), "absent.h5 is not there");
    REFUSED(EN_EDATA, en_checkpoint_inspect(folder, true, &i), "is a folder");
    assert_int_equal(mkfifo(path("fifo.h5"), 0666), 0);
    REFUSED(EN_EDATA, en_checkpoint_inspect(path("fifo.h5"), true, &i), "is a device or a pipe");
    spill(path("empty.h5"), "", 0);
    REFUSED(EN_EDATA, en_checkpoint_inspect(path("empty.h5"), true, &i), "it is empty");
    spill(path("text.h5"), "step 100, loss 2.5, all is well and long enough to hold a superblock if it were one\n", 80);
    REFUSED(EN_EDATA, en_checkpoint_inspect(path("text.h5"), true, &i), "is not an HDF5 file");
    spill(path("short.h5"), "abc", 3);
    REFUSED(EN_EDATA, en_checkpoint_inspect(path("short.h5"), true, &i), "is not an HDF5 file");
    assert_null(i.class_names);                                /* freeing what was refused is fine                       */
    en_checkpoint_info_free(&i);

    en_snapshot s;
    model = tiny_model();
    OK(en_snapshot_alloc(&model, 0, NULL, false, &s));
    REFUSED(EN_EDATA, en_checkpoint_read(path("absent.h5"), &s, false), "absent.h5 is not there");
    en_snapshot_free(&s);
}

static void truncation_at_every_length(void **state)
{
    (void)state;
    size_t n;
    en_checkpoint_info i;
    write_tiny(path("a.h5"));
    char *bytes = slurp(path("a.h5"), &n);
    for (size_t length = n; length-- > 0;) {
        if (length > 4096 && length + 64 < n && length % 23) continue;
        assert_int_equal(truncate(path("a.h5"), (off_t)length), 0);
        REFUSED(EN_EDATA, en_checkpoint_inspect(path("a.h5"), length % 2, &i), "is truncated");
    }
    for (size_t zeros = 1; zeros <= n; zeros *= 2) {           /* the right length, and the end never reached the disk  */
        spill(path("a.h5"), bytes, n);
        memset(bytes + n - zeros, 0, zeros);
        spill(path("b.h5"), bytes, n);
        en_error_clear();
        const en_status status = en_checkpoint_inspect(path("b.h5"), true, &i);
        if (status == EN_OK) holds_step(path("b.h5"), &model, 2, 42), en_checkpoint_info_free(&i);
        else assert_int_equal(status, EN_EDATA);
        if (zeros >= 4096) assert_int_equal(status, EN_EDATA);
        free(bytes);
        bytes = slurp(path("a.h5"), &n);
    }
    free(bytes);
}

static bool same_info(const en_checkpoint_info *a, const en_checkpoint_info *b)
{
    for (int k = 0; k < 3; k++)
        if (!a->class_names || strcmp(a->class_names[k], b->class_names[k])) return false;
    return !memcmp(&a->state, &b->state, sizeof a->state) && !strcmp(a->model, b->model) && a->width == b->width && a->depth == b->depth
        && a->resolution == b->resolution && a->classes == b->classes && a->dropout == b->dropout && a->drop_path == b->drop_path
        && a->has_ema == b->has_ema && a->n_slots == b->n_slots && a->options && !strcmp(a->options, b->options)
        && !strcmp(a->program_version, b->program_version);
}

/* A flip is refused, or touched nothing: what is read is what was written.  Both kinds are counted: if most flips were
 * harmless the test would mean little. */
static void one_flipped_bit_is_refused_or_harmless(void **state)
{
    (void)state;
    size_t n;
    en_checkpoint_info whole, i;
    write_tiny(path("a.h5"));
    free(slurp(path("a.h5"), &n));
    OK(en_checkpoint_inspect(path("a.h5"), true, &whole));
    const int fd = open(path("a.h5"), O_RDWR);
    int refused = 0, harmless = 0, named = 0;
    alarm(100);                                                /* damage can send HDF5 round in circles: that is a failure */
    for (size_t at = 0; at < n; at++) {
        if (at > 2048 && mixed(5, at) % 6) continue;
        uint8_t was, is;
        assert_int_equal(pread(fd, &was, 1, (off_t)at), 1);
        is = was ^ (uint8_t)(1 << mixed(6, at) % 8);
        assert_int_equal(pwrite(fd, &is, 1, (off_t)at), 1);
        en_error_clear();
        const en_status status = en_checkpoint_inspect(path("a.h5"), true, &i);
        if (status == EN_OK) {
            if (!same_info(&i, &whole)) fail_msg("byte %zu of %zu, 0x%02x to 0x%02x: other attributes, and accepted", at, n, was, is);
            holds_step(path("a.h5"), &model, 2, 42);
            en_checkpoint_info_free(&i);
            harmless++;
        } else {
            if (status != EN_EDATA || strchr(en_error_message(), '\n'))
                fail_msg("byte %zu: %s: %s", at, en_status_name(status), en_error_text());
            named += strstr(en_error_message(), "does not hash") != NULL;
            refused++;
        }
        assert_int_equal(pwrite(fd, &was, 1, (off_t)at), 1);
    }
    alarm(0);
    close(fd);
    print_message("%d flips refused, %d of them with the dataset's name; %d harmless\n", refused, named, harmless);
    assert_true(refused > 4 * harmless && named > 100);
    assert_int_equal(H5Fget_obj_count((hid_t)H5F_OBJ_ALL, H5F_OBJ_ALL), 0);      /* nothing was left open               */
    OK(en_checkpoint_inspect(path("a.h5"), true, &i));         /* all put back                                          */
    en_checkpoint_info_free(&i);
    en_checkpoint_info_free(&whole);
}

static hid_t open_rw(const char *p)
{
    const hid_t f = H5Fopen(p, H5F_ACC_RDWR, H5P_DEFAULT);
    assert_true(f >= 0);
    return f;
}

static void damage_in_a_tensor_is_named(void **state)
{
    (void)state;
    en_checkpoint_info i;
    en_snapshot s;
    write_tiny(path("a.h5"));
    const hid_t f = open_rw(path("a.h5")), d = H5Dopen2(f, "/ema/classifier.weight", H5P_DEFAULT);
    const haddr_t offset = H5Dget_offset(d);
    H5Dclose(d);
    H5Fclose(f);
    const int fd = open(path("a.h5"), O_RDWR);
    assert_int_equal(pwrite(fd, "x", 1, (off_t)offset + 7), 1);
    close(fd);
    REFUSED(EN_EDATA, en_checkpoint_inspect(path("a.h5"), true, &i), "a.h5 is damaged: dataset /ema/classifier.weight does not hash");
    OK(en_checkpoint_inspect(path("a.h5"), false, &i));        /* not asked to look                                     */
    en_checkpoint_info_free(&i);
    OK(en_snapshot_alloc(&model, 0, NULL, true, &s));          /* but who reads it is told anyway                       */
    REFUSED(EN_EDATA, en_checkpoint_read(path("a.h5"), &s, true), "dataset /ema/classifier.weight does not hash");
    en_snapshot_free(&s);
}

/* Changes that HDF5 itself makes, with every checksum of its own right. */
static void a_file_that_another_program_changed(void **state)
{
    (void)state;
    en_checkpoint_info i;
    hid_t f = H5Fcreate(path("foreign.h5"), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    H5Fclose(f);
    REFUSED(EN_EDATA, en_checkpoint_inspect(path("foreign.h5"), true, &i), "is an HDF5 file of another program");

    write_tiny(path("a.h5"));
    f = open_rw(path("a.h5"));
    H5Adelete(f, "complete");
    H5Fclose(f);
    REFUSED(EN_EDATA, en_checkpoint_inspect(path("a.h5"), false, &i), "is incomplete");

    const int64_t newer = 2, negative = -1;
    write_tiny(path("a.h5"));
    f = open_rw(path("a.h5"));
    hid_t a = H5Aopen(f, "format_version", H5P_DEFAULT);
    H5Awrite(a, H5T_NATIVE_INT64, &newer);
    H5Aclose(a);
    H5Fclose(f);
    REFUSED(EN_EDATA, en_checkpoint_inspect(path("a.h5"), false, &i), "has format 2 and this program knows formats up to 1");

    const struct { const char *name; hid_t type; const void *value; } wrong[] = {
        { "seconds", H5T_NATIVE_DOUBLE, &(double){ 0.0 / 0.0 } }, { "best_top1", H5T_NATIVE_DOUBLE, &(double){ 1.0 / 0.0 } },
        { "step", H5T_NATIVE_INT64, &negative }, { "classes", H5T_NATIVE_INT64, &(int64_t){ (int64_t)1 << 40 } },
        { "classes", H5T_NATIVE_INT64, &(int64_t){ 4 } }, { "n_slots", H5T_NATIVE_INT64, &(int64_t){ 5 } },
    };
    for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
        write_tiny(path("a.h5"));
        f = open_rw(path("a.h5"));
        a = H5Aopen(f, wrong[k].name, H5P_DEFAULT);
        assert_true(H5Awrite(a, wrong[k].type, wrong[k].value) >= 0);
        H5Aclose(a);
        H5Fclose(f);
        REFUSED(EN_EDATA, en_checkpoint_inspect(path("a.h5"), false, &i), k == 4 ? "class names" : wrong[k].name);
    }
    static const char *const needed[] = { "step", "position", "seed", "model", "program_version", "has_ema", "datasets", "lanes" };
    for (size_t k = 0; k < sizeof needed / sizeof *needed; k++) {
        write_tiny(path("a.h5"));
        f = open_rw(path("a.h5"));
        H5Adelete(f, needed[k]);
        H5Fclose(f);
        REFUSED(EN_EDATA, en_checkpoint_inspect(path("a.h5"), false, &i), needed[k]);
    }
    static const char *const added[] = { "accum", "world_size", "evaluation_owed", "bn_eps", "bn_momentum", "padding", "normalise",
                                         "eval_crop" };        /* later than the first files of this format             */
    write_tiny(path("a.h5"));
    f = open_rw(path("a.h5"));
    for (size_t k = 0; k < sizeof added / sizeof *added; k++) assert_true(H5Adelete(f, added[k]) >= 0);
    H5Fclose(f);
    OK(en_checkpoint_inspect(path("a.h5"), true, &i));
    assert_int_equal(i.state.accum, 0);
    assert_int_equal(i.state.world_size, 0);
    assert_true(i.bn_eps == 0 && i.bn_momentum == 0 && i.padding == EN_PADDING_OWN);
    assert_true(i.normalise == EN_NORMALISE_IMAGENET && i.eval_crop == EN_EVAL_CROP_REFERENCE);      /* whatever the model: there was no other */
    en_checkpoint_info_free(&i);

    write_tiny(path("a.h5"));                                  /* symmetric: as many characters                         */
    f = open_rw(path("a.h5"));
    a = H5Aopen(f, "padding", H5P_DEFAULT);
    const hid_t text = H5Aget_type(a);
    assert_true(H5Awrite(a, text, "mirroring") >= 0);
    H5Tclose(text);
    H5Aclose(a);
    H5Fclose(f);
    REFUSED(EN_EDATA, en_checkpoint_inspect(path("a.h5"), false, &i), "was trained with the padding 'mirroring', and this program has tf_same and symmetric");

    write_tiny(path("a.h5"));                                  /* imagenet: as many characters                         */
    f = open_rw(path("a.h5"));
    a = H5Aopen(f, "normalise", H5P_DEFAULT);
    const hid_t pixels = H5Aget_type(a);
    assert_true(H5Awrite(a, pixels, "centered") >= 0);
    H5Tclose(pixels);
    H5Aclose(a);
    H5Fclose(f);
    REFUSED(EN_EDATA, en_checkpoint_inspect(path("a.h5"), false, &i), "was trained with pixels 'centered' and the evaluation crop 'reference', which this program");

    write_tiny(path("a.h5"));
    f = open_rw(path("a.h5"));
    H5Adelete(f, "step");
    H5Fclose(f);
    f = open_rw(path("a.h5"));
    const hid_t scalar = H5Screate(H5S_SCALAR), type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, H5T_VARIABLE);
    a = H5Acreate2(f, "step", type, scalar, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(a, type, &(const char *){ "ten" });
    H5Aclose(a);
    H5Fclose(f);
    REFUSED(EN_EDATA, en_checkpoint_inspect(path("a.h5"), false, &i), "attribute step of an unexpected type");

    write_tiny(path("a.h5"));
    f = open_rw(path("a.h5"));
    H5Ldelete(f, "/optimizer/mom/bn1.weight", H5P_DEFAULT);
    H5Fclose(f);
    REFUSED(EN_EDATA, en_checkpoint_inspect(path("a.h5"), true, &i), "20 of its 21 datasets are there");

    write_tiny(path("a.h5"));                                  /* the whole of /model gone                              */
    f = open_rw(path("a.h5"));
    H5Ldelete(f, "/model", H5P_DEFAULT);
    H5Fclose(f);
    en_snapshot s;
    OK(en_snapshot_alloc(&model, 0, NULL, false, &s));
    REFUSED(EN_EDATA, en_checkpoint_read(path("a.h5"), &s, false), "/model");
    en_snapshot_free(&s);

    write_tiny(path("a.h5"));                                  /* stored in another way, the same values                */
    f = open_rw(path("a.h5"));
    H5Ldelete(f, "/model/bn1.weight", H5P_DEFAULT);
    const hsize_t six = 6;
    const hid_t space = H5Screate_simple(1, &six, NULL), dcpl = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(dcpl, 1, &six);
    const hid_t d = H5Dcreate2(f, "/model/bn1.weight", H5T_IEEE_F32LE, space, H5P_DEFAULT, dcpl, H5P_DEFAULT);
    H5Dclose(d);
    H5Fclose(f);
    REFUSED(EN_EDATA, en_checkpoint_inspect(path("a.h5"), true, &i), "/model/bn1.weight has no crc32c");
}

/* Whether the tensors are asked for or not: no link is followed but the hard ones that a checkpoint has. */
static void links_that_are_not_a_tree(void **state)
{
    (void)state;
    static const struct { const char *name, *to; char kind; const char *why; } links[] = {
        { "/model/again", "/", 'h', "/model/again: HDF5 says: not a dataset" },         /* seen when it is opened */
        { "/model/gone", "/nowhere", 's', "/model/gone is a soft link" },
        { "/optimizer/mom2", "/optimizer/mom", 's', "/optimizer/mom2 is a soft link" },
        { "/ema/far", "other.h5", 'e', "/ema/far is a link to another file" },
        { "/model/of", "x", 'u', "/model/of is a link of an unknown kind" },
        { "/notes\n2", "/model", 'h', "it has /notes?2, which effnet does not write" },
    };
    en_checkpoint_info i;
    for (size_t k = 0; k < sizeof links / sizeof *links; k++) {
        write_tiny(path("a.h5"));
        const hid_t f = open_rw(path("a.h5"));
        const char *name = links[k].name, *to = links[k].to;
        const herr_t made = links[k].kind == 'h' ? H5Lcreate_hard(f, to, f, name, H5P_DEFAULT, H5P_DEFAULT)
                          : links[k].kind == 's' ? H5Lcreate_soft(to, f, name, H5P_DEFAULT, H5P_DEFAULT)
                          : links[k].kind == 'e' ? H5Lcreate_external(to, "/x", f, name, H5P_DEFAULT, H5P_DEFAULT)
                          : H5Lcreate_ud(f, name, (H5L_type_t)77, to, 1, H5P_DEFAULT, H5P_DEFAULT);
        H5Fclose(f);
        if (made < 0 && links[k].kind == 'u') continue;        /* HDF5 wants the kind registered */
        assert_true(made >= 0);
        REFUSED(EN_EDATA, en_checkpoint_inspect(path("a.h5"), true, &i), links[k].why);
        if (k > 0) REFUSED(EN_EDATA, en_checkpoint_inspect(path("a.h5"), false, &i), links[k].why);
    }

    write_tiny(path("a.h5"));                                  /* a whole group that is elsewhere                       */
    hid_t f = open_rw(path("a.h5"));
    H5Ldelete(f, "/model", H5P_DEFAULT);
    H5Lcreate_external("b.h5", "/model", f, "/model", H5P_DEFAULT, H5P_DEFAULT);
    H5Fclose(f);
    write_tiny(path("b.h5"));
    en_snapshot s;
    OK(en_snapshot_alloc(&model, 0, NULL, false, &s));
    REFUSED(EN_EDATA, en_checkpoint_read(path("a.h5"), &s, true), "/model is a link to another file");
    en_snapshot_free(&s);

    write_tiny(path("a.h5"));                                  /* one dataset a thousand times                          */
    f = open_rw(path("a.h5"));
    for (int k = 0; k < 1000; k++) {
        char name[64];
        snprintf(name, sizeof name, "/ema/%d", k);
        assert_true(H5Lcreate_hard(f, "/ema/conv_stem.weight", f, name, H5P_DEFAULT, H5P_DEFAULT) >= 0);
    }
    H5Fclose(f);
    REFUSED(EN_EDATA, en_checkpoint_inspect(path("a.h5"), true, &i), "linked more than once");

    write_tiny(path("a.h5"));
    f = open_rw(path("a.h5"));
    for (int k = 0; k < 4; k++) {
        char name[64];
        snprintf(name, sizeof name, "/optimizer/%d", k);
        assert_true(H5Lcreate_hard(f, "/optimizer/mom", f, name, H5P_DEFAULT, H5P_DEFAULT) >= 0);
    }
    H5Fclose(f);
    REFUSED(EN_EDATA, en_checkpoint_inspect(path("a.h5"), false, &i), "6 links in /optimizer, where effnet makes at most 4");
}

/* A dataset of zeros that hashes, its values in another file: nothing of that file is read. */
static void values_in_another_file(void **state)
{
    (void)state;
    en_checkpoint_info i;
    const hsize_t six = 6;
    const uint32_t crc_of_24_zeros = 0x7f3a3a1e;               /* any: how it is stored is found out first               */
    for (int virtual = 0; virtual < 2; virtual++) {
        write_tiny(path("a.h5"));
        const hid_t f = open_rw(path("a.h5")), space = H5Screate_simple(1, &six, NULL), dcpl = H5Pcreate(H5P_DATASET_CREATE);
        H5Ldelete(f, "/model/bn1.weight", H5P_DEFAULT);
        if (virtual) H5Pset_virtual(dcpl, space, path("b.h5"), "/model/bn1.weight", space);
        else H5Pset_external(dcpl, "/dev/zero", 0, 24);
        const hid_t d = H5Dcreate2(f, "/model/bn1.weight", H5T_IEEE_F32LE, space, H5P_DEFAULT, dcpl, H5P_DEFAULT);
        const hid_t scalar = H5Screate(H5S_SCALAR), a = H5Acreate2(d, "crc32c", H5T_STD_U32LE, scalar, H5P_DEFAULT, H5P_DEFAULT);
        assert_true(d >= 0 && H5Awrite(a, H5T_NATIVE_UINT32, &crc_of_24_zeros) >= 0);
        H5Fclose(f);
        H5Aclose(a); H5Sclose(scalar); H5Dclose(d); H5Pclose(dcpl); H5Sclose(space);
        REFUSED(EN_EDATA, en_checkpoint_inspect(path("a.h5"), true, &i), "/model/bn1.weight is not stored as effnet stores it");
    }
}

/* A checksum of a thousand numbers once went into a variable of one. */
static void checks_and_numbers_of_other_types(void **state)
{
    (void)state;
    en_checkpoint_info i;
    static const uint64_t zeros[1000];
    const hsize_t thousand = 1000;
    const struct { const char *object, *name; hid_t type; hsize_t n; const char *why; } wrong[] = {
        { "/model/bn1.weight", "crc32c", H5T_STD_U32LE, thousand, "/model/bn1.weight has no crc32c" },
        { "/model/bn1.weight", "crc32c", H5T_STD_U64LE, 1, "/model/bn1.weight has no crc32c" },
        { "/model/bn1.weight", "crc32c", H5T_IEEE_F32LE, 1, "/model/bn1.weight has no crc32c" },
        { "/class_names", "crc32c", H5T_STD_U32LE, 0, "/class_names has no crc32c" },
        { "/", "step", H5T_STD_I64LE, 2, "attribute step of an unexpected type" },
        { "/", "step", H5T_STD_U64LE, 1, "attribute step of an unexpected type" },    /* 2^64 - 1 would have become 2^63 - 1 */
        { "/", "seed", H5T_STD_I64LE, 1, "attribute seed of an unexpected type" },
        { "/", "seconds", H5T_IEEE_F32LE, 1, "attribute seconds of an unexpected type" },
        { "/", "model", H5T_STD_I64LE, 1, "attribute model of an unexpected type" },
    };
    for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
        write_tiny(path("a.h5"));
        const hid_t f = open_rw(path("a.h5")), object = H5Oopen(f, wrong[k].object, H5P_DEFAULT);
        const hid_t space = wrong[k].n ? H5Screate_simple(1, &wrong[k].n, NULL) : H5Screate(H5S_NULL);
        H5Adelete(object, wrong[k].name);
        const hid_t a = H5Acreate2(object, wrong[k].name, wrong[k].type, space, H5P_DEFAULT, H5P_DEFAULT);
        assert_true(a >= 0 && (wrong[k].n == 0 || H5Awrite(a, wrong[k].type, zeros) >= 0));
        H5Aclose(a); H5Sclose(space); H5Oclose(object);
        H5Fclose(f);
        REFUSED(EN_EDATA, en_checkpoint_inspect(path("a.h5"), true, &i), wrong[k].why);
    }
}

static void locks_of_others_do_not_matter(void **state)
{
    (void)state;                                               /* as on NFS and Lustre, where every lock fails          */
    en_checkpoint_info i;
    write_tiny(path("a.h5"));
    const int fd = open(path("a.h5"), O_RDONLY);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    OK(en_checkpoint_inspect(path("a.h5"), true, &i));
    en_checkpoint_info_free(&i);
    close(fd);
}

#define IN_A_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void)
{
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    const struct CMUnitTest tests[] = {
        IN_A_FOLDER(what_is_no_hdf5_file_at_all),
        IN_A_FOLDER(truncation_at_every_length),
        IN_A_FOLDER(one_flipped_bit_is_refused_or_harmless),
        IN_A_FOLDER(damage_in_a_tensor_is_named),
        IN_A_FOLDER(a_file_that_another_program_changed),
        IN_A_FOLDER(links_that_are_not_a_tree),
        IN_A_FOLDER(values_in_another_file),
        IN_A_FOLDER(checks_and_numbers_of_other_types),
        IN_A_FOLDER(locks_of_others_do_not_matter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
