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

/* Bytes that the dataset will take, from up to 256 headers spread over it; *room is what a cache in `place` may take: what is free but
 * for 5 % (of a disk 16 GiB at most), of memory three quarters of what the host or the control group still gives.
 * EN_EUSAGE, with place and remedy: no folder, not to be written, on a network's file system. */
en_status en_cache_plan(const en_dataset *ds, const char *place, int64_t side, int64_t *bytes, int64_t *room);
bool      en_cache_in_memory(const char *place);                    /* "memory", or a folder on a tmpfs: what it takes is the host's memory */
/* Opens or makes the store; it takes no more than what *room was when the first rank made it.  Names of caches that nobody holds any
 * more, left in `place` by runs that were killed, are removed.
 * EN_EUSAGE: the place, as above; ranks that want another number of pictures or another side.  EN_EIO: no room for the index. */
en_status en_cache_open(const en_cache_config *c, en_cache **out);
void      en_cache_unlink(en_cache *c);        /* after every rank of the host has opened it; by any or all of them       */
/* Any thread.  get: false when it is not there, without waiting; img->rgb is grown with realloc, *capacity follows.  put never fails:
 * a sample that is there or on its way is left alone, and a full place keeps what it has; en_cache_full says so from then on. */
bool      en_cache_get(en_cache *c, int64_t sample, en_image *img, size_t *capacity);
void      en_cache_put(en_cache *c, int64_t sample, const en_image *img);
bool      en_cache_full(const en_cache *c);
int64_t   en_cache_bytes(const en_cache *c, int64_t *pictures);     /* held now, by all ranks                              */
void      en_cache_close(en_cache *c);         /* NULL is fine */

#endif
