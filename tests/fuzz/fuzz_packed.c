/* fuzz_packed.c - any bytes as a packed file: as they are when they begin as HDF5 does, else as changes to a sound file (hostile_packed.h).
 *
 * Promises: a dataset or EN_EDATA that names the file.  A dataset's classes are in order, its labels are among them, its names and samples
 * are there; a sample is its bytes, with the CRC-32 of the index, or EN_EDATA that names it, and never more than the file holds.
 * Where --verify finds nothing, every sample is read. */
#define _GNU_SOURCE
#include "fuzz.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/pack.h"
#include "hostile_h5.h"
#include "hostile_packed.h"

static char path[64];

static void refused(en_status status, const char *what)
{
    PROMISE(status == EN_EDATA, "%s: status %d: %s", what, status, en_error_text());
    PROMISE(strstr(en_error_message(), path), "%s: \"%s\" does not name the file", what, en_error_message());
    en_error_clear();
}

static void check_samples(const en_dataset *ds, int64_t file_bytes, bool verified, bool sound)
{
    uint8_t *buf = NULL;
    size_t capacity = 0, n = 0;
    for (int64_t i = 0; i < ds->samples; i++) {
        PROMISE(ds->files[i] && strncmp(ds->files[i], path, strlen(path)) == 0, "sample %d", (int)i);
        PROMISE(ds->labels[i] >= 0 && ds->labels[i] < ds->classes, "label %d of %d", ds->labels[i], (int)ds->classes);
        if (ds->ops->expect) ds->ops->expect(ds, i);
        const en_status status = ds->ops->read(ds, i, &buf, &capacity, &n);
        PROMISE(status == EN_OK || !verified, "verified, and yet: %s", en_error_text());
        if (status != EN_OK) { refused(status, "reading"); continue; }
        PROMISE((int64_t)n <= file_bytes && n <= capacity, "%zu bytes of %d", n, (int)file_bytes);
        for (size_t k = 0; sound && k < n; k++) PROMISE(buf[k] == buf[0] && n == 10u + buf[0], "sample %d", (int)i);
    }
    PROMISE(ds->ops->read(ds, -1, &buf, &capacity, &n) == EN_EINVAL, "sample -1");
    PROMISE(ds->ops->read(ds, ds->samples, &buf, &capacity, &n) == EN_EINVAL, "one too many");
    en_error_clear();
    free(buf);
}

static void try_split(const char *split, const en_dataset *like, int64_t file_bytes, bool verified, bool sound, bool again)
{
    en_dataset *ds = NULL;
    const en_status status = en_packed_open(path, split, like, &ds);
    PROMISE(status == EN_OK || !sound, "a sound file: %s", en_error_text());
    if (status != EN_OK) {
        refused(status, "opening");
        PROMISE(!ds, "refused, and a dataset");
        return;
    }
    PROMISE(ds->samples > 0 && ds->classes > 0, "%d samples of %d classes", (int)ds->samples, (int)ds->classes);
    for (int64_t c = 0; c < ds->classes; c++) {
        PROMISE(ds->class_names[c] && *ds->class_names[c] && !strchr(ds->class_names[c], '/'), "class %d", (int)c);
        PROMISE(c == 0 || strcmp(ds->class_names[c - 1], ds->class_names[c]) < 0, "\"%s\" is out of order", ds->class_names[c]);
    }
    check_samples(ds, file_bytes, verified, sound);
    if (again) try_split(split, ds, file_bytes, verified, sound, false);       /* its own classes fit it */
    en_dataset_close(ds);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t signature[8] = { 0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n' };
    const int fd = hostile_file(path, sizeof path);
    if (fd < 0) return -1;
    bool sound = false, written = true;
    if (size >= 8 && memcmp(data, signature, 8) == 0) written = write(fd, data, size) == (ssize_t)size;
    else written = hostile_packed(data, size, fd, path, &sound);
    struct stat st;
    const int64_t before = hostile_open_objects();
    PROMISE(written || !sound, "HDF5 writes no sound file");
    if (fstat(fd, &st) == 0) {
        en_error_clear();
        en_is_packed(path);
        /* Opening takes HDF5 most of the time; so one input sees some of the ways in, and the sound file all. */
        uint32_t which = sound ? 0xff : 0;
        for (size_t i = 0; i < size && !sound; i++) which = which * 31 + data[i];
        bool verified = false;
        if (which & 1) {
            en_pack_report report;
            const en_status status = en_pack_verify(path, 1, true, &report);
            if (status != EN_OK) refused(status, "verifying");
            verified = status == EN_OK;
            PROMISE(verified || !sound, "verifying a sound file");
        }
        try_split(which & 2 ? "train" : "val", NULL, st.st_size, verified, sound, which & 4);
        if (sound) try_split("val", NULL, st.st_size, verified, sound, true);
    }
    PROMISE(hostile_open_objects() == before, "%d objects of HDF5 stay open", (int)(hostile_open_objects() - before));
    close(fd);
    return 0;
}
