/* cache.h - decoded and shrunk pictures, kept by all ranks of a host together: for models that train faster than a host decodes.
 *
 * The store is a file without a name once every rank has opened it, in /dev/shm ("memory") or in a folder of a local disk: when the
 * last rank ends, however it ends, nothing is left behind.  What is cached is a function of the file alone, so runs with equal
 * cache_side agree bit for bit, whether a picture came from the cache or was decoded anew. */
#ifndef EN_DATA_CACHE_H
#define EN_DATA_CACHE_H

#include "data/dataset.h"
#include "data/image.h"

typedef struct en_cache en_cache;
typedef struct {
    const char *place;                         /* "memory", or a folder on a local disk                           */
    int64_t side;                              /* shorter side of what is kept, en_shrink                         */
    int64_t samples;
    uint64_t token;                            /* the same on the ranks that share, another for everybody else    */
} en_cache_config;

/* Bytes that the dataset will take, from up to 256 headers spread over it; *room is what is free in `place`. */
en_status en_cache_plan(const en_dataset *ds, const char *place, int64_t side, int64_t *bytes, int64_t *room);
/* Opens or makes the store.  EN_EIO, EN_EUSAGE: with place and remedy. */
en_status en_cache_open(const en_cache_config *c, en_cache **out);
void      en_cache_unlink(en_cache *c);        /* after every rank of the host has opened it                              */
/* Any thread.  get: false when it is not there; img->rgb is grown with realloc, *capacity follows.  put never fails: a full place keeps
 * what it has, and en_cache_full says so. */
bool      en_cache_get(en_cache *c, int64_t sample, en_image *img, size_t *capacity);
void      en_cache_put(en_cache *c, int64_t sample, const en_image *img);
bool      en_cache_full(const en_cache *c);
int64_t   en_cache_bytes(const en_cache *c, int64_t *pictures);     /* held now, by all ranks                              */
void      en_cache_close(en_cache *c);         /* NULL is fine */

#endif
