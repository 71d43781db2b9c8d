/* scaling/sums.c - how long a sum over ranks takes.
 *
 * NCCL picks, for each size, one of two algorithms in one of three protocols by a model of its own (src/graph/tuning.cc, v2.28.9);
 * this is that model.  With n ranks on k nodes, p = n/k of them on each:
 *
 *     ring    base + (2(n-1) - 2(k-1)) * link + 2(k-1) * nic          2(n-1)/n * bytes / bandwidth
 *     tree    base + 2 ((p-1) * link + log2(k) * nic)                 2 * bytes / (0.9 * bandwidth)
 *
 * A protocol gets a share of the bandwidth: ring LL 1/4, LL128 0.92, Simple 1; tree LL 1/3.8, LL128 0.915 (7/9 within a node), Simple
 * 1.  Bandwidth is the bus bandwidth of an all-reduce: every byte crosses the border of each node once each way, over all its cards,
 * so between nodes it is the lesser of the links' and the cards' together.
 *
 * comm/mpi_gradients.c sums in two rounds of messages between all pairs: each rank sends (n-1)/n of the bytes and then the same
 * again (two ranks of one host, which call MPI_Allreduce, send as much).  What stays on the node goes at the links' bandwidth, the
 * rest of all p ranks shares the node's cards, both at once:
 *
 *     2 * (latency of the farthest message + max((p-1)/n * bytes / link, p*(n-p)/n * bytes / cards))
 *
 * A message of more than 1 MiB is asked for first and so takes its way three times (the eager limit that comm/mpi.c sets); the additions
 * between the rounds are in `link`, which is measured with them.
 *
 * Its small sums are one round between all pairs, of the whole message, as long as there are at most four ranks; beyond, MPI_Allreduce,
 * which doubles recursively at such sizes: log2(p) rounds on the node, log2(k) between nodes, of the whole message each; a round between
 * nodes is shared by the p ranks that all take part in it. */
#include "comm/comm.h"
#include "trainer/scaling/model.h"

#include <math.h>

enum { EAGER_BYTES = 1 << 20 };

en_span_of_ranks en_span_of_group(const en_cluster *c, int ranks, int group)
{
    const int p = (int)c->ranks_per_node;
    int most = 0;
    if (group > ranks) group = ranks;
    for (int first = 0; first < ranks; first += group) {         /* groups are neighbours, so some lie across a node's border */
        const int last = (first + group < ranks ? first + group : ranks) - 1, nodes = last / p - first / p + 1;
        if (nodes > most) most = nodes;
    }
    return (en_span_of_ranks){ group, most };
}

static double cards(const en_cluster *c) { return c->nics_per_node * c->nic_gb_per_s * c->nic_efficiency * 1e9; }

static en_sum_cost nccl(const en_cluster *c, en_span_of_ranks who, double bytes)
{
    static const char *const names[2][EN_PROTOCOLS] = { { "tree LL", "tree LL128", "tree Simple" }, { "ring LL", "ring LL128", "ring Simple" } };
    const double n = who.ranks, k = who.nodes, p = ceil(n / k), link = c->link_gb_per_s * 1e9;
    const double share[2][EN_PROTOCOLS] = { { 0.9 / 3.8, 0.9 * (who.nodes == 1 ? 7. / 9 : 0.915), 0.9 }, { 0.25, 0.92, 1 } };
    en_sum_cost best = { .seconds = INFINITY };
    best.between_nodes = who.nodes > 1 && cards(c) < link;
    const double bandwidth = best.between_nodes ? cards(c) : link;
    for (int ring = 0; ring < 2; ring++)
        for (int i = 0; i < EN_PROTOCOLS; i++) {
            const double hops = ring ? (2 * (n - 1) - 2 * (k - 1)) * c->link_ring_us[i] + 2 * (k - 1) * c->nic_ring_us[i]
                                     : 2 * ((p - 1) * c->link_tree_us[i] + ceil(log2(k)) * c->nic_tree_us[i]);
            const double latency = 1e-6 * ((ring ? c->base_ring_us : c->base_tree_us)[i] + hops);
            const double seconds = latency + (ring ? 2 * (n - 1) / n : 2) * bytes / (share[ring][i] * bandwidth);
            if (seconds < best.seconds) best.seconds = seconds, best.latency = latency, best.way = names[ring][i];
        }
    return best;
}

static en_sum_cost two_rounds(const en_cluster *c, en_span_of_ranks who, double bytes)
{
    const double n = who.ranks, p = ceil(n / who.nodes), ways = bytes / n > EAGER_BYTES ? 3 : 1;
    const double latency = 2e-6 * ways * (who.nodes > 1 ? c->nic_us : c->link_us);
    const double within = (p - 1) / n * bytes / (c->link_gb_per_s * 1e9), between = who.nodes > 1 ? p * (n - p) / n * bytes / cards(c) : 0;
    return (en_sum_cost){ .seconds = latency + 2 * fmax(within, between), .latency = latency, .between_nodes = between > within,
                          .way = "two rounds" };
}

static en_sum_cost one_round(const en_cluster *c, en_span_of_ranks who, double bytes)
{
    const double n = who.ranks, p = ceil(n / who.nodes), latency = 1e-6 * (who.nodes > 1 ? c->nic_us : c->link_us);
    const double within = (p - 1) * bytes / (c->link_gb_per_s * 1e9), between = who.nodes > 1 ? p * (n - p) * bytes / cards(c) : 0;
    return (en_sum_cost){ .seconds = latency + fmax(within, between), .latency = latency, .between_nodes = who.nodes > 1, .way = "one round" };
}

static en_sum_cost doubling(const en_cluster *c, en_span_of_ranks who, double bytes)
{
    const double k = who.nodes, p = ceil(who.ranks / k), near = ceil(log2(p)), far = ceil(log2(k));
    const double latency = 1e-6 * (near * c->link_us + far * c->nic_us);
    return (en_sum_cost){ .seconds = latency + near * bytes / (c->link_gb_per_s * 1e9) + far * p * bytes / cards(c), .latency = latency,
                          .between_nodes = who.nodes > 1, .way = "recursive doubling" };
}

double en_measured_seconds(const en_measured_sum *sum, int n, double bytes)
{
    int i = 1;
    if (bytes <= sum[0].bytes || n == 1) return sum[0].seconds;
    while (i < n && sum[i].bytes < bytes) i++;
    if (i == n) return sum[n - 1].seconds * bytes / sum[n - 1].bytes;
    const double at = (bytes - sum[i - 1].bytes) / (sum[i].bytes - sum[i - 1].bytes);
    return sum[i - 1].seconds + at * (sum[i].seconds - sum[i - 1].seconds);
}

const en_measured_sums *en_measured_sums_of(const en_cluster *c, int ranks)
{
    for (int i = 0; i < c->n_sums; i++)
        if (c->sums[i].ranks == ranks && c->sums[i].n_gradients > 0 && c->sums[i].n_small > 0) return &c->sums[i];
    return NULL;
}

static en_sum_cost as_measured(const en_measured_sums *m, const en_measured_sum *sum, int n, double bytes)
{
    return (en_sum_cost){ .seconds = en_measured_seconds(sum, n, bytes), .latency = sum[0].seconds, .between_nodes = m->nodes > 1, .way = "as measured" };
}

en_sum_cost en_sum_gradients(const en_cluster *c, en_span_of_ranks who, double bytes)
{
    if (who.ranks <= 1 || bytes <= 0) return (en_sum_cost){ .way = "nothing" };
    const en_measured_sums *m = en_measured_sums_of(c, who.ranks);
    if (m) return as_measured(m, m->gradients, m->n_gradients, bytes);
    return c->comm == EN_NET_NCCL ? nccl(c, who, bytes) : two_rounds(c, who, bytes);
}

en_sum_cost en_sum_small(const en_cluster *c, en_span_of_ranks who, double bytes)
{
    if (who.ranks <= 1 || bytes <= 0) return (en_sum_cost){ .way = "nothing" };
    const en_measured_sums *m = en_measured_sums_of(c, who.ranks);
    if (m) return as_measured(m, m->small, m->n_small, bytes);
    return c->comm == EN_NET_NCCL ? nccl(c, who, bytes) : who.ranks <= EN_SMALL_SUM_RANKS && bytes <= EN_SMALL_SUM_VALUES * sizeof(double) ? one_round(c, who, bytes) : doubling(c, who, bytes);
}
