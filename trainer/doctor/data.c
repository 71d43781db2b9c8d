/* doctor/data.c - do all hosts see the same images?  Each lists them as a training would, and keeps the listing's hash.
 *
 * One rank a host looks; another one too when it was given another path. */
#include "trainer/doctor/doctor.h"

#include "comm/watch.h"
#include "data/pack.h"
#include "trainer/crc32c.h"
#include "trainer/input.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ENDS = 1 << 20 };

/* A packed file's tables stand at its ends; what the pictures' bytes are, its checksums tell when they are read. */
static void look_at_packed(const char *path, en_doctor_facts *f)
{
    struct stat st;
    char *part = malloc(ENDS);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (part && fd >= 0 && fstat(fd, &st) == 0) {
        f->packed_bytes = st.st_size;
        f->packed_crc = 0;
        for (int end = 0; end < 2; end++) {
            const ssize_t n = pread(fd, part, ENDS, end && st.st_size > ENDS ? st.st_size - ENDS : 0);
            if (n > 0) f->packed_crc = en_crc32c(f->packed_crc, part, (size_t)n);
        }
    }
    if (fd >= 0) close(fd);
    free(part);
}

static en_status list(const char *data, en_doctor_facts *f)
{
    en_dataset *train = NULL, *val = NULL;
    en_status status = EN_OK;
    EN_TRY_OUT(en_dataset_open(data, "train", NULL, &train), "opening the training images");
    if (en_dataset_has(data, "val")) EN_TRY_OUT(en_dataset_open(data, "val", train, &val), "opening the validation images");
    f->train_images = train->samples;
    f->val_images = val ? val->samples : 0;
    f->classes = train->classes;
    f->train_hash = en_dataset_hash(train);
    f->val_hash = en_dataset_hash(val);
    if (en_is_packed(data)) look_at_packed(data, f);
out:
    en_dataset_close(train);
    en_dataset_close(val);
    return status;
}

/* Does this rank have another path than the first one of its host? */
static en_status named_otherwise(en_comm *c, const char *data, bool *out)
{
    en_comm *host = NULL;
    char first[4096] = "";
    *out = false;
    if (c->world_size == 1) return EN_OK;
    snprintf(first, sizeof first, "%s", data);
    EN_TRY(c->ops->split(c, c->node, &host), "gathering the ranks of a host");
    const en_status s = host->ops->broadcast(host, first, sizeof first, 0);
    *out = strcmp(first, data) != 0;
    host->ops->close(host);
    EN_TRY(s, "comparing --data");
    return EN_OK;
}

en_status en_doctor_data(en_comm *c, const char *data, en_doctor_facts *f)
{
    bool otherwise;
    EN_TRY(named_otherwise(c, data, &otherwise), "comparing --data");
    if (!*data || (c->local_rank != 0 && !otherwise)) return EN_OK;
    en_watch_at(EN_STARTUP, "listing the images of --data");
    const double began = en_seconds();
    f->data_state = list(data, f) == EN_OK;
    f->data_s = en_seconds() - began;
    if (!f->data_state) {
        snprintf(f->data_trouble, sizeof f->data_trouble, "%.*s", (int)sizeof f->data_trouble - 1, en_error_message());
        en_error_clear();
    }
    return EN_OK;
}
