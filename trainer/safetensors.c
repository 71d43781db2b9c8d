#include "trainer/safetensors.h"

#include "trainer/json_read.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "values are read as they stand in the file");

enum { SHOWN = 80 };                             /* characters of a foreign name in a message */
#define NAME "%.*s"
#define SHOW(name) SHOWN, name

static const struct { const char *name; int bytes; } types[] = {
    { "F32", 4 }, { "F16", 2 }, { "BF16", 2 }, { "F64", 8 }, { "I64", 8 }, { "I32", 4 }, { "I16", 2 }, { "I8", 1 }, { "U64", 8 },
    { "U32", 4 }, { "U16", 2 }, { "U8", 1 }, { "BOOL", 1 }, { "F8_E4M3", 1 }, { "F8_E5M2", 1 }, { "C64", 8 },
};

/* ---- the header ------------------------------------------------------------------------------------------------------- */

/* The cursor's complaint, with its place in the file. */
#define HEADER(f, c, call) \
    EN_REQUIRE(call, EN_EDATA, "%s: its header is damaged at byte %zu: %s", (f)->path, (size_t)((c)->p - (c)->start) + 8, (c)->why)

static en_status grow(const en_safetensors *f, void **array, size_t n, size_t element)
{
    if (n & (n - 1)) return EN_OK;               /* room up to the next power of two */
    void *more = realloc(*array, (n ? 2 * n : 1) * element);
    EN_REQUIRE(more, EN_ENOMEM, "%s: no memory for %zu entries", f->path, n);
    *array = more;
    return EN_OK;
}

static en_status read_texts(en_safetensors *f, en_json_cursor *c)
{
    HEADER(f, c, en_json_take(c, '{'));
    if (en_json_next(c, '}')) return EN_OK;
    do {
        char *key, *value;
        HEADER(f, c, en_json_string(c, &key) && en_json_take(c, ':') && en_json_string(c, &value));
        EN_TRY(grow(f, (void **)&f->texts, f->n_texts, sizeof *f->texts), "reading __metadata__");
        f->texts[f->n_texts++] = (en_safetensors_text){ key, value };
    } while (en_json_next(c, ','));
    HEADER(f, c, en_json_take(c, '}'));
    return EN_OK;
}

static en_status read_shape(const en_safetensors *f, en_json_cursor *c, en_safetensor *t)
{
    HEADER(f, c, en_json_take(c, '['));
    if (en_json_next(c, ']')) return EN_OK;
    do {
        int64_t side;
        HEADER(f, c, en_json_count(c, &side));
        EN_REQUIRE(t->ndim < EN_SAFETENSORS_DIMS, EN_EDATA, "%s: " NAME " has more than %d dimensions", f->path, SHOW(t->name), EN_SAFETENSORS_DIMS);
        t->shape[t->ndim++] = side;
    } while (en_json_next(c, ','));
    HEADER(f, c, en_json_take(c, ']'));
    return EN_OK;
}

static en_status read_type(const en_safetensors *f, const char *text, en_safetensor *t, int *bytes)
{
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(types[i].name, text) == 0) {
            t->dtype = types[i].name;
            *bytes = types[i].bytes;
            return EN_OK;
        }
    return en_raise(EN_EDATA, __FILE__, __LINE__, __func__, "%s: " NAME " has a type that is not known, '%.16s'", f->path, SHOW(t->name), text);
}

/* A text that is shown to somebody: a terminal obeys what stands below ' '. */
static bool printable(const char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < ' ' || *text == 0x7f) return false;
    return true;
}

/* Do the type, the shape and the place say the same? */
static en_status check_place(const en_safetensors *f, en_safetensor *t, int bytes, uint64_t data)
{
    int64_t want = bytes;
    t->count = 1;
    for (int d = 0; d < t->ndim; d++)
        EN_REQUIRE(!__builtin_mul_overflow(t->count, t->shape[d], &t->count), EN_EDATA, "%s: the shape of " NAME " overflows", f->path, SHOW(t->name));
    EN_REQUIRE(!__builtin_mul_overflow(want, t->count, &want), EN_EDATA, "%s: the shape of " NAME " overflows", f->path, SHOW(t->name));
    EN_REQUIRE(t->begin <= t->end, EN_EDATA, "%s: " NAME " ends at %" PRIu64 ", before it begins at %" PRIu64, f->path, SHOW(t->name), t->end, t->begin);
    EN_REQUIRE(t->end <= data, EN_EDATA, "%s: " NAME " lies at %" PRIu64 " to %" PRIu64 ", and only %" PRIu64 " bytes of values are there: the file is cut short or damaged",
               f->path, SHOW(t->name), t->begin, t->end, data);
    EN_REQUIRE(t->end - t->begin == (uint64_t)want, EN_EDATA, "%s: " NAME " has %" PRIu64 " bytes, and its shape and type want %" PRId64, f->path,
               SHOW(t->name), t->end - t->begin, want);
    return EN_OK;
}

static en_status read_tensor(const en_safetensors *f, en_json_cursor *c, en_safetensor *t, uint64_t data)
{
    enum { DTYPE = 1, SHAPE = 2, PLACE = 4 };
    int seen = 0, bytes = 0;
    HEADER(f, c, en_json_take(c, '{'));
    do {
        char *key, *text;
        HEADER(f, c, en_json_string(c, &key) && en_json_take(c, ':'));
        const int field = strcmp(key, "dtype") == 0 ? DTYPE : strcmp(key, "shape") == 0 ? SHAPE : strcmp(key, "data_offsets") == 0 ? PLACE : 0;
        EN_REQUIRE(field && !(seen & field), EN_EDATA, "%s: " NAME " %s", f->path, SHOW(t->name), field ? "says one thing twice" :
                   "has more than a dtype, a shape and data_offsets");
        seen |= field;
        if (field == DTYPE) {
            HEADER(f, c, en_json_string(c, &text));
            EN_TRY(read_type(f, printable(text) ? text : "?", t, &bytes), "reading the header");
        } else if (field == SHAPE) {
            EN_TRY(read_shape(f, c, t), "reading the header");
        } else {
            int64_t begin, end;
            HEADER(f, c, en_json_take(c, '[') && en_json_count(c, &begin) && en_json_take(c, ',') && en_json_count(c, &end) && en_json_take(c, ']'));
            t->begin = (uint64_t)begin;
            t->end = (uint64_t)end;
        }
    } while (en_json_next(c, ','));
    HEADER(f, c, en_json_take(c, '}'));
    EN_REQUIRE(seen == (DTYPE | SHAPE | PLACE), EN_EDATA, "%s: " NAME " lacks its %s", f->path, SHOW(t->name),
               !(seen & DTYPE) ? "dtype" : !(seen & SHAPE) ? "shape" : "data_offsets");
    return check_place(f, t, bytes, data);
}

static en_status read_header(en_safetensors *f, en_json_cursor *c, uint64_t data)
{
    bool texts = false;
    HEADER(f, c, en_json_take(c, '{'));
    if (!en_json_next(c, '}')) {
        do {
            char *name;
            HEADER(f, c, en_json_string(c, &name) && en_json_take(c, ':'));
            EN_REQUIRE(printable(name), EN_EDATA, "%s: the name of a tensor has a control character in it", f->path);
            if (strcmp(name, "__metadata__") == 0) {
                EN_REQUIRE(!texts, EN_EDATA, "%s has __metadata__ twice", f->path);
                texts = true;
                EN_TRY(read_texts(f, c), "reading the header");
                continue;
            }
            EN_TRY(grow(f, (void **)&f->tensors, f->n, sizeof *f->tensors), "reading the header");
            f->tensors[f->n] = (en_safetensor){ .name = name };
            EN_TRY(read_tensor(f, c, &f->tensors[f->n++], data), "reading the header");
        } while (en_json_next(c, ','));
        HEADER(f, c, en_json_take(c, '}'));
    }
    HEADER(f, c, en_json_end(c));
    return EN_OK;
}

/* ---- all of them together ---------------------------------------------------------------------------------------------- */

static int by_place(const void *a, const void *b)
{
    const en_safetensor *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

static int by_name(const void *a, const void *b) { return strcmp(((const en_safetensor *)a)->name, ((const en_safetensor *)b)->name); }

/* Each byte of the values belongs to one tensor: what overlaps would be two tensors by one change, what lies between may be anything. */
static en_status check_places(const en_safetensors *f, uint64_t data)
{
    uint64_t at = 0;
    for (size_t i = 0; i < f->n; i++) {
        const en_safetensor *t = &f->tensors[i];
        EN_REQUIRE(t->begin >= at, EN_EDATA, "%s: " NAME " overlaps " NAME, f->path, SHOW(t->name), SHOW(f->tensors[i - 1].name));
        EN_REQUIRE(t->begin == at, EN_EDATA, "%s: %" PRIu64 " bytes before " NAME " belong to no tensor", f->path, t->begin - at, SHOW(t->name));
        at = t->end;
    }
    EN_REQUIRE(at == data, EN_EDATA, "%s: %" PRIu64 " bytes at its end belong to no tensor", f->path, data - at);
    return EN_OK;
}

static en_status check_names(const en_safetensors *f)
{
    for (size_t i = 1; i < f->n; i++)
        EN_REQUIRE(strcmp(f->tensors[i - 1].name, f->tensors[i].name) != 0, EN_EDATA, "%s has " NAME " twice", f->path, SHOW(f->tensors[i].name));
    return EN_OK;
}

static en_status read_at(const en_safetensors *f, void *out, size_t n, uint64_t at)
{
    for (char *p = out; n > 0;) {
        const ssize_t got = pread(f->fd, p, n < (64u << 20) ? n : 64u << 20, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        EN_REQUIRE(got >= 0, EN_EIO, "%s cannot be read: %s", f->path, strerror(errno));
        EN_REQUIRE(got > 0, EN_EDATA, "%s has become shorter while it was read", f->path);
        p += got;
        n -= (size_t)got;
        at += (uint64_t)got;
    }
    return EN_OK;
}

static en_status read_all(en_safetensors *f)
{
    struct stat st;
    uint8_t length[8];
    uint64_t n = 0;
    f->fd = open(f->path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);            /* NONBLOCK: a pipe would wait for its writer */
    EN_REQUIRE(f->fd >= 0, errno == ENOENT || errno == ENOTDIR ? EN_EDATA : EN_EIO, "%s cannot be opened: %s", f->path, strerror(errno));
    EN_REQUIRE(fstat(f->fd, &st) == 0, EN_EIO, "%s cannot be read: %s", f->path, strerror(errno));
    EN_REQUIRE(S_ISREG(st.st_mode), EN_EDATA, "%s is a %s, not a safetensors file", f->path, S_ISDIR(st.st_mode) ? "folder" : "device or a pipe");
    const uint64_t bytes = (uint64_t)st.st_size;
    EN_REQUIRE(bytes >= 10, EN_EDATA, "%s has %" PRIu64 " bytes: too short for a safetensors file", f->path, bytes);
    EN_TRY(read_at(f, length, 8, 0), "reading the header");
    EN_REQUIRE(memcmp(length, "PK\3\4", 4) != 0, EN_EDATA, "%s is a zip file, as torch.save makes them, not a safetensors file: read it with torch.load and write it "
               "with safetensors.torch.save_file", f->path);
    EN_REQUIRE(memcmp(length, "\x89HDF\r\n\x1a\n", 8) != 0, EN_EDATA, "%s is an HDF5 file, not a safetensors file", f->path);
    for (int i = 8; i-- > 0;) n = n << 8 | length[i];
    EN_REQUIRE(n >= 2 && n <= EN_SAFETENSORS_HEADER && n <= bytes - 8, EN_EDATA, "%s has %" PRIu64 " bytes and claims a header of %" PRIu64
               ": it is cut short, or no safetensors file", f->path, bytes, n);
    f->first = 8 + n;
    f->header = malloc(n + 1);
    EN_REQUIRE(f->header, EN_ENOMEM, "%s: no memory for a header of %" PRIu64 " bytes", f->path, n);
    EN_TRY(read_at(f, f->header, n, 8), "reading the header");
    f->header[n] = '\0';

    en_json_cursor c = { .start = f->header, .p = f->header, .end = f->header + n };
    EN_TRY(read_header(f, &c, bytes - f->first), "opening %s", f->path);
    if (f->n > 1) qsort(f->tensors, f->n, sizeof *f->tensors, by_place);
    EN_TRY(check_places(f, bytes - f->first), "opening %s", f->path);
    if (f->n > 1) qsort(f->tensors, f->n, sizeof *f->tensors, by_name);
    return check_names(f);
}

en_status en_safetensors_open(const char *path, en_safetensors **out)
{
    *out = NULL;
    EN_REQUIRE(strlen(path) < sizeof (*out)->path, EN_EUSAGE, "the path %.100s... is too long", path);
    en_safetensors *f = calloc(1, sizeof *f);
    EN_REQUIRE(f, EN_ENOMEM, "no memory to read %s", path);
    f->fd = -1;
    memcpy(f->path, path, strlen(path));
    const en_status s = read_all(f);
    if (s == EN_OK) *out = f;
    else en_safetensors_close(f);
    return s;
}

void en_safetensors_close(en_safetensors *f)
{
    if (!f) return;
    if (f->fd >= 0) close(f->fd);
    free(f->header);
    free(f->tensors);
    free(f->texts);
    free(f);
}

const en_safetensor *en_safetensors_find(const en_safetensors *f, const char *name)
{
    const en_safetensor key = { .name = name };
    return f->n > 0 ? bsearch(&key, f->tensors, f->n, sizeof *f->tensors, by_name) : NULL;
}

const char *en_safetensors_text_of(const en_safetensors *f, const char *key)
{
    for (size_t i = 0; i < f->n_texts; i++)
        if (strcmp(f->texts[i].key, key) == 0) return f->texts[i].value;
    return NULL;
}

/* ---- values -------------------------------------------------------------------------------------------------------------- */

static float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float from_bf16(uint16_t h) { return from_bits((uint32_t)h << 16); }

/* IEEE binary16: 5 bits of exponent, 10 of fraction; below 2^-14 a multiple of 2^-24 */
static float from_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 0x1f, fraction = h & 0x3ff;
    if (exponent == 0) return (sign ? -1.f : 1.f) * (float)fraction * 0x1p-24f;
    return from_bits(sign | (exponent == 0x1f ? 0xffu : exponent + 112) << 23 | fraction << 13);
}

en_status en_safetensors_read(const en_safetensors *f, const en_safetensor *t, float *out)
{
    const bool f32 = strcmp(t->dtype, "F32") == 0, bf16 = strcmp(t->dtype, "BF16") == 0;
    EN_REQUIRE(f32 || bf16 || strcmp(t->dtype, "F16") == 0, EN_EDATA, "%s: " NAME " is %s; F32, F16 and BF16 are read", f->path, SHOW(t->name), t->dtype);
    /* half as wide: into the upper half of `out`, and widened from its beginning, which never overtakes the reading */
    const size_t n = (size_t)t->count;
    uint8_t *raw = (uint8_t *)out + (f32 ? 0 : 2 * n);
    EN_TRY(read_at(f, raw, (size_t)(t->end - t->begin), f->first + t->begin), "reading " NAME, SHOW(t->name));
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        if (!f32) {
            memcpy(&h, raw + 2 * i, sizeof h);
            out[i] = bf16 ? from_bf16(h) : from_f16(h);
        }
        EN_REQUIRE(isfinite(out[i]), EN_EDATA, "%s: value %zu of " NAME " is not finite: these weights have diverged, or are damaged", f->path, i, SHOW(t->name));
    }
    return EN_OK;
}
