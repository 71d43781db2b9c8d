/* staged.c - sums of device memory by way of the host: down, control's sum, up again.
 *
 *     device  ──download──▶  host  ──control's sum──▶  host  ──upload──▶  device
 *
 * For clusters where NCCL cannot run, for ranks that share a GPU, and for any backend.  Each download waits for everything
 * queued before it, so nothing here can be recorded, and backward stands still while a bucket comes down; the sum itself
 * overlaps with what follows.  A bucket has a buffer of its own until it is waited for; as buckets come in the same order in
 * every step, buffers are taken in the first step and stay. */
#include <stdint.h>
#include <stdlib.h>

#include "comm/internal.h"

struct en_request {
    bool        taken;
    float      *device; size_t n;              /* borrowed until sum_wait         */
    void       *host;   size_t bytes;          /* owned, pinned where that exists */
    en_request *inner;                         /* control's                       */
};

typedef struct {
    en_backend *be;                            /* borrowed              */
    bool        owns_control;
    void       *small; size_t small_bytes;     /* of the blocking sums  */
    struct en_request slot[EN_SUMS_IN_FLIGHT];
} staged;

static en_status grow(en_backend *be, void **buffer, size_t *have, size_t need)
{
    if (need <= *have) return EN_OK;
    void *bigger = NULL;
    EN_TRY(be->ops->host_alloc(be, need, &bigger), "a buffer for sums through the host");
    be->ops->host_free(be, *buffer);
    *buffer = bigger;
    *have = need;
    return EN_OK;
}

static en_status sum_f64(en_comm *c, const double *in, double *out, size_t n)
{
    staged *s = c->impl;
    EN_REQUIRE(n <= SIZE_MAX / sizeof *out, EN_EINVAL, "a sum of %zu values", n);
    EN_TRY(grow(s->be, &s->small, &s->small_bytes, n * sizeof *out), "summing %zu values", n);
    if (n) EN_TRY(s->be->ops->download(s->be, s->small, in, n * sizeof *in), "summing %zu values", n);
    EN_TRY(c->control->ops->sum_f64(c->control, s->small, s->small, n), "summing %zu values", n);
    if (n) EN_TRY(s->be->ops->upload(s->be, out, s->small, n * sizeof *out), "summing %zu values", n);
    return EN_OK;
}

static en_status sum_f32_begin(en_comm *c, float *buf, size_t n, en_request **out)
{
    staged *s = c->impl;
    struct en_request *r = NULL;
    for (int i = 0; i < EN_SUMS_IN_FLIGHT && !r; i++)
        if (!s->slot[i].taken) r = &s->slot[i];
    EN_REQUIRE(r, EN_EINVAL, "more than %d sums begun and not waited for", EN_SUMS_IN_FLIGHT);
    EN_REQUIRE(n <= SIZE_MAX / sizeof *buf, EN_EINVAL, "a sum of %zu values", n);
    EN_TRY(grow(s->be, &r->host, &r->bytes, n * sizeof *buf), "beginning a sum of %zu values", n);
    if (n) EN_TRY(s->be->ops->download(s->be, r->host, buf, n * sizeof *buf), "beginning a sum of %zu values", n);
    EN_TRY(c->control->ops->sum_f32_begin(c->control, r->host, n, &r->inner), "beginning a sum of %zu values", n);
    r->taken = true;
    r->device = buf;
    r->n = n;
    *out = r;
    return EN_OK;
}

static en_status sum_wait(en_comm *c, en_request *r)
{
    staged *s = c->impl;
    EN_REQUIRE(r && r->taken, EN_EINVAL, "waiting for a sum that was not begun, or waited for before");
    EN_TRY(c->control->ops->sum_wait(c->control, r->inner), "waiting for a sum of %zu values", r->n);
    r->taken = false;
    if (r->n) EN_TRY(s->be->ops->upload(s->be, r->device, r->host, r->n * sizeof *r->device), "a sum of %zu values", r->n);
    return EN_OK;
}

static en_status progress(en_comm *c) { return c->control->ops->progress(c->control); }

static en_status split(en_comm *c, int color, en_comm **out)
{
    en_comm *part;
    *out = NULL;
    EN_TRY(c->control->ops->split(c->control, color, &part), "splitting sums through the host");
    en_backend *be = ((staged *)c->impl)->be;
    return part->world_size == 1 ? en_comm_open_alone(part, true, be, out) : en_comm_open_staged(part, true, be, out);
}

static void close_staged(en_comm *c)
{
    staged *s = c->impl;
    for (int i = 0; i < EN_SUMS_IN_FLIGHT; i++) {
        if (s->slot[i].taken) (void)c->control->ops->sum_wait(c->control, s->slot[i].inner);      /* it writes to our buffer */
        s->be->ops->host_free(s->be, s->slot[i].host);
    }
    if (s->owns_control) c->control->ops->close(c->control);
    s->be->ops->host_free(s->be, s->small);
    free(s);
    free(c);
}

static const struct en_comm_ops staged_ops = {
    .sum_f64 = sum_f64, .sum_f32_begin = sum_f32_begin, .sum_wait = sum_wait, .progress = progress, .broadcast = en_control_broadcast,
    .gather = en_control_gather, .barrier = en_control_barrier, .split = split, .close = close_staged,
};

en_status en_comm_open_staged(en_comm *control, bool owns, en_backend *be, en_comm **out)
{
    en_comm *c = calloc(1, sizeof *c);
    staged *s = calloc(1, sizeof *s);
    *out = NULL;
    if (!c || !s) {
        free(c); free(s);
        if (owns) control->ops->close(control);
        EN_REQUIRE(false, EN_ENOMEM, "no memory for a communicator");
    }
    s->be = be;
    s->owns_control = owns;
    *c = en_beside(control, "mpi", &staged_ops, s);
    *out = c;
    return EN_OK;
}
