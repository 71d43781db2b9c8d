/* plugin.h - what libeffnet_cuda.so exports, and the version that both sides must agree on. */
#ifndef EN_PLUGIN_H
#define EN_PLUGIN_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { EN_CUDA_ABI = 3 };                /* goes up with every change of struct en_backend, en_backend_ops or what they name */

typedef bool      en_cuda_probe_fn(char *why, size_t size);          /* false: no GPU to be had, and why, in words */
typedef en_status en_cuda_open_fn(const en_backend_config *config, en_backend **out);

typedef void      en_cuda_list_fn(char *text, size_t size);

extern const uint32_t en_cuda_abi;
en_cuda_list_fn  en_cuda_list;           /* en_cuda_devices */
en_cuda_probe_fn en_cuda_probe;
en_cuda_open_fn  en_cuda_open;
/* What is measured of matrix products is read from the file, and what is measured from now on added to it: two processes that run
 * one after the other with it give the same bits (cuda/gemm_choice.cu).  One process a file; path NULL: no longer. */
typedef en_status en_cuda_keep_choices_fn(en_backend *be, const char *path);
en_cuda_keep_choices_fn en_cuda_keep_choices;
void *en_cuda_stream(en_backend *be);    /* the compute stream (cudaStream_t), for the communicator; NULL on another backend */

#ifdef __cplusplus
}
#endif

#endif
