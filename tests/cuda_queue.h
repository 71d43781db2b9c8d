/* cuda_queue.h - a CUDA backend of memory and order alone, without passes: enough to test what sums between GPUs. */
#ifndef EN_TEST_CUDA_QUEUE_H
#define EN_TEST_CUDA_QUEUE_H

#include <cuda_runtime.h>

#include "kernels/kernels.h"

/* Device local_rank % devices.  Its waits ask be->watch, as the real one's do. */
en_status cuda_queue_open(int local_rank, en_backend **out);
void      cuda_queue_close(en_backend *be);
cudaStream_t cuda_queue_stream(en_backend *be);

#endif
