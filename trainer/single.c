#include "trainer/single.h"

#include "trainer/input.h"

#include <math.h>
#include <stdlib.h>

en_status en_single_open(const en_options *o, en_weights *w, en_single *s)
{
    const en_model *m = w->model;
    const en_net_config config = { .be = w->be, .model = m, .max_images = 1 };
    *s = (en_single){ .model = m, .kernel = en_resize_of(o, w->info.options).kernel,
                      .pixels = malloc((size_t)m->resolution * (size_t)m->resolution * 3 * sizeof *s->pixels) };
    en_status status = EN_OK;
    EN_REQUIRE_OUT(s->pixels, EN_ENOMEM, "no memory for an image");
    EN_TRY_OUT(en_decoder_open(o->max_pixels, &s->decoder), "taking memory");
    en_decoder_to_the_end(s->decoder, true);
    EN_TRY_OUT(en_net_open(&config, &s->net), "taking memory");
    en_net_bind(s->net, w->params, NULL, w->stats);
    EN_TRY_OUT(en_net_freeze(s->net), "running statistics");
out:
    if (status != EN_OK) en_single_close(s);
    return status;
}

void en_single_close(en_single *s)
{
    en_net_close(s->net);
    en_decoder_close(s->decoder);
    free(s->bytes);
    free(s->pixels);
    *s = (en_single){ 0 };
}

static en_crop centre(const void *model, int64_t w, int64_t h, int channels)
{
    (void)channels;
    const en_model *m = model;
    return en_crop_evaluated(m->eval_crop, w, h, m->resolution);
}

en_status en_single_logits(en_single *s, const char *path, float *logits)
{
    const en_model *m = s->model;
    size_t n = 0;
    en_status status = en_file_read(path, &s->bytes, &s->capacity, &n);
    if (status == EN_OK) status = en_decode_crop(s->decoder, path, s->bytes, n, centre, m, 0, &s->image, &s->crop);
    if (status != EN_OK) return status;
    if (en_net_reads_bytes(s->net)) en_resize_bytes(&s->image, &s->crop, s->kernel, m->resolution, false, (uint8_t *)s->pixels);
    else en_resize(&s->image, &s->crop, s->kernel, m->resolution, en_normalise_by(m->normalise), s->pixels);
    EN_TRY(en_net_input(s->net, 1, s->pixels, NULL), "predicting %s", path);
    EN_TRY(en_net_forward(s->net, 0), "predicting %s", path);
    EN_TRY(en_net_logits(s->net, logits), "predicting %s", path);
    return EN_OK;
}

void en_softmax(int n, float *p)
{
    float top = p[0];
    double total = 0;
    for (int i = 1; i < n; i++) top = fmaxf(top, p[i]);
    for (int i = 0; i < n; i++) total += exp((double)p[i] - top);
    for (int i = 0; i < n; i++) p[i] = (float)(exp((double)p[i] - top) / total);
}
