#include "trainer/optimizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const en_optimizer rows[] = {
    { .kind = EN_RMSPROP, .name = "rmsprop", .n_slots = 2, .slot_name = { "ms", "mom" }, .slot_start = { 1, 0 } },
    { .kind = EN_SGD,     .name = "sgd",     .n_slots = 1, .slot_name = { "momentum_buffer" } },
    { .kind = EN_LARS,    .name = "lars",    .n_slots = 1, .slot_name = { "momentum" } },
    { .kind = EN_ADAMW,   .name = "adamw",   .n_slots = 2, .slot_name = { "exp_avg", "exp_avg_sq" } },
};

/* Who looks at what; the options that are not here are everybody's. */
#define OF(kind) (1u << (kind))
static const struct { const char *field, *option; unsigned of; const char *whose; } belongs[] = {
    { "momentum", "--momentum", OF(EN_RMSPROP) | OF(EN_SGD) | OF(EN_LARS), "rmsprop, sgd and lars" },
    { "nesterov", "--nesterov", OF(EN_SGD) | OF(EN_LARS), "sgd and lars" },
    { "rho",      "--rho",      OF(EN_RMSPROP), "rmsprop" },
    { "beta1",    "--beta1",    OF(EN_ADAMW), "adamw" },
    { "beta2",    "--beta2",    OF(EN_ADAMW), "adamw" },
    { "trust",    "--trust",    OF(EN_LARS), "lars" },
    { "eps",      "--eps",      OF(EN_RMSPROP) | OF(EN_LARS) | OF(EN_ADAMW), "rmsprop, lars and adamw" },
};

static float eps_of(const en_options *o, double own) { return (float)(o->eps >= 0 ? o->eps : own); }

en_status en_optimizer_of(const en_options *o, en_optimizer *out)
{
    size_t k = 0;
    while (k + 1 < sizeof rows / sizeof *rows && strcmp(rows[k].name, o->optimizer) != 0) k++;      /* the table of options knows the names */
    en_optimizer p = rows[k];
    for (size_t i = 0; i < sizeof belongs / sizeof *belongs; i++)
        EN_REQUIRE(belongs[i].of & OF(p.kind) || !en_option_given(o, belongs[i].field), EN_EUSAGE, "%s is of %s, not of --optimizer %s: leave it out, "
                   "or choose another --optimizer", belongs[i].option, belongs[i].whose, p.name);
    const float momentum = (float)o->momentum, decay = (float)o->weight_decay;
    switch (p.kind) {
    case EN_RMSPROP: p.rmsprop = (en_rmsprop){ .rho = (float)o->rho, .momentum = momentum, .eps = eps_of(o, 1e-3), .weight_decay = decay }; break;
    case EN_SGD:     p.sgd = (en_sgd){ .momentum = momentum, .nesterov = o->nesterov, .weight_decay = decay }; break;
    case EN_LARS:    p.lars = (en_lars){ .momentum = momentum, .nesterov = o->nesterov, .trust = (float)o->trust, .eps = eps_of(o, 0), .weight_decay = decay }; break;
    case EN_ADAMW:   p.adamw = (en_adamw){ .beta1 = o->beta1, .beta2 = o->beta2, .eps = eps_of(o, 1e-8), .weight_decay = decay }; break;
    }
    EN_REQUIRE(p.kind == EN_LARS || o->eps != 0, EN_EUSAGE, "--eps 0 with --optimizer %s divides by 0 where there is no gradient: give a small number", p.name);
    EN_REQUIRE(!o->nesterov || momentum > 0, EN_EUSAGE, "--nesterov wants a --momentum above 0");
    if (p.kind == EN_SGD && momentum == 0) p.n_slots = 0;
    *out = p;
    return EN_OK;
}

static int by_offset(const void *a, const void *b)
{
    const en_segment *x = a, *y = b;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

en_status en_optimizer_segments(const en_optimizer *p, const en_model *m, en_segment **out, int64_t *n_out)
{
    en_segment *s = malloc((size_t)m->n_tensors * sizeof *s);
    EN_REQUIRE(s, EN_ENOMEM, "no memory for %d tensors", m->n_tensors);
    int64_t n = 0, merged = 0;
    for (int i = 0; i < m->n_tensors; i++) {
        const en_tensor *q = &m->tensors[i];
        if (q->arena != EN_ARENA_PARAMS) continue;
        const bool adapts = p->kind == EN_LARS && q->decay && q->ndim > 1;              /* a bias has one dimension */
        s[n++] = (en_segment){ .offset = q->offset, .elems = q->elems, .decay = p->kind == EN_LARS ? adapts : q->decay, .adapt = adapts };
    }
    qsort(s, (size_t)n, sizeof *s, by_offset);
    for (int64_t i = 1; i < n; i++) {
        en_segment *last = &s[merged];
        if (!s[i].adapt && !last->adapt && s[i].decay == last->decay && s[i].offset == last->offset + last->elems) last->elems += s[i].elems;
        else s[++merged] = s[i];
    }
    *out = s;
    *n_out = n > 0 ? merged + 1 : 0;
    return EN_OK;
}

en_status en_optimizer_update(const en_optimizer *p, en_backend *be, const en_now *now, const en_segment *segments, int64_t n_segments,
                              const en_optimizer_arenas *a)
{
    const struct en_backend_ops *ops = be->ops;
    switch (p->kind) {
    case EN_RMSPROP: return ops->rmsprop_update(be, &p->rmsprop, now, segments, n_segments, a->w, a->grad, a->slot[0], a->slot[1], a->ema, a->tally);
    case EN_SGD:     return ops->sgd_update(be, &p->sgd, now, segments, n_segments, a->w, a->grad, a->slot[0], a->ema, a->tally);
    case EN_LARS:    return ops->lars_update(be, &p->lars, now, segments, n_segments, a->w, a->grad, a->slot[0], a->ema, a->tally);
    case EN_ADAMW:   break;
    }
    return ops->adamw_update(be, &p->adamw, now, segments, n_segments, a->w, a->grad, a->slot[0], a->slot[1], a->ema, a->updates, a->tally);
}

const char *en_optimizer_text(const en_optimizer *p, char *text, size_t size)
{
    switch (p->kind) {
    case EN_RMSPROP:
        snprintf(text, size, "rmsprop, momentum %g, rho %g, eps %g, weight decay %g", (double)p->rmsprop.momentum, (double)p->rmsprop.rho,
                 (double)p->rmsprop.eps, (double)p->rmsprop.weight_decay);
        break;
    case EN_SGD:
        snprintf(text, size, "sgd, momentum %g%s, weight decay %g", (double)p->sgd.momentum, p->sgd.nesterov ? " (Nesterov)" : "", (double)p->sgd.weight_decay);
        break;
    case EN_LARS:
        snprintf(text, size, "lars, trust %g, momentum %g%s, eps %g, weight decay %g", (double)p->lars.trust, (double)p->lars.momentum,
                 p->lars.nesterov ? " (Nesterov)" : "", (double)p->lars.eps, (double)p->lars.weight_decay);
        break;
    case EN_ADAMW:
        snprintf(text, size, "adamw, beta1 %g, beta2 %g, eps %g, weight decay %g (decoupled)", p->adamw.beta1, p->adamw.beta2, (double)p->adamw.eps,
                 (double)p->adamw.weight_decay);
        break;
    }
    return text;
}
