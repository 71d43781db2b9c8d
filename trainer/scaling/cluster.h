/* scaling/cluster.h - what a prediction knows of a machine: a small text file of `key = value` lines (launch/clusters/).
 *
 *     # comment                                lines that begin with a key of the table below, each once, in any order;
 *     ranks_per_node = 8                       a value is a word, a number, or three numbers
 *
 * Bandwidths are what a program gets, not what a data sheet says; GB is 10^9 bytes, TFLOP 10^12 operations. */
#ifndef EN_SCALING_CLUSTER_H
#define EN_SCALING_CLUSTER_H

#include "kernels/kernels.h"

typedef enum { EN_NET_NCCL, EN_NET_MPI } en_net_kind;

/* NCCL's protocols: 8-byte words with a flag each (latency), 128-byte lines, plain copies (bandwidth). */
enum { EN_LL, EN_LL128, EN_SIMPLE, EN_PROTOCOLS };

/* X(field, TYPE, must be there, limits, meaning).  WORD comm|precision; NUM a number; THREE a number each for LL, LL128, Simple.
 * `must`: A always, N with comm = nccl, M with comm = mpi, O never; what is not there is 0. */
#define EN_CLUSTER_KEYS(X)                                                                                                              \
  X(comm,                  WORD,  A, "nccl|mpi",      "who sums: nccl between GPUs, mpi between processors (comm/mpi.c)")               \
  X(precision,             WORD,  A, "bf16|fp32",     "of activations")                                                                 \
  X(ranks_per_node,        NUM,   A, "[1,65536]",     "GPUs of a node, or ranks")                                                       \
  X(cores_per_node,        NUM,   O, "[1,65536]",     "ranks of a node that compute at the same time; more take turns (0: all)")        \
  X(memory_gb,             NUM,   O, "(0,1000000]",   "memory of a rank, for advice on the micro-batch")                                \
  X(memory_gb_per_s,       NUM,   A, "(0,1000000]",   "memory bandwidth of a rank")                                                     \
  X(node_memory_gb_per_s,  NUM,   O, "(0,1000000]",   "memory bandwidth that the ranks of a node share")                                \
  X(matrix_tflop_per_s,    NUM,   A, "(0,1000000]",   "rate of matrix products of a rank")                                              \
  X(efficiency,            NUM,   A, "(0,1]",         "share of the floor's speed that passes reach")                                   \
  X(pass_us,               NUM,   A, "[0,1000000]",   "what a pass takes beside its work: launch, start and end of a kernel")           \
  X(jitter,                NUM,   A, "[0,1]",         "coefficient of variation of a rank's computing in a step")                       \
  X(link_gb_per_s,         NUM,   A, "(0,1000000]",   "within a node; nccl: bus bandwidth of an all-reduce, mpi: what a rank sends")    \
  X(nics_per_node,         NUM,   A, "[1,1024]",      "network cards that the ranks of a node share")                                   \
  X(nic_gb_per_s,          NUM,   A, "(0,1000000]",   "one card, one direction")                                                        \
  X(nic_efficiency,        NUM,   A, "(0,1]",         "share of the cards' bandwidth that sums reach")                                  \
  X(base_tree_us,          THREE, N, "[0,1000000]",   "latency of a sum, before any hop")                                               \
  X(base_ring_us,          THREE, N, "[0,1000000]",   "the same, by a ring")                                                            \
  X(link_tree_us,          THREE, N, "[0,1000000]",   "a hop within a node")                                                            \
  X(link_ring_us,          THREE, N, "[0,1000000]",   "the same, in a ring")                                                            \
  X(nic_tree_us,           THREE, N, "[0,1000000]",   "a hop between nodes")                                                            \
  X(nic_ring_us,           THREE, N, "[0,1000000]",   "the same, in a ring")                                                            \
  X(link_us,               NUM,   M, "[0,10000000]",  "a message's way within a node")                                                  \
  X(nic_us,                NUM,   M, "[0,10000000]",  "a message's way between nodes")

#define EN_CLUSTER_CTYPE_WORD(field)  int field
#define EN_CLUSTER_CTYPE_NUM(field)   double field
#define EN_CLUSTER_CTYPE_THREE(field) double field[EN_PROTOCOLS]

typedef struct {
    char name[64];                             /* of the file, without folder and ending                                  */
#define EN_CLUSTER_FIELD(field, type, ...) EN_CLUSTER_CTYPE_##type(field);
    EN_CLUSTER_KEYS(EN_CLUSTER_FIELD)          /* comm: en_net_kind; precision: en_dtype                                   */
#undef EN_CLUSTER_FIELD
    const struct en_measured_sums *sums; int n_sums;   /* borrowed; sums of so many ranks as they were measured, in place of the keys (scaling/model.h) */
} en_cluster;

/* Reads such a file.  EN_EUSAGE with path, line, value and what would be right: an unknown key (names the nearest), one that stands
 * twice or is missing, a value out of its range; EN_EIO: it cannot be read. */
en_status en_cluster_read(const char *path, en_cluster *out);
/* The same from text; `path` is for the messages. */
en_status en_cluster_parse(const char *path, const char *text, size_t bytes, en_cluster *out);

#endif
