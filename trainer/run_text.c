/* run_text.c - what a run says before its first step: the header, on the terminal and, with all options, in RUN/run.txt. */
#include "trainer/doctor/doctor.h"
#include "trainer/progress.h"

#include "revision.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HOST_BYTES = sizeof ((en_comm *)0)->host };

/* "node1 x 4, node2 x 4" */
static void write_hosts(FILE *f, const char (*host)[HOST_BYTES], int n)
{
    const char *glue = "";
    for (int r = 0; r < n; r++) {
        int before = 0, all = 0;
        for (int q = 0; q < n; q++)
            if (strcmp(host[q], host[r]) == 0) all++, before += q < r;
        if (before) continue;
        fprintf(f, "%s%s x %d", glue, host[r], all);
        glue = ", ";
    }
}

/* RUN/run.txt: what was asked for, of which program and where, once more at each start. */
static void write_run_txt(const en_run *run, FILE *f, const char (*host)[HOST_BYTES])
{
    char mpi[EN_DOCTOR_MPI], hdf5[EN_DOCTOR_HDF5];
    en_library_versions(mpi, hdf5);
    if (run->resumed) fprintf(f, "\n");
    en_print_header(run, f);
    fprintf(f, "  program     effnet %s%s; %s, HDF5 %s\n  hosts       ", EN_VERSION, *EN_REVISION ? " (" EN_REVISION ")" : "", mpi, hdf5);
    write_hosts(f, host, run->t.comm->world_size);
    fprintf(f, "\n%s", run->options_text ? run->options_text : "");
}

static en_status begin(const en_run *run, const char (*host)[HOST_BYTES])
{
    en_print_header(run, stdout);
    if (!run->dir[0]) return EN_OK;
    char path[4200];
    snprintf(path, sizeof path, "%s/run.txt", run->dir);
    FILE *f = fopen(path, run->resumed ? "a" : "w");
    EN_REQUIRE(f, EN_EIO, "%s cannot be written: %s", path, strerror(errno));
    write_run_txt(run, f, host);
    EN_REQUIRE(fclose(f) == 0, EN_EIO, "%s cannot be written: %s", path, strerror(errno));
    return EN_OK;
}

en_status en_run_announce(en_run *run)
{
    en_comm *c = run->t.comm;
    if (c->rank == 0) run->hosts = malloc((size_t)c->world_size * sizeof *run->hosts);
    EN_TRY(en_agree(c, run->hosts || c->rank ? EN_OK : en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory for %d names", c->world_size)), "starting");
    EN_TRY(c->ops->gather(c, c->host, sizeof c->host, run->hosts, 0), "starting");
    EN_TRY(en_agree(c, c->rank == 0 ? begin(run, (const char (*)[HOST_BYTES])run->hosts) : EN_OK), "starting");
    return EN_OK;
}
