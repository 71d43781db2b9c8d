/* bench/comm_files.c - what `effnet bench comm` found as files: every row as CSV, and the bus bandwidth against the size as a figure, with
 * what the fit makes of it. */
#include "trainer/bench/comm.h"
#include "trainer/plot/plot.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void csv_number(FILE *f, double v)
{
    if (isfinite(v)) fprintf(f, ",%.6g", v);
    else fprintf(f, ",");
}

static en_status write_csv(const comm_report *r, const char *path)
{
    FILE *f = fopen(path, "w");
    EN_REQUIRE(f, EN_EIO, "%s cannot be written: %s; choose another --folder", path, strerror(errno));
    fprintf(f, "ranks,nodes,role,comm,op,bytes,channels,layers,count,series,"
               "median_us,p10_us,p90_us,alg_gb_per_s,bus_gb_per_s,in_4_sums_us,queued_us,checked,wrong\n");
    for (int i = 0; i < r->table->n_rows; i++) {
        const comm_row *row = &r->table->rows[i];
        const en_comm *c = row->place->comm;
        fprintf(f, "%d,%d,%s,%s,%s,%zu,%" PRId64 ",%" PRId64 ",%" PRId64 ",%d", c->world_size, c->nodes, row->place->role, c->name, comm_op_name(row->op),
                row->bytes, row->channels, row->layers, row->count, row->series);
        csv_number(f, 1e6 * row->seconds.median);
        csv_number(f, 1e6 * row->seconds.p10);
        csv_number(f, 1e6 * row->seconds.p90);
        csv_number(f, row->op == COMM_BARRIER ? NAN : 1e-9 * (double)row->bytes / row->seconds.median);
        csv_number(f, row->op == COMM_BARRIER ? NAN : 1e-9 * comm_bus_rate(row));
        csv_number(f, 1e6 * row->parts_s);
        csv_number(f, 1e6 * row->queued_s);
        fprintf(f, ",%" PRId64 ",%" PRId64 "\n", row->checked, row->wrong);
    }
    const bool whole = fflush(f) == 0 && !ferror(f);
    const int why = errno;
    if (fclose(f) != 0 || !whole) {
        unlink(path);
        return en_raise(EN_EIO, __FILE__, __LINE__, __func__, "%s cannot be written: %s; choose another --folder", path, strerror(why));
    }
    return EN_OK;
}

/* ---- the figure -------------------------------------------------------------------------------------------------------------- */

enum { CURVES = 3 };                           /* of a communicator: measured, in parts, fitted */

typedef struct { double *x, *bus, *low, *high, *parts, *fit; int n; char name[CURVES][64]; } curves;

/* A bandwidth of a time, of `bytes` on the bus; p90 of the time is the low end. */
static void take_rows(const comm_report *r, const comm_place *place, curves *c)
{
    const comm_fit fit = comm_fit_rows(r->table, place, COMM_SUM_F32, false);
    for (int i = 0; i < r->table->n_rows; i++) {
        const comm_row *row = &r->table->rows[i];
        if (row->place != place || row->op != COMM_SUM_F32) continue;
        const double on_bus = comm_bus_bytes((double)row->bytes, place->comm->world_size);
        c->x[c->n] = (double)row->bytes;
        c->bus[c->n] = 1e-9 * on_bus / row->seconds.median, c->low[c->n] = 1e-9 * on_bus / row->seconds.p90, c->high[c->n] = 1e-9 * on_bus / row->seconds.p10;
        c->parts[c->n] = 1e-9 * on_bus / row->parts_s;
        c->fit[c->n++] = 1e-9 * on_bus / comm_fit_seconds(&fit, on_bus);
    }
    snprintf(c->name[0], sizeof c->name[0], "%s, p10 to p90", place->comm->name);
    snprintf(c->name[1], sizeof c->name[1], "%s, in %d sums at once", place->comm->name, COMM_PARTS);
    snprintf(c->name[2], sizeof c->name[2], "%s, fit", place->comm->name);
}

static en_status draw(const comm_report *r, const char *path)
{
    const en_comm *c = r->places[0].comm;
    const size_t rows = (size_t)r->table->n_rows + 1;
    curves all[2];
    en_plot_series series[2 * CURVES];
    char title[160];
    double *memory = calloc(rows * 6 * 2, sizeof *memory);
    EN_REQUIRE(memory, EN_ENOMEM, "no memory for a figure");
    for (int k = 0; k < r->n_places; k++) {
        double *p = memory + (size_t)k * 6 * rows;
        all[k] = (curves){ .x = p, .bus = p + rows, .low = p + 2 * rows, .high = p + 3 * rows, .parts = p + 4 * rows, .fit = p + 5 * rows };
        take_rows(r, &r->places[k], &all[k]);
        series[CURVES * k] = (en_plot_series){ .name = all[k].name[0], .style = EN_PLOT_LINE_POINTS, .x = all[k].x, .y = all[k].bus, .n = all[k].n,
                                               .low = all[k].low, .high = all[k].high };
        series[CURVES * k + 1] = (en_plot_series){ .name = all[k].name[1], .style = EN_PLOT_POINTS, .x = all[k].x, .y = all[k].parts, .n = all[k].n };
        series[CURVES * k + 2] = (en_plot_series){ .name = all[k].name[2], .style = EN_PLOT_DASHED, .x = all[k].x, .y = all[k].fit, .n = all[k].n };
    }
    snprintf(title, sizeof title, "All-reduce of floats: %d ranks on %d host%s", c->world_size, c->nodes, c->nodes == 1 ? "" : "s");
    const en_plot plot = { .title = title, .x_title = "bytes", .y_title = "bus bandwidth, GB/s", .x_scale = EN_PLOT_LOG2, .y_scale = EN_PLOT_LOG10,
                           .note = "bus bandwidth = bytes * 2(n-1)/n / time, as nccl-tests has it; measured by effnet bench comm", .series = series,
                           .n_series = CURVES * r->n_places };
    const en_status s = en_plot_write(path, &plot);
    free(memory);
    return s;
}

en_status comm_write_files(const comm_report *r, const char *folder)
{
    char path[4096];
    EN_REQUIRE(strlen(folder) < sizeof path - 64, EN_EUSAGE, "--folder: the name is too long");
    EN_REQUIRE(mkdir(folder, 0777) == 0 || errno == EEXIST, EN_EIO, "%s cannot be made: %s; choose another --folder", folder, strerror(errno));
    snprintf(path, sizeof path, "%s/comm.csv", folder);
    EN_TRY(write_csv(r, path), "the table");
    snprintf(path, sizeof path, "%s/comm.svg", folder);
    if (r->places[0].comm->world_size > 1) EN_TRY(draw(r, path), "the figure");        /* one rank has no bandwidth */
    return EN_OK;
}
