/* open.c - which communicator this process gets.
 *
 * The launcher's traces in the environment decide, not MPI_Init: a plain `effnet predict cat.jpg` must work on a login
 * node whose MPI cannot start, and cost no 200 ms.  Two mistakes that would otherwise pass unnoticed are refused, because
 * each turns one job of N ranks into N jobs of one rank that write into the same folder:
 *   - srun without an MPI plugin (open.c, below);
 *   - a launcher of another MPI than the one linked (mpi.c: the launcher said N, MPI says 1). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <unistd.h>

#include "comm/internal.h"

static int env_count(const char *name)         /* 0: not set, or no number */
{
    const char *text = getenv(name);
    const long v = text ? strtol(text, NULL, 10) : 0;
    return v > 0 && v < 1 << 24 ? (int)v : 0;
}

/* *ranks: as many as the launcher says, 0 when it does not */
static bool launched(int *ranks)
{
    *ranks = env_count("OMPI_COMM_WORLD_SIZE");                    /* Open MPI's mpirun                       */
    if (!*ranks) *ranks = env_count("PMI_SIZE");                   /* Hydra (MPICH, Intel MPI), srun --mpi=pmi2 */
    return *ranks || getenv("PMIX_RANK");                          /* srun --mpi=pmix, other PMIx launchers   */
}

en_status en_comm_begin(bool *begun)
{
    int ranks;
    *begun = launched(&ranks);
    if (*begun) EN_TRY(en_comm_begin_mpi(), "starting MPI");
    return EN_OK;
}

en_status en_comm_open(en_comm **out)
{
    *out = NULL;
    int ranks;
    const int tasks = env_count("SLURM_STEP_NUM_TASKS");           /* any srun                                */
    if (launched(&ranks)) {
        EN_TRY(en_comm_open_mpi(ranks ? ranks : tasks, out), "starting MPI");
        return EN_OK;
    }
    EN_REQUIRE(tasks <= 1, EN_EUSAGE, "srun started %d tasks without MPI between them; use `srun --mpi=pmix`"
               " (`srun --mpi=list` shows what this cluster has), or mpirun inside the allocation", tasks);
    return en_comm_open_self(out);
}

void en_comm_close(en_comm *c)
{
    if (c) c->ops->close(c);
}

_Noreturn void en_comm_abort(en_comm *c, int exit_code)
{
    fflush(stdout);
    fflush(stderr);
    if (c && c->control) c = c->control;
    if (c && strcmp(c->name, "mpi") == 0) en_comm_abort_mpi(exit_code);
    _exit(exit_code);
}
