/* tensor.c - which communicator sums what lies in the backend's memory, and the one for a rank without others.
 *
 * The choice is one for all ranks: each says what keeps it from NCCL, and the first such reason, in rank order, is
 * everybody's (agree_on).  Two ranks on one GPU are found here, by name, because NCCL would only say "invalid usage". */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/internal.h"

/* ---- a rank without others ------------------------------------------------------------------------------------------- */

struct en_request { int begun; };

typedef struct {
    en_backend *be;                            /* borrowed */
    bool        owns_control;
    struct en_request done;                    /* the sum is there already: one request serves all */
} alone;

/* Whoever lets `in` be `out` has no work here; the way through the host is for the others. */
static en_status alone_sum_f64(en_comm *c, const double *in, double *out, size_t n)
{
    en_backend *be = ((alone *)c->impl)->be;
    if (n == 0 || in == out) return EN_OK;
    double *host = malloc(n * sizeof *host);
    EN_REQUIRE(host, EN_ENOMEM, "no memory for a sum of %zu values", n);
    en_status s = be->ops->download(be, host, in, n * sizeof *host);
    if (s == EN_OK) s = be->ops->upload(be, out, host, n * sizeof *host);
    free(host);
    EN_TRY(s, "a sum of %zu values over one rank", n);
    return EN_OK;
}

static en_status alone_sum_f32_begin(en_comm *c, float *buf, size_t n, en_request **out)
{
    (void)buf; (void)n;
    *out = &((alone *)c->impl)->done;
    return EN_OK;
}

static en_status alone_sum_wait(en_comm *c, en_request *r)
{
    EN_REQUIRE(r == &((alone *)c->impl)->done, EN_EINVAL, "waiting for a sum that this communicator did not begin");
    return EN_OK;
}

static en_status alone_progress(en_comm *c) { (void)c; return EN_OK; }

static en_status alone_split(en_comm *c, int color, en_comm **out)
{
    en_comm *part;
    *out = NULL;
    EN_TRY(c->control->ops->split(c->control, color, &part), "a group of one rank");
    return en_comm_open_alone(part, true, ((alone *)c->impl)->be, out);
}

static void close_alone(en_comm *c)
{
    alone *a = c->impl;
    if (a->owns_control) c->control->ops->close(c->control);
    free(a);
    free(c);
}

static const struct en_comm_ops alone_ops = {
    .sum_f64 = alone_sum_f64, .sum_f32_begin = alone_sum_f32_begin, .sum_wait = alone_sum_wait, .progress = alone_progress,
    .broadcast = en_control_broadcast, .gather = en_control_gather, .barrier = en_control_barrier, .split = alone_split, .close = close_alone,
};

en_status en_comm_open_alone(en_comm *control, bool owns, en_backend *be, en_comm **out)
{
    en_comm *c = calloc(1, sizeof *c);
    alone *a = calloc(1, sizeof *a);
    *out = NULL;
    if (!c || !a) {
        free(c); free(a);
        if (owns) control->ops->close(control);
        EN_REQUIRE(false, EN_ENOMEM, "no memory for a communicator");
    }
    a->be = be;
    a->owns_control = owns;
    *c = en_beside(control, "self", &alone_ops, a);
    c->captures = true;
    *out = c;
    return EN_OK;
}

/* ---- the choice -------------------------------------------------------------------------------------------------------- */

enum { REASON = sizeof ((en_comm *)0)->why };

/* What one rank knows of its way to NCCL. */
typedef struct { int node, code; char host[64], device[64], trouble[REASON]; } facts;

static void find_trouble(const facts *all, int ranks, facts *first)
{
    *first = (facts){ 0 };
    for (int r = 0; r < ranks; r++)
        if (all[r].code != EN_OK) {
            *first = all[r];
            return;
        }
    for (int b = 0; b < ranks; b++)
        for (int a = 0; a < b; a++)
            if (all[a].device[0] && all[a].node == all[b].node && strcmp(all[a].device, all[b].device) == 0) {
                *first = all[b];
                first->code = EN_EUSAGE;
                snprintf(first->trouble, sizeof first->trouble, "ranks %d and %d share GPU %.32s on %.60s, and NCCL wants one for each: start fewer ranks"
                         " on a host, or say --comm mpi", a, b, first->device, first->host);
                return;
            }
}

/* *mine becomes the first trouble of all ranks, the same on each; code EN_OK: there is none. */
static en_status agree_on(en_comm *control, facts *mine)
{
    const bool root = control->rank == 0;
    facts *all = root ? calloc((size_t)control->world_size, sizeof *all) : NULL, first = { 0 };
    if (root && !all) en_comm_abort(control, en_status_exit_code(EN_ENOMEM));
    const en_status s = control->ops->gather(control, mine, sizeof *mine, all, 0);
    if (root && s == EN_OK) find_trouble(all, control->world_size, &first);
    free(all);
    EN_TRY(s, "agreeing on how to sum");
    EN_TRY(control->ops->broadcast(control, &first, sizeof first, 0), "agreeing on how to sum");
    *mine = first;
    return EN_OK;
}

static void look_for_nccl(en_comm *control, const en_backend *be, facts *f)
{
    *f = (facts){ .node = control->node };
    snprintf(f->host, sizeof f->host, "%s", control->host);
    snprintf(f->device, sizeof f->device, "%s", be->device);
    en_nccl_probe_fn *probe;
    *(void **)&probe = en_cuda_symbol("en_nccl_probe");
    if (!probe) snprintf(f->trouble, sizeof f->trouble, "this program was built without NCCL");
    if (!probe || !probe(f->trouble, sizeof f->trouble)) f->code = EN_ENOTSUP;
}

/* On EN_OK: *out is open on every rank, or `f` says on every rank why not. */
static en_status try_nccl(en_comm *control, en_backend *be, facts *f, en_comm **out)
{
    const struct en_waits waits = { en_watch_enter_for, en_watch_leave, en_watch_alive, en_watch_limit_here, en_watch_where };
    look_for_nccl(control, be, f);
    EN_TRY(agree_on(control, f), "opening NCCL");
    if (f->code != EN_OK) return EN_OK;

    en_nccl_open_fn *open;
    en_nccl_give_up_fn *give_up;
    *(void **)&open = en_cuda_symbol("en_nccl_open");
    *(void **)&give_up = en_cuda_symbol("en_nccl_give_up");
    *f = (facts){ .node = control->node, .code = open(control, be, &waits, out) };
    if (f->code != EN_OK) {
        snprintf(f->trouble, sizeof f->trouble, "%s", en_error_message());
        en_error_clear();
    }
    const en_status s = agree_on(control, f);
    if ((s != EN_OK || f->code != EN_OK) && *out) {
        give_up(*out);
        *out = NULL;
    }
    EN_TRY(s, "opening NCCL");
    en_watch_device_sums(*out != NULL);
    return EN_OK;
}

en_status en_comm_tensor_open(en_comm *control, en_backend *be, const char *kind, en_comm **out)
{
    const bool nccl = strcmp(kind, "nccl") == 0, mpi = strcmp(kind, "mpi") == 0;
    facts f;
    *out = NULL;
    EN_REQUIRE(nccl || mpi || strcmp(kind, "auto") == 0, EN_EUSAGE, "--comm %s: auto, nccl or mpi", kind);
    if (!be->device[0]) {                      /* the backend's memory is the host's */
        *out = control;
        return EN_OK;
    }
    if (control->world_size == 1 && !nccl) return en_comm_open_alone(control, false, be, out);
    if (mpi) return en_comm_open_staged(control, false, be, out);
    EN_TRY(try_nccl(control, be, &f, out), "choosing how to sum over %d ranks", control->world_size);
    EN_REQUIRE(*out || !nccl, (en_status)f.code, "%s", f.trouble);
    if (!*out) {
        EN_TRY(en_comm_open_staged(control, false, be, out), "choosing how to sum");
        snprintf((*out)->why, sizeof (*out)->why, "%s", f.trouble);
    }
    return EN_OK;
}

void en_comm_tensor_close(en_comm *control, en_comm *tensor)
{
    en_watch_device_sums(false);
    if (tensor && tensor != control) tensor->ops->close(tensor);
}
