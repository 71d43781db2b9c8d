/* mma.h - tensor cores on bf16 operands that stand row by row in shared memory: the only inline PTX of the products.
 *
 * Lane l of a warp is (g, t) = (l / 4, l % 4).  D (16,8) += A (16,16) B (16,8), all of it spread over the lanes:
 *
 *     a[0] = A[g][2t..]    a[1] = A[g+8][2t..]    a[2] = A[g][2t+8..]    a[3] = A[g+8][2t+8..]      two values each
 *     b[0] = B[2t..][g]    b[1] = B[2t+8..][g]                                                       two values each
 *     d[0], d[1] = D[g][2t], D[g][2t+1]           d[2], d[3] = D[g+8][2t], D[g+8][2t+1]
 *
 * (PTX ISA, "Matrix Fragments for mma.m16n8k16".)  Without PTX the same is done with shuffles. */
#ifndef EN_CUDA_MMA_H
#define EN_CUDA_MMA_H

#include "cuda.h"

/* Four 8x8 matrices of bf16: lane l names row l % 8 of matrix l / 8 (16 bytes, 16-byte aligned); r[i] becomes elements [g][2t],
 * [g][2t+1] of matrix i. */
EN_DEVICE void load_matrices(unsigned r[4], const bf16 *row)
{
#ifdef CUDAEMU
    const int lane = (int)(threadIdx.x % 32), g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) {
        const bf16 *its = __shfl_sync(0xffffffffu, row, 8 * i + g);
        r[i] = (unsigned)__bfloat16_as_ushort(its[2 * t]) | (unsigned)__bfloat16_as_ushort(its[2 * t + 1]) << 16;
    }
#else
    const unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
#endif
}

/* Four 8x8 matrices of bf16, transposed: lane l names row l % 8 of matrix l / 8 (16 bytes, 16-byte aligned); r[i] becomes
 * elements [2t][g], [2t+1][g] of matrix i. */
EN_DEVICE void load_matrices_transposed(unsigned r[4], const bf16 *row)
{
#ifdef CUDAEMU
    const int lane = (int)(threadIdx.x % 32), g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) {
        const bf16 *first = __shfl_sync(0xffffffffu, row, 8 * i + 2 * t), *second = __shfl_sync(0xffffffffu, row, 8 * i + 2 * t + 1);
        r[i] = (unsigned)__bfloat16_as_ushort(first[g]) | (unsigned)__bfloat16_as_ushort(second[g]) << 16;
    }
#else
    const unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
#endif
}

EN_DEVICE void multiply_add(float d[4], const unsigned a[4], const unsigned b[2])
{
#ifdef CUDAEMU
    const int lane = (int)(threadIdx.x % 32), g = lane / 4, t = lane % 4;
    float sum[4] = { 0, 0, 0, 0 };
    for (int q = 0; q < 4; q++) {                                  /* lane (g, q) holds k = 2q, 2q+1, 2q+8, 2q+9 of rows g and g+8 */
        const uint4 mine = make_uint4(a[0], a[1], a[2], a[3]), ra = __shfl_sync(0xffffffffu, mine, 4 * g + q);
        const uint2 its = make_uint2(b[0], b[1]);
        const uint2 left = __shfl_sync(0xffffffffu, its, 4 * (2 * t) + q), right = __shfl_sync(0xffffffffu, its, 4 * (2 * t + 1) + q);
        const unsigned upper[2] = { ra.x, ra.z }, lower[2] = { ra.y, ra.w }, first[2] = { left.x, left.y }, second[2] = { right.x, right.y };
        for (int h = 0; h < 2; h++)
            for (int half = 0; half < 2; half++) {
                const auto value = [half](unsigned pair) { return __uint_as_float(half ? pair & 0xffff0000u : pair << 16); };
                sum[0] = fmaf(value(upper[h]), value(first[h]), sum[0]);
                sum[1] = fmaf(value(upper[h]), value(second[h]), sum[1]);
                sum[2] = fmaf(value(lower[h]), value(first[h]), sum[2]);
                sum[3] = fmaf(value(lower[h]), value(second[h]), sum[3]);
            }
    }
    for (int i = 0; i < 4; i++) d[i] += sum[i];
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

#endif
