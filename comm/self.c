/* self.c - one process: every sum is its input.  Calls no MPI. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm/internal.h"

struct en_request { bool world; };          /* not split from another */

static en_status sum_f64(en_comm *c, const double *in, double *out, size_t n)
{
    (void)c;
    if (n && in != out) memmove(out, in, n * sizeof *out);
    return EN_OK;
}

static en_status sum_f32_begin(en_comm *c, float *buf, size_t n, en_request **out)
{
    (void)buf; (void)n;
    *out = c->impl;                            /* the sum is there already: one request serves all */
    return EN_OK;
}

static en_status sum_wait(en_comm *c, en_request *r)
{
    EN_REQUIRE(r == c->impl, EN_EINVAL, "waiting for a sum that this communicator did not begin");
    return EN_OK;
}

static en_status progress(en_comm *c) { (void)c; return EN_OK; }
static en_status barrier(en_comm *c)  { (void)c; return EN_OK; }

static en_status broadcast(en_comm *c, void *buf, size_t bytes, int root)
{
    (void)c; (void)buf; (void)bytes;
    EN_REQUIRE(root == 0, EN_EINVAL, "broadcast from rank %d of 1", root);
    return EN_OK;
}

static en_status gather(en_comm *c, const void *in, size_t bytes, void *out, int root)
{
    (void)c;
    EN_REQUIRE(root == 0, EN_EINVAL, "gather to rank %d of 1", root);
    if (bytes && in != out) memmove(out, in, bytes);
    return EN_OK;
}

static en_status open_alone(bool world, en_comm **out);

static en_status split(en_comm *c, int color, en_comm **out)
{
    (void)c; (void)color;
    return open_alone(false, out);
}

static void close_self(en_comm *c)
{
    const struct en_request *r = c->impl;
    if (r->world) en_watch_close();
    free(c->impl);
    free(c);
}

static const struct en_comm_ops self_ops = {
    .sum_f64 = sum_f64, .sum_f32_begin = sum_f32_begin, .sum_wait = sum_wait, .progress = progress, .broadcast = broadcast,
    .gather = gather, .barrier = barrier, .split = split, .close = close_self,
};

static en_status open_alone(bool world, en_comm **out)
{
    *out = NULL;
    en_comm *c = calloc(1, sizeof *c);
    struct en_request *done = calloc(1, sizeof *done);
    if (!c || !done) {
        free(c); free(done);
        EN_REQUIRE(false, EN_ENOMEM, "no memory for a communicator");
    }
    done->world = world;
    *c = (en_comm){ .name = "self", .ops = &self_ops, .world_size = 1, .local_size = 1, .nodes = 1, .impl = done };
    if (gethostname(c->host, sizeof c->host - 1) != 0) strcpy(c->host, "localhost");
    *out = c;
    return EN_OK;
}

en_status en_comm_open_self(en_comm **out)
{
    EN_TRY(open_alone(true, out), "starting alone");
    const en_status s = en_watch_open(*out);
    if (s != EN_OK) {
        close_self(*out);
        *out = NULL;
    }
    return s;
}
