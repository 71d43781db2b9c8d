/* test_comm_open.c - how a process finds out what it is, and how a rank ends all of them.
 *
 *     test_comm_open self            a plain start: self, and MPI was never initialised
 *     test_comm_open refused TEXT    opening fails as wrong usage and the message contains TEXT
 *     test_comm_open abort CODE      the last rank aborts with CODE while the others wait for it in a sum
 *     test_comm_open hang            the last rank goes away for good while the others wait for it */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm/comm.h"

static int fail(const char *what)
{
    fprintf(stderr, "FAILED: %s\n%s", what, en_error_text());
    return 1;
}

int main(int argc, char **argv)
{
    en_comm *comm;
    const char *mode = argc > 1 ? argv[1] : "";
    const en_status s = en_comm_open(&comm);
    if (strcmp(mode, "refused") == 0 && argc > 2) {
        if (s != EN_EUSAGE || comm) return fail("opened all the same");
        return strstr(en_error_text(), argv[2]) ? 0 : fail("the message says something else");
    }
    if (s != EN_OK) return fail("did not open");
    if (strcmp(mode, "self") == 0) {
        int initialised = 1;
        MPI_Initialized(&initialised);
        if (initialised || strcmp(comm->name, "self") != 0) return fail("a plain start called MPI_Init");
        en_comm_close(comm);
        return 0;
    }
    if (strcmp(mode, "abort") == 0 && argc > 2) {
        if (comm->rank == comm->world_size - 1) en_comm_abort(comm, atoi(argv[2]));
        double one = 1;
        comm->ops->sum_f64(comm, &one, &one, 1);
        return fail("outlived the abort");
    }
    if (strcmp(mode, "hang") == 0) {
        double one = 1;
        if (comm->ops->sum_f64(comm, &one, &one, 1) != EN_OK) return fail("the sum before");
        if (comm->rank == comm->world_size - 1) sleep(60);
        comm->ops->sum_f64(comm, &one, &one, 1);
        return fail("the others waited for the rank that hung");
    }
    return fail("unknown mode");
}
