/* compare.c - do all ranks hold the same bits?
 *
 * The state is replicated: the same sums, the same update, so the same bits.  A rank that holds others has a machine or a network
 * that computes wrongly, or ran another binary; what it adds to the sums makes everybody's model wrong, slowly and without a
 * word.  So the ranks compare hashes now and then, and whenever something is saved: better to stop than to save one of two
 * truths.  The majority is taken to be right; of two ranks nobody can say which one is. */
#include "trainer/compare.h"

#include "trainer/crc32c.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE = 1 << 20 };                                   /* floats that are downloaded at a time */
enum { PARAMS, STATS, SLOT_0, SLOT_1, EMA, EMA_STATS, ARENAS };
static const char *name_of(const en_trainer *t, int arena)
{
    static const char *const names[ARENAS] = { "parameters", "running statistics", NULL, NULL, "averaged parameters", "averaged statistics" };
    return names[arena] ? names[arena] : t->optimizer.slot_name[arena - SLOT_0];
}

typedef struct { char host[64]; uint32_t crc[ARENAS]; } print;
typedef struct { int odd, of; int arena; char host[64], other[64]; bool tie; } verdict;   /* odd -1: none */

static en_status hash(en_trainer *t, const float *host, const float *device, int64_t elems, float *bounce, uint32_t *crc)
{
    *crc = 0;
    if (!device) return EN_OK;
    for (int64_t at = 0; at < elems; at += PIECE) {
        const int64_t n = elems - at < PIECE ? elems - at : PIECE;
        if (!host) EN_TRY(t->be->ops->download(t->be, bounce, device + at, (size_t)n * sizeof(float)), "comparing weights");
        *crc = en_crc32c(*crc, host ? host + at : bounce, (size_t)n * sizeof(float));
    }
    return EN_OK;
}

static en_status take_print(en_trainer *t, const en_snapshot *h, print *out)
{
    const int64_t p = t->model->param_elems, s = t->model->stat_elems;
    const struct { const float *host, *device; int64_t elems; } arena[ARENAS] = {
        [PARAMS] = { h ? h->params : NULL, t->a.params, p }, [STATS] = { h ? h->stats : NULL, t->a.stats, s },
        [SLOT_0] = { h ? h->slot[0] : NULL, t->a.slot[0], p }, [SLOT_1] = { h ? h->slot[1] : NULL, t->a.slot[1], p },
        [EMA] = { h ? h->ema_params : NULL, t->a.ema, p }, [EMA_STATS] = { h ? h->ema_stats : NULL, t->a.ema_stats, s } };
    en_status status = EN_OK;
    float *bounce = h ? NULL : malloc(PIECE * sizeof *bounce);
    EN_REQUIRE(h || bounce, EN_ENOMEM, "no memory to compare weights");
    *out = (print){ 0 };
    snprintf(out->host, sizeof out->host, "%s", t->comm->host);
    for (int k = 0; k < ARENAS; k++) EN_TRY_OUT(hash(t, arena[k].host, arena[k].device, arena[k].elems, bounce, &out->crc[k]), "%s", name_of(t, k));
out:
    free(bounce);
    return status;
}

static bool same(const print *a, const print *b) { return memcmp(a->crc, b->crc, sizeof a->crc) == 0; }

static verdict judge(const print *all, int ranks)
{
    verdict v = { .odd = -1 };
    int right = 0, most = 0, second = 0;
    for (int r = 0; r < ranks; r++) {
        int alike = 0;
        for (int q = 0; q < ranks; q++) alike += same(&all[r], &all[q]);
        if (alike > most) right = r, most = alike;
    }
    if (most == ranks) return v;
    for (int r = 0; r < ranks; r++) {
        int alike = 0;
        if (same(&all[r], &all[right])) continue;
        for (int q = 0; q < ranks; q++) alike += same(&all[r], &all[q]);
        if (alike > second) second = alike;
        if (v.odd < 0) v.odd = r;
    }
    v.tie = second == most;
    v.of = most;
    while (all[v.odd].crc[v.arena] == all[right].crc[v.arena]) v.arena++;
    memcpy(v.host, all[v.odd].host, sizeof v.host);
    memcpy(v.other, all[right].host, sizeof v.other);
    return v;
}

/* Ranks with equal prints are compared in pairs: a thousand ranks are a million comparisons of 24 bytes, some milliseconds. */
en_status en_compare_ranks(en_trainer *t, const en_snapshot *host, uint64_t *weights_crc)
{
    en_comm *c = t->comm;
    print mine, *all = NULL;
    verdict v = { .odd = -1 };
    t->agreed = false;                                      /* a rank that fails here by itself ends the job (train.c) */
    EN_TRY(take_print(t, host, &mine), "after step %" PRId64, t->state.step);
    *weights_crc = (uint64_t)mine.crc[PARAMS] << 32 | mine.crc[STATS];
    if (c->world_size == 1) return EN_OK;
    if (c->rank == 0) {
        all = malloc((size_t)c->world_size * sizeof *all);
        EN_REQUIRE(all, EN_ENOMEM, "no memory to compare the weights of %d ranks", c->world_size);
    }
    en_status s = c->ops->gather(c, &mine, sizeof mine, all, 0);
    if (s == EN_OK && c->rank == 0) v = judge(all, c->world_size);
    free(all);
    EN_TRY(s, "comparing weights");
    EN_TRY(c->ops->broadcast(c, &v, sizeof v, 0), "comparing weights");
    t->agreed = v.odd >= 0;
    EN_REQUIRE(v.odd < 0 || !v.tie, EN_EPEER, "rank %d on host %s and another on host %s hold different %s after step %" PRId64 ": the machine or the network of "
               "one of them computes wrongly, and there is no majority to tell which", v.odd, v.host, v.other, name_of(t, v.arena), t->state.step);
    EN_REQUIRE(v.odd < 0, EN_EPEER, "rank %d on host %s holds other %s than %d of the %d ranks after step %" PRId64 ": its machine or network computes wrongly",
               v.odd, v.host, name_of(t, v.arena), v.of, c->world_size, t->state.step);
    return EN_OK;
}
