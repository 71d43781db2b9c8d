#include "trainer/safetensors.h"

#include "kernels/host.h"
#include "trainer/checkpoint/internal.h"
#include "trainer/json.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void put_text(FILE *f, const char *text)
{
    char c[EN_JSON_CHAR];
    fputc('"', f);
    for (; *text; text++) fputs(en_json_char(*text, c), f);
    fputc('"', f);
}

static uint64_t bytes_of(const en_safetensor_row *r)
{
    uint64_t n = sizeof(float);
    for (int d = 0; d < r->ndim; d++) n *= (uint64_t)r->shape[d];
    return n;
}

/* The header with its length, padded with blanks so that the values begin at a multiple of 8, as the format's library writes it. */
static char *header_text(size_t n_texts, const en_safetensors_text *texts, size_t n, const en_safetensor_row *rows, size_t *bytes)
{
    char *text = NULL;
    uint64_t at = 0;
    FILE *f = open_memstream(&text, bytes);
    if (!f) return NULL;
    fputs("01234567{", f);
    if (n_texts > 0) {
        fputs("\"__metadata__\":{", f);
        for (size_t i = 0; i < n_texts; i++) {
            if (i) fputc(',', f);
            put_text(f, texts[i].key);
            fputc(':', f);
            put_text(f, texts[i].value);
        }
        fputs(n ? "}," : "}", f);
    }
    for (size_t i = 0; i < n; i++) {
        if (i) fputc(',', f);
        put_text(f, rows[i].name);
        fputs(":{\"dtype\":\"F32\",\"shape\":[", f);
        for (int d = 0; d < rows[i].ndim; d++) fprintf(f, d ? ",%" PRId64 : "%" PRId64, rows[i].shape[d]);
        const uint64_t end = at + bytes_of(&rows[i]);
        fprintf(f, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at, end);
        at = end;
    }
    fputc('}', f);
    while (ftello(f) % 8) fputc(' ', f);
    if (fclose(f) != 0) {
        free(text);
        return NULL;
    }
    const uint64_t length = *bytes - 8;
    for (int i = 0; i < 8; i++) text[i] = (char)(length >> 8 * i);
    return text;
}

static en_status write_values(int fd, const char *tmp, int64_t at, size_t n, const en_safetensor_row *rows, en_safetensors_values *values,
                              const void *context, float *room)
{
    for (size_t i = 0; i < n; i++) {
        const size_t bytes = (size_t)bytes_of(&rows[i]);
        values(context, i, room);
        const int error = en_write_at(fd, room, bytes, at);
        EN_REQUIRE(!error, EN_EIO, "cannot write %s: %s", tmp, strerror(error));
        at += (int64_t)bytes;
    }
    EN_REQUIRE(fsync(fd) == 0, EN_EIO, "cannot write %s: %s", tmp, strerror(errno));
    return EN_OK;
}

en_status en_safetensors_write(const char *path, size_t n_texts, const en_safetensors_text *texts, size_t n, const en_safetensor_row *rows,
                               en_safetensors_values *values, const void *context, uint64_t *bytes)
{
    char tmp[EN_PATH + 8];
    EN_REQUIRE(strlen(path) + 8 < EN_PATH, EN_EUSAGE, "the path %.100s... is too long (%d characters fit)", path, EN_PATH - 9);
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    en_status status = EN_OK;
    size_t head = 0;
    uint64_t largest = sizeof(float), all = 0;
    for (size_t i = 0; i < n; i++) {
        if (bytes_of(&rows[i]) > largest) largest = bytes_of(&rows[i]);
        all += bytes_of(&rows[i]);
    }
    bool made = false;
    int fd = -1;
    float *room = malloc((size_t)largest);
    char *header = header_text(n_texts, texts, n, rows, &head);
    EN_REQUIRE_OUT(room && header, EN_ENOMEM, "no memory to write %s", path);
    fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    EN_REQUIRE_OUT(fd >= 0, EN_EIO, "cannot create %s: %s", tmp, strerror(errno));
    made = true;
    const int error = en_write_at(fd, header, head, 0);
    EN_REQUIRE_OUT(!error, EN_EIO, "cannot write %s: %s", tmp, strerror(error));
    EN_TRY_OUT(write_values(fd, tmp, (int64_t)head, n, rows, values, context, room), "writing %s", path);
    const int closed = close(fd);
    fd = -1;
    EN_REQUIRE_OUT(closed == 0 || errno == EINTR, EN_EIO, "cannot write %s: %s", tmp, strerror(errno));
    made = false;
    EN_TRY_OUT(en_file_commit(tmp, path), "writing %s", path);
    if (bytes) *bytes = head + all;
out:
    if (fd >= 0) close(fd);
    if (made) unlink(tmp);
    free(header);
    free(room);
    return status;
}
