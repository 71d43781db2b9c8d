/* bench/comm.c - `effnet bench comm`: what the sums over ranks cost: those of gradients over sizes, those of batch norm for the channels
 * of a model, on the communicator that a run would use and on the one that its ranks agree by.
 *
 * From the times come bandwidths, in nccl-tests' convention, and a latency and a bandwidth for each kind of sum, which is what a model of
 * a larger machine wants to know.  How they are taken stands in bench/comm_rows.c. */
#include "trainer/bench/comm.h"

#include "kernels/host.h"
#include "trainer/commands.h"
#include "trainer/run.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_SIZES = 64, MOST_CHANNELS = 512, LEAST_BYTES = 4 << 10, MOST_BYTES = 256 << 20, DEFAULT_CLASSES = 1000 };
static const double row_s = 0.25, slow_s = 1.5;        /* a row lasts about so long; sums that take longer end the default sizes */

typedef struct {
    size_t  sizes[MOST_SIZES]; int n_sizes;
    int64_t channels[MOST_CHANNELS], layers[MOST_CHANNELS]; int n_channels;
    char    left_out[512];
    bool    measuring;                         /* an error now is one that the other ranks may not know of */
} plan;

/* ---- which sizes --------------------------------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b)
{
    const size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return (x > y) - (x < y);
}

/* "4k,1m,2M": bytes, or with k, m, g 1024 of them and so on */
static en_status read_sizes(const char *text, plan *p)
{
    for (const char *at = text; *at;) {
        char *end;
        errno = 0;
        const double number = strtod(at, &end);
        static const char units[] = "kmg";
        const char *unit = *end ? strchr(units, tolower((unsigned char)*end)) : NULL;
        const double bytes = unit ? ldexp(number, 10 * (int)(unit - units + 1)) : number;
        if (unit) end++;
        const bool read = end > at && errno == 0 && bytes >= sizeof(float) && bytes <= 0x1p40 && (*end == ',' || !*end) && !(*end == ',' && !end[1]);
        EN_REQUIRE(read, EN_EUSAGE, "--sizes %s: bytes, with commas between them, 4 or more; 64k, 16m, 1g are multiples of 1024", text);
        EN_REQUIRE(p->n_sizes < MOST_SIZES, EN_EUSAGE, "--sizes: at most %d of them", MOST_SIZES);
        p->sizes[p->n_sizes++] = (size_t)bytes / sizeof(float) * sizeof(float);
        at = *end ? end + 1 : end;
    }
    if (p->n_sizes == 0)
        for (size_t bytes = LEAST_BYTES; bytes <= MOST_BYTES; bytes *= 2) p->sizes[p->n_sizes++] = bytes;
    qsort(p->sizes, (size_t)p->n_sizes, sizeof *p->sizes, by_size);
    int kept = 1;
    for (int k = 1; k < p->n_sizes; k++)
        if (p->sizes[k] != p->sizes[kept - 1]) p->sizes[kept++] = p->sizes[k];
    p->n_sizes = kept;
    return EN_OK;
}

/* A sum takes its own memory, and on the way (other ranks' slices, a copy on the host, MPI's buffers) about once more. */
static en_status leave_out_what_does_not_fit(en_comm *c, const en_run *run, plan *p)
{
    const int64_t host = en_memory_available() / c->local_size / 2, device = run->device_memory > 0 ? run->device_memory / 10 * 8 : 0;
    int64_t mine = device > 0 && device < host ? device : host, *all = c->rank == 0 ? calloc((size_t)c->world_size, sizeof *all) : NULL;
    if (c->rank == 0 && !all) en_comm_abort(c, en_status_exit_code(EN_ENOMEM));
    const en_status s = c->ops->gather(c, &mine, sizeof mine, all, 0);
    for (int r = 0; s == EN_OK && c->rank == 0 && r < c->world_size; r++)
        if (all[r] > 0 && (mine <= 0 || all[r] < mine)) mine = all[r];
    free(all);
    EN_TRY(s, "comparing memory");
    EN_TRY(c->ops->broadcast(c, &mine, sizeof mine, 0), "comparing memory");
    int fits = 0;
    while (fits < p->n_sizes && (mine <= 0 || p->sizes[fits] <= (size_t)mine)) fits++;
    if (fits < p->n_sizes)
        snprintf(p->left_out, sizeof p->left_out, "sizes from %.0f MiB on left out: the rank with the least memory can give %.0f MiB to a sum",
                 (double)p->sizes[fits] / 0x1p20, (double)mine / 0x1p20);
    p->n_sizes = fits;
    return EN_OK;
}

/* ---- which channels ------------------------------------------------------------------------------------------------------ */

static void add_norm(plan *p, const en_bn_ref *bn)
{
    int k = 0;
    if (bn->gamma < 0) return;
    while (k < p->n_channels && p->channels[k] < bn->c_phys) k++;
    if (k == p->n_channels || p->channels[k] != bn->c_phys) {
        if (p->n_channels == MOST_CHANNELS) return;
        memmove(p->channels + k + 1, p->channels + k, (size_t)(p->n_channels - k) * sizeof *p->channels);
        memmove(p->layers + k + 1, p->layers + k, (size_t)(p->n_channels - k) * sizeof *p->layers);
        p->channels[k] = bn->c_phys, p->layers[k] = 0;
        p->n_channels++;
    }
    p->layers[k]++;
}

static void find_norms(const en_model *m, plan *p)
{
    add_norm(p, &m->stem.bn);
    for (int i = 0; i < m->n_blocks; i++) {
        add_norm(p, &m->blocks[i].bn_expand);
        add_norm(p, &m->blocks[i].bn_spatial);
        add_norm(p, &m->blocks[i].bn_project);
        add_norm(p, &m->blocks[i].bn_shortcut);
    }
    add_norm(p, &m->head.bn);
}

/* ---- all of it ------------------------------------------------------------------------------------------------------------- */

static en_status check(const en_options *o, const en_comm *c, plan *p)
{
    EN_REQUIRE(c->world_size <= COMM_MOST_RANKS, EN_ENOTSUP, "%d ranks are more than whole numbers in floats can be added up over (%d)", c->world_size,
               (int)COMM_MOST_RANKS);
    EN_REQUIRE(o->steps <= 1000000, EN_EUSAGE, "--steps %lld: at most 1000000 repetitions", (long long)o->steps);
    return read_sizes(o->sizes, p);
}

static en_status report(const en_options *o, en_comm *c, const en_run *run, const comm_place *places, int n_places, const comm_table *t, plan *p)
{
    char (*hosts)[64] = NULL;
    if (c->rank == 0 && !(hosts = malloc((size_t)c->world_size * sizeof *hosts))) en_comm_abort(c, en_status_exit_code(EN_ENOMEM));
    en_status s = c->ops->gather(c, c->host, sizeof c->host, hosts, 0);
    if (s == EN_OK && c->rank == 0) {
        if (t->too_slow > 0 && !p->left_out[0])
            snprintf(p->left_out, sizeof p->left_out, "sizes from %.0f MiB on left out: one takes more than %g s; --sizes measures them all the same",
                     (double)t->too_slow / 0x1p20, 2 * slow_s);
        const comm_report r = { .table = t, .places = places, .n_places = n_places, .device = run->t.be->name, .model = run->t.model->name, .hosts = hosts,
                                .left_out = p->left_out };
        if (o->json) comm_print_json(&r);
        else comm_print_text(&r);
        if (*o->folder) s = comm_write_files(&r, o->folder);
    }
    free(hosts);
    return en_agree(c, s);
}

static en_status bench(const en_options *o, en_comm *c, plan *p, en_run *run, comm_table *t)
{
    EN_TRY(en_agree(c, check(o, c, p)), "checking the options");
    EN_TRY(en_check_same_options(c, o), "comparing the options of the ranks");
    EN_TRY(en_run_open_device(run, NULL), "opening the device");
    EN_TRY(leave_out_what_does_not_fit(c, run, p), "choosing sizes");
    find_norms(run->t.model, p);
    en_comm *tensors = run->t.tensors;
    const comm_place places[] = { { "control", c, NULL }, { "tensor", tensors, run->t.be } };
    const comm_work w = { .control = c, .places = places, .n_places = tensors == c ? 1 : 2, .sizes = p->sizes, .n_sizes = p->n_sizes, .channels = p->channels,
                          .layers = p->layers, .n_channels = p->n_channels, .repetitions = o->steps, .row_s = row_s, .slow_s = *o->sizes ? 0 : slow_s };
    p->measuring = true;
    EN_TRY(comm_measure(&w, t), "measuring");
    p->measuring = false;
    EN_TRY(report(o, c, run, places, w.n_places, t, p), "reporting");
    if (t->wrong > 0 && c->rank > 0) en_report_hush();
    EN_REQUIRE(t->wrong == 0, EN_EPEER, "%lld elements of the sums over %d ranks are wrong: no training can be trusted here; `effnet doctor`, on the same "
               "ranks, looks for the machine", (long long)t->wrong, c->world_size);
    return EN_OK;
}

en_status en_bench_comm(const en_options *o, en_comm *c)
{
    en_options b = *o;
    plan p = { 0 };
    comm_table t = { 0 };
    b.classes = o->classes > 0 ? o->classes : DEFAULT_CLASSES;
    en_run run = { .lock_fd = -1, .t = { .o = &b, .comm = c } };
    const en_status s = bench(&b, c, &p, &run, &t);
    if (p.measuring && c->world_size > 1) {                                             /* the others may wait in a sum */
        en_report_error(c, s);
        en_comm_abort(c, en_status_exit_code(s));
    }
    comm_table_free(&t);
    en_model_free(run.t.model);
    en_model_free(run.eval_model);
    en_run_close_device(&run);
    return s;
}
