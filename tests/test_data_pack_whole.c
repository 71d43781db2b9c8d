/* A packed file is there only when it is whole: bad and unreadable files, kills at any moment, full disks, several packers at once, and
 * what an earlier attempt left behind. */
#define _GNU_SOURCE
#include "pack_help.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- bad files --------------------------------------------------------------------------------------------------------------------- */

static void pack_loudly(void *argument)
{
    en_pack_report r;
    en_pack_config c = *(const en_pack_config *)argument;
    c.quiet = false;
    OK(en_pack(&c, &r));
    assert_int_equal(r.bad, 2);
}

static void bad_files_are_named_counted_and_packed(void **state)
{
    (void)state;
    char source[4096], target[4096];
    snprintf(source, sizeof source, "%s/two", dir);
    snprintf(target, sizeof target, "%s/two.h5", dir);
    shapes("two", 5);
    put_file(source, "train/circles/aaa.jpg", "this is no picture", 18);
    put_file(source, "train/dots/m.jpg", "", 0);
    en_pack_config c = config_of(source, target);
    pack_fails(&c, EN_EDATA, "2 of 37 files of");
    const char *said = en_error_message();
    if (!strstr(said, "--max-bad 0.01 allows 1") || !strstr(said, "circles/aaa.jpg is not an image") || !strstr(said, "dots/m.jpg"))
        fail_msg("%s", said);
    assert_false(there(target));
    assert_true(there(in_dir("two.h5.partial")));
    c.max_bad = 0.06;                          /* 2 of 37 */
    for (int again = 0; again < 2; again++) {  /* going on from the first attempt, and from the beginning */
        char *text = stderr_of(pack_loudly, &c);
        if (!strstr(text, "bad file") || !strstr(text, "circles/aaa.jpg is not an image") || !strstr(text, "dots/m.jpg")
            || !strstr(text, "packed as it is") || (strstr(text, "going on from there") == NULL) != again) fail_msg("%s", text);
        free(text);
        assert_same(source, target, "train", false);
        if (!again) assert_int_equal(rename(target, in_dir("first.h5")), 0);
    }
    assert_equal_files(target, in_dir("first.h5"));
}

static void a_file_that_cannot_be_read_ends_it(void **state)
{
    (void)state;
    char source[4096];
    snprintf(source, sizeof source, "%s/two", dir);
    shapes("two", 5);
    assert_int_equal(symlink("nowhere", path_in(source, "train/dots/link.jpg")), 0);
    const en_pack_config c = config_of(source, in_dir("x.h5"));
    pack_fails(&c, EN_EIO, "train/dots/link.jpg");
    unlink(path_in(source, "train/dots/link.jpg"));
    assert_int_equal(mkfifo(path_in(source, "train/dots/pipe.jpg"), 0600), 0);
    pack_fails(&c, EN_EDATA, "train/dots/pipe.jpg is not a regular file");
    unlink(path_in(source, "train/dots/pipe.jpg"));
    if (geteuid() != 0) {
        chmod(path_in(source, "train/dots/dots_00000.jpg"), 0);
        pack_fails(&c, EN_EIO, "dots_00000.jpg cannot be opened");
    }
    assert_false(there(in_dir("x.h5")));
}

static pid_t pack_in_child(const en_pack_config *c)
{
    const pid_t pid = fork();
    if (pid == 0) {
        en_pack_report r;
        const en_status s = en_pack(c, &r);
        _exit(en_status_exit_code(s));
    }
    return pid;
}

static int exit_of(pid_t pid)
{
    int status;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* A file that grows, shrinks or vanishes after the folder was listed and before its turn comes. */
static void a_file_that_changes_meanwhile_ends_it(void **state)
{
    (void)state;
    char source[4096], target[4096], partial[4200], last[4200];
    snprintf(source, sizeof source, "%s/big", dir);
    snprintf(target, sizeof target, "%s/x.h5", dir);
    snprintf(partial, sizeof partial, "%s.partial", target);
    OK(en_synth_write(source, 2, 30, 0, 400, 1));
    en_pack_config c = config_of(source, target);
    c.workers = 1;
    en_dataset *ds = opened(source, "train", NULL);
    snprintf(last, sizeof last, "%s", ds->files[ds->samples - 1]);
    en_dataset_close(ds);
    bytes whole = slurp(last);
    for (int kind = 0; kind < 3; kind++) {
        int code = 0;
        for (int attempt = 0; attempt < 20 && code == 0; attempt++) {        /* it may have been faster than we */
            struct stat st;
            unlink(target);
            const pid_t pid = pack_in_child(&c);
            while ((stat(partial, &st) != 0 || st.st_size < 100000) && !there(target)) continue;
            if (kind == 2) unlink(last);
            else if (truncate(last, (off_t)(kind ? whole.n / 2 : whole.n + 1)) != 0) fail_msg("truncate");
            code = exit_of(pid);
            put_file("", last, whole.at, whole.n);
        }
        assert_int_equal(code, kind == 2 ? 1 : 3);
        assert_false(there(target));
    }
    bytes_free(&whole);
}

static void what_cannot_be_packed_is_said(void **state)
{
    (void)state;
    shapes("two", 3);
    en_pack_config c = config_of(in_dir("nowhere"), in_dir("x.h5"));
    pack_fails(&c, EN_EDATA, "No such file");
    put_file(dir, "file", "1", 1);
    c.source = in_dir("file");
    pack_fails(&c, EN_EDATA, "not a folder");
    c.source = in_dir("two");
    c.target = in_dir("no/such/place.h5");
    pack_fails(&c, EN_EIO, "choose another place");
    c.target = in_dir("two/train/circles/x.h5");
    pack_fails(&c, EN_EUSAGE, "two/train/circles/x.h5 would lie among the images");
    assert_false(there(in_dir("two/train/circles/x.h5.partial")));
    c.target = in_dir("x.h5");
    c.split = "test";
    pack_fails(&c, EN_EUSAGE, "train or val");
    put_folder(dir, "two/train/empty");
    c.split = "";
    pack_fails(&c, EN_EDATA, "holds no files");
    assert_false(there(in_dir("x.h5")) || there(in_dir("x.h5.partial")));
    en_pack_report r;
    en_error_clear();
    assert_int_equal(en_pack_verify(in_dir("nowhere.h5"), 1, true, &r), EN_EDATA);
    assert_non_null(strstr(en_error_message(), "does not exist"));
    en_error_clear();
    assert_int_equal(en_pack_verify(in_dir("file"), 1, true, &r), EN_EDATA);
    assert_non_null(strstr(en_error_message(), "no packed dataset"));
}

static void a_packed_file_that_may_not_be_read_is_not_called_none(void **state)
{
    (void)state;
    shapes("two", 2);
    packed(in_dir("two"), in_dir("x.h5"));
    chmod(dir, 0755);
    chmod(in_dir("x.h5"), 0);
    const bool root = geteuid() == 0;          /* who may read everything */
    if (root && seteuid(65534) != 0) fail_msg("seteuid");
    en_pack_report r;
    en_dataset *ds;
    en_error_clear();
    const en_status v = en_pack_verify(in_dir("x.h5"), 1, true, &r);
    const bool verify_says = strstr(en_error_message(), "cannot be read: Permission denied");
    en_error_clear();
    const en_status o = en_dataset_open(in_dir("x.h5"), "train", NULL, &ds);
    const bool open_says = strstr(en_error_message(), "Permission denied");
    if (root && seteuid(0) != 0) fail_msg("seteuid");
    assert_true(v == EN_EDATA && verify_says && o == EN_EDATA && open_says);
    en_error_clear();
}

/* ---- whole or not there -------------------------------------------------------------------------------------------------------------- */

static void nothing_is_overwritten(void **state)
{
    (void)state;
    shapes("two", 3);
    put_file(dir, "x.h5", "mine", 4);
    en_pack_config c = config_of(in_dir("two"), in_dir("x.h5"));
    pack_fails(&c, EN_EUSAGE, "is there already");
    bytes b = slurp(in_dir("x.h5"));
    assert_true(b.n == 4 && !there(in_dir("x.h5.partial")));
    bytes_free(&b);
    unlink(in_dir("x.h5"));
    assert_int_equal(symlink("nowhere", in_dir("x.h5")), 0);             /* a link that leads nowhere is there, too */
    pack_fails(&c, EN_EUSAGE, "is there already");
}

static void one_packer_at_a_time(void **state)
{
    (void)state;
    shapes("two", 5);
    char source[4096], target[4096];
    snprintf(source, sizeof source, "%s/two", dir);
    snprintf(target, sizeof target, "%s/x.h5", dir);
    const en_pack_config c = config_of(source, target);
    const int fd = open(in_dir("x.h5.partial"), O_RDWR | O_CREAT, 0666);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    pack_fails(&c, EN_EUSAGE, "another process is packing into");
    close(fd);
    for (int round = 0; round < 10; round++) {               /* one of them makes it, the others are refused */
        pid_t pid[3];
        int made = 0;
        for (int i = 0; i < 3; i++) pid[i] = pack_in_child(&c);
        for (int i = 0; i < 3; i++) {
            const int code = exit_of(pid[i]);
            if (code != 0 && code != 2) fail_msg("exit code %d", code);
            made += code == 0;
        }
        assert_int_equal(made, 1);
        en_pack_report r;
        OK(en_pack_verify(target, 1, true, &r));
        assert_false(there(in_dir("x.h5.partial")));
        unlink(target);
    }
}

static void a_killed_packing_goes_on_and_ends_alike(void **state)
{
    (void)state;
    char source[4096], target[4096], partial[4200];
    snprintf(source, sizeof source, "%s/two", dir);
    snprintf(target, sizeof target, "%s/x.h5", dir);
    snprintf(partial, sizeof partial, "%s.partial", target);
    OK(en_synth_write(source, 10, 40, 4, 64, 1));
    packed(source, in_dir("whole.h5"));
    struct stat whole, st;
    stat(in_dir("whole.h5"), &whole);
    int killed = 0, went_on = 0;
    for (int point = 0; point <= 10; point++) {
        for (int attempt = 0; attempt < 3; attempt++) {      /* killed up to three times at this point, then left alone */
            en_pack_config c = config_of(source, target);
            c.workers = 1 + point % 3;
            const pid_t pid = pack_in_child(&c);
            int status;
            while (waitpid(pid, &status, WNOHANG) == 0) {
                if (stat(partial, &st) != 0 || st.st_size < whole.st_size * point / 10) continue;
                kill(pid, SIGKILL);
                waitpid(pid, &status, 0);
                break;
            }
            if (!WIFSIGNALED(status)) break;
            killed++;
            en_dataset *ds = NULL;
            if (!there(target)) assert_int_equal(en_dataset_open(target, "train", NULL, &ds), EN_EDATA);
            if (there(partial)) {
                assert_int_equal(en_dataset_open(partial, "train", NULL, &ds) == EN_OK, en_is_packed(partial));
                en_dataset_close(ds);
            }
        }
        went_on += !there(target);
        if (!there(target)) packed(source, target);
        assert_equal_files(target, in_dir("whole.h5"));
        assert_false(there(partial));
        unlink(target);
    }
    if (killed < 5 || went_on < 5) fail_msg("%d killed, %d gone on with", killed, went_on);
}

static void stop_at_a_bad_file(const char *source, const char *target)
{
    en_pack_config c = config_of(source, target);
    c.max_bad = 0;
    pack_fails(&c, EN_EDATA, "cannot be decoded");
}

/* What an earlier attempt left is used only as far as it is what the folder would give now. */
static void what_is_gone_on_with_is_checked(void **state)
{
    (void)state;
    char source[4096], target[4096], partial[4200];
    snprintf(source, sizeof source, "%s/two", dir);
    snprintf(target, sizeof target, "%s/x.h5", dir);
    snprintf(partial, sizeof partial, "%s.partial", target);
    shapes("two", 5);
    put_file(source, "train/gradients/zzz.jpg", "text", 4);      /* sample 21 and more before are written, then it stops */
    en_pack_config c = config_of(source, target);
    en_pack_report r;
    c.max_bad = 0.1;
    c.target = in_dir("want.h5");
    OK(en_pack(&c, &r));
    c.target = target;
    for (int kind = 0; kind < 5; kind++) {
        stop_at_a_bad_file(source, target);
        bytes b = slurp(partial);
        switch (kind) {
        case 0: b.at[b.n - b.n / 3] ^= 1; break;                 /* an image */
        case 1: b.n -= b.n / 2; break;                           /* cut off among the images */
        case 2: b.at[64 + 16 * 3] ^= 1; break;                   /* the journal */
        case 3: b.n = 70; break;                                 /* cut off in it */
        case 4: memset(b.at + b.n / 2, 0, b.n / 2); break;       /* blocks that never reached the disk */
        }
        put_file("", partial, b.at, b.n);
        bytes_free(&b);
        OK(en_pack(&c, &r));
        assert_equal_files(target, in_dir("want.h5"));
        unlink(target);
    }
    stop_at_a_bad_file(source, target);                          /* the folder changes: another picture of the same length and name */
    bytes b = slurp(path_in(source, "train/circles/circles_00000.jpg"));
    b.at[b.n / 2] ^= 1;
    put_file(source, "train/circles/circles_00000.jpg", b.at, b.n);
    struct timespec times[2] = { { 1, 0 }, { 1, 0 } };
    utimensat(AT_FDCWD, path_in(source, "train/circles/circles_00000.jpg"), times, 0);
    OK(en_pack(&c, &r));
    assert_same(source, target, "train", false);
    bytes_free(&b);
}

static void a_full_disk_is_said_and_can_be_gone_on_from(void **state)
{
    (void)state;
    char source[4096], target[4096], text[4096];
    snprintf(source, sizeof source, "%s/two", dir);
    snprintf(target, sizeof target, "%s/x.h5", dir);
    shapes("two", 5);
    packed(source, in_dir("whole.h5"));
    struct stat whole;
    stat(in_dir("whole.h5"), &whole);
    const en_pack_config c = config_of(source, target);
    for (int tenth = 0; tenth < 10; tenth++) {
        const pid_t pid = fork();
        if (pid == 0) {
            const rlim_t most = (rlim_t)(whole.st_size * tenth / 10);
            setrlimit(RLIMIT_FSIZE, &(struct rlimit){ most, most });
            en_pack_report r;
            const en_status s = en_pack(&c, &r);
            const bool said = strstr(en_error_message(), "File too large") && strstr(en_error_message(), "make room");
            exit(s == EN_EIO && said ? 77 : 1);                    /* and HDF5 cleans up */
        }
        assert_int_equal(exit_of(pid), 77);
        assert_false(there(target));
        if (tenth % 3 == 0) continue;          /* and on with less than there was, and with all */
        snprintf(text, sizeof text, "%s", in_dir("x.h5"));
        packed(source, text);
        assert_equal_files(text, in_dir("whole.h5"));
        unlink(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_A_FOLDER(bad_files_are_named_counted_and_packed),
        IN_A_FOLDER(a_file_that_cannot_be_read_ends_it),
        IN_A_FOLDER(a_file_that_changes_meanwhile_ends_it),
        IN_A_FOLDER(what_cannot_be_packed_is_said),
        IN_A_FOLDER(a_packed_file_that_may_not_be_read_is_not_called_none),
        IN_A_FOLDER(nothing_is_overwritten),
        IN_A_FOLDER(one_packer_at_a_time),
        IN_A_FOLDER(a_killed_packing_goes_on_and_ends_alike),
        IN_A_FOLDER(what_is_gone_on_with_is_checked),
        IN_A_FOLDER(a_full_disk_is_said_and_can_be_gone_on_from),
    };
    return cmocka_run_group_tests_name("pack_whole", tests, NULL, NULL);
}
