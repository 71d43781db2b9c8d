/* test_comm_speed.c - a table, not a test: gradient sums against the MPI library's own, best of N rounds.
 *
 *     mpirun -n 2 --bind-to none build/tests/test_comm_speed */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

#include "comm/internal.h"

static en_comm *c;

static void library_iallreduce(float *buf, size_t n)
{
    MPI_Request r;
    MPI_Iallreduce(MPI_IN_PLACE, buf, (int)n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD, &r);
    MPI_Wait(&r, MPI_STATUS_IGNORE);
}
static void library_allreduce(float *buf, size_t n)
{
    MPI_Allreduce(MPI_IN_PLACE, buf, (int)n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}
static void ours(float *buf, size_t n)
{
    en_request *r;
    if (c->ops->sum_f32_begin(c, buf, n, &r) != EN_OK || c->ops->sum_wait(c, r) != EN_OK) en_comm_abort(c, 1);
}

/* As without the short cut for two ranks of a host. */
static void two_rounds(float *buf, size_t n)
{
    en_comm_pace_mpi(c, true);
    ours(buf, n);
    en_comm_pace_mpi(c, c->nodes > 1);
}

static double best_s(void (*sum)(float *, size_t), float *buf, size_t n)
{
    double best = 1e9;
    for (int round = 0; round < 20; round++) {
        MPI_Barrier(MPI_COMM_WORLD);
        const double from = MPI_Wtime();
        sum(buf, n);
        double took = MPI_Wtime() - from;
        MPI_Allreduce(MPI_IN_PLACE, &took, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
        if (took < best) best = took;
    }
    return best;
}

int main(void)
{
    if (en_comm_open(&c) != EN_OK) { fputs(en_error_text(), stderr); return 1; }
    int ready = 0;
    MPI_Initialized(&ready);
    if (!ready) { fputs("start this with mpirun\n", stderr); return 2; }
    const size_t sizes[] = { 1 << 8, 1 << 12, 1 << 16, 1 << 18, 1 << 20, 25 << 18, 16 << 20 };
    float *buf = calloc(16 << 20, sizeof *buf);
    if (c->rank == 0)
        printf("%d ranks on %d hosts, milliseconds, best of 20\n%12s %12s %12s %16s %16s\n", c->world_size, c->nodes, "KiB", "ours", "two rounds",
               "MPI_Iallreduce", "MPI_Allreduce");
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        const double a = best_s(ours, buf, sizes[k]), rounds = best_s(two_rounds, buf, sizes[k]), b = best_s(library_iallreduce, buf, sizes[k]),
                     d = best_s(library_allreduce, buf, sizes[k]);
        if (c->rank == 0) printf("%12zu %12.3f %12.3f %16.3f %16.3f\n", sizes[k] * sizeof *buf / 1024, 1e3 * a, 1e3 * rounds, 1e3 * b, 1e3 * d);
    }
    free(buf);
    en_comm_close(c);
    return 0;
}
