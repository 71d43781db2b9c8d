#include "trainer/bucket_tuner.h"

#include "comm/comm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

size_t en_buckets_usual(bool queued, int nodes) { return (size_t)(!queued && nodes > 1 ? 4 : 25) << 20; }

en_status en_buckets_asked(const char *text, size_t *bytes, bool *tries)
{
    *tries = strcmp(text, "auto") == 0;
    if (*tries) return EN_OK;
    const long mib = strtol(text, NULL, 10);
    EN_REQUIRE(mib >= 0 && mib <= 4096, EN_EUSAGE, "--buckets %s: auto, or 0 to 4096 MiB", text);
    *bytes = (size_t)mib << 20;
    return EN_OK;
}

void en_tuner_open(en_bucket_tuner *t, size_t elems, size_t usual, int passed_over)
{
    const int mib[EN_TUNER_SIZES] = { (int)(usual >> 20), 100, 50, 12, 6, 2 };
    int cuts[EN_TUNER_SIZES];
    *t = (en_bucket_tuner){ .passed_over = passed_over };
    for (int i = 0; i < EN_TUNER_SIZES; i++) {
        size_t cut[EN_BUCKETS_MOST + 1];
        const int buckets = en_buckets_cut(elems, (size_t)mib[i] << 20, cut);
        bool new = true;
        for (int k = 0; k < t->sizes; k++) new &= cuts[k] != buckets;                 /* even cuts: as many are the same */
        if (!new) continue;
        cuts[t->sizes] = buckets;
        t->seconds[t->sizes] = INFINITY;
        t->bytes[t->sizes++] = (size_t)mib[i] << 20;
    }
    if (t->sizes == 1) t->sizes = 0;
}

en_tuner_word en_tuner_step(en_bucket_tuner *t, double seconds)
{
    if (t->step++ >= t->passed_over) t->seconds[t->at] = fmin(t->seconds[t->at], seconds);
    if (t->step < t->passed_over + EN_TUNER_COUNTED) return EN_TUNER_SAME;
    t->step = 0;
    return ++t->at < t->sizes ? EN_TUNER_NEXT : EN_TUNER_CHOOSE;
}

int en_tuner_best(const en_bucket_tuner *t, const double seconds[EN_TUNER_SIZES])
{
    int best = 0;
    for (int i = 1; i < t->sizes; i++)
        if (seconds[i] < seconds[best] || (seconds[i] == seconds[best] && t->bytes[i] > t->bytes[best])) best = i;
    return best;
}
