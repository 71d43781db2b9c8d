/* buckets.c - the gradient arena, cut so that its sums overlap with backward.
 *
 *     |first| bucket_bytes | bucket_bytes | ... |last|          backward finishes from left to right
 *
 * The first cut is small so that the network starts early, the last so that little is left to wait for when backward
 * ends; what lies between is cut evenly, each at most about bucket_bytes.  The cuts depend on the sizes alone, and
 * buckets begin strictly from left to right: all ranks make the same calls in the same order.  bucket_bytes 0 is one bucket, which is
 * full when backward ends: nothing overlaps, to compare with. */
#include <stdlib.h>
#include <time.h>

#include "comm/internal.h"

enum { SMALL_ELEMS = (1 << 20) / sizeof(float), LINE = 16 };
_Static_assert(EN_BUCKETS_MOST <= EN_SUMS_IN_FLIGHT / 2, "batch norm and other sums need room beside the buckets");

struct en_buckets {
    en_comm *comm;                             /* borrowed                                        */
    float   *grads;                            /* borrowed; the communicator's memory, not read here */
    int      buckets, begun, waited;           /* buckets [waited, begun) are in flight           */
    size_t   cut[EN_BUCKETS_MOST + 1];             /* bucket i is grads[cut[i] .. cut[i+1])           */
    en_request *request[EN_BUCKETS_MOST];          /* owned by comm                                   */
    double   begun_s, exposed_s;
};

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

int en_buckets_cut(size_t elems, size_t bucket_bytes, size_t cut[EN_BUCKETS_MOST + 1])
{
    int buckets = 0;
    size_t most = bucket_bytes / sizeof(float) / LINE * LINE;
    if (bucket_bytes == 0 && elems) {          /* all at once */
        cut[0] = 0, cut[1] = elems;
        return 1;
    }
    if (most < LINE) most = LINE;
    const size_t small = min_size(most, SMALL_ELEMS), first = min_size(elems, small), last = min_size(elems - first, small);
    const size_t middle = elems - first - last;
    size_t parts = middle / most + (middle % most != 0);
    if (parts > EN_BUCKETS_MOST - 2) parts = EN_BUCKETS_MOST - 2;
    cut[0] = 0;
    if (first) cut[++buckets] = first;
    for (size_t i = 1; i <= parts; i++)
        cut[++buckets] = first + (i == parts ? middle : (size_t)((__uint128_t)middle * i / parts) / LINE * LINE);
    if (last) cut[++buckets] = elems;
    return buckets;
}

en_status en_buckets_open(en_comm *c, float *grads, size_t elems, size_t bucket_bytes, en_buckets **out)
{
    *out = NULL;
    EN_REQUIRE(grads || elems == 0, EN_EINVAL, "buckets over no arena");
    en_buckets *b = calloc(1, sizeof *b);
    EN_REQUIRE(b, EN_ENOMEM, "no memory for gradient buckets");
    b->comm = c;
    b->grads = grads;
    b->buckets = en_buckets_cut(elems, bucket_bytes, b->cut);
    *out = b;
    return EN_OK;
}

void en_buckets_recut(en_buckets *b, size_t bucket_bytes)
{
    const size_t elems = b->cut[b->buckets];
    b->buckets = en_buckets_cut(elems, bucket_bytes, b->cut);
    en_buckets_begin(b);
}

int en_buckets_count(const en_buckets *b) { return b->buckets; }

void en_buckets_begin(en_buckets *b)
{
    b->begun = b->waited = 0;
    b->begun_s = b->exposed_s = 0;
}

static en_status begin_full(en_buckets *b, size_t elems_done)
{
    for (; b->begun < b->buckets && b->cut[b->begun + 1] <= elems_done; b->begun++)
        EN_TRY(b->comm->ops->sum_f32_begin(b->comm, b->grads + b->cut[b->begun], b->cut[b->begun + 1] - b->cut[b->begun],
                                           &b->request[b->begun]),
               "beginning the sum of gradient bucket %d of %d", b->begun, b->buckets);
    return EN_OK;
}

en_status en_buckets_ready(en_buckets *b, size_t elems_done)
{
    EN_REQUIRE(elems_done <= b->cut[b->buckets], EN_EINVAL, "%zu gradients ready of %zu", elems_done, b->cut[b->buckets]);
    if (b->begun == b->buckets || b->cut[b->begun + 1] > elems_done) return EN_OK;
    const double from = now_s();
    EN_TRY(begin_full(b, elems_done), "gradients up to %zu", elems_done);
    if (!b->comm->captures) b->begun_s += now_s() - from;
    return EN_OK;
}

en_status en_buckets_move(en_buckets *b, const en_comm *beside)
{
    if (beside == b->comm || b->comm->captures || b->begun == b->waited) return EN_OK;
    return b->comm->ops->progress(b->comm);
}

en_status en_buckets_wait(en_buckets *b)
{
    const double from = now_s();
    EN_TRY(begin_full(b, b->cut[b->buckets]), "beginning the last gradient buckets");
    for (; b->waited < b->buckets; b->waited++)
        EN_TRY(b->comm->ops->sum_wait(b->comm, b->request[b->waited]), "waiting for gradient bucket %d of %d", b->waited, b->buckets);
    b->exposed_s = b->comm->captures ? 0 : now_s() - from;           /* queued: the host waited for nothing */
    return EN_OK;
}

double en_buckets_begun_s(const en_buckets *b)   { return b->begun_s; }
double en_buckets_exposed_s(const en_buckets *b) { return b->exposed_s; }

void en_buckets_close(en_buckets *b) { free(b); }
