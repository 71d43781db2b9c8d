/* Datasets: what is found, in which order, and what is said when nothing is. */
#include "data_help.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *dir;

static int setup(void **state)    { (void)state; dir = temp_open(); return 0; }
static int teardown(void **state) { (void)state; temp_close(dir); return 0; }

static en_dataset *opened(const char *path, const char *split, const en_dataset *like)
{
    en_dataset *ds = NULL;
    OK(en_dataset_open(path, split, like, &ds));
    return ds;
}

static void refused(const char *path, const char *split, const en_dataset *like, const char *says, const char *says_also)
{
    en_dataset *ds = NULL;
    en_error_clear();
    assert_int_equal(en_dataset_open(path, split, like, &ds), EN_EDATA);
    assert_null(ds);
    if (!strstr(en_error_message(), says) || !strstr(en_error_message(), says_also))
        fail_msg("\"%s\" says neither \"%s\" nor \"%s\"", en_error_message(), says, says_also);
}

static void files_are_found_in_byte_order_below_their_class(void **state)
{
    (void)state;
    put_file(dir, "cat/b.jpg", "2", 1);
    put_file(dir, "cat/a.jpg", "1", 1);
    put_file(dir, "cat/more/deep/c.png", "3", 1);
    put_file(dir, "Cat/x.JPEG", "0", 1);                   /* differs in case alone: another class */
    put_file(dir, "dog.jpg/1.jpg", "4", 1);                /* a folder with the name of a file */
    put_file(dir, "cat/.hidden.jpg", "", 0);
    put_file(dir, "cat/._a.jpg", "", 0);
    put_file(dir, "cat/Thumbs.db", "", 0);
    put_file(dir, "cat/.git/object", "", 0);
    put_file(dir, ".cache/x.jpg", "", 0);
    put_file(dir, "README", "stray", 5);
    en_dataset *ds = opened(dir, "train", NULL);
    static const char *const classes[] = { "Cat", "cat", "dog.jpg" };
    static const struct { const char *file; int label; char content; } files[] = {
        { "Cat/x.JPEG", 0, '0' }, { "cat/a.jpg", 1, '1' }, { "cat/b.jpg", 1, '2' }, { "cat/more/deep/c.png", 1, '3' },
        { "dog.jpg/1.jpg", 2, '4' } };
    assert_int_equal(ds->classes, 3);
    for (int c = 0; c < 3; c++) assert_string_equal(ds->class_names[c], classes[c]);
    assert_int_equal(ds->samples, 5);
    uint8_t *buf = NULL;
    size_t capacity = 0, n = 0;
    for (int i = 0; i < 5; i++) {
        assert_string_equal(ds->files[i], path_in(dir, files[i].file));
        assert_int_equal(ds->labels[i], files[i].label);
        OK(ds->ops->read(ds, i, &buf, &capacity, &n));
        assert_true(n == 1 && buf[0] == (uint8_t)files[i].content);
    }
    assert_string_equal(ds->source, dir);
    free(buf);
    en_dataset_close(ds);
    en_dataset_close(NULL);
}

static void splits_are_picked_by_name(void **state)
{
    (void)state;
    put_file(dir, "train/a/1.jpg", "1", 1);
    refused(dir, "val", NULL, "no val/", dir);
    put_file(dir, "validation/a/2.jpg", "1", 1);
    put_folder(dir, "test");
    en_dataset *train = opened(dir, "train", NULL), *val = opened(dir, "val", train);
    assert_string_equal(train->files[0], path_in(dir, "train/a/1.jpg"));
    assert_string_equal(val->files[0], path_in(dir, "validation/a/2.jpg"));
    en_dataset_close(train);
    en_dataset_close(val);
}

static void validation_alone_is_said(void **state)
{
    (void)state;
    put_file(dir, "val/a/1.jpg", "1", 1);
    refused(dir, "train", NULL, "no train/", "val/");
}

static void a_class_called_train_is_a_class(void **state)
{
    (void)state;
    put_file(dir, "boat/1.jpg", "1", 1);
    put_file(dir, "train/1.jpg", "1", 1);
    for (int i = 0; i < 2; i++) {
        en_dataset *ds = opened(dir, i ? "val" : "train", NULL);
        assert_int_equal(ds->classes, 2);
        en_dataset_close(ds);
    }
}

static void what_is_missing_is_said_with_path_and_remedy(void **state)
{
    (void)state;
    refused(path_in(dir, "nowhere"), "train", NULL, "does not exist", "nowhere");
    refused(dir, "train", NULL, "is empty", dir);
    put_file(dir, "1.jpg", "1", 1);
    refused(path_in(dir, "1.jpg"), "train", NULL, "not a folder", "1.jpg");
    refused(dir, "train", NULL, "no class folders", "<class>");
    put_file(dir, "cat/1.jpg", "1", 1);
    put_folder(dir, "dog");
    refused(dir, "train", NULL, "holds no files", path_in(dir, "dog"));
    put_file(dir, "dog/.hidden", "1", 1);
    refused(dir, "train", NULL, "holds no files", path_in(dir, "dog"));
    refused("", "train", NULL, "no dataset", "folder");
}

static void flat_splits_are_said(void **state)
{
    (void)state;
    put_file(dir, "train/cat/1.jpg", "1", 1);
    put_file(dir, "val/ILSVRC2012_val_00000001.JPEG", "1", 1);
    refused(dir, "val", NULL, "no class folders", path_in(dir, "val"));
}

static void validation_takes_the_classes_of_training(void **state)
{
    (void)state;
    put_file(dir, "train/a/1.jpg", "1", 1);
    put_file(dir, "train/b/1.jpg", "1", 1);
    put_file(dir, "train/c/1.jpg", "1", 1);
    put_file(dir, "val/c/1.jpg", "1", 1);
    put_file(dir, "val/a/1.jpg", "1", 1);
    en_dataset *train = opened(dir, "train", NULL), *val = opened(dir, "val", train);
    assert_int_equal(val->classes, 3);
    assert_string_equal(val->class_names[1], "b");
    assert_true(val->labels[0] == 0 && val->labels[1] == 2);
    en_dataset_close(val);
    put_file(dir, "val/zebra/1.jpg", "1", 1);
    refused(dir, "val", train, "\"zebra\"", "3");
    en_dataset_close(train);
}

static void links_are_followed_once(void **state)
{
    (void)state;
    put_file(dir, "real/cat/1.jpg", "1", 1);
    put_file(dir, "real/cat/2.jpg", "1", 1);
    put_folder(dir, "set");
    assert_int_equal(symlink("../real/cat", path_in(dir, "set/cat")), 0);
    assert_int_equal(symlink("..", path_in(dir, "real/cat/up")), 0);               /* to its own parent, and round again */
    assert_int_equal(symlink(".", path_in(dir, "real/cat/here")), 0);
    assert_int_equal(symlink("nowhere", path_in(dir, "real/cat/dangling.jpg")), 0);
    assert_int_equal(symlink("loop.jpg", path_in(dir, "real/cat/loop.jpg")), 0);
    en_dataset *ds = opened(path_in(dir, "set"), "train", NULL);
    assert_int_equal(ds->samples, 4);                                              /* 1, 2, dangling, loop */
    uint8_t *buf = NULL;
    size_t capacity = 0, n = 0;
    int bad = 0;
    for (int i = 0; i < 4; i++) {
        en_error_clear();
        if (ds->ops->read(ds, i, &buf, &capacity, &n) == EN_OK) continue;
        bad++;
        assert_non_null(strstr(en_error_message(), ds->files[i]));
        if (strstr(ds->files[i], "dangling")) assert_non_null(strstr(en_error_message(), "leads nowhere"));
    }
    assert_int_equal(bad, 2);
    free(buf);
    en_dataset_close(ds);
}

static void unreadable_files_are_named(void **state)
{
    (void)state;
    put_file(dir, "a/locked.jpg", "1", 1);
    put_file(dir, "a/ok.jpg", "1", 1);
    assert_int_equal(mkfifo(path_in(dir, "a/pipe.jpg"), 0644), 0);                 /* must not wait for a writer */
    const bool shrinks = access("/sys/kernel/mm/transparent_hugepage/enabled", R_OK) == 0 &&
                         symlink("/sys/kernel/mm/transparent_hugepage/enabled",
                                 path_in(dir, "a/shrinks.jpg")) == 0;   /* says 4096 bytes, has fewer */
    chmod(path_in(dir, "a/locked.jpg"), 0);
    en_dataset *ds = opened(dir, "train", NULL);
    const bool root = geteuid() == 0;
    if (root && seteuid(65534) != 0) fail_msg("seteuid");
    uint8_t *buf = NULL;
    size_t capacity = 0, n = 0;
    static const struct { const char *file, *says; en_status status; } cases[] = {
        { "locked.jpg", "Permission denied", EN_EIO }, { "ok.jpg", "", EN_OK }, { "pipe.jpg", "not a regular file", EN_EDATA },
        { "shrinks.jpg", "shrank", EN_EDATA } };
    for (int i = 0; i < 3 + shrinks; i++) {
        en_error_clear();
        const en_status status = ds->ops->read(ds, i, &buf, &capacity, &n);
        if (status != cases[i].status || !strstr(en_error_message(), cases[i].says)) {
            if (root) (void)!seteuid(0);
            fail_msg("%s: %s", cases[i].file, en_error_message());
        }
    }
    if (root && seteuid(0) != 0) fail_msg("seteuid");
    free(buf);
    en_dataset_close(ds);
}

static void made_up_pictures_are_a_function_of_their_number(void **state)
{
    (void)state;
    en_dataset *a = opened("synthetic:37", "train", NULL), *b = opened("synthetic", "train", NULL),
    *val = opened("synthetic:37", "val", a);
    assert_int_equal(a->samples, 37);
    assert_int_equal(b->samples, 1024);
    assert_int_equal(a->classes, 10);
    uint8_t *x = NULL, *y = NULL;
    size_t xc = 0, yc = 0, xn, yn;
    for (int i = 0; i < 37; i++) {
        OK(a->ops->read(a, i, &x, &xc, &xn));
        OK(b->ops->read(b, i, &y, &yc, &yn));
        assert_true(xn == yn && memcmp(x, y, xn) == 0);
        OK(val->ops->read(val, i, &y, &yc, &yn));
        assert_true(xn != yn || memcmp(x, y, xn) != 0);
        en_image img;
        OK(en_image_decode(a->files[i], x, xn, 0, &img));
        assert_int_equal(img.channels, 3);
        en_image_free(&img);
    }
    free(x);
    free(y);
    refused("synthetic:0", "train", NULL, "synthetic:1024", "");
    refused("synthetic:many", "train", NULL, "synthetic:1024", "");
    put_file(dir, "a/1.jpg", "1", 1);
    en_dataset *other = opened(dir, "train", NULL);
    refused("synthetic", "val", other, "\"checker\"", dir);
    char *reversed[11];
    for (int c = 0; c < 10; c++) reversed[10 - c] = a->class_names[c];
    reversed[0] = (char[]){ "another" };
    const en_dataset like = { .classes = 11, .class_names = reversed };
    en_dataset *mapped = opened("synthetic:37", "train", &like);   /* labels follow the names */
    assert_int_equal(mapped->classes, 11);
    for (int i = 0; i < 37; i++) assert_int_equal(mapped->labels[i], 10 - a->labels[i]);
    en_dataset_close(mapped);
    en_dataset_close(other);
    en_dataset_close(a);
    en_dataset_close(b);
    en_dataset_close(val);
}

static void a_written_set_opens_and_is_the_same_for_a_seed(void **state)
{
    (void)state;
    const char *one = path_in(dir, "one"), *two = path_in(dir, "two");
    OK(en_synth_write(one, 4, 3, 2, 32, 5));
    OK(en_synth_write(two, 4, 3, 2, 32, 5));
    en_dataset *a = opened(one, "train", NULL), *b = opened(two, "train", NULL), *val = opened(one, "val", a);
    assert_true(a->samples == 12 && val->samples == 8 && a->classes == 4);
    uint8_t *x = NULL, *y = NULL;
    size_t xc = 0, yc = 0, xn, yn;
    for (int i = 0; i < 12; i++) {
        OK(a->ops->read(a, i, &x, &xc, &xn));
        OK(b->ops->read(b, i, &y, &yc, &yn));
        assert_true(xn == yn && memcmp(x, y, xn) == 0);
    }
    free(x);
    free(y);
    en_dataset_close(a);
    en_dataset_close(b);
    en_dataset_close(val);
    en_error_clear();
    assert_int_equal(en_synth_write(one, 4, 3, 2, 32, 5), EN_EUSAGE);
    assert_non_null(strstr(en_error_message(), "not empty"));
    assert_int_equal(en_synth_write(path_in(dir, "three"), 11, 3, 2, 32, 5), EN_EUSAGE);
}

#define ON_A_FOLDER(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_A_FOLDER(files_are_found_in_byte_order_below_their_class),
        ON_A_FOLDER(splits_are_picked_by_name),
        ON_A_FOLDER(validation_alone_is_said),
        ON_A_FOLDER(a_class_called_train_is_a_class),
        ON_A_FOLDER(what_is_missing_is_said_with_path_and_remedy),
        ON_A_FOLDER(flat_splits_are_said),
        ON_A_FOLDER(validation_takes_the_classes_of_training),
        ON_A_FOLDER(links_are_followed_once),
        ON_A_FOLDER(unreadable_files_are_named),
        ON_A_FOLDER(made_up_pictures_are_a_function_of_their_number),
        ON_A_FOLDER(a_written_set_opens_and_is_the_same_for_a_seed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
