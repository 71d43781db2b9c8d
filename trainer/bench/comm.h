/* bench/comm.h - what `effnet bench comm` measures (bench/comm.c, bench/comm_rows.c), checks (bench/comm_values.c), makes of it
 * (bench/comm_fit.c), prints (bench/comm_report.c) and writes (bench/comm_files.c). */
#ifndef EN_BENCH_COMM_H
#define EN_BENCH_COMM_H

#include "comm/comm.h"
#include "trainer/options.h"

/* ---- values whose sum is known (bench/comm_values.c) ----------------------------------------------------------------------- */

/* Rank r holds a + (r % 1024 + 1)*b at a place, a and b being drawn from the place and `salt`, which is another one in each
 * repetition; so the sum is ranks*a + weights*b.  All of them are whole numbers below 2^24: exact in float, in any order of adding. */
typedef struct { int ranks, a_bits, b_bits; double weights; } comm_values;
enum { COMM_MOST_RANKS = 16000 };

comm_values comm_values_of(int ranks);                                 /* 1 to COMM_MOST_RANKS; of 1: what rank 0 holds    */
void    comm_fill_f32(const comm_values *v, int rank, uint32_t salt, size_t at, size_t n, float *out);          /* places [at, at + n) */
void    comm_fill_f64(const comm_values *v, int rank, uint32_t salt, size_t at, size_t n, double *out);
int64_t comm_wrong_f32(const comm_values *v, uint32_t salt, size_t at, size_t n, const float *sum);             /* how many differ     */
int64_t comm_wrong_f64(const comm_values *v, uint32_t salt, size_t at, size_t n, const double *sum);

/* ---- figures (bench/comm_fit.c) -------------------------------------------------------------------------------------------- */

typedef struct { double median, p10, p90; } comm_spread;
comm_spread comm_spread_of(double *v, int n);                          /* sorts v; between two values in proportion         */

/* What each rank sends at least, of an all-reduce of `bytes` (nccl-tests, doc/PERFORMANCE.md): over the time, the bus bandwidth. */
static inline double comm_bus_bytes(double bytes, int ranks) { return ranks > 1 ? bytes * 2 * (ranks - 1) / ranks : 0; }

/* seconds = alpha_s + bus bytes / bytes_per_s, with the least differences of logarithms; in two pieces where one is off by more than a
 * tenth somewhere and two are off by half as much in the mean.  A piece serves up to `up_to` bus bytes, the last one any.  bytes_per_s INFINITY: no
 * larger message took longer. */
enum { COMM_PIECES = 2, COMM_PIECE_POINTS = 3 };
typedef struct { double alpha_s, bytes_per_s, up_to, error, error_at, usual_error; } comm_piece;   /* error: the largest |fit/measured - 1|, at these
                                                                                      bus bytes; usual_error: the mean */
typedef struct { int points, pieces; comm_piece piece[COMM_PIECES]; } comm_fit;       /* pieces 0: fewer than two points     */

comm_fit comm_fit_of(const double *bus_bytes, const double *seconds, int n);          /* ascending bus bytes                 */
double   comm_fit_seconds(const comm_fit *f, double bus_bytes);

/* ---- measuring (bench/comm_rows.c) ------------------------------------------------------------------------------------------ */

typedef enum { COMM_SUM_F32, COMM_SUM_PARTS, COMM_SUM_F64, COMM_BROADCAST, COMM_BARRIER, COMM_OPS } comm_op;
enum { COMM_PARTS = 4 };                     /* sums begun before the first is waited for, of COMM_SUM_PARTS                 */

typedef struct {                             /* a communicator and the memory that it sums; all borrowed                     */
    const char *role;                        /* "control", "tensor"                                                          */
    en_comm    *comm;
    en_backend *be;                          /* NULL: host memory                                                            */
} comm_place;

typedef struct {
    const comm_place *place;
    comm_op op;
    size_t  elems, bytes;                    /* of the sum                                                                   */
    int64_t channels, layers;                /* COMM_SUM_F64: of so many batch norms                                         */
    int64_t count; int series;               /* repetitions; sums in each                                                    */
    comm_spread seconds;                     /* of a sum: a repetition's slowest rank over its sums.  Rank 0 alone has these */
    double  parts_s;                         /* COMM_SUM_F32: median of the same bytes as COMM_PARTS sums at once; NAN: none  */
    double  queued_s;                        /* on a device's queue, one after another, by its own clock; NAN: it has none   */
    int64_t checked, wrong;                  /* elements, over all ranks and repetitions                                     */
} comm_row;

typedef struct {
    en_comm *control;                        /* borrowed, as all below                                                       */
    const comm_place *places; int n_places;  /* places[0]: control                                                           */
    const size_t  *sizes; int n_sizes;       /* bytes of gradient sums, ascending                                            */
    const int64_t *channels, *layers; int n_channels;
    int64_t  repetitions;                    /* 0: as many as take row_s, LEAST to MOST                                      */
    double   row_s;
    double   slow_s;                         /* no larger sums once one takes longer; 0: all of them                         */
} comm_work;

typedef struct { comm_row *rows; int n_rows; int64_t wrong; size_t too_slow; } comm_table;
                                             /* rows owned; wrong on all ranks; too_slow: bytes, the first size that was left out for it, or 0 */

/* Collective.  A rank that fails where the others cannot be told returns alone: end the job then. */
en_status comm_measure(const comm_work *w, comm_table *t);
void      comm_table_free(comm_table *t);

/* ---- reporting, on rank 0 (bench/comm_report.c, bench/comm_files.c) -------------------------------------------------------- */

typedef struct {
    const comm_table *table;
    const comm_place *places; int n_places;
    const char *device, *model;              /* "cpu", "cuda"; the model whose batch norms are summed                        */
    char  (*hosts)[64];                      /* of all ranks                                                                 */
    const char *left_out;                    /* what was not measured and why, "" when all was                               */
} comm_report;

/* What a cluster file (scaling/cluster.h) says of such links, by the fits of the p10 (how unevenly ranks run is another key): false
 * where some ranks share a node and others do not, and for NCCL between nodes, whose latencies are not one number. */
typedef struct { const char *link; double us, gb_per_s, error; } comm_link;      /* link: "link" within a node, "nic" between; us NAN: not of NCCL;
                                                                                  * error: the fits' mean one */
bool      comm_link_of(const comm_table *t, const comm_place *tensor, comm_link *out);
const char *comm_op_name(comm_op op);
double    comm_bus_rate(const comm_row *r);                            /* bytes a second                                    */
void      comm_print_text(const comm_report *r);
void      comm_print_json(const comm_report *r);
en_status comm_write_files(const comm_report *r, const char *folder);       /* comm.csv, comm.svg; makes the folder (bench/comm_files.c) */
/* The fit over the rows of one kind of sum at one place, of their medians, or of the p10: what the links do when nobody else wants the
 * machine. */
comm_fit  comm_fit_rows(const comm_table *t, const comm_place *place, comm_op op, bool p10);

en_status en_bench_comm(const en_options *o, en_comm *comm);           /* `effnet bench comm`                                */

#endif
