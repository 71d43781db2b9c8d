#include "data_stream.h"

#include <stdlib.h>
#include <string.h>

void stream_add(stream *s, int size, const en_batch *b)
{
    if (b->n == 0) return;
    const size_t image = (size_t)size * (size_t)size * 3 * (b->bytes ? 1 : sizeof(float));
    assert_true(s->image_bytes == 0 || s->image_bytes == image);
    s->image_bytes = image;
    if (s->n + b->n > s->room) {
        s->room = 2 * (s->n + b->n) + 16;
        s->samples = realloc(s->samples, (size_t)s->room * sizeof *s->samples);
        s->labels = realloc(s->labels, (size_t)s->room * sizeof *s->labels);
        s->mates = realloc(s->mates, (size_t)s->room * sizeof *s->mates);
        s->shares = realloc(s->shares, (size_t)s->room * sizeof *s->shares);
        s->images = realloc(s->images, (size_t)s->room * image);
    }
    for (int64_t i = 0; i < b->n; i++) {
        s->samples[s->n + i] = b->samples[i];
        s->labels[s->n + i] = b->labels[i];
        s->mates[s->n + i] = b->mates ? b->mates[i] : b->labels[i];
        s->shares[s->n + i] = b->shares ? b->shares[i] : 1.f;
    }
    memcpy(s->images + (size_t)s->n * image, b->bytes ? (const void *)b->bytes : b->images, (size_t)b->n * image);
    s->n += b->n;
}

void stream_free(stream *s)
{
    free(s->samples);
    free(s->labels);
    free(s->mates);
    free(s->shares);
    free(s->images);
    *s = (stream){ 0 };
}

void stream_same(const stream *a, const stream *b, const char *what)
{
    if (a->n != b->n) fail_msg("%s: %d images, not %d", what, (int)a->n, (int)b->n);
    for (int64_t i = 0; i < a->n; i++) {
        if (a->samples[i] != b->samples[i] || a->labels[i] != b->labels[i])
            fail_msg("%s: image %d is sample %d, not %d", what, (int)i, (int)a->samples[i], (int)b->samples[i]);
        if (memcmp(a->images + (size_t)i * a->image_bytes, b->images + (size_t)i * b->image_bytes, a->image_bytes) != 0)
            fail_msg("%s: the pixels of image %d differ", what, (int)i);
        if (a->mates && b->mates && (a->mates[i] != b->mates[i] || a->shares[i] != b->shares[i]))
            fail_msg("%s: image %d has %g of %d, not %g of %d", what, (int)i, 1 - (double)a->shares[i], (int)a->mates[i], 1 - (double)b->shares[i],
                     (int)b->mates[i]);
    }
}

en_loader_config stream_config(const en_dataset *ds, bool training, int64_t global_batch, int64_t accum, int workers)
{
    return (en_loader_config){ .dataset = ds, .shard = { .global_batch = global_batch, .accum = accum, .rank = 0, .world_size = 1 },
                               .size = STREAM_SIZE, .workers = workers, .ahead = 2, .seed = 17, .training = training,
                               .normalise = en_imagenet_normalise, .max_bad_fraction = 0.5 };
}

stream stream_run(en_loader_config c, int world, int64_t calls)
{
    stream s = { 0 };
    en_loader *l[8] = { 0 };
    for (int r = 0; r < world; r++) {
        c.shard.rank = r;
        c.shard.world_size = world;
        OK(en_loader_open(&c, &l[r]));
    }
    for (int64_t k = 0; k < calls; k++)
        for (int r = 0; r < world; r++) {
            en_batch b;
            OK(en_loader_next(l[r], &b));
            stream_add(&s, c.size, &b);
        }
    for (int r = 0; r < world; r++) en_loader_close(l[r]);
    return s;
}

bool stream_decodes(const en_dataset *ds, int64_t sample, en_image *img)
{
    uint8_t *buf = NULL;
    size_t capacity = 0, n = 0;
    en_error_clear();
    const bool ok = ds->ops->read(ds, sample, &buf, &capacity, &n) == EN_OK && en_image_decode(ds->files[sample], buf, n, 0, img) == EN_OK;
    free(buf);
    return ok;
}
