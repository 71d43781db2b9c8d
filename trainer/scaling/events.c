/* scaling/events.c - a pass over the layers as events, from the table that `effnet bench passes` measures by.
 *
 * The order is net.c's: every pass that leaves sums of a batch norm is followed by their sum over ranks (2c+1 doubles forward, 2c
 * back) and the small passes that make scale and shift of them; after each block of the way back the gradients up to its end are
 * final.  Layers, bytes and products are those of bench/layers.c, so a prediction and a measurement speak of the same passes. */
#include "trainer/scaling/model.h"

#include "trainer/bench/passes.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const en_model *m;
    const en_cluster *c;
    const en_pass_times *times;              /* NULL: floors */
    int64_t images;
    double  bandwidth, rate, turns;          /* bytes and operations a second; how many ranks share a core */
    en_scaling_step *out;
    int     room;
} builder;

static en_status add(builder *b, en_event e)
{
    en_scaling_step *s = b->out;
    if (s->n_events == b->room) {
        const int room = b->room ? 2 * b->room : 256;
        en_event *more = realloc(s->event, (size_t)room * sizeof *more);
        EN_REQUIRE(more, EN_ENOMEM, "no memory for a step of %d events", room);
        s->event = more;
        b->room = room;
    }
    s->event[s->n_events++] = e;
    if (e.kind == EN_EVENT_PASS) *(e.backward ? &s->backward_s : &s->forward_s) += e.seconds;
    return EN_OK;
}

static const en_pass_time *measured(const en_pass_times *t, const bench_layer *l, const bench_pass *p)
{
    for (int i = 0; i < t->n; i++)
        if (strcmp(t->pass[i].shape, l->shape) == 0 && strcmp(t->pass[i].pass,
                                                              p->name) == 0 && t->pass[i].backward == p->backward) return &t->pass[i];
    return NULL;
}

/* of_images: the pass does more with more images, as all but the update */
static en_status seconds_of(builder *b, const bench_layer *l, const bench_pass *p, bool of_images, double *seconds)
{
    const double memory = p->bytes / b->bandwidth, products = p->flops / b->rate;
    *seconds = fmax(memory, products) / b->c->efficiency + 1e-6 * b->c->pass_us;
    if (b->times) {
        const en_pass_time *t = measured(b->times, l, p);
        EN_REQUIRE(t, EN_EUSAGE, "the file of --times has no pass '%s' %s of %s: measure again with effnet bench passes --json, the same --model and"
                   " --image-size", p->name, p->backward ? "backward" : "forward", l->shape);
        *seconds = 1e-6 * t->us * (of_images ? (double)b->images / (double)b->times->images : 1);
    }
    *seconds *= b->turns;
    return EN_OK;
}

/* Passes of one direction, in order, each with the batch norm that it leaves sums of. */
static en_status add_passes(builder *b, const bench_layer *l, bool backward)
{
    for (int i = 0; i < l->passes; i++) {
        const bench_pass *p = &l->pass[i];
        double seconds;
        if (p->backward != backward) continue;
        EN_TRY(seconds_of(b, l, p, true, &seconds), "%s of %s", p->name, l->shape);
        EN_TRY(add(b, (en_event){ .kind = EN_EVENT_PASS, .backward = backward, .seconds = seconds }), "%s", p->name);
        const bool stem_norm = backward && l->raw && i + 1 == l->passes;           /* the first block's gradient ends in the stem's batch norm */
        const int bn = stem_norm ? 1 : p->bn;
        if (!bn) continue;
        EN_TRY(add(b, (en_event){ .kind = EN_EVENT_BN, .backward = backward, .amount = (size_t)(2 * l->channels[bn] + !backward) }), "batch norm");
        const double small = 1e-6 * b->c->pass_us * b->turns * (backward ? 2 : 1);
        EN_TRY(add(b, (en_event){ .kind = EN_EVENT_PASS, .backward = backward, .seconds = small }), "batch norm");
    }
    return EN_OK;
}

/* The end of the last of these tensors: the arena is laid out in the order in which backward finishes. */
static size_t end_of(const en_model *m, const int *tensors, int n)
{
    int64_t end = 0;
    for (int i = 0; i < n; i++) {
        const en_tensor *t = tensors[i] >= 0 ? &m->tensors[tensors[i]] : NULL;
        if (t && t->offset + t->elems > end) end = t->offset + t->elems;
    }
    return (size_t)end;
}

static en_status add_gradients(builder *b, size_t elems)
{
    return add(b, (en_event){ .kind = EN_EVENT_GRADIENTS, .backward = true, .amount = elems });
}

static en_status layer(builder *b, int index, bench_layer *l)
{
    const bool u8 = b->c->comm == EN_NET_NCCL;
    EN_REQUIRE(bench_layer_at(b->m, index, b->images, (en_dtype)b->c->precision, u8, 0, l), EN_EINVAL, "%s has no layer %d", b->m->name, index);
    return EN_OK;
}

static en_status block_gradients(builder *b, const en_block *k)
{
    const int of_block[] = { k->w_expand, k->w_spatial, k->w_project, k->w_shortcut, k->w_se_reduce, k->b_se_reduce, k->w_se_expand, k->b_se_expand,
                             k->bn_expand.gamma, k->bn_expand.beta, k->bn_spatial.gamma, k->bn_spatial.beta, k->bn_project.gamma, k->bn_project.beta };
    return add_gradients(b, end_of(b->m, of_block, sizeof of_block / sizeof *of_block));
}

static en_status walk(builder *b, int layers)
{
    const en_model *m = b->m;
    const int of_head[] = { m->head.weight, m->head.bn.gamma, m->head.bn.beta, m->head.fc_weight, m->head.fc_bias };
    bench_layer l;
    EN_TRY(layer(b, 0, &l), "the stem");
    EN_TRY(add_passes(b, &l, false), "the stem");
    for (int k = 0; k < m->n_blocks; k++) {
        EN_TRY(layer(b, bench_layer_of_block(m, k), &l), "%s", m->blocks[k].name);
        EN_TRY(add_passes(b, &l, false), "%s", m->blocks[k].name);
    }
    EN_TRY(layer(b, layers - 2, &l), "the head");
    EN_TRY(add_passes(b, &l, false), "the head");
    EN_TRY(add_passes(b, &l, true), "the head");
    EN_TRY(add_gradients(b, end_of(m, of_head, sizeof of_head / sizeof *of_head)), "the head");
    for (int k = m->n_blocks - 1; k >= 0; k--) {
        EN_TRY(layer(b, bench_layer_of_block(m, k), &l), "%s", m->blocks[k].name);
        EN_TRY(add_passes(b, &l, true), "%s", m->blocks[k].name);
        EN_TRY(block_gradients(b, &m->blocks[k]), "%s", m->blocks[k].name);
    }
    EN_TRY(layer(b, 0, &l), "the stem");
    EN_TRY(add_passes(b, &l, true), "the stem");
    return add_gradients(b, (size_t)m->param_elems);
}

/* The update's pass, and two sweeps that have no pass in the table: gradients to zero, and the sum of their squares. */
static en_status update(builder *b, int layers)
{
    bench_layer l;
    EN_TRY(layer(b, layers - 1, &l), "the update");
    EN_TRY(seconds_of(b, &l, &l.pass[0], false, &b->out->update_s), "the update");
    b->out->update_s += b->turns * (8. * (double)b->m->param_elems / b->bandwidth / b->c->efficiency + 2e-6 * b->c->pass_us);
    return EN_OK;
}

en_status en_scaling_step_of(const en_model *m, int64_t images, const en_cluster *c, int busy, const en_pass_times *times, en_scaling_step *out)
{
    en_status status = EN_OK;
    bench_layer l;
    int layers = 0;
    *out = (en_scaling_step){ .images = images, .param_elems = (size_t)m->param_elems, .stat_elems = (size_t)m->stat_elems };
    const double cores = c->cores_per_node > 0 ? c->cores_per_node : busy, at_once = fmin(busy, cores), mine = c->memory_gb_per_s;
    builder b = { .m = m, .c = c, .times = times, .images = images, .out = out, .rate = 1e12 * c->matrix_tflop_per_s, .turns = fmax(1, busy / cores),
                  .bandwidth = 1e9 * (c->node_memory_gb_per_s > 0 ? fmin(mine, c->node_memory_gb_per_s / at_once) : mine) };
    EN_REQUIRE(images > 0, EN_EINVAL, "a pass of %" PRId64 " images", images);
    EN_TRY(bench_layers_known(m), "a step as events");
    while (bench_layer_at(m, layers, 1, EN_F32, false, 0, &l)) layers++;
    EN_TRY_OUT(walk(&b, layers), "%s", m->name);
    EN_TRY_OUT(update(&b, layers), "%s", m->name);
    out->memory_gb_per_s = 1e-9 * b.bandwidth;
    return EN_OK;
out:
    en_scaling_step_free(out);
    return status;
}

void en_scaling_step_free(en_scaling_step *s)
{
    free(s->event);
    *s = (en_scaling_step){ 0 };
}

void en_scaling_step_stretch(en_scaling_step *s, double factor)
{
    for (int i = 0; i < s->n_events; i++) s->event[i].seconds *= factor;
    s->forward_s *= factor;
    s->backward_s *= factor;
}
