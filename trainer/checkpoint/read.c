/* checkpoint/read.c - a file's tensors into the arenas. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "trainer/checkpoint/internal.h"

static void shape_text(int ndim, const int64_t *dims, char text[128])
{
    size_t used = (size_t)snprintf(text, 128, "(");
    for (int d = 0; d < ndim && used < 100; d++)
        used += (size_t)snprintf(text + used, 128 - used, d ? ",%" PRId64 : "%" PRId64, dims[d]);
    snprintf(text + used, 128 - used, ")");
}

static en_status read_tensors(en_reader *r, const char *group, const en_model *m, float *params, float *stats)
{
    int64_t wanted = 0;
    for (int i = 0; i < m->n_tensors; i++) {
        const en_tensor *t = &m->tensors[i];
        float *arena = t->arena == EN_ARENA_PARAMS ? params : stats;
        if (!arena) continue;
        wanted++;
        char path[192];
        snprintf(path, sizeof path, "%s/%s", group, t->name);
        const htri_t there = H5Lexists(r->file, path, H5P_DEFAULT);
        if (there < 0) EN_BROKEN("is damaged: %s: HDF5 says: %s" EN_OLDER, path, en_h5_error());
        if (!there) EN_BROKEN("lacks %s, which %s has; was it written for another model?", path, m->name);
        en_shape s;
        EN_PASS_ON(en_reader_open(r, path, &s));
        const bool floats = H5Tequal(s.type, H5T_IEEE_F32LE) > 0;
        bool same = floats && s.ndim == t->ndim;
        int64_t have[H5S_MAX_RANK];
        for (int d = 0; d < s.ndim; d++) have[d] = (int64_t)s.dims[d];
        for (int d = 0; same && d < t->ndim; d++) same = have[d] == t->shape[d];
        const en_status status = same ? en_reader_load(r, path, &s) : EN_OK;     /* no memory for what the model does not have */
        en_shape_close(&s);
        EN_PASS_ON(status);
        if (!same) {
            char has[128], wants[128];
            shape_text(s.ndim, have, has);
            shape_text(t->ndim, t->shape, wants);
            EN_BROKEN("has %s as %s%s, and %s wants %s; was it written for another model or another number of classes?",
                   path, has, floats ? "" : " of another type than float32", m->name, wants);
        }
        en_tensor_scatter(t, r->buffer, arena);
    }
    H5G_info_t info;
    const hid_t g = H5Gopen2(r->file, group, H5P_DEFAULT);
    const bool ok = g >= 0 && H5Gget_info(g, &info) >= 0;
    if (g >= 0) H5Gclose(g);
    if (!ok) EN_BROKEN("is damaged: %s: HDF5 says: %s" EN_OLDER, group, en_h5_error());
    if ((int64_t)info.nlinks != wanted)
        EN_BROKEN("has %" PRIu64 " tensors in %s, and %s has %" PRId64 "; was it written for another model?",
               (uint64_t)info.nlinks, group, m->name, wanted);
    return EN_OK;
}

static en_status read_snapshot(en_reader *r, const char *path, en_snapshot *s, bool weights_only, en_checkpoint_info *info)
{
    const en_model *m = s->model;
    EN_PASS_ON(en_reader_begin(r, path, false, info));
    EN_PASS_ON(read_tensors(r, "/model", m, s->params, s->stats));
    if (s->ema_params && info->has_ema) EN_PASS_ON(read_tensors(r, "/ema", m, s->ema_params, s->ema_stats));
    else if (s->ema_params && !weights_only)
        EN_BROKEN("has no moving average of the weights (/ema) and --ema asks for one; it was trained with --ema 0");
    else if (s->ema_params) {                                /* an average begins as what it averages                */
        memcpy(s->ema_params, s->params, (size_t)m->param_elems * sizeof(float));
        memcpy(s->ema_stats, s->stats, (size_t)m->stat_elems * sizeof(float));
    }
    for (int i = 0; !weights_only && i < s->n_slots; i++) {
        char group[96];
        snprintf(group, sizeof group, "/optimizer/%s", s->slot_name[i]);
        const htri_t any = H5Lexists(r->file, "/optimizer", H5P_DEFAULT);
        const htri_t there = any > 0 ? H5Lexists(r->file, group, H5P_DEFAULT) : any;
        if (there < 0) EN_BROKEN("is damaged: HDF5 says: %s" EN_OLDER, en_h5_error());
        if (!there) EN_BROKEN("lacks %s; was it trained with another optimizer?", group);
        EN_PASS_ON(read_tensors(r, group, m, s->slot[i], NULL));
    }
    s->state = info->state;
    return EN_OK;
}

en_status en_checkpoint_read(const char *path, en_snapshot *s, bool weights_only)
{
    char why[EN_WHY] = "";
    en_reader r = { .file = -1, .root = -1, .why = why };
    en_checkpoint_info info = { 0 };
    EN_REQUIRE(s->model && s->params && s->stats && !s->ema_params == !s->ema_stats, EN_EINVAL, "%s: the snapshot is not allocated", path);
    en_h5_enter();
    const en_status status = read_snapshot(&r, path, s, weights_only, &info);
    en_reader_close(&r);
    en_h5_leave();
    en_checkpoint_info_free(&info);
    return status == EN_OK ? EN_OK : en_raise(status, __FILE__, __LINE__, __func__, "the checkpoint %s %s", path, why);
}
