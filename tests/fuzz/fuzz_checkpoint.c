/* fuzz_checkpoint.c - any bytes as changes to a sound checkpoint (hostile_checkpoint.h).
 *
 * Promises: a file that is read, or EN_EDATA that names it in one line; never another status, since nothing here is short of memory.  What
 * is read is in its range, what is refused leaves nothing behind; a file that verifies is also read without verifying; the newest of a
 * folder is this file or the sound one beside it.  No object of HDF5 stays open, and no other file is opened: this program's open() looks.
 *
 * EN_FUZZ_RAW=1 makes changes behind HDF5's back, too (README.md). */
#define _GNU_SOURCE
#include "fuzz.h"

#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../tiny_model.h"
#include "hostile_checkpoint.h"
#include "hostile_h5.h"

static char folder[64], path[96], older[96];
static en_model model;
static uint8_t *sound_bytes;                                   /* of the sound file */
static size_t sound_size;

/* ---- who opens what ---- */

static bool watching;
static char elsewhere[256];                                    /* opened while watching, and not in the folder */

int open(const char *name, int flags, ...)                     /* libhdf5's, too */
{
    mode_t mode = 0;
    if (flags & (O_CREAT | __O_TMPFILE)) {
        va_list ap;
        va_start(ap, flags);
        mode = va_arg(ap, mode_t);
        va_end(ap);
    }
    if (watching && strncmp(name, folder, strlen(folder)) != 0) snprintf(elsewhere, sizeof elsewhere, "%s", name);
    return (int)syscall(SYS_openat, AT_FDCWD, name, flags, mode);
}

/* ---- the folder ---- */

static void remove_all(void)
{
    unlink(path);
    unlink(older);
    rmdir(folder);
}

static void spill(const char *to)
{
    const int fd = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    PROMISE(fd >= 0 && write(fd, sound_bytes, sound_size) == (ssize_t)sound_size, "%s", to);
    close(fd);
}

static void begin(void)
{
    snprintf(folder, sizeof folder, "%s/effnet-fuzz-%ld", hostile_folder(), (long)getpid());
    snprintf(path, sizeof path, "%s/step-00000002.h5", folder);
    snprintf(older, sizeof older, "%s/step-00000001.h5", folder);
    PROMISE(mkdir(folder, 0700) == 0, "%s", folder);
    atexit(remove_all);
    en_snapshot s;
    model = tiny_model();
    PROMISE(en_snapshot_alloc(&model, 2, slots, true, &s) == EN_OK, "%s", en_error_text());
    fill(&s, 2);
    s.class_names = tiny_classes;
    s.options = "lr=0.016\nmodel=b0\n";
    PROMISE(en_checkpoint_write(older, &s) == EN_OK, "%s", en_error_text());
    en_snapshot_free(&s);
    const int fd = open(older, O_RDONLY | O_CLOEXEC);
    struct stat st;
    PROMISE(fd >= 0 && fstat(fd, &st) == 0, "%s", older);
    sound_size = (size_t)st.st_size;
    sound_bytes = malloc(sound_size);
    PROMISE(sound_bytes && read(fd, sound_bytes, sound_size) == (ssize_t)sound_size, "%s", older);
    close(fd);
}

/* ---- promises ---- */

static void refused(en_status status, const char *what)
{
    PROMISE(status == EN_EDATA, "%s: status %d: %s", what, status, en_error_text());
    PROMISE(strstr(en_error_message(), path), "%s: \"%s\" does not name the file", what, en_error_message());
    PROMISE(!strchr(en_error_message(), '\n'), "%s: more than one line: %s", what, en_error_message());
    en_error_clear();
}

static void check_info(const en_checkpoint_info *i)
{
    const en_run_state *s = &i->state;
    PROMISE(s->step >= 0 && s->epoch >= 0 && s->position >= 0 && s->ema_updates >= 0 && s->global_batch >= 0 && s->samples >= 0, "a count");
    PROMISE(s->lanes >= 0 && s->accum >= 0 && s->world_size >= 0, "lanes, accum, world_size");
    PROMISE(s->best_top1 >= -1 && s->best_top1 <= 1 && isfinite(s->seconds) && s->seconds >= 0, "%g %g", s->best_top1, s->seconds);
    PROMISE(isfinite(i->width) && isfinite(i->depth) && i->width >= 0 && i->depth >= 0, "%g %g", i->width, i->depth);
    PROMISE(i->dropout >= 0 && i->dropout <= 1 && i->drop_path >= 0 && i->drop_path <= 1, "%g %g", (double)i->dropout, (double)i->drop_path);
    PROMISE(i->resolution > 0 && i->classes > 0 && i->n_slots >= 0 && i->n_slots <= EN_MAX_SLOTS, "resolution, classes, n_slots");
    PROMISE(memchr(i->model, 0, sizeof i->model) && memchr(i->program_version, 0, sizeof i->program_version), "a text without an end");
    for (int k = 0; i->class_names && k < i->classes; k++) PROMISE(i->class_names[k], "class %d has no name", k);
}

static bool inspect(bool verify)
{
    en_checkpoint_info i;
    const en_status status = en_checkpoint_inspect(path, verify, &i);
    if (status == EN_OK) check_info(&i);
    else {
        PROMISE(!i.class_names && !i.options, "refused, and texts");
        refused(status, "inspecting");
    }
    en_checkpoint_info_free(&i);
    return status == EN_OK;
}

static bool read_it(int n_slots, bool with_ema, bool weights_only)
{
    en_snapshot s;
    PROMISE(en_snapshot_alloc(&model, n_slots, slots, with_ema, &s) == EN_OK, "%s", en_error_text());
    const en_status status = en_checkpoint_read(path, &s, weights_only);
    if (status != EN_OK) refused(status, "reading");
    en_snapshot_free(&s);
    return status == EN_OK;
}

static int told;
static void passed_over(const char *which, const char *why)
{
    PROMISE(strcmp(which, path) == 0 && *why && !strchr(why, '\n'), "%s %s", which, why);
    told++;
}

static bool newest(void)
{
    char found[4096];
    told = 0;
    PROMISE(en_checkpoint_newest(folder, found, passed_over) == EN_OK, "%s", en_error_text());
    PROMISE(strcmp(found, told ? older : path) == 0, "the newest is %s, %d passed over", found, told);
    return !told;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!sound_bytes) begin();
    spill(path);
    hostile_checkpoint(data, size, path, getenv("EN_FUZZ_RAW") != NULL);
    const int64_t before = hostile_open_objects();
    const bool sound = size == 0;
    en_error_clear();
    uint32_t which = sound ? ~0u : 0;                          /* opening takes most of the time: one input, some of the ways in */
    for (size_t i = 0; i < size; i++) which = which * 31 + data[i];
    watching = true;
    bool whole = false;
    if (which & 3) {
        whole = inspect(true);
        PROMISE(!whole || inspect(false), "it verifies, and is refused unverified");
    } else inspect(false);
    const bool weights = read_it(0, which & 4, true), all = read_it(2, which & 8, false);
    PROMISE(weights || !all || which & 4, "all of it is read, its weights are not");
    if ((which & 0x70) == 0x70) {
        const bool is = newest();
        PROMISE(is == whole || !(which & 3), "the newest is another");
    }
    watching = false;
    PROMISE((whole && weights && all) || !sound, "the sound file is refused");
    PROMISE(!*elsewhere, "%s was opened", elsewhere);
    PROMISE(hostile_open_objects() == before, "%d objects of HDF5 stay open", (int)(hostile_open_objects() - before));
    return 0;
}
