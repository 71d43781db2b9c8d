#include "trainer/trainer.h"

#include <stdlib.h>

en_status en_dump_arenas(en_trainer *t, const char *group, const float *params, const float *stats)
{
    const size_t p_bytes = (size_t)t->model->param_elems * sizeof(float), s_bytes = (size_t)t->model->stat_elems * sizeof(float);
    float *p = malloc(p_bytes), *s = stats ? malloc(s_bytes) : NULL;
    en_status status = EN_OK;
    EN_REQUIRE_OUT(p && (s || !stats), EN_ENOMEM, "no memory to dump %s", group);
    EN_TRY_OUT(t->be->ops->download(t->be, p, params, p_bytes), "dumping %s", group);
    if (stats) EN_TRY_OUT(t->be->ops->download(t->be, s, stats, s_bytes), "dumping %s", group);
    EN_TRY_OUT(en_dump_tensors(t->dump, group, t->model, p, s), "dumping %s", group);
out:
    free(p);
    free(s);
    return status;
}

/* Normalised floats, also where the device reads bytes. */
static en_status dump_images(en_trainer *t, const en_batch *batch, const int64_t dims[4])
{
    if (!t->be->u8) return en_dump_f32(t->dump, "/batch/images", 4, dims, batch->images);
    const size_t n = (size_t)(dims[0] * dims[1] * dims[2] * 3);
    float *f = malloc((n + 1) * sizeof *f);
    EN_REQUIRE(f, EN_ENOMEM, "no memory for %zu pixels", n);
    en_normalise_bytes(batch->bytes, n, en_normalise_by(t->model->normalise), f);
    const en_status s = en_dump_f32(t->dump, "/batch/images", 4, dims, f);
    free(f);
    return s;
}

en_status en_dump_batch(en_trainer *t, const en_batch *batch)
{
    const int64_t size = t->stage_model->resolution, images[] = { batch->n, size, size, 3 }, logits[] = { batch->n, t->model->classes };
    EN_TRY(dump_images(t, batch, images), "dumping images");
    EN_TRY(en_dump_i32(t->dump, "/batch/labels", 1, images, batch->labels), "dumping labels");
    float *l = malloc((size_t)(batch->n * t->model->classes + 1) * sizeof *l);
    EN_REQUIRE(l, EN_ENOMEM, "no memory to dump the logits");
    en_status s = en_net_logits(t->net, l);
    if (s == EN_OK) s = en_dump_f32(t->dump, "/logits", 2, logits, l);
    free(l);
    EN_TRY(s, "dumping logits");
    double v[EN_TALLY];                             /* nothing but this forward has been added */
    EN_TRY(t->be->ops->download(t->be, v, t->tally, sizeof v), "dumping the loss");
    const float loss = (float)(v[EN_TALLY_LOSS] / v[EN_TALLY_IMAGES]);
    EN_TRY(en_dump_f32(t->dump, "/loss", 0, NULL, &loss), "dumping the loss");
    return EN_OK;
}

en_status en_dump_finish(en_trainer *t)
{
    EN_TRY(en_dump_arenas(t, "/after", t->a.params, t->a.stats), "the weights after the step");
    en_dump *done = t->dump;
    t->dump = NULL;
    return en_dump_close(done);
}
