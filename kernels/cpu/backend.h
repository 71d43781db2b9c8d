/* backend.h - what every instruction-set build's table shares: memory and order (backend.c) */
#ifndef EN_CPU_BACKEND_H
#define EN_CPU_BACKEND_H

#include "kernels/kernels.h"

typedef struct en_backend_ops en_backend_ops;

en_status cpu_alloc(en_backend *be, size_t bytes, void **out);
void      cpu_free(en_backend *be, void *p);
en_status cpu_upload(en_backend *be, void *dst, const void *host, size_t bytes);
en_status cpu_download(en_backend *be, void *host, const void *src, size_t bytes);
en_status cpu_zero(en_backend *be, void *dst, size_t bytes);
en_status cpu_synchronize(en_backend *be);
en_status cpu_reserve(en_backend *be, const en_conv_geom *g);

#endif
