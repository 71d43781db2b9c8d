/* doctor/sums.c - the two kinds of sums that a run makes, on values whose sum is known: small ones that everybody waits for
 * (batch norm, agreement), and a large one (gradients); over the ranks, and where every rank has a GPU over the GPUs.
 *
 * Rank r adds r%16 + i%64 at place i, whole numbers that stay small enough for float: the sum is exact in any order. */
#include "trainer/doctor/doctor.h"

#include "comm/watch.h"
#include "trainer/trainer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SMALL = 65, FEWEST = 5, MOST = 100, LARGE = 1 << 20, LARGE_TIMES = 4 };    /* 65: a batch norm of 32 channels */
static const double worth_s = 0.5;             /* of small sums: as many as rank 0 makes in this time, FEWEST to MOST */

static double part(int rank, size_t i) { return rank % 16 + (double)(i % 64); }

static void make_wholes(const en_comm *c, double wholes[64])
{
    for (size_t i = 0; i < 64; i++) {
        wholes[i] = 0;
        for (int r = 0; r < c->world_size; r++) wholes[i] += part(r, i);
    }
}

/* After the k-th: is it enough?  The same answer on all ranks. */
static en_status enough(en_comm *c, int k, double began, bool *out)
{
    int8_t flag = k + 1 >= MOST || en_seconds() - began > worth_s;
    *out = false;
    if (k + 1 < FEWEST) return EN_OK;
    EN_TRY(c->ops->broadcast(c, &flag, sizeof flag, 0), "counting sums");
    *out = flag;
    return EN_OK;
}

/* ---- over the ranks ------------------------------------------------------------------------------------------------------ */

static en_status sum_over_ranks(en_comm *c, en_doctor_facts *f)
{
    en_status status = EN_OK;
    double in[SMALL], out[SMALL], wholes[64];
    float *large = malloc(LARGE * sizeof *large);
    if (!large) en_comm_abort(c, en_status_exit_code(EN_ENOMEM));        /* the others are on their way into the sum */
    bool right = true, done = false;
    const double start = en_seconds();
    make_wholes(c, wholes);
    for (size_t i = 0; i < SMALL; i++) in[i] = part(c->rank, i);
    for (int k = 0; !done; k++) {
        EN_TRY_OUT(c->ops->barrier(c), "a barrier");
        const double began = en_seconds();
        EN_TRY_OUT(c->ops->sum_f64(c, in, out, SMALL), "a small sum");
        const double took = en_seconds() - began;
        if (k == 0 || took < f->sum_s) f->sum_s = took;
        for (size_t i = 0; i < SMALL; i++) right = right && out[i] == wholes[i % 64];
        EN_TRY_OUT(enough(c, k, start, &done), "small sums");
    }
    double best = 0;
    for (int k = 0; k < LARGE_TIMES; k++) {
        en_request *r;
        for (size_t i = 0; i < LARGE; i++) large[i] = (float)part(c->rank, i);
        EN_TRY_OUT(c->ops->barrier(c), "a barrier");
        const double began = en_seconds();
        EN_TRY_OUT(c->ops->sum_f32_begin(c, large, LARGE, &r), "a large sum");
        EN_TRY_OUT(c->ops->sum_wait(c, r), "a large sum");
        const double took = en_seconds() - began;
        if (k == 0 || took < best) best = took;
        for (size_t i = 0; i < LARGE; i++) right = right && large[i] == (float)wholes[i % 64];
    }
    f->sum_right = right;
    if (best > 0) f->sum_bytes_per_s = LARGE * sizeof *large / best;
out:
    free(large);
    return status;
}

/* ---- over the GPUs ------------------------------------------------------------------------------------------------------- */

static int numa_of(const char *pci)
{
    char path[160], name[64];
    int node = EN_UNKNOWN;
    size_t n = 0;
    for (; pci[n] && n + 1 < sizeof name; n++) name[n] = (char)(pci[n] >= 'A' && pci[n] <= 'F' ? pci[n] + 32 : pci[n]);
    name[n] = 0;
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/numa_node", name);
    FILE *f = fopen(path, "r");
    if (f && fscanf(f, "%d", &node) != 1) node = EN_UNKNOWN;
    if (f) fclose(f);
    return node;
}

/* "libnccl.so.2.28.9", when such a file is mapped */
static void loaded_library(const char *name, char *out, size_t size)
{
    char line[1024];
    FILE *f = fopen("/proc/self/maps", "r");
    while (f && !*out && fgets(line, sizeof line, f)) {
        const char *slash = strrchr(line, '/');
        if (slash && strncmp(slash + 1, name, strlen(name)) == 0) snprintf(out, size, "%.*s", (int)strcspn(slash + 1, " \n"), slash + 1);
    }
    if (f) fclose(f);
}

static en_status sum_once(en_comm *t, en_backend *be, double *sums)
{
    EN_TRY(t->ops->sum_f64(t, sums, sums, SMALL), "a small sum over GPUs");
    EN_TRY(be->ops->synchronize(be), "waiting for the GPU");
    return EN_OK;
}

static en_status sum_over_gpus(en_comm *c, en_backend *be, en_doctor_facts *f)
{
    en_comm *t = NULL;
    en_status status = EN_OK;
    double host[SMALL], wholes[64];
    void *sums = NULL;
    bool right = true, done = false;
    make_wholes(c, wholes);
    EN_TRY_OUT(en_agree(c, be->ops->alloc(be, sizeof host, &sums)), "memory of the GPU");
    EN_TRY_OUT(en_agree(c, en_comm_tensor_open(c, be, "auto", &t)), "joining the GPUs");
    snprintf(f->tensor, sizeof f->tensor, "%s", t->name);
    snprintf(f->tensor_why, sizeof f->tensor_why, "%s", t->why);
    const double start = en_seconds();
    for (int k = 0; !done; k++) {
        for (size_t i = 0; i < SMALL; i++) host[i] = part(c->rank, i);
        EN_TRY_OUT(en_agree(c, be->ops->upload(be, sums, host, sizeof host)), "to the GPU");
        const double began = en_seconds();
        EN_TRY_OUT(sum_once(t, be, sums), "over the GPUs");
        const double took = en_seconds() - began;
        if (k == 0 || took < f->tensor_s) f->tensor_s = took;
        EN_TRY_OUT(en_agree(c, be->ops->download(be, host, sums, sizeof host)), "from the GPU");
        for (size_t i = 0; i < SMALL; i++) right = right && host[i] == wholes[i % 64];
        EN_TRY_OUT(enough(c, k, start, &done), "small sums");
    }
    f->tensor_right = right;
out:
    en_comm_tensor_close(c, t);
    if (sums) be->ops->free(be, sums);
    return status;
}

/* A GPU that cannot be opened is a finding, not the end: the others are told why. */
static en_status try_gpus(en_comm *c, en_doctor_facts *f)
{
    en_backend *be = NULL;
    double without = f->gpus[0] == 0;
    EN_TRY(c->ops->sum_f64(c, &without, &without, 1), "counting GPUs");
    if (without > 0) return EN_OK;
    en_watch_at(EN_STARTUP, "opening the GPU");
    if (en_backend_open("cuda", &(en_backend_config){ .local_rank = c->local_rank }, &be) != EN_OK) {
        snprintf(f->tensor_why, sizeof f->tensor_why, "%.*s", (int)sizeof f->tensor_why - 1, en_error_message());
        f->tensor_right = 0;
        en_error_clear();
    } else {
        snprintf(f->device, sizeof f->device, "%s", be->device);
        f->device_numa = numa_of(be->device);
    }
    double closed = be == NULL;
    en_status s = c->ops->sum_f64(c, &closed, &closed, 1);
    en_watch_at(EN_STARTUP, "sums over GPUs");
    if (s == EN_OK && closed == 0) s = sum_over_gpus(c, be, f);
    loaded_library("libcublasLt.so", f->cublas, sizeof f->cublas);
    loaded_library("libnccl.so", f->nccl, sizeof f->nccl);
    en_backend_close(be);
    if (s != EN_OK && s != EN_EPEER && closed == 0) {        /* agreed: all ranks are here */
        snprintf(f->tensor_why, sizeof f->tensor_why, "%.*s", (int)sizeof f->tensor_why - 1, *en_error_message() ? en_error_message() : "another rank's failed");
        f->tensor_right = 0;
        en_error_clear();
        return EN_OK;
    }
    EN_TRY(s, "sums over GPUs");
    return EN_OK;
}

en_status en_doctor_sums(en_comm *c, en_doctor_facts *f)
{
    en_watch_at(EN_STARTUP, "sums over the ranks");
    EN_TRY(sum_over_ranks(c, f), "sums over the ranks");
    EN_TRY(try_gpus(c, f), "sums over the GPUs");
    return EN_OK;
}
