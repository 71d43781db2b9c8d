/* data_stream.h - what loaders deliver, laid end to end, and how to compare it. */
#ifndef EN_TESTS_DATA_STREAM_H
#define EN_TESTS_DATA_STREAM_H

#include "data_help.h"

enum { STREAM_SIZE = 24 };

typedef struct {
    int64_t  n, room;
    size_t   image_bytes;                      /* of one; 0 before the first */
    int64_t *samples;
    int32_t *labels, *mates;                   /* without mates: mates = labels, shares = 1 */
    float   *shares;
    uint8_t *images;                           /* (n) of image_bytes */
} stream;

void stream_add(stream *s, int size, const en_batch *b);
void stream_free(stream *s);
void stream_same(const stream *got, const stream *want, const char *what);     /* fails the test where they differ */

/* STREAM_SIZE px, seed 17, two batches ahead, half of the files may be bad */
en_loader_config stream_config(const en_dataset *ds, bool training, int64_t global_batch, int64_t accum, int workers);
/* `calls` batches of each of `world` ranks (8 at most), interleaved as the ranks share a micro-step. */
stream stream_run(en_loader_config c, int world, int64_t calls);
/* The sample decoded whole, without a loader; false: it cannot be. */
bool stream_decodes(const en_dataset *ds, int64_t sample, en_image *img);

#endif
