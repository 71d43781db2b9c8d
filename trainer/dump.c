#include "trainer/dump.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "trainer/checkpoint/internal.h"

struct en_dump { hid_t file; bool failed; char path[EN_PATH], tmp[EN_PATH + 8]; };

en_status en_dump_open(const char *path, en_dump **out)
{
    *out = NULL;
    EN_REQUIRE(strlen(path) + 8 < EN_PATH, EN_EUSAGE, "the path %.100s... is too long", path);
    struct stat st;
    EN_REQUIRE(stat(path, &st) != 0 || S_ISREG(st.st_mode), EN_EUSAGE, "%s is not a file that could be written; name one that ends in .h5", path);
    en_dump *d = calloc(1, sizeof *d);
    EN_REQUIRE(d, EN_ENOMEM, "no memory for %s", path);
    en_status status = EN_OK;
    snprintf(d->path, sizeof d->path, "%s", path);
    snprintf(d->tmp, sizeof d->tmp, "%s.tmp", path);
    const int fd = open(d->tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);    /* better known now than at the end */
    EN_REQUIRE_OUT(fd >= 0, EN_EIO, "cannot write %s: %s", d->tmp, strerror(errno));
    close(fd);
    en_h5_enter();
    d->file = en_h5_create_image(0);
    if (d->file < 0) status = en_raise(EN_EIO, __FILE__, __LINE__, __func__, "%s cannot be begun: HDF5 says: %s", path, en_h5_error());
    en_h5_leave();
    if (status == EN_OK) {
        *out = d;
        return EN_OK;
    }
    unlink(d->tmp);
out:
    free(d);
    return status;
}

static en_status put(en_dump *d, const char *path, hid_t type, hid_t memory_type, int ndim, const int64_t *dims, const void *data)
{
    EN_REQUIRE(ndim >= 0 && ndim <= H5S_MAX_RANK && path[0] == '/', EN_EINVAL, "%s: %s with %d dimensions", d->path, path, ndim);
    en_h5_enter();
    const bool ok = en_h5_dataset(d->file, path, type, memory_type, ndim, dims, data, false);
    en_status status = EN_OK;
    if (!ok) status = en_raise(EN_EINVAL, __FILE__, __LINE__, __func__, "%s: %s cannot be added: HDF5 says: %s", d->path, path, en_h5_error());
    en_h5_leave();
    d->failed = d->failed || !ok;
    return status;
}

en_status en_dump_f32(en_dump *d, const char *path, int ndim, const int64_t *dims, const float *data)
{
    return put(d, path, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, ndim, dims, data);
}

en_status en_dump_i32(en_dump *d, const char *path, int ndim, const int64_t *dims, const int32_t *data)
{
    return put(d, path, H5T_STD_I32LE, H5T_NATIVE_INT32, ndim, dims, data);
}

en_status en_dump_i64(en_dump *d, const char *path, int ndim, const int64_t *dims, const int64_t *data)
{
    return put(d, path, H5T_STD_I64LE, H5T_NATIVE_INT64, ndim, dims, data);
}

en_status en_dump_strings(en_dump *d, const char *path, int64_t n, char *const *strings)
{
    en_h5_enter();
    const bool ok = en_h5_strings(d->file, path, n, strings, false);
    en_status status = EN_OK;
    if (!ok) status = en_raise(EN_EINVAL, __FILE__, __LINE__, __func__, "%s: %s cannot be added: HDF5 says: %s", d->path, path, en_h5_error());
    en_h5_leave();
    d->failed = d->failed || !ok;
    return status;
}

en_status en_dump_tensors(en_dump *d, const char *group, const en_model *m, const float *params, const float *stats)
{
    en_status status = EN_OK;
    int64_t largest = 1;
    for (int i = 0; i < m->n_tensors; i++)
        if (en_tensor_count(&m->tensors[i]) > largest) largest = en_tensor_count(&m->tensors[i]);
    float *logical = malloc((size_t)largest * sizeof *logical);
    EN_REQUIRE_OUT(logical, EN_ENOMEM, "no memory for the tensors of %s", group);
    for (int i = 0; i < m->n_tensors; i++) {
        const en_tensor *t = &m->tensors[i];
        const float *arena = t->arena == EN_ARENA_PARAMS ? params : stats;
        if (!arena) continue;
        char path[256];
        snprintf(path, sizeof path, "%.150s/%s", group, t->name);
        en_tensor_gather(t, arena, logical);
        EN_TRY_OUT(en_dump_f32(d, path, t->ndim, t->shape, logical), "dumping %s", group);
    }
out:
    if (status != EN_OK) d->failed = true;
    free(logical);
    return status;
}

en_status en_dump_close(en_dump *d)
{
    en_status status = EN_OK;
    if (d->failed) {
        status = en_raise(EN_EIO, __FILE__, __LINE__, __func__, "%s is not written: something was missing from it", d->path);
        goto out;
    }
    en_h5_enter();
    status = en_h5_save_image(d->file, d->tmp);
    en_h5_leave();
    EN_TRY_OUT(status, "writing %s", d->path);
    EN_TRY_OUT(en_file_commit(d->tmp, d->path), "writing %s", d->path);
out:
    en_dump_discard(d);
    return status;
}

void en_dump_discard(en_dump *d)
{
    if (!d) return;
    en_h5_enter();
    H5Fclose(d->file);
    en_h5_leave();
    unlink(d->tmp);                              /* after a close that went well there is none                           */
    free(d);
}
