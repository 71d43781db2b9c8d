#include "trainer/freeze.h"

#include "trainer/nearest.h"

#include <stdio.h>
#include <string.h>

/* Tensors are listed in the order of the layers: the first one of a layer. */
static int first_tensor(const en_model *m, int layer)
{
    if (layer == 0) return m->stem.weight;
    if (layer > m->n_blocks) return layer == m->n_blocks + 1 && m->head.weight >= 0 ? m->head.weight : m->head.fc_weight;
    const en_block *k = &m->blocks[layer - 1];
    return k->expand ? k->w_expand : k->w_spatial;
}

/* "blocks.2" of "blocks.2.1", and that itself */
static bool is_of(const char *block, const char *name)
{
    const size_t n = strlen(name);
    return strncmp(block, name, n) == 0 && (!block[n] || block[n] == '.');
}

static en_status refuse(const en_model *m, const char *name)
{
    static char stage[200][sizeof m->blocks->name];            /* a suggestion is borrowed */
    en_nearest nearest = { .typed = name };
    en_nearest_offer(&nearest, "features");
    en_nearest_offer(&nearest, "stem");
    for (int b = 0; b < m->n_blocks; b++) {
        en_nearest_offer(&nearest, m->blocks[b].name);
        if (b >= 200) continue;
        snprintf(stage[b], sizeof stage[b], "%s", m->blocks[b].name);
        char *dot = strrchr(stage[b], '.');
        if (dot) *dot = '\0';
        en_nearest_offer(&nearest, stage[b]);
    }
    const char *best = en_nearest_best(&nearest);
    EN_REQUIRE(!best, EN_EUSAGE, "--freeze: %s has no layer '%s'; did you mean %s?", m->row->name, name, best);
    return en_raise(EN_EUSAGE, __FILE__, __LINE__, __func__, "--freeze: %s has no layer '%s'; there are stem, %s to %s, their stages (as %s), and features, which "
                    "is all but the classifier", m->row->name, name, m->blocks[0].name, m->blocks[m->n_blocks - 1].name, stage[m->n_blocks < 200 ? m->n_blocks - 1 : 199]);
}

en_status en_frozen_of(const en_model *m, const char *name, en_frozen *out)
{
    const int all = m->n_blocks + 2;
    int layers = 0;
    if (strcmp(name, "features") == 0) layers = all;
    else if (strcmp(name, "stem") == 0) layers = 1;
    for (int b = 0; *name && b < m->n_blocks; b++)
        if (is_of(m->blocks[b].name, name)) layers = 2 + b;
    if (*name && layers == 0) return refuse(m, name);
    if (layers == all - 1 && m->head.weight < 0) layers = all; /* the classifier follows */

    *out = (en_frozen){ .layers = layers };
    const int first = first_tensor(m, layers);
    for (int i = 0; i < m->n_tensors; i++) {
        const en_tensor *t = &m->tensors[i];
        const bool is_param = t->arena == EN_ARENA_PARAMS;
        int64_t *end = is_param ? &out->trained_params : &out->trained_stats;
        if (i < first) out->kept += is_param ? en_tensor_count(t) : 0;
        else if (t->offset + t->elems > *end) *end = t->offset + t->elems;
    }
    return EN_OK;
}

void en_frozen_cut(const en_frozen *f, en_segment *segments, int64_t *n)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < *n; i++) {
        en_segment s = segments[i];
        if (s.offset >= f->trained_params) continue;
        if (s.offset + s.elems > f->trained_params) s.elems = f->trained_params - s.offset;    /* it was merged with a neighbour below */
        segments[kept++] = s;
    }
    *n = kept;
}
