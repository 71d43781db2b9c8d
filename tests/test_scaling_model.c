/* test_scaling_model.c - the model of a step: small cases against sums by hand, what must never get slower, and steps of real networks
 * against another way to add them up.  Equal means to 1e-12 of the number: a few hundred roundings of 1e-16. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/bench/passes.h"
#include "trainer/scaling/model.h"
#include "trainer/scaling/predict.h"

static void same(double got, double want, const char *what)
{
    if (!(fabs(got - want) <= 1e-12 * (fabs(want) + 1e-3))) fail_msg("%s: %.17g, wanted %.17g", what, got, want);
}
#define SAME(got, want) same((got), (want), #got)

/* Two ranks a node.  NCCL with 10 us, 20 us, 40 us a ring's protocol and no hops, 1 GB/s within a node, 0.5 between: the sum of b
 * bytes over two ranks on a node by ring Simple takes 40 us + b ns. */
static en_cluster machine(en_net_kind comm)
{
    return (en_cluster){ .comm = comm, .precision = EN_F32, .ranks_per_node = 2, .memory_gb_per_s = 10, .matrix_tflop_per_s = 1, .efficiency = 1,
                         .link_gb_per_s = 1, .nics_per_node = 1, .nic_gb_per_s = 0.5, .nic_efficiency = 1, .base_ring_us = { 10, 20, 40 },
                         .base_tree_us = { 1e6, 1e6, 1e6 }, .link_us = 7, .nic_us = 70 };
}

#define PASS_F(s)  { .kind = EN_EVENT_PASS, .seconds = (s) }
#define PASS_B(s)  { .kind = EN_EVENT_PASS, .backward = true, .seconds = (s) }
#define BN(n)      { .kind = EN_EVENT_BN, .amount = (n) }
#define GRADS(n)   { .kind = EN_EVENT_GRADIENTS, .backward = true, .amount = (n) }

static en_scaling_result run(en_event *events, int n, size_t params, const en_cluster *c, en_scaling_setup set)
{
    en_scaling_step s = { .event = events, .n_events = n, .images = 10, .param_elems = params, .stat_elems = 100, .update_s = 0.5 };
    for (int i = 0; i < n; i++) *(events[i].backward ? &s.backward_s : &s.forward_s) += events[i].seconds;
    if (!set.passes) set.passes = 1;
    if (!set.bn_group) set.bn_group = set.ranks;
    if (!set.bucket_bytes) set.bucket_bytes = (size_t)25 << 20;
    en_scaling_result r;
    en_scaling_run(&s, c, &set, &r);
    SAME(r.step_s, (r.forward_s + r.backward_s + r.bn_s + r.grads_s + r.other_s + r.update_s + r.straggler_s + r.data_s));
    return r;
}
#define RUN(events, params, c, ...) run((events), sizeof (events) / sizeof *(events), (params), (c), (en_scaling_setup){ __VA_ARGS__ })

enum { MIB = (1 << 20) / sizeof(float) };                                /* elements */

static void one_rank_is_what_it_computes(void **state)
{
    (void)state;
    en_cluster c = machine(EN_NET_NCCL);
    c.jitter = 0.1;
    en_event e[] = { PASS_F(1), BN(9), PASS_B(2), BN(8), GRADS(5 * MIB) };
    const en_scaling_result r = RUN(e, 5 * MIB, &c, .ranks = 1);
    SAME(r.step_s, 3.5);
    SAME(r.images_per_s, 10 / 3.5);
    assert_true(r.bn_s == 0 && r.grads_s == 0 && r.other_s == 0 && r.straggler_s == 0 && r.buckets == 0);
}

static void a_network_without_cost_costs_nothing(void **state)
{
    (void)state;
    en_cluster c = machine(EN_NET_NCCL);
    for (int i = 0; i < EN_PROTOCOLS; i++) c.base_ring_us[i] = 0;
    c.link_gb_per_s = c.nic_gb_per_s = 1e300;
    en_event e[] = { PASS_F(1), BN(9), PASS_B(2), BN(8), GRADS(5 * MIB) };
    SAME(RUN(e, 5 * MIB, &c, .ranks = 64).step_s, 3.5);
}

/* One bucket of 1000 floats, ready when backward ends: 10 us by ring LL at a quarter of the bandwidth, 26 us; LL128 24.348; Simple 44. */
static void a_bucket_at_the_end_is_exposed(void **state)
{
    (void)state;
    const en_cluster c = machine(EN_NET_NCCL);
    en_event e[] = { PASS_B(1), GRADS(1000) };
    const en_scaling_result r = RUN(e, 1000, &c, .ranks = 2);
    assert_int_equal(r.buckets, 1);
    SAME(r.grads_s, 20e-6 + 4000 / 0.92e9);
    SAME(r.grads_hidden_s, 0);
}

/* Two buckets of 1 MiB, 40 us + 1048.576 us each by ring Simple: the first beside a pass that is longer, the second after it. */
static void a_bucket_beside_a_long_pass_is_hidden(void **state)
{
    (void)state;
    const en_cluster c = machine(EN_NET_NCCL);
    const double bucket = 40e-6 + 1048576e-9;
    en_event hidden[] = { PASS_B(1), GRADS(MIB), PASS_B(1), GRADS(2 * MIB) }, half[] = { PASS_B(1), GRADS(MIB), PASS_B(bucket / 2), GRADS(2 * MIB) };
    en_scaling_result r = RUN(hidden, 2 * MIB, &c, .ranks = 2);
    assert_int_equal(r.buckets, 2);
    SAME(r.grads_s, bucket);
    SAME(r.grads_hidden_s, bucket);
    r = RUN(half, 2 * MIB, &c, .ranks = 2);                              /* the second waits for the first: one queue */
    SAME(r.grads_s, 1.5 * bucket);
    SAME(r.grads_hidden_s, 0.5 * bucket);
}

static void sums_of_batch_norm_block_and_add_up(void **state)
{
    (void)state;
    const en_cluster c = machine(EN_NET_NCCL);
    en_event e[] = { PASS_F(1), BN(9), PASS_F(1), BN(9), PASS_B(1), BN(8), PASS_B(1) };
    const double sums = 2 * (10e-6 + 72 / 0.25e9) + 10e-6 + 64 / 0.25e9;  /* ring LL: 10 us, a quarter of the bandwidth */
    en_scaling_result r = RUN(e, 0, &c, .ranks = 2);
    SAME(r.bn_s, sums);
    SAME(r.bn_latency_s, 30e-6);
    assert_int_equal(r.bn_sums, 3);
    assert_true(r.bn_behind_s == 0);
    r = RUN(e, 0, &c, .ranks = 2, .passes = 5);                          /* each pass normalises by itself */
    SAME(r.bn_s, 5 * sums);
    SAME(r.forward_s, 10);
    r = RUN(e, 0, &c, .ranks = 2, .bn_group = 1);
    assert_true(r.bn_s == 0 && r.bn_sums == 0);
    assert_true(r.other_s > RUN(e, 0, &c, .ranks = 2).other_s);          /* but then running statistics are summed, once a step */
}

static void batch_norm_waits_behind_a_bucket_and_that_counts_as_gradients(void **state)
{
    (void)state;
    const en_cluster c = machine(EN_NET_NCCL);
    const double bucket = 40e-6 + 1048576e-9, bn = 10e-6 + 64 / 0.25e9;
    en_event e[] = { PASS_B(1), GRADS(MIB), PASS_B(bucket / 4), BN(8), PASS_B(1), GRADS(2 * MIB) };
    const en_scaling_result r = RUN(e, 2 * MIB, &c, .ranks = 2);
    SAME(r.bn_behind_s, 0.75 * bucket);
    SAME(r.bn_s, bn);
    SAME(r.grads_s, 1.75 * bucket);
}

static void gradients_are_summed_once_however_many_passes(void **state)
{
    (void)state;
    const en_cluster c = machine(EN_NET_NCCL);
    en_event e[] = { PASS_B(1), GRADS(1000) };
    SAME(RUN(e, 1000, &c, .ranks = 2, .passes = 7).grads_s, RUN(e, 1000, &c, .ranks = 2).grads_s);
}

/* Two rounds over two ranks of a node: half of the bytes in each, 2 * 7 us + b ns.  Nothing moves while ranks of a node compute;
 * between nodes a call hands over a MB for each other rank at most, of which as much moves as there is time. */
static void mpi_hides_what_a_call_hands_over(void **state)
{
    (void)state;
    en_cluster c = machine(EN_NET_MPI);
    const double bucket = 14e-6 + 1048576e-9;
    en_event e[] = { PASS_B(1), GRADS(MIB), PASS_B(1), GRADS(2 * MIB) };
    en_scaling_result r = RUN(e, 2 * MIB, &c, .ranks = 2);
    SAME(r.grads_s, 2 * bucket);
    /* 4 ranks on 2 nodes: of b bytes a node sends p(n-p)/n = b in each round at 0.5 GB/s; each rank gets b/2 from each other one */
    const double far = 140e-6 + 4 * 1048576e-9;
    r = RUN(e, 2 * MIB, &c, .ranks = 4);
    SAME(r.grads_s + r.grads_hidden_s, 2 * far);
    SAME(r.grads_hidden_s, far);                                          /* the first bucket is less than what may be handed over */
    en_event large[] = { PASS_B(1), GRADS(4 * MIB), PASS_B(1), GRADS(5 * MIB) };
    SAME(RUN(large, 5 * MIB, &c, .ranks = 4).grads_hidden_s, 4 * 1048576e-9 * 1000000 / (1048576 / 2.));
    en_event little[] = { PASS_B(1), GRADS(MIB), PASS_B(1e-3), GRADS(2 * MIB) }, more[] = { PASS_B(1), GRADS(MIB), PASS_B(1e-3), BN(1), PASS_B(1e-3), GRADS(2 * MIB) };
    const double way = en_sum_small(&c, (en_span_of_ranks){ 4, 2 }, 8).seconds;       /* what has not come when a gap ends was too large */
    SAME(RUN(little, 2 * MIB, &c, .ranks = 4).grads_hidden_s, 1e-3 - way);
    en_event least[] = { PASS_B(1), GRADS(MIB), PASS_B(5e-5), GRADS(2 * MIB) };
    SAME(RUN(least, 2 * MIB, &c, .ranks = 4).grads_hidden_s, 5e-5);       /* shorter than a message's way: of the least chunk, which is always sent */
    r = RUN(more, 2 * MIB, &c, .ranks = 4);                               /* a sum of batch norm hands over again, and waits for no bucket */
    SAME(r.grads_hidden_s, 2 * (1e-3 - way));
    SAME(r.bn_behind_s, 0);
    SAME(RUN(more, 2 * MIB, &c, .ranks = 4, .bn_group = 2).grads_hidden_s, 2e-3 - way);       /* but a sum of a group is no sum of the gradients' ranks */
    en_event blocks[] = { PASS_B(1), GRADS(MIB), PASS_B(1e-3), GRADS(MIB + 1), PASS_B(1e-3), GRADS(2 * MIB) };
    SAME(RUN(blocks, 2 * MIB, &c, .ranks = 4).grads_hidden_s, 2e-3 - way);
    SAME(RUN(blocks, 2 * MIB, &c, .ranks = 4, .bn_group = 2).grads_hidden_s, 2 * (1e-3 - way));       /* there the end of a block hands over */
}

/* NCCL's own figures for small sums: within a node of 8 (ring LL), over 2, 8 and 32 nodes (tree LL); comm/mpi.c's rounds. */
static void sums_cost_what_their_formulas_say(void **state)
{
    (void)state;
    en_cluster c;
    assert_int_equal(en_cluster_read(EN_CLUSTERS "/h200-ndr.txt", &c), EN_OK);
    const struct { int ranks; double us; } small[] = { { 8, 6.6 + 14 * 0.6 }, { 16, 6.8 + 14 * 0.6 + 10 }, { 64, 6.8 + 14 * 0.6 + 30 }, { 256,
                                                                                                                                          6.8 + 14 * 0.6 + 50 } };
    for (size_t i = 0; i < sizeof small / sizeof *small; i++) {
        const en_sum_cost cost = en_sum_small(&c, en_span_of_group(&c, small[i].ranks, small[i].ranks), 8);
        SAME(cost.latency, 1e-6 * small[i].us);
        assert_string_equal(cost.way, i == 0 ? "ring LL" : "tree LL");
    }
    const en_sum_cost large = en_sum_gradients(&c, (en_span_of_ranks){ 64, 8 }, 1e9);
    assert_string_equal(large.way, "ring Simple");
    assert_true(large.between_nodes);
    SAME(large.seconds, 8.4e-6 + (126 - 14) * 3.4e-6 + 14 * 14e-6 + 126. / 64 * 1e9 / (8 * 50e9 * 0.92));
    assert_true(en_sum_gradients(&c, (en_span_of_ranks){ 1, 1 }, 1e9).seconds == 0);

    c = machine(EN_NET_MPI);
    SAME(en_sum_small(&c, (en_span_of_ranks){ 8, 4 }, 1e6).seconds, 7e-6 + 140e-6 + 1e6 / 1e9 + 2 * 2 * 1e6 / 0.5e9);
    SAME(en_sum_small(&c, (en_span_of_ranks){ 4, 2 }, 6e4).seconds, 70e-6 + 2 * 2 * 6e4 / 0.5e9);          /* one round: a node sends p(n-p) messages */
    assert_string_equal(en_sum_small(&c, (en_span_of_ranks){ 4, 2 }, 65e3).way, "recursive doubling");     /* more than comm/mpi.c sends at once */
    SAME(en_sum_gradients(&c, (en_span_of_ranks){ 8, 4 }, 1e7).seconds, 420e-6 + 2 * (2 * 6. / 8) * 1e7 / 0.5e9);          /* slices of more than a MiB are asked for */
    SAME(en_sum_gradients(&c, (en_span_of_ranks){ 8, 4 }, 8e6).seconds, 140e-6 + 2 * (2 * 6. / 8) * 8e6 / 0.5e9);
}

static void groups_cross_as_many_nodes_as_the_worst_of_them(void **state)
{
    (void)state;
    const en_cluster c = { .ranks_per_node = 8 };
    const struct { int ranks, group, nodes; } cases[] = { { 64, 1, 1 }, { 64, 4, 1 }, { 64, 8, 1 }, { 64, 3, 2 }, { 64, 16, 2 }, { 64, 12, 2 }, { 64, 9, 2 }, { 64, 20, 3 }, { 64, 64, 8 },
                                                          { 6, 6, 1 }, { 6, 5, 1 }, { 12, 12, 2 }, { 12, 99, 2 }, { 16, 12, 2 }, { 9, 9, 2 }, { 1, 1, 1 } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const en_span_of_ranks span = en_span_of_group(&c, cases[i].ranks, cases[i].group);
        assert_int_equal(span.nodes, cases[i].nodes);
        assert_int_equal(span.ranks, cases[i].group < cases[i].ranks ? cases[i].group : cases[i].ranks);
    }
}

/* Order statistics of the normal distribution (Harter 1961, table 1; n = 2 and 3 in closed form). */
static void the_slowest_of_many_is_the_largest_draw(void **state)
{
    (void)state;
    const double pi = 3.14159265358979323846;
    assert_true(en_expected_largest(1) == 0);
    assert_true(fabs(en_expected_largest(2) - 1 / sqrt(pi)) < 1e-9 && fabs(en_expected_largest(3) - 1.5 / sqrt(pi)) < 1e-9);
    assert_true(fabs(en_expected_largest(10) - 1.53875) < 1e-5 && fabs(en_expected_largest(100) - 2.50759) < 1e-5);
    en_cluster c = machine(EN_NET_NCCL);
    c.jitter = 0.1;
    en_event e[] = { PASS_F(1), PASS_B(2) };
    SAME(RUN(e, 0, &c, .ranks = 10).straggler_s, 0.1 * 3.5 * en_expected_largest(10));
}

static void images_are_waited_for_when_they_come_too_slowly(void **state)
{
    (void)state;
    const en_cluster c = machine(EN_NET_NCCL);
    en_event e[] = { PASS_F(1), PASS_B(2) };                              /* 3.5 s with the update, for 10 images */
    assert_true(RUN(e, 0, &c, .ranks = 1, .data_per_s = 3).data_s == 0);
    SAME(RUN(e, 0, &c, .ranks = 1, .data_per_s = 2).step_s, 5);
    SAME(RUN(e, 0, &c, .ranks = 1, .data_per_s = 2).data_s, 1.5);
}

/* ---- real networks ------------------------------------------------------------------------------------------------------------ */

static en_model *model(const char *name)
{
    const en_model_row *row;
    const en_model_overrides o = { .classes = 1000 };
    en_model *m;
    assert_int_equal(en_model_row_find(name, &row), EN_OK);
    assert_int_equal(en_model_build(row, &o, 8, &m), EN_OK);
    return m;
}

/* Layers of a kind times their number, in place of the walk over blocks. */
static void a_step_has_every_pass_and_every_sum(void **state)
{
    (void)state;
    static const struct { const char *name; int norms; } nets[] = { { "b0", 49 }, { "b4", 96 }, { "b7", 163 }, { "mobilenetv2", 52 },
        { "v2b0", 0 }, { "v2s", 110 }, { "v2xl", 0 } };              /* 0: as many as there are tensors of them */
    en_cluster c;
    assert_int_equal(en_cluster_read(EN_CLUSTERS "/h200-ndr.txt", &c), EN_OK);
    c.pass_us = 0;
    for (size_t i = 0; i < sizeof nets / sizeof *nets; i++) {
        en_model *m = model(nets[i].name);
        en_scaling_step s;
        bench_layer l;
        double want[2] = { 0, 0 }, doubles = 0;
        int norms[2] = { 0, 0 };
        size_t final = 0;
        assert_int_equal(en_scaling_step_of(m, 3, &c, 1, NULL, &s), EN_OK);
        for (int k = 0; bench_layer_at(m, k, 3, EN_BF16, true, 0, &l); k++)
            for (int p = 0; p < l.passes; p++)
                if (strcmp(l.pass[p].name, "update") != 0)
                    want[l.pass[p].backward] += l.count * fmax(l.pass[p].bytes / 4300e9, l.pass[p].flops / 790e12) / c.efficiency;
        for (int k = 0; k < s.n_events; k++) {
            const en_event *e = &s.event[k];
            if (e->kind == EN_EVENT_BN) norms[e->backward]++, doubles += (double)e->amount;
            if (e->kind != EN_EVENT_GRADIENTS) continue;
            assert_true(e->amount > final);
            final = e->amount;
        }
        SAME(s.forward_s, want[0]);
        SAME(s.backward_s, want[1]);
        assert_int_equal(final, m->param_elems);
        double channels = 0;                                              /* of all batch norms: a mean each among the statistics */
        int all = 0;
        for (int t = 0; t < m->n_tensors; t++)
            if (strstr(m->tensors[t].name, "running_mean")) channels += (double)m->tensors[t].elems, all++;
        assert_true(nets[i].norms == 0 || nets[i].norms == all);
        assert_int_equal(norms[0], all);
        assert_int_equal(norms[1], all);
        assert_true(fabs(doubles - 4 * channels - all) <= 64. * all);     /* padding of arenas to 16 */
        en_scaling_step_free(&s);
        en_model_free(m);
    }
}

static void networks_of_other_blocks_are_refused(void **state)
{
    (void)state;
    static const char *const nets[] = { "r50", "mbv1" };
    en_cluster c;
    assert_int_equal(en_cluster_read(EN_CLUSTERS "/h200-ndr.txt", &c), EN_OK);
    for (size_t i = 0; i < sizeof nets / sizeof *nets; i++) {
        en_model *m = model(nets[i]);
        en_scaling_step s;
        assert_int_equal(en_scaling_step_of(m, 3, &c, 1, NULL, &s), EN_ENOTSUP);
        assert_non_null(strstr(en_error_message(), "are not known one by one"));
        assert_null(s.event);
        en_error_clear();
        en_model_free(m);
    }
}

static double step_of(const en_scaling_step *s, const en_cluster *c, int ranks, int group, size_t bucket)
{
    const en_scaling_setup set = { .ranks = ranks, .bn_group = group, .passes = 1, .bucket_bytes = bucket };
    en_scaling_result r;
    en_scaling_run(s, c, &set, &r);
    return r.step_s;
}

static void a_better_machine_is_never_slower(void **state)
{
    (void)state;
    static const char *const files[] = { EN_CLUSTERS "/h200-ndr.txt", EN_CLUSTERS "/pcie-100gbe.txt", EN_CLUSTERS "/cpu-2-cores.txt" };
    en_model *m = model("b0");
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        en_cluster c;
        en_scaling_step s;
        assert_int_equal(en_cluster_read(files[f], &c), EN_OK);
        assert_int_equal(en_scaling_step_of(m, 16, &c, 1, NULL, &s), EN_OK);
        for (int ranks = 1; ranks <= 2048; ranks *= 2) {
            double *const better[] = { &c.link_gb_per_s, &c.nic_gb_per_s, &c.nics_per_node };
            const double now = step_of(&s, &c, ranks, ranks, (size_t)25 << 20);
            for (size_t i = 0; i < sizeof better / sizeof *better; i++) {
                const double was = *better[i];
                *better[i] = 2 * was;
                assert_true(step_of(&s, &c, ranks, ranks, (size_t)25 << 20) <= now * (1 + 1e-12));
                *better[i] = was;
            }
            assert_true(step_of(&s, &c, 2 * ranks, 2 * ranks, (size_t)25 << 20) >= now);     /* more ranks, not less to do */
            const en_cluster as_it_is = c;
            c.jitter = 0;
            c.base_ring_us[EN_LL] /= 2, c.base_tree_us[EN_LL] /= 2, c.link_us /= 2, c.nic_us /= 2;
            assert_true(step_of(&s, &c, ranks, ranks, (size_t)25 << 20) <= now * (1 + 1e-12));
            c = as_it_is;
        }
        en_scaling_step_free(&s);
    }
    en_model_free(m);
}

static void ranks_that_share_cores_take_turns(void **state)
{
    (void)state;
    en_cluster c = machine(EN_NET_MPI);
    en_model *m = model("b0");
    en_scaling_step one, two, four;
    c.cores_per_node = 2;
    c.node_memory_gb_per_s = 20;                                          /* enough for two */
    assert_int_equal(en_scaling_step_of(m, 2, &c, 1, NULL, &one), EN_OK);
    assert_int_equal(en_scaling_step_of(m, 2, &c, 2, NULL, &two), EN_OK);
    assert_int_equal(en_scaling_step_of(m, 2, &c, 4, NULL, &four), EN_OK);
    SAME(two.backward_s, one.backward_s);
    SAME(four.backward_s, 2 * one.backward_s);
    SAME(four.update_s, 2 * one.update_s);
    en_scaling_step_free(&one);
    en_scaling_step_free(&two);
    en_scaling_step_free(&four);
    en_model_free(m);
}

/* ---- points and advice ---------------------------------------------------------------------------------------------------------- */

static en_prediction *prediction(const en_options *o, int64_t micro_batch, en_group group)
{
    en_prediction *p = calloc(1, sizeof *p);
    assert_non_null(p);
    p->o = o;
    assert_int_equal(en_cluster_read(EN_CLUSTERS "/h200-ndr.txt", &p->cluster), EN_OK);
    p->cluster.memory_gb = 0;                                             /* no advice about memory, which needs a planner */
    p->model = model("b0");
    p->choice = (en_choice){ .group = group, .bucket_bytes = (size_t)25 << 20, .micro_batch = micro_batch };
    return p;
}

static void close_prediction(en_prediction *p)
{
    for (int i = 0; i < p->n_known; i++) en_scaling_step_free(&p->known[i].step);
    en_model_free(p->model);
    free(p);
}

/* One rank does what the rate says, however many passes a step has; other sizes of a pass are stretched by the same factor. */
static void a_rate_that_is_given_is_met_by_one_rank(void **state)
{
    (void)state;
    en_options o = { .strong = true, .global_batch = 1000, .gpu_rate = 1500 };
    en_prediction *p = prediction(&o, 32, (en_group){ EN_GROUP_ALL, 0 });  /* 32 passes, the last of 8 images */
    en_point one, ten;
    en_scaling_step floors;
    assert_int_equal(en_predict_calibrate(p), EN_OK);
    assert_int_equal(en_predict_point(p, &p->choice, 1, &one), EN_OK);
    assert_int_equal(one.passes, 32);
    SAME(one.r.images_per_s, 1500);
    assert_int_equal(en_predict_point(p, &p->choice, 10, &ten), EN_OK);
    assert_int_equal(en_scaling_step_of(p->model, ten.images, &p->cluster, 8, NULL, &floors), EN_OK);
    SAME(ten.r.forward_s, p->stretch * (double)ten.passes * floors.forward_s);
    SAME(ten.r.update_s, floors.update_s);
    en_scaling_step_free(&floors);
    close_prediction(p);

    /* the rate of two images a step says more than the update takes, at most just so: that is refused for what it is */
    o = (en_options){ .gpu_rate = 1 };
    p = prediction(&o, 2, (en_group){ EN_GROUP_ALL, 0 });
    assert_int_equal(en_predict_calibrate(p), EN_OK);
    const double update_s = p->known[0].step.update_s;
    close_prediction(p);
    for (int above = 0; above < 2; above++) {
        o.gpu_rate = 2 / update_s * (above ? 1.01 : 0.99);
        p = prediction(&o, 2, (en_group){ EN_GROUP_ALL, 0 });
        assert_int_equal(en_predict_calibrate(p), above ? EN_EUSAGE : EN_OK);
        if (above) assert_non_null(strstr(en_error_message(), "the optimizer alone takes"));
        else assert_int_equal(en_predict_point(p, &p->choice, 1, &one), EN_OK);
        if (!above) SAME(one.r.images_per_s, o.gpu_rate);
        close_prediction(p);
    }
    o = (en_options){ .strong = true, .global_batch = 64, .gpu_rate = 2 / update_s };     /* too high for 2 images and an update, not for 64 */
    p = prediction(&o, 2, (en_group){ EN_GROUP_ALL, 0 });
    assert_int_equal(en_predict_calibrate(p), EN_OK);
    assert_int_equal(en_predict_point(p, &p->choice, 1, &one), EN_OK);
    SAME(one.r.images_per_s, o.gpu_rate);
    close_prediction(p);
    en_error_clear();
}

static int advice_of(const en_prediction *p, const char *what, const char *because)
{
    int n = 0;
    for (int i = 0; i < p->n_advice; i++) {
        if (strncmp(p->advice[i].what, what, strlen(what)) != 0) continue;
        n++;
        if (!strstr(p->advice[i].because, because)) fail_msg("%s: %s, wanted %s", p->advice[i].what, p->advice[i].because, because);
    }
    return n;
}

/* What is said of a group is what the trainer makes of the option. */
static void advice_on_groups_says_options_that_exist_and_each_group_once(void **state)
{
    (void)state;
    const en_options o = { 0 };
    static const struct { int64_t micro_batch; int nodes_too, images_too; const char *images; } cases[] = {
        { 48, 1, 1, "of 96 images" },                                     /* two ranks of 48 */
        { 16, 1, 0, "" },                                                 /* 128 images are a node's */
        { 200, 1, 0, "" } };                                              /* and here a rank's */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        en_prediction *p = prediction(&o, cases[i].micro_batch, (en_group){ EN_GROUP_ALL, 0 });
        p->points = 1;
        assert_int_equal(en_predict_point(p, &p->choice, 512, &p->point[0]), EN_OK);
        assert_int_equal(en_predict_advise(p), EN_OK);
        assert_int_equal(advice_of(p, "--bn-group node", ""), cases[i].nodes_too);
        assert_int_equal(advice_of(p, "--bn-group 128i", cases[i].images), cases[i].images_too);
        assert_int_equal(advice_of(p, "--bn-group 1", ""), 1 + cases[i].images_too);       /* "1", and "128i" begins with it */
        assert_int_equal(advice_of(p, "--bn-group", ""), 2 + cases[i].images_too);
        close_prediction(p);
    }
}

/* ---- measured passes ------------------------------------------------------------------------------------------------------------ */

/* What bench passes prints, every pass 10 us; without the last `less` of them. */
static size_t made_up_times(const en_model *m, int less, char *text, size_t size)
{
    bench_layer l;
    int all = 0, n = 0;
    for (int k = 0; bench_layer_at(m, k, 4, EN_BF16, true, 0, &l); k++) all += l.passes;
    size_t at = (size_t)snprintf(text, size,
                                 "{\"model\":\"x\",\"resolution\":%d,\"images\":4,\"device\":\"cuda\",\"measured\":true,\"us\":1e3,\"passes\":[", m->resolution);
    for (int k = 0; bench_layer_at(m, k, 4, EN_BF16, true, 0, &l); k++)
        for (int p = 0; p < l.passes && n < all - less; p++, n++)
            at += (size_t)snprintf(text + at, size - at,
                                   "%s{\"pass\":\"%s\",\"direction\":\"%s\",\"shape\":\"%s\",\"count\":%d,\"us\":10.00,\"wrong\":0}", n ? "," : "",
                                   l.pass[p].name, l.pass[p].backward ? "backward" : "forward", l.shape, l.count);
    return at + (size_t)snprintf(text + at, size - at, "]}\n");
}

static void measured_passes_take_the_place_of_floors(void **state)
{
    (void)state;
    enum { ROOM = 1 << 19 };
    en_cluster c;
    en_model *m = model("b0");
    en_pass_times times;
    en_scaling_step s;
    char *text = malloc(ROOM);
    assert_int_equal(en_cluster_read(EN_CLUSTERS "/h200-ndr.txt", &c), EN_OK);
    c.pass_us = 0;
    assert_int_equal(en_pass_times_parse("t.json", text, made_up_times(m, 0, text, ROOM), &times), EN_OK);
    assert_int_equal(times.images, 4);
    assert_int_equal(en_scaling_step_of(m, 8, &c, 1, &times, &s), EN_OK);
    /* stem 1; 16 blocks: depthwise, project, residual, and 15 expansions; head: expansion, pool, dense, loss.  20 us for 8 images */
    SAME(s.forward_s, (1 + 16 * 3 + 15 + 4) * 20e-6);
    SAME(s.backward_s, (1 + 16 * 3 + 15 + 3) * 20e-6);
    en_scaling_step_free(&s);
    en_pass_times_free(&times);
    assert_int_equal(en_pass_times_parse("t.json", text, made_up_times(m, 3, text, ROOM), &times), EN_OK);
    assert_int_equal(en_scaling_step_of(m, 8, &c, 1, &times, &s), EN_EUSAGE);
    assert_non_null(strstr(en_error_message(), "has no pass"));
    en_pass_times_free(&times);
    en_error_clear();
    free(text);
    en_model_free(m);
}

static void files_of_times_are_read_or_refused(void **state)
{
    (void)state;
    static const char whole[] = "{\"images\":4,\"resolution\":8,\"passes\":[{\"pass\":\"a\",\"shape\":\"b\",\"direction\":\"forward\",\"us\":1.5}]}";
    static const char *const bad[] = {
        "", "{", "[]", "{}", "{\"images\":4}", "{\"images\":4,\"resolution\":8,\"passes\":[]}", "{\"images\":4,\"resolution\":8,\"passes\":[{}]}",
        "{\"images\":4,\"resolution\":8,\"passes\":[{\"pass\":\"a\",\"shape\":\"b\",\"us\":-1}]}", "{\"images\":4,\"resolution\":8,\"passes\":[{\"pass\":\"a\",\"shape\":\"b\"}]}",
        "{\"images\":0,\"resolution\":8,\"passes\":[{\"pass\":\"a\",\"shape\":\"b\",\"us\":1}]}", "{\"images\":1e99,\"resolution\":8,\"passes\":[{\"pass\":\"a\",\"shape\":\"b\",\"us\":1}]}",
        "{\"images\":4,\"resolution\":8,\"passes\":[{\"pass\":\"a\",\"shape\":\"b\",\"us\":nan}]}", "{\"images\":4,\"resolution\":8,\"passes\":7}",
        "{\"images\":4,\"passes\":[{\"pass\":\"a\",\"shape\":\"b\",\"us\":1}]} more",
    };
    char text[512];
    en_pass_times t;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(text, sizeof text, "%s", bad[i]);
        if (en_pass_times_parse("t.json", text, strlen(bad[i]), &t) != EN_EUSAGE) fail_msg("taken: %s", bad[i]);
    }
    for (size_t n = 0; n < strlen(whole); n++) {
        snprintf(text, sizeof text, "%.*s", (int)n, whole);
        assert_int_equal(en_pass_times_parse("t.json", text, n, &t), EN_EUSAGE);
    }
    snprintf(text, sizeof text, "%s", whole);
    assert_int_equal(en_pass_times_parse("t.json", text, strlen(whole), &t), EN_OK);
    assert_true(t.n == 1 && t.pass[0].us == 1.5 && !t.pass[0].backward);
    en_pass_times_free(&t);
    en_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_rank_is_what_it_computes),
        cmocka_unit_test(a_network_without_cost_costs_nothing),
        cmocka_unit_test(a_bucket_at_the_end_is_exposed),
        cmocka_unit_test(a_bucket_beside_a_long_pass_is_hidden),
        cmocka_unit_test(sums_of_batch_norm_block_and_add_up),
        cmocka_unit_test(batch_norm_waits_behind_a_bucket_and_that_counts_as_gradients),
        cmocka_unit_test(gradients_are_summed_once_however_many_passes),
        cmocka_unit_test(mpi_hides_what_a_call_hands_over),
        cmocka_unit_test(sums_cost_what_their_formulas_say),
        cmocka_unit_test(groups_cross_as_many_nodes_as_the_worst_of_them),
        cmocka_unit_test(the_slowest_of_many_is_the_largest_draw),
        cmocka_unit_test(images_are_waited_for_when_they_come_too_slowly),
        cmocka_unit_test(a_step_has_every_pass_and_every_sum),
        cmocka_unit_test(networks_of_other_blocks_are_refused),
        cmocka_unit_test(a_better_machine_is_never_slower),
        cmocka_unit_test(ranks_that_share_cores_take_turns),
        cmocka_unit_test(a_rate_that_is_given_is_met_by_one_rank),
        cmocka_unit_test(advice_on_groups_says_options_that_exist_and_each_group_once),
        cmocka_unit_test(measured_passes_take_the_place_of_floors),
        cmocka_unit_test(files_of_times_are_read_or_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
