/* tall.cuh - products x^T y over many rows, in parts, and how parts are added up. */
#ifndef EN_CUDA_TALL_H
#define EN_CUDA_TALL_H

#include "cuda.h"

/* What a product of x (rows, ci) and y (rows, co) is cut into.  A part covers `each` rows and holds ci*co floats, x^T y over its
 * rows, and with `sums` after them ci floats, the column sums of x. */
struct tall_shape { int64_t rows, ci, co, parts, each, width; bool sums; };

tall_shape tall_shape_of(const cuda_engine *e, int64_t rows, int64_t ci, int64_t co, bool sums);
static inline int64_t tall_floats(const tall_shape &s) { return s.parts * s.width; }
/* partials (parts, width) = */
en_status tall_product(en_backend *be, const tall_shape &s, const void *x, const void *y, float *partials);

enum { PARTS_X = 32 };
/* then(i, sum over parts of partials[part*width + i]), for each i, in an order that the number of parts decides.
 * grid (width / 32), block (32, 8 or 32): lane x owns i, lane y every blockDim.y-th part, 4 bytes a value, neighbours
 * together; the lanes y meet in shared memory, in double.  Edge: threads past `width` load nothing but stay for the barrier. */
template <typename F> static __global__ void __launch_bounds__(1024) collect_parts(const float *partials, int64_t parts, int64_t width, F then)
{
    __shared__ double lanes[32][PARTS_X + 1];
    const int64_t i = (int64_t)blockIdx.x * PARTS_X + threadIdx.x;
    double sum = 0;
    if (i < width) {
#pragma unroll 4
        for (int64_t p = threadIdx.y; p < parts; p += blockDim.y) sum += (double)partials[p * width + i];
    }
    lanes[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && i < width) {
        for (unsigned q = 1; q < blockDim.y; q++) sum += lanes[q][threadIdx.x];
        then(i, sum);
    }
}

template <typename F> static en_status collect_with(en_backend *be, const float *partials, int64_t parts, int64_t width, F then)
{
    const dim3 block(PARTS_X, parts > 64 ? 32 : parts > 1 ? 8 : 1);
    if (width <= 0) return EN_OK;
    collect_parts<F><<<(unsigned)ceil_div(width, PARTS_X), block, 0, engine(be)->compute>>>(partials, parts, width, then);
    CU_LAUNCHED("adding %lld parts of %lld", (long long)parts, (long long)width);
    return EN_OK;
}

#endif
