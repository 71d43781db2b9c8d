/* rank.c - a rank that says where it is, and how long sums take: the best of some rounds, from rank 0.
 *
 *     launch/run -n RANKS cluster_rank SUMS ELEMS          SUMS small sums one after the other; one sum of ELEMS floats */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "comm/comm.h"

enum { SMALL = 64, ROUNDS = 5 };

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double best_s(en_comm *c, int sums, float *buf, size_t n)
{
    double best = 1e9;
    for (int round = 0; round < ROUNDS; round++) {
        en_request *r;
        if (c->ops->barrier(c) != EN_OK) en_comm_abort(c, 1);
        const double from = now_s();
        for (int i = 0; i < sums; i++)
            if (c->ops->sum_f32_begin(c, buf, n, &r) != EN_OK || c->ops->sum_wait(c, r) != EN_OK) en_comm_abort(c, 1);
        const double took = now_s() - from;
        if (took < best) best = took;
    }
    return best;
}

int main(int argc, char **argv)
{
    const int sums = argc == 3 ? atoi(argv[1]) : 0;
    const long elems = argc == 3 ? atol(argv[2]) : 0;
    en_comm *c;
    if (sums < 1 || elems < 1) {
        fprintf(stderr, "usage: cluster_rank SUMS ELEMS\n");
        return 2;
    }
    if (en_comm_open(&c) != EN_OK) {
        fputs(en_error_text(), stderr);
        return 1;
    }
    float *buf = calloc((size_t)elems + SMALL, sizeof *buf);
    if (!buf) en_comm_abort(c, 1);
    const double small_s = best_s(c, sums, buf, SMALL), large_s = best_s(c, 1, buf, (size_t)elems);
    printf("rank %d of %d: host %s node %d of %d local %d of %d\n", c->rank, c->world_size, c->host, c->node, c->nodes, c->local_rank, c->local_size);
    if (c->rank == 0) printf("small %.6f large %.6f\n", small_s, large_s);
    free(buf);
    en_comm_close(c);
    return 0;
}
