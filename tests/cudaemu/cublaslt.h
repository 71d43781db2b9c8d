/* cublaslt.h - what stands in the opaque structures of cuBLASLt here. */
#pragma once
#include "runtime.h"
#include <cublasLt.h>

namespace cudaemu {

struct MatmulDesc {
    cublasComputeType_t compute;
    cudaDataType_t scale;
    int32_t pointer_mode, transa, transb;
    uint32_t epilogue;
    int32_t bias_type;                               // -1: as D
    void *bias;                                      // read (BIAS) or written (BGRADA, BGRADB)
};
struct Layout {
    cudaDataType_t type;
    int32_t order;
    uint64_t rows, cols;
    int64_t ld;
    int32_t batch;
    int64_t stride;
};
struct Preference {
    uint32_t search_mode, reduction_mask, align[4];  // of A, B, C, D
    uint64_t max_workspace;
};
struct Algo {
    uint64_t magic;
    int32_t id;
};
constexpr uint64_t ALGO_MAGIC = 0x656d756c61746564u;
enum { BLOCKED, IN_SEQUENCE, SPLIT_K, UNALIGNED, ALGOS };

template <class T, class Opaque> T *inside(Opaque *o)
{
    static_assert(sizeof(T) <= sizeof(o->data), "fits in the opaque structure");
    return reinterpret_cast<T *>(o->data);
}
struct Problem {                                     // D = alpha op(A) op(B) + beta C, checked
    MatmulDesc d;
    Layout a, b, c, o;
    int64_t m, n, k;
};
cublasStatus_t check_problem(Problem *p, const MatmulDesc &d, const Layout &a, const Layout &b, const Layout &c, const Layout &o);
size_t split_workspace(const Problem &p);

} // namespace cudaemu
