/* backend.h - what every instruction-set build's table shares: memory and order (backend.c) */
#ifndef EN_CPU_BACKEND_H
#define EN_CPU_BACKEND_H

#include "kernels/kernels.h"

typedef struct en_backend_ops en_backend_ops;

void      cpu_close(en_backend *be);
en_status cpu_alloc(en_backend *be, size_t bytes, void **out);
void      cpu_free(en_backend *be, void *p);
en_status cpu_upload(en_backend *be, void *dst, const void *host, size_t bytes);
en_status cpu_download(en_backend *be, void *host, const void *src, size_t bytes);
en_status cpu_zero(en_backend *be, void *dst, size_t bytes);
en_status cpu_copy(en_backend *be, void *dst, const void *src, size_t bytes);
en_status cpu_synchronize(en_backend *be);
en_status cpu_reserve(en_backend *be, const en_conv_geom *g);
en_status cpu_open(const en_backend_config *config, en_backend **out);

/* what needs no thought where host and device are one: order.c */
int64_t   cpu_memory_available(en_backend *be);
en_status cpu_keep_weights(en_backend *be, float *w, int64_t elems);
en_status cpu_stage(en_backend *be, int slot, const en_copy *copies, int n);
en_status cpu_stage_step(en_backend *be, int slot);
en_status cpu_capture_begin(en_backend *be);
en_status cpu_capture_end(en_backend *be, void **graph);
en_status cpu_graph_launch(en_backend *be, void *graph);
void      cpu_graph_free(en_backend *be, void *graph);
en_status cpu_mark(en_backend *be, int i);
double    cpu_elapsed(en_backend *be, int from, int to);
en_status cpu_scale(en_backend *be, int64_t elems, float factor, float *x);
size_t    cpu_workspace_bytes(en_backend *be, en_work kind, const en_conv_geom *g);
int64_t   cpu_fold_floats(en_backend *be, int64_t rows, int64_t ci, int64_t co);

/* noise.c */
en_status cpu_drop_path_masks(en_backend *be, const en_now *now, int64_t layers, int64_t n, const float *keep, float *mask);
en_status cpu_dropout_mask(en_backend *be, const en_now *now, int64_t n, int64_t c, int64_t logical, float keep, float *mask);
en_status cpu_note(en_backend *be, const en_now *now, double *tally);

#endif
