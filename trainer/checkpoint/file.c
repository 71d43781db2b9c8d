/* checkpoint/file.c - a snapshot becomes a file: built in memory, written beside, verified, renamed.
 *
 *     arenas ──gather──▶ image in memory ──write, fsync──▶ NAME.tmp ──read back, verify──▶ rename ──fsync folder──▶ NAME
 *
 * Memory while it runs: the snapshot (4 bytes x arena elements x (1 + EMA + slots)), the image (the same, padding left
 * out) and one tensor.  The image is given back before the file is verified, and verifying holds one tensor at a time.
 * B0 with EMA and two slots: 85 MB + 85 MB; L2, 480 M parameters: 7.7 GB + 7.7 GB.  Sizes are 64-bit throughout.
 * Time: one pass over memory, one over the disk to write, one to read back (the cache is dropped first, so the bytes that
 * are verified are the disk's, as far as the operating system lets one ask). */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "trainer/checkpoint/internal.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "checksums are of little-endian bytes, as they stand in the file");

/* ---- snapshots ----------------------------------------------------------------------------------------------------- */

en_status en_snapshot_alloc(const en_model *m, int n_slots, const char *const *slot_names, bool with_ema, en_snapshot *s)
{
    *s = (en_snapshot){ .model = m, .state.best_top1 = -1 };
    EN_REQUIRE(n_slots >= 0 && n_slots <= EN_MAX_SLOTS, EN_EINVAL, "a snapshot of %d optimizer slots; 0 to %d fit", n_slots, EN_MAX_SLOTS);
    const size_t params = m->param_elems > 0 ? (size_t)m->param_elems : 1, stats = m->stat_elems > 0 ? (size_t)m->stat_elems : 1;
    bool ok = (s->params = calloc(params, sizeof(float))) && (s->stats = calloc(stats, sizeof(float)));
    if (ok && with_ema) ok = (s->ema_params = calloc(params, sizeof(float))) && (s->ema_stats = calloc(stats, sizeof(float)));
    for (int i = 0; ok && i < n_slots; i++) {
        s->slot_name[s->n_slots] = slot_names[i];
        ok = (s->slot[s->n_slots++] = calloc(params, sizeof(float)));
    }
    if (ok) return EN_OK;
    en_snapshot_free(s);
    return en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory for a snapshot of %s: %.1f GB",
                    m->name, 4e-9 * ((double)(params + stats) * (with_ema ? 2 : 1) + (double)params * n_slots));
}

void en_snapshot_free(en_snapshot *s)
{
    if (!s) return;
    free(s->params);
    free(s->ema_params);
    free(s->stats);
    free(s->ema_stats);
    for (int i = 0; i < s->n_slots; i++) free(s->slot[i]);
    *s = (en_snapshot){ 0 };
}

/* ---- the image ------------------------------------------------------------------------------------------------------- */

static bool put_i64(hid_t root, const char *name, int64_t value)
{
    return en_h5_attr(root, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

static bool put_f64(hid_t root, const char *name, double value)
{
    return en_h5_attr(root, name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &value);
}

static bool put_attributes(hid_t root, const en_snapshot *s, int64_t datasets)
{
    const en_model *m = s->model;
    const en_run_state *r = &s->state;
    return put_i64(root, "format_version", EN_FORMAT_VERSION)
        && en_h5_attr_text(root, "program_version", EN_VERSION)
        && put_i64(root, "step", r->step) && put_i64(root, "epoch", r->epoch) && put_i64(root, "position", r->position)
        && put_i64(root, "ema_updates", r->ema_updates)
        && en_h5_attr(root, "seed", H5T_STD_U64LE, H5T_NATIVE_UINT64, &r->seed)
        && put_i64(root, "global_batch", r->global_batch) && put_i64(root, "samples", r->samples)
        && put_i64(root, "lanes", r->lanes) && put_i64(root, "accum", r->accum) && put_i64(root, "world_size", r->world_size)
        && put_i64(root, "evaluation_owed", r->evaluation_owed)
        && put_i64(root, "skipped", r->skipped) && put_i64(root, "skipped_in_row", r->skipped_in_row) && put_f64(root, "lr_factor", r->lr_factor)
        && put_f64(root, "best_top1", r->best_top1) && put_f64(root, "seconds", r->seconds)
        && en_h5_attr_text(root, "model", m->row ? m->row->name : m->name)
        && put_f64(root, "width", m->width) && put_f64(root, "depth", m->depth)
        && put_i64(root, "resolution", m->resolution) && put_i64(root, "classes", m->classes)
        && put_f64(root, "dropout", m->dropout) && put_f64(root, "drop_path", m->drop_path)
        && put_f64(root, "bn_eps", (double)m->bn_eps) && put_f64(root, "bn_momentum", (double)m->bn_momentum)
        && en_h5_attr_text(root, "padding", m->same_padding ? "tf_same" : "symmetric")
        && en_h5_attr_text(root, "normalise", en_normalise_name(m->normalise)) && en_h5_attr_text(root, "eval_crop", en_eval_crop_name(m->eval_crop))
        && put_i64(root, "has_ema", s->ema_params != NULL) && put_i64(root, "n_slots", s->n_slots)
        && (!s->options || en_h5_attr_text(root, "options", s->options))
        && put_i64(root, "datasets", datasets)
        && put_i64(root, "complete", 1);                     /* last */
}

/* GROUP/<timm key> for each tensor of the model, or for the trained ones alone when `stats` is NULL. */
static bool put_tensors(hid_t root, const char *group, const en_model *m, const float *params, const float *stats,
                        float *logical, int64_t *datasets)
{
    if (!en_h5_group(root, group)) return false;
    for (int i = 0; i < m->n_tensors; i++) {
        const en_tensor *t = &m->tensors[i];
        const float *arena = t->arena == EN_ARENA_PARAMS ? params : stats;
        if (!arena) continue;
        char path[192];
        snprintf(path, sizeof path, "%s/%s", group, t->name);
        en_tensor_gather(t, arena, logical);
        if (!en_h5_dataset(root, path, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, t->ndim, t->shape, logical, true)) return false;
        ++*datasets;
    }
    return true;
}

static size_t raw_bytes(const en_snapshot *s)
{
    size_t params = 0, stats = 0;
    for (int i = 0; i < s->model->n_tensors; i++) {
        const en_tensor *t = &s->model->tensors[i];
        *(t->arena == EN_ARENA_PARAMS ? &params : &stats) += (size_t)en_tensor_count(t) * sizeof(float);
    }
    return (params + stats) * (s->ema_params ? 2 : 1) + params * (size_t)s->n_slots;
}

static bool build_image(hid_t file, const en_snapshot *s, float *logical)
{
    const en_model *m = s->model;
    const hid_t root = H5Gopen2(file, "/", H5P_DEFAULT);
    int64_t datasets = 0;
    bool ok = root >= 0 && put_tensors(root, "/model", m, s->params, s->stats, logical, &datasets)
           && (!s->ema_params || put_tensors(root, "/ema", m, s->ema_params, s->ema_stats, logical, &datasets))
           && en_h5_group(root, "/optimizer");
    for (int i = 0; ok && i < s->n_slots; i++) {
        char group[96];
        snprintf(group, sizeof group, "/optimizer/%s", s->slot_name[i]);
        ok = put_tensors(root, group, m, s->slot[i], NULL, logical, &datasets);
    }
    if (ok && s->class_names) ok = en_h5_strings(root, "/class_names", m->classes, s->class_names, true) && ++datasets;
    return ok && put_attributes(root, s, datasets) && H5Gclose(root) >= 0;
}

static en_status write_tmp(const char *tmp, const en_snapshot *s)
{
    int64_t largest = 1;
    for (int i = 0; i < s->model->n_tensors; i++)
        if (en_tensor_count(&s->model->tensors[i]) > largest) largest = en_tensor_count(&s->model->tensors[i]);
    float *logical = malloc((size_t)largest * sizeof *logical);
    EN_REQUIRE(logical, EN_ENOMEM, "no memory to write %s", tmp);

    const size_t bytes = raw_bytes(s);
    en_status status = EN_OK;
    en_h5_enter();
    const hid_t file = en_h5_create_image(bytes);
    EN_REQUIRE_OUT(file >= 0 && build_image(file, s, logical), EN_EIO,
                   "%s cannot be built in memory (%zu bytes of tensors): HDF5 says: %s", tmp, bytes, en_h5_error());
    status = en_h5_save_image(file, tmp);
out:
    if (file >= 0) H5Fclose(file);
    en_h5_leave();
    free(logical);
    return status;
}

en_status en_checkpoint_write(const char *path, const en_snapshot *s)
{
    EN_REQUIRE(s->model && s->params && s->stats && !s->ema_params == !s->ema_stats, EN_EINVAL, "%s: the snapshot is not filled", path);
    EN_REQUIRE(s->n_slots >= 0 && s->n_slots <= EN_MAX_SLOTS, EN_EINVAL, "%s: the snapshot has %d slots", path, s->n_slots);
    for (int i = 0; i < s->n_slots; i++)
        EN_REQUIRE(s->slot[i] && s->slot_name[i] && *s->slot_name[i] && strlen(s->slot_name[i]) < 64 && !strpbrk(s->slot_name[i], "/."),
                   EN_EINVAL, "%s: slot %d of the snapshot has no name or no values", path, i);
    EN_REQUIRE(strlen(path) + 8 < EN_PATH, EN_EUSAGE, "the path %.100s... is too long (%d characters fit)", path, EN_PATH - 9);

    char tmp[EN_PATH + 8];
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    EN_TRY(write_tmp(tmp, s), "writing the checkpoint %s of step %" PRId64, path, s->state.step);

    en_checkpoint_info info;
    en_file_kind kind;
    char why[EN_WHY];
    if (en_checkpoint_look(tmp, true, &info, &kind, why) != EN_OK) {
        unlink(tmp);
        return en_raise(EN_EIO, __FILE__, __LINE__, __func__,
                        "%s was written and is wrong when read back: it %s; the disk or the memory of this machine may be failing", tmp, why);
    }
    en_checkpoint_info_free(&info);
    EN_TRY(en_file_commit(tmp, path), "writing the checkpoint %s of step %" PRId64, path, s->state.step);
    struct stat st;
    if (stat(path, &st) == 0) en_checkpoint_remember(&st);
    return EN_OK;
}
