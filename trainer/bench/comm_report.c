/* bench/comm_report.c - what `effnet bench comm` found: tables, the fit, and the same for programs. */
#include "trainer/bench/comm.h"
#include "trainer/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const op_names[COMM_OPS] = { "sum_f32", "sum_f32_parts", "sum_f64", "broadcast", "barrier" };

const char *comm_op_name(comm_op op) { return op_names[op]; }

static int ranks_of(const comm_report *r) { return r->places[0].comm->world_size; }

static double algorithm_rate(const comm_row *row) { return (double)row->bytes / row->seconds.median; }      /* bytes a second */

double comm_bus_rate(const comm_row *row)
{
    const int ranks = row->place->comm->world_size;
    if (row->op == COMM_BROADCAST) return ranks > 1 ? algorithm_rate(row) : 0;          /* the root sends all of it once at least */
    return comm_bus_bytes((double)row->bytes, ranks) / row->seconds.median;
}

comm_fit comm_fit_rows(const comm_table *t, const comm_place *place, comm_op op, bool p10)
{
    comm_fit f = { 0 };
    double *x = calloc((size_t)t->n_rows + 1, sizeof *x), *s = calloc((size_t)t->n_rows + 1, sizeof *s);
    int n = 0;
    for (int i = 0; x && s && i < t->n_rows; i++) {
        const comm_row *r = &t->rows[i];
        if (r->place != place || r->op != op) continue;
        x[n] = comm_bus_bytes((double)r->bytes, place->comm->world_size);
        s[n++] = p10 ? r->seconds.p10 : r->seconds.median;
    }
    if (x && s) f = comm_fit_of(x, s, n);
    free(x);
    free(s);
    return f;
}

/* A small sum of comm/mpi.c takes one message between few ranks, else log2(n) one after another; of a large one each rank sends the bus
 * bytes, whatever way. */
bool comm_link_of(const comm_table *t, const comm_place *tensor, comm_link *out)
{
    const en_comm *c = tensor->comm;
    const comm_fit large = comm_fit_rows(t, tensor, COMM_SUM_F32, true), small = comm_fit_rows(t, tensor, COMM_SUM_F64, true);
    const bool one_node = c->nodes == 1, mpi = strcmp(c->name, "mpi") == 0;
    *out = (comm_link){ .link = one_node ? "link" : "nic", .us = NAN };
    if (large.pieces == 0 || small.pieces == 0 || (!one_node && (c->nodes != c->world_size || !mpi))) return false;
    if (mpi) out->us = 1e6 * small.piece[0].alpha_s / (c->world_size <= EN_SMALL_SUM_RANKS ? 1 : ceil(log2(c->world_size)));
    out->gb_per_s = 1e-9 * large.piece[large.pieces - 1].bytes_per_s;
    out->error = fmax(large.piece[large.pieces - 1].usual_error, isnan(out->us) ? 0 : small.piece[0].usual_error);
    return isfinite(out->gb_per_s);
}

/* Seconds of a step's sums of batch norm, one after another: 2c+1 values forward, 2c backward, which take as long. */
static double step_of_norms(const comm_table *t, const comm_place *place, bool queued, int64_t *sums)
{
    double s = 0;
    *sums = 0;
    for (int i = 0; i < t->n_rows; i++) {
        const comm_row *r = &t->rows[i];
        if (r->place != place || r->op != COMM_SUM_F64) continue;
        s += 2 * (double)r->layers * (queued ? r->queued_s : r->seconds.median);
        *sums += 2 * r->layers;
    }
    return s;
}

/* ---- text ------------------------------------------------------------------------------------------------------------------ */

static void size_text(double bytes, char out[32])
{
    const char *unit[] = { "B", "KiB", "MiB", "GiB" };
    int k = 0;
    while (k < 3 && bytes >= 1024) bytes /= 1024, k++;
    snprintf(out, 32, "%.4g %s", bytes, unit[k]);
}

static void print_hosts(const comm_report *r)
{
    const int ranks = ranks_of(r);
    for (int i = 0, said = 0; i < ranks && said < 8; i++) {
        int same = 0, first = i;
        for (int k = 0; k < ranks; k++)
            if (strcmp(r->hosts[k], r->hosts[i]) == 0) same++, first = k < first ? k : first;
        if (first < i) continue;
        printf("%s%s x %d", said++ ? ", " : "", r->hosts[i], same);
        if (said == 8) printf(", ...");
    }
}

static void print_optional(double seconds)
{
    if (isnan(seconds)) printf(" %11s", "-");
    else printf(" %11.1f", 1e6 * seconds);
}

static void print_rows(const comm_report *r, const comm_place *place, comm_op op)
{
    const bool device = place->comm->captures && ranks_of(r) > 1;
    char size[32];
    if (op == COMM_SUM_F64) printf("%9s %6s %6s", "channels", "layers", "count");
    else printf("%9s %13s", "bytes", "count");
    printf(" %11s %9s %9s", "median us", "p10", "p90");
    if (op == COMM_SUM_F32) printf(" %9s %9s %11s", "GB/s", "bus GB/s", "in 4 sums");
    if (device) printf(" %11s", "queued us");
    printf(" %7s\n", "#wrong");
    for (int i = 0; i < r->table->n_rows; i++) {
        const comm_row *row = &r->table->rows[i];
        if (row->place != place || row->op != op) continue;
        size_text((double)row->bytes, size);
        if (op == COMM_SUM_F64) printf("%9" PRId64 " %6" PRId64 " %6" PRId64, row->channels, row->layers, row->count);
        else printf("%9s %13" PRId64, size, row->count);
        printf(" %11.1f %9.1f %9.1f", 1e6 * row->seconds.median, 1e6 * row->seconds.p10, 1e6 * row->seconds.p90);
        if (op == COMM_SUM_F32) {
            printf(" %9.3f %9.3f", 1e-9 * algorithm_rate(row), 1e-9 * comm_bus_rate(row));
            print_optional(row->parts_s);
        }
        if (device) print_optional(row->queued_s);
        printf(" %7" PRId64 "\n", row->wrong);
    }
}

static void print_fit(const char *what, const comm_fit *f)
{
    char size[32];
    for (int k = 0; k < f->pieces; k++) {
        const comm_piece *p = &f->piece[k];
        printf("  fit of the %s: time = %.1f us", what, 1e6 * p->alpha_s);
        if (isinf(p->bytes_per_s)) printf(", whatever the size");
        else printf(" + bus bytes / %.3f GB/s", 1e-9 * p->bytes_per_s);
        size_text(p->up_to, size);
        if (!isinf(p->up_to)) printf(" up to %s on the bus", size);
        else if (k) printf(" beyond");
        size_text(p->error_at, size);
        printf(" (off by %.0f %% in the mean, by %.0f %% at %s)\n", 100 * p->usual_error, 100 * p->error, size);
    }
}

static void print_fits(const comm_report *r, const comm_place *place, comm_op op)
{
    const comm_fit median = comm_fit_rows(r->table, place, op, false), p10 = comm_fit_rows(r->table, place, op, true);
    print_fit("medians", &median);
    print_fit("p10", &p10);
}

static void print_place(const comm_report *r, const comm_place *place)
{
    int64_t sums;
    printf("\n%s communicator (%s): gradients' sums, floats in place\n", place->role, place->comm->name);
    print_rows(r, place, COMM_SUM_F32);
    print_fits(r, place, COMM_SUM_F32);
    printf("\n%s communicator (%s): sums of batch norm over the channels of %s, 2c+1 doubles\n", place->role, place->comm->name, r->model);
    print_rows(r, place, COMM_SUM_F64);
    print_fits(r, place, COMM_SUM_F64);
    const double s = step_of_norms(r->table, place, false, &sums), queued = step_of_norms(r->table, place, true, &sums);
    printf("  a step of %s makes %" PRId64 " of them: %.3f ms one after another", r->model, sums, 1e3 * s);
    if (!isnan(queued)) printf(", %.3f ms queued", 1e3 * queued);
    printf("\n");
}

void comm_print_text(const comm_report *r)
{
    const en_comm *c = r->places[0].comm, *tensor = r->places[r->n_places - 1].comm;
    comm_link link;
    printf("%d rank%s on %d host%s (", c->world_size, c->world_size == 1 ? "" : "s", c->nodes, c->nodes == 1 ? "" : "s");
    print_hosts(r);
    printf("), %s\n", r->device);
    if (tensor->why[0]) printf("sums by %s: %s\n", tensor->name, tensor->why);
    if (c->world_size == 1) printf("one rank alone has nothing to sum: what stands here is what the calls themselves cost\n");
    printf("a repetition is a barrier and up to 16 sums one after another, its time that of the slowest rank, of a sum; bus GB/s = bytes * 2(n-1)/n / time, GB = 1e9 bytes\n"
           "in 4 sums: us for the same bytes in four sums begun before the first is waited for\n");
    for (int k = 0; k < r->n_places; k++) print_place(r, &r->places[k]);
    if (comm_link_of(r->table, &r->places[r->n_places - 1], &link)) {
        printf("\nfor a cluster file of effnet scaling: %s_gb_per_s = %.4g", link.link, link.gb_per_s);
        if (!isnan(link.us)) printf(", %s_us = %.4g", link.link, link.us);
        printf(" (fits off by %.0f %% in the mean)\n", 100 * link.error);
    }
    printf("\ncontrol communicator (%s): broadcasts\n", c->name);
    print_rows(r, &r->places[0], COMM_BROADCAST);
    printf("and barriers\n");
    print_rows(r, &r->places[0], COMM_BARRIER);
    if (r->left_out[0]) printf("\n%s\n", r->left_out);
    printf("\n%s: %" PRId64 " wrong\n", r->table->wrong ? "NOT ALL SUMS ARE RIGHT" : "every element of every sum was checked", r->table->wrong);
}

/* ---- JSON ------------------------------------------------------------------------------------------------------------------- */

static void json_number(const char *name, double v, const char *format)           /* null where there is none */
{
    printf(",\"%s\":", name);
    if (isfinite(v)) printf(format, v);
    else printf("null");
}

static void print_row_json(const comm_row *row)
{
    printf("{\"role\":\"%s\",\"comm\":\"%s\",\"op\":\"%s\",\"bytes\":%zu,\"count\":%" PRId64 ",\"series\":%d", row->place->role, row->place->comm->name,
           op_names[row->op], row->bytes, row->count, row->series);
    if (row->op == COMM_SUM_F64) printf(",\"channels\":%" PRId64 ",\"layers\":%" PRId64, row->channels, row->layers);
    json_number("median_us", 1e6 * row->seconds.median, "%.3f");
    json_number("p10_us", 1e6 * row->seconds.p10, "%.3f");
    json_number("p90_us", 1e6 * row->seconds.p90, "%.3f");
    if (row->op != COMM_BARRIER) {
        json_number("alg_gb_per_s", 1e-9 * algorithm_rate(row), "%.6f");
        json_number("bus_gb_per_s", 1e-9 * comm_bus_rate(row), "%.6f");
    }
    if (row->op == COMM_SUM_F32) json_number("in_4_sums_us", 1e6 * row->parts_s, "%.3f");
    if (row->op == COMM_SUM_F32 || row->op == COMM_SUM_F64) json_number("queued_us", 1e6 * row->queued_s, "%.3f");
    printf(",\"checked\":%" PRId64 ",\"wrong\":%" PRId64 "}", row->checked, row->wrong);
}

static void print_fit_json(const comm_report *r, const comm_place *place, comm_op op, bool p10, bool *first)
{
    const comm_fit f = comm_fit_rows(r->table, place, op, p10);
    if (f.pieces == 0) return;
    printf("%s{\"role\":\"%s\",\"comm\":\"%s\",\"op\":\"%s\",\"of\":\"%s\",\"pieces\":[", *first ? "" : ",", place->role, place->comm->name, op_names[op],
           p10 ? "p10" : "median");
    *first = false;
    for (int k = 0; k < f.pieces; k++) {
        const comm_piece *p = &f.piece[k];
        printf("%s{\"alpha_us\":%.4f", k ? "," : "", 1e6 * p->alpha_s);
        json_number("gb_per_s", 1e-9 * p->bytes_per_s, "%.6f");
        json_number("up_to_bus_bytes", p->up_to, "%.0f");
        json_number("largest_error", p->error, "%.4f");
        json_number("mean_error", p->usual_error, "%.4f");
        printf("}");
    }
    printf("]}");
}

void comm_print_json(const comm_report *r)
{
    const en_comm *c = r->places[0].comm, *tensor = r->places[r->n_places - 1].comm;
    bool first = true;
    comm_link link;
    printf("{\"ranks\":%d,\"nodes\":%d,\"hosts\":[", c->world_size, c->nodes);
    for (int k = 0; k < c->world_size; k++) {
        if (k) printf(",");
        en_json_print(r->hosts[k]);
    }
    printf("],\"device\":\"%s\",\"control\":\"%s\",\"tensor\":\"%s\",\"why\":", r->device, c->name, tensor->name);
    en_json_print(tensor->why);
    printf(",\"left_out\":");
    en_json_print(r->left_out);
    printf(",\"rows\":[");
    for (int i = 0; i < r->table->n_rows; i++) {
        if (i) printf(",");
        print_row_json(&r->table->rows[i]);
    }
    printf("],\"fits\":[");
    for (int k = 0; k < r->n_places; k++) {
        for (int p10 = 0; p10 < 2; p10++) {
            print_fit_json(r, &r->places[k], COMM_SUM_F32, p10, &first);
            print_fit_json(r, &r->places[k], COMM_SUM_F64, p10, &first);
        }
    }
    printf("]");
    if (comm_link_of(r->table, &r->places[r->n_places - 1], &link)) {
        printf(",\"cluster\":{\"%s_gb_per_s\":%.6g", link.link, link.gb_per_s);
        if (!isnan(link.us)) printf(",\"%s_us\":%.6g", link.link, link.us);
        printf(",\"mean_error\":%.4f}", link.error);
    }
    printf(",\"batch_norm\":{\"model\":");
    en_json_print(r->model);
    for (int k = 0; k < r->n_places; k++) {
        int64_t sums;
        const double s = step_of_norms(r->table, &r->places[k], false, &sums), queued = step_of_norms(r->table, &r->places[k], true, &sums);
        if (k == 0) printf(",\"sums\":%" PRId64, sums);
        printf(",\"%s_us\":%.3f", r->places[k].role, 1e6 * s);
        if (!isnan(queued)) printf(",\"%s_queued_us\":%.3f", r->places[k].role, 1e6 * queued);
    }
    printf("},\"wrong\":%" PRId64 "}\n", r->table->wrong);
}
