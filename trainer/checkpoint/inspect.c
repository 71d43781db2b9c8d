/* checkpoint/inspect.c - what a file is, and whether it is whole.
 *
 * A file is believed step by step: it is a regular file, has HDF5's signature, is as long as its superblock says, opens,
 * bears our format_version and `complete`, its attributes have their types and lie in their ranges, its groups are ours
 * (checkpoint/tree.c); and when verifying, each dataset hashes to its crc32c, and there are as many as were written.  Whoever
 * refuses says what follows the path in a sentence: "is truncated: 12 of 85 bytes are there; use an older checkpoint". */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "trainer/checkpoint/internal.h"

enum { MAX_TEXT = 16 << 20, MAX_CLASSES = 1000000 };    /* classes: as many as a model takes */

en_status en_reader_refuse(en_reader *r, en_status code, en_file_kind kind, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(r->why, EN_WHY, fmt, ap);
    va_end(ap);
    for (char *p = r->why; *p; p++)                                    /* names come from the file, and a message is one line */
        if ((unsigned char)*p < ' ' || *p == 0x7f) *p = '?';
    r->kind = kind;
    return code;
}

/* ---- the file ------------------------------------------------------------------------------------------------------ */

static uint64_t little_endian(const uint8_t *p, int bytes)
{
    uint64_t v = 0;
    for (int i = bytes; i-- > 0;) v = v << 8 | p[i];
    return v;
}

/* The length that the superblock promises; 0 when it has none that makes sense. */
static uint64_t promised_bytes(const uint8_t *head, size_t n)
{
    if (n >= 48 && (head[8] == 2 || head[8] == 3) && head[9] == 8) return little_endian(head + 28, 8);
    if (n >= 56 && head[8] == 0 && head[13] == 8) return little_endian(head + 40, 8);
    if (n >= 60 && head[8] == 1 && head[13] == 8) return little_endian(head + 44, 8);
    return 0;
}

static en_status open_file(en_reader *r, const char *path)
{
    static const uint8_t signature[8] = { 0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n' };
    uint8_t head[64];
    struct stat st;
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);      /* NONBLOCK: a pipe would wait for its writer */
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return en_reader_refuse(r, EN_EDATA, EN_FILE_ABSENT, "is not there");
    if (fd < 0) return en_reader_refuse(r, EN_EIO, EN_FILE_UNREADABLE, "cannot be opened: %s", strerror(errno));
    const int stat_failed = fstat(fd, &st) != 0 ? errno : 0;
    const bool regular = !stat_failed && S_ISREG(st.st_mode);
    const ssize_t n = regular ? pread(fd, head, sizeof head, 0) : 0;
    const int read_failed = n < 0 ? errno : 0;
    close(fd);
    if (stat_failed || read_failed)
        return en_reader_refuse(r, EN_EIO, EN_FILE_UNREADABLE, "cannot be read: %s", strerror(stat_failed ? stat_failed : read_failed));
    if (!regular)
        return en_reader_refuse(r, EN_EDATA, EN_FILE_FOREIGN, "is a %s, not a checkpoint; name a file step-*.h5 or best.h5",
                      S_ISDIR(st.st_mode) ? "folder" : "device or a pipe");
    if (n == 0) EN_BROKEN("is truncated: it is empty" EN_OLDER);
    if (n < 8 && !memcmp(head, signature, (size_t)n)) EN_BROKEN("is truncated: only %zd bytes are there" EN_OLDER, n);
    if (n < 8 || memcmp(head, signature, 8))
        return en_reader_refuse(r, EN_EDATA, EN_FILE_FOREIGN, "is not an HDF5 file (its first bytes are not HDF5's); "
                                                    "damaged, or no checkpoint at all");
    r->bytes = (uint64_t)st.st_size;
    const uint64_t promised = promised_bytes(head, (size_t)n);
    if (n < 48 || (promised != UINT64_MAX && promised > r->bytes))
        EN_BROKEN("is truncated: %" PRIu64 " of %" PRIu64 " bytes are there" EN_OLDER, r->bytes, promised);
    r->file = en_h5_open(path);
    if (r->file < 0) EN_BROKEN("is damaged: HDF5 says: %s" EN_OLDER, en_h5_error());
    r->root = H5Gopen2(r->file, "/", H5P_DEFAULT);
    if (r->root < 0) EN_BROKEN("is damaged: HDF5 says: %s" EN_OLDER, en_h5_error());
    return EN_OK;
}

void en_reader_close(en_reader *r)
{
    if (r->root >= 0) H5Gclose(r->root);
    if (r->file >= 0) H5Fclose(r->file);
    free(r->buffer);
    r->root = r->file = -1;
    r->buffer = NULL;
}

/* ---- attributes ----------------------------------------------------------------------------------------------------- */

/* One value of exactly the type that is written, `want`, or text of a fixed length when that is < 0: nothing is left for HDF5 to
 * convert, and what is read is as long as the variable that it is read into. */
static en_status open_attribute(en_reader *r, const char *name, hid_t want, hid_t *attr, size_t *bytes)
{
    const htri_t there = H5Aexists(r->root, name);
    if (there < 0) EN_BROKEN("is damaged: HDF5 says: %s" EN_OLDER, en_h5_error());
    if (!there) EN_BROKEN("lacks the attribute %s" EN_OLDER, name);
    const hid_t a = H5Aopen(r->root, name, H5P_DEFAULT);
    if (a < 0) EN_BROKEN("is damaged: attribute %s: HDF5 says: %s" EN_OLDER, name, en_h5_error());
    if (!en_h5_is_one(a, want, bytes)) {
        H5Aclose(a);
        EN_BROKEN("has an attribute %s of an unexpected type" EN_OLDER, name);
    }
    *attr = a;
    return EN_OK;
}

static en_status read_attribute(en_reader *r, const char *name, hid_t file_type, hid_t memory_type, void *out)
{
    hid_t attr = -1;
    EN_PASS_ON(open_attribute(r, name, file_type, &attr, NULL));
    const bool ok = H5Aread(attr, memory_type, out) >= 0;
    if (!ok) en_reader_refuse(r, EN_EDATA, EN_FILE_BROKEN, "is damaged: attribute %s: HDF5 says: %s" EN_OLDER, name, en_h5_error());
    H5Aclose(attr);
    return ok ? EN_OK : EN_EDATA;
}

static en_status read_i64(en_reader *r, const char *name, int64_t low, int64_t high, int64_t *out)
{
    EN_PASS_ON(read_attribute(r, name, H5T_STD_I64LE, H5T_NATIVE_INT64, out));
    if (*out < low || *out > high)
        EN_BROKEN("has an attribute %s of %" PRId64 ", outside %" PRId64 " to %" PRId64 EN_OLDER, name, *out, low, high);
    return EN_OK;
}

static en_status read_int(en_reader *r, const char *name, int low, int high, int *out)
{
    int64_t value;
    EN_PASS_ON(read_i64(r, name, low, high, &value));
    *out = (int)value;
    return EN_OK;
}

/* What older versions did not write: `absent` then. */
static en_status read_added_i64(en_reader *r, const char *name, int64_t low, int64_t high, int64_t absent, int64_t *out)
{
    const htri_t there = H5Aexists(r->root, name);
    *out = absent;
    return there == 0 ? EN_OK : read_i64(r, name, low, high, out);
}

static en_status read_f64(en_reader *r, const char *name, double low, double high, double *out)
{
    EN_PASS_ON(read_attribute(r, name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, out));
    if (!(*out >= low && *out <= high))                                  /* a NaN is in no range                     */
        EN_BROKEN("has an attribute %s of %g, outside %g to %g" EN_OLDER, name, *out, low, high);
    return EN_OK;
}

static en_status read_text(en_reader *r, const char *name, char **out)
{
    hid_t attr = -1;
    size_t n = 0;
    EN_PASS_ON(open_attribute(r, name, -1, &attr, &n));
    char *text = n <= MAX_TEXT ? calloc(1, n + 1) : NULL;
    const hid_t type = text ? H5Aget_type(attr) : -1;
    const bool ok = type >= 0 && H5Aread(attr, type, text) >= 0;
    if (n > MAX_TEXT)
        en_reader_refuse(r, EN_EDATA, EN_FILE_BROKEN, "has an attribute %s of %zu bytes, more than %d" EN_OLDER, name, n, MAX_TEXT);
    else if (!text)
        en_reader_refuse(r, EN_ENOMEM, EN_FILE_UNREADABLE, "cannot be read: no memory for its attribute %s (%zu bytes)", name, n);
    else if (!ok)
        en_reader_refuse(r, EN_EDATA, EN_FILE_BROKEN, "is damaged: attribute %s: HDF5 says: %s" EN_OLDER, name, en_h5_error());
    if (type >= 0) H5Tclose(type);
    H5Aclose(attr);
    if (!ok) {
        free(text);
        return r->kind == EN_FILE_UNREADABLE ? EN_ENOMEM : EN_EDATA;
    }
    *out = text;
    return EN_OK;
}

static en_status read_short_text(en_reader *r, const char *name, size_t size, char *out)
{
    char *text = NULL;
    EN_PASS_ON(read_text(r, name, &text));
    snprintf(out, size, "%s", text);
    free(text);
    return EN_OK;
}

/* Pixels are numbers in more than one way, and the wrong one would cost accuracy silently, too. */
static en_status read_pixels(en_reader *r, en_checkpoint_info *i)
{
    char normalise[16] = "imagenet", crop[16] = "reference";     /* of files that are older than the choice */
    if (H5Aexists(r->root, "normalise") > 0) EN_PASS_ON(read_short_text(r, "normalise", sizeof normalise, normalise));
    if (H5Aexists(r->root, "eval_crop") > 0) EN_PASS_ON(read_short_text(r, "eval_crop", sizeof crop, crop));
    i->normalise = en_normalise_named(normalise);
    i->eval_crop = en_eval_crop_named(crop);
    if (!i->normalise || !i->eval_crop)
        EN_BROKEN("was trained with pixels '%s' and the evaluation crop '%s', which this program does not have; use the version of effnet that wrote it",
                  normalise, crop);
    return EN_OK;
}

/* Batch norm's constants and the padding: of the framework that the weights come from.  A padding that is not known would be evaluated
 * with another one, and nobody would see it. */
static en_status read_variant(en_reader *r, en_checkpoint_info *i)
{
    double eps = 0, momentum = 0;
    char padding[16] = "";
    if (H5Aexists(r->root, "bn_eps") > 0) EN_PASS_ON(read_f64(r, "bn_eps", 0, 1, &eps));
    if (H5Aexists(r->root, "bn_momentum") > 0) EN_PASS_ON(read_f64(r, "bn_momentum", 0, 1, &momentum));
    if (H5Aexists(r->root, "padding") > 0) EN_PASS_ON(read_short_text(r, "padding", sizeof padding, padding));
    EN_PASS_ON(read_pixels(r, i));
    i->bn_eps = (float)eps;
    i->bn_momentum = (float)momentum;
    i->padding = !*padding ? EN_PADDING_OWN : strcmp(padding, "tf_same") == 0 ? EN_PADDING_SAME : EN_PADDING_SYMMETRIC;
    if (i->padding == EN_PADDING_SYMMETRIC && strcmp(padding, "symmetric") != 0)
        EN_BROKEN("was trained with the padding '%s', and this program has tf_same and symmetric; use the version of effnet that wrote it", padding);
    return EN_OK;
}

static en_status read_attributes(en_reader *r, en_checkpoint_info *i, int64_t *datasets)
{
    int64_t format, complete, has_ema, world_size, owed;
    double dropout, drop_path;
    const htri_t ours = H5Aexists(r->root, "format_version");
    if (ours < 0) EN_BROKEN("is damaged: HDF5 says: %s" EN_OLDER, en_h5_error());
    if (!ours)
        return en_reader_refuse(r, EN_EDATA, EN_FILE_FOREIGN, "is an HDF5 file of another program (it has no format_version); "
                                                    "name one that effnet train has written");
    EN_PASS_ON(read_i64(r, "format_version", 1, INT64_MAX, &format));
    if (format > EN_FORMAT_VERSION)
        return en_reader_refuse(r, EN_EDATA, EN_FILE_NEWER, "has format %" PRId64 " and this program knows formats up to %d; "
                                                  "use the version of effnet that wrote it, or a newer one", format, EN_FORMAT_VERSION);
    if (H5Aexists(r->root, "complete") == 0) EN_BROKEN("is incomplete: its writing was cut short" EN_OLDER);
    EN_PASS_ON(read_i64(r, "complete", 1, 1, &complete));

    en_run_state *s = &i->state;
    EN_PASS_ON(read_i64(r, "step", 0, INT64_MAX, &s->step));
    EN_PASS_ON(read_i64(r, "epoch", 0, INT64_MAX, &s->epoch));
    EN_PASS_ON(read_i64(r, "position", 0, INT64_MAX, &s->position));
    EN_PASS_ON(read_i64(r, "ema_updates", 0, INT64_MAX, &s->ema_updates));
    EN_PASS_ON(read_attribute(r, "seed", H5T_STD_U64LE, H5T_NATIVE_UINT64, &s->seed));
    EN_PASS_ON(read_i64(r, "global_batch", 0, INT64_MAX, &s->global_batch));
    EN_PASS_ON(read_i64(r, "samples", 0, INT64_MAX, &s->samples));
    EN_PASS_ON(read_int(r, "lanes", 0, INT32_MAX, &s->lanes));
    EN_PASS_ON(read_added_i64(r, "accum", 0, INT32_MAX, 0, &s->accum));
    EN_PASS_ON(read_added_i64(r, "world_size", 0, INT32_MAX, 0, &world_size));
    EN_PASS_ON(read_added_i64(r, "evaluation_owed", 0, 1, 0, &owed));
    EN_PASS_ON(read_added_i64(r, "skipped", 0, INT64_MAX, 0, &s->skipped));
    EN_PASS_ON(read_added_i64(r, "skipped_in_row", 0, INT64_MAX, 0, &s->skipped_in_row));
    s->lr_factor = 1;
    if (H5Aexists(r->root, "lr_factor") > 0) EN_PASS_ON(read_f64(r, "lr_factor", 0, 1, &s->lr_factor));
    s->world_size = (int)world_size;
    s->evaluation_owed = owed;
    EN_PASS_ON(read_f64(r, "best_top1", -1, 1, &s->best_top1));
    EN_PASS_ON(read_f64(r, "seconds", 0, 1e12, &s->seconds));
    EN_PASS_ON(read_short_text(r, "model", sizeof i->model, i->model));
    EN_PASS_ON(read_short_text(r, "program_version", sizeof i->program_version, i->program_version));
    EN_PASS_ON(read_f64(r, "width", 0, 1e6, &i->width));
    EN_PASS_ON(read_f64(r, "depth", 0, 1e6, &i->depth));
    EN_PASS_ON(read_int(r, "resolution", 1, 1 << 20, &i->resolution));
    EN_PASS_ON(read_int(r, "classes", 1, MAX_CLASSES, &i->classes));
    EN_PASS_ON(read_f64(r, "dropout", 0, 1, &dropout));
    EN_PASS_ON(read_f64(r, "drop_path", 0, 1, &drop_path));
    EN_PASS_ON(read_variant(r, i));
    EN_PASS_ON(read_i64(r, "has_ema", 0, 1, &has_ema));
    EN_PASS_ON(read_int(r, "n_slots", 0, EN_MAX_SLOTS, &i->n_slots));
    EN_PASS_ON(read_i64(r, "datasets", 0, INT64_MAX, datasets));
    i->dropout = (float)dropout;
    i->drop_path = (float)drop_path;
    i->has_ema = has_ema;
    const htri_t has_options = H5Aexists(r->root, "options");
    if (has_options < 0) EN_BROKEN("is damaged: HDF5 says: %s" EN_OLDER, en_h5_error());
    return has_options ? read_text(r, "options", &i->options) : EN_OK;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------- */

static en_status read_class_names(en_reader *r, en_checkpoint_info *i)
{
    const htri_t there = H5Lexists(r->file, "/class_names", H5P_DEFAULT);
    if (there < 0) EN_BROKEN("is damaged: HDF5 says: %s" EN_OLDER, en_h5_error());
    if (!there) return EN_OK;
    en_shape s;
    EN_PASS_ON(en_reader_open(r, "/class_names", &s));
    const bool texts = H5Tget_class(s.type) == H5T_STRING && s.ndim == 1 && s.dims[0] == (hsize_t)i->classes;
    const size_t width = H5Tget_size(s.type);
    const en_status status = texts ? en_reader_load(r, "/class_names", &s) : EN_OK;
    en_shape_close(&s);
    if (!texts) EN_BROKEN("has class names that are not %d texts" EN_OLDER, i->classes);
    EN_PASS_ON(status);
    i->class_names = calloc((size_t)i->classes, sizeof *i->class_names);
    bool ok = i->class_names;
    for (int k = 0; ok && k < i->classes; k++)
        ok = (i->class_names[k] = strndup((const char *)r->buffer + (size_t)k * width, width));
    return ok ? EN_OK : en_reader_refuse(r, EN_ENOMEM, EN_FILE_UNREADABLE, "cannot be read: no memory for its class names");
}

/* Opens and reads what is not a tensor; the caller closes the reader, whatever comes back. */
en_status en_reader_begin(en_reader *r, const char *path, bool verify, en_checkpoint_info *out)
{
    int64_t datasets;
    EN_PASS_ON(open_file(r, path));
    EN_PASS_ON(read_attributes(r, out, &datasets));
    EN_PASS_ON(en_reader_tree(r, verify));
    if (verify && r->datasets != datasets)
        EN_BROKEN("is damaged: %" PRId64 " of its %" PRId64 " datasets are there" EN_OLDER, r->datasets, datasets);
    return read_class_names(r, out);
}

en_status en_checkpoint_look(const char *path, bool verify, en_checkpoint_info *out, en_file_kind *kind, char why[EN_WHY])
{
    en_reader r = { .file = -1, .root = -1, .kind = EN_FILE_WHOLE, .why = why };
    *out = (en_checkpoint_info){ 0 };
    why[0] = '\0';
    en_h5_enter();
    const en_status status = en_reader_begin(&r, path, verify, out);
    en_reader_close(&r);
    en_h5_leave();
    if (status != EN_OK) en_checkpoint_info_free(out);
    *kind = r.kind;
    return status;
}

en_status en_checkpoint_inspect(const char *path, bool verify, en_checkpoint_info *out)
{
    en_file_kind kind;
    char why[EN_WHY];
    const en_status status = en_checkpoint_look(path, verify, out, &kind, why);
    return status == EN_OK ? EN_OK : en_raise(status, __FILE__, __LINE__, __func__, "the checkpoint %s %s", path, why);
}

void en_checkpoint_info_free(en_checkpoint_info *i)
{
    if (!i) return;
    for (int k = 0; i->class_names && k < i->classes; k++) free(i->class_names[k]);
    free(i->class_names);
    free(i->options);
    *i = (en_checkpoint_info){ 0 };
}
