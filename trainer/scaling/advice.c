/* scaling/advice.c - what would make the step of most ranks faster, found by asking the model: every choice that a user has, one at a
 * time, with the others as they are.  Said is what gains more than 1 %; of bucket sizes the best alone, of micro-batches what fits. */
#include "trainer/scaling/predict.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST_IMAGES = 65536 };
static const double WORTH = 0.01;

static en_status gain_of(en_prediction *p, const en_choice *c, double *gain, en_point *point)
{
    const en_point *now = &p->point[p->points - 1];
    EN_TRY(en_predict_point(p, c, now->ranks, point), "another choice");
    *gain = point->r.images_per_s / now->r.images_per_s - 1;
    return EN_OK;
}

static en_advice *say(en_prediction *p, double gain)
{
    if (gain <= WORTH || p->n_advice == EN_MOST_ADVICE) return NULL;
    en_advice *a = &p->advice[p->n_advice++];
    a->gain = gain;
    return a;
}

static en_status buckets(en_prediction *p)
{
    double best = 0;
    int64_t mib = 0;
    for (int64_t m = 1; m <= 512; m *= 2) {
        en_choice c = p->choice;
        en_point point;
        double gain = 0;
        c.bucket_bytes = (size_t)m << 20;
        EN_TRY(gain_of(p, &c, &gain, &point), "buckets");
        if (gain > best) best = gain, mib = m;
    }
    en_advice *a = say(p, best);
    if (!a) return EN_OK;
    snprintf(a->what, sizeof a->what, "buckets of %" PRId64 " MiB", mib);
    snprintf(a->because, sizeof a->because, "in place of %zu MiB", p->choice.bucket_bytes >> 20);
    return EN_OK;
}

/* Smaller groups normalise by fewer images: that is another training, so the images of a group are said. */
static en_status groups(en_prediction *p)
{
    const en_point *now = &p->point[p->points - 1];
    const en_group others[] = { { EN_GROUP_NODE, 0 }, { EN_GROUP_IMAGES, 128 }, { EN_GROUP_RANKS, 1 } };
    int node = 0;                                          /* 128 images may be those of a node, or of a rank: said once */
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        const en_group_kind kind = others[i].kind;
        en_choice c = p->choice;
        en_point point;
        double gain = 0;
        char text[32];
        c.group = others[i];
        EN_TRY(gain_of(p, &c, &gain, &point), "batch-norm groups");
        if (kind == EN_GROUP_NODE) node = point.bn_group;
        else if (point.bn_group == node) continue;
        if (point.bn_group == now->bn_group || (kind == EN_GROUP_IMAGES && point.bn_group == 1)) continue;
        en_advice *a = say(p, gain);
        if (!a) continue;
        if (kind == EN_GROUP_IMAGES) snprintf(a->what, sizeof a->what, "--bn-group %" PRId64 "i", others[i].count);
        else snprintf(a->what, sizeof a->what, "--bn-group %s", kind == EN_GROUP_RANKS ? "1" : en_group_text(&others[i], text));
        snprintf(a->because, sizeof a->because, "statistics of %" PRId64 " images in place of %" PRId64, point.bn_group * point.images,
                 now->bn_group * now->images);
    }
    return EN_OK;
}

/* Does a pass of so many images fit, and are there so many? */
static en_status may_be(const en_prediction *p, int64_t micro_batch, bool *yes, double *bytes)
{
    const en_point *now = &p->point[p->points - 1];
    *yes = micro_batch <= MOST_IMAGES && !(p->o->strong && micro_batch > now->global_batch / now->ranks);
    if (!*yes) return EN_OK;
    EN_TRY(en_predict_memory(p, micro_batch, bytes), "micro-batches");
    *yes = *bytes <= 0.9e9 * p->cluster.memory_gb;
    return EN_OK;
}

/* Twice as many images, and as many as fit, up to sixteen times. */
static en_status micro_batches(en_prediction *p)
{
    const en_point *now = &p->point[p->points - 1];
    int64_t most = 1;
    bool more = p->cluster.memory_gb > 0;
    double bytes = 0;
    while (more && most < 16) {
        EN_TRY(may_be(p, 2 * most * p->choice.micro_batch, &more, &bytes), "micro-batches");
        if (more) most *= 2;
    }
    for (int64_t factor = 2; factor <= most; factor = factor < most ? most : most + 1) {
        en_choice c = p->choice;
        en_point point;
        double gain = 0;
        c.micro_batch = factor * p->choice.micro_batch;
        EN_TRY(en_predict_memory(p, c.micro_batch, &bytes), "micro-batches");
        EN_TRY(gain_of(p, &c, &gain, &point), "micro-batches");
        en_advice *a = say(p, gain);
        if (!a) continue;
        snprintf(a->what, sizeof a->what, "--micro-batch %" PRId64, c.micro_batch);
        const int at = snprintf(a->because, sizeof a->because, "%.1f of %.0f GB; ", bytes * 1e-9, p->cluster.memory_gb);
        if (p->o->strong) snprintf(a->because + at, sizeof a->because - (size_t)at, "%" PRId64 " pass%s a step in place of %" PRId64, point.passes,
                                    point.passes == 1 ? "" : "es", now->passes);
        else snprintf(a->because + at, sizeof a->because - (size_t)at, "but then a step is of %" PRId64 " images in place of %" PRId64, point.global_batch,
                      now->global_batch);
    }
    return EN_OK;
}

static int by_gain(const void *a, const void *b)
{
    const double x = ((const en_advice *)a)->gain, y = ((const en_advice *)b)->gain;
    return (x < y) - (x > y);
}

en_status en_predict_advise(en_prediction *p)
{
    EN_TRY(buckets(p), "advice");
    EN_TRY(groups(p), "advice");
    EN_TRY(micro_batches(p), "advice");
    qsort(p->advice, (size_t)p->n_advice, sizeof *p->advice, by_gain);
    return EN_OK;
}
