/* sweep.h - how a kernel walks a tensor (images, hw, c) that it touches once.
 *
 * A thread keeps to one vector of 8 channels (16 bytes of bf16), so that what belongs to a channel - scale, shift, a gate,
 * running sums - stays in its registers, and walks down the rows.  A block is `lanes` such vectors side by side times `stride`
 * rows at once:
 *
 *     c = 144: 18 vectors      thread   0 ..  17   row 0         neighbouring threads read neighbouring 16 bytes, across
 *     lanes 18, stride 14              18 ..  35   row 1         rows too when one slice holds all channels
 *                                      ...                       (252 of 256 threads at work)
 *
 * Wider rows are cut into `slices` of at most SWEEP_LANES vectors; the rows of an image into `parts`.  The grid is one-dimensional:
 * (image, part, slice), slice fastest.  A kernel that needs nothing by image takes all rows as one image.  Sums over rows
 * are float within a thread, which sees at most SUM_RUN rows (the number of parts sees to that), and double beyond. */
#ifndef EN_CUDA_SWEEP_H
#define EN_CUDA_SWEEP_H

#include "cuda.h"

enum { SWEEP_BLOCK = 256, SWEEP_LANES = 64, SWEEP_WAVES = 8 };

struct sweep { int64_t images, hw, c, per, parts; int lanes, stride, slices; };

/* The parts of an image of hw rows: enough blocks for the device, at least `least` and at most `most` rows for a thread. */
static inline sweep sweep_of(const cuda_engine *e, int64_t images, int64_t hw, int64_t c, int least, int most)
{
    sweep s = { images, hw, c, 0, 0, 0, 0, 0 };
    const int64_t vectors = c / 8;
    s.slices = (int)ceil_div(vectors, SWEEP_LANES);
    s.lanes  = (int)ceil_div(vectors, s.slices);
    s.stride = SWEEP_BLOCK / s.lanes;
    const int64_t wanted = ceil_div((int64_t)e->sms * SWEEP_WAVES, max64(images, 1) * s.slices);
    const int64_t fewest = ceil_div(hw, (int64_t)s.stride * most), finest = ceil_div(hw, (int64_t)s.stride * least);
    s.per   = ceil_div(hw, max64(1, max64(fewest, min64(wanted, finest))));
    s.parts = s.per > 0 ? ceil_div(hw, s.per) : 0;
    return s;
}
static inline int64_t  sweep_parts(const sweep &s)  { return s.images * s.parts; }
static inline unsigned sweep_grid(const sweep &s)   { return (unsigned)(s.images * s.parts * s.slices); }
/* Parts of all images together, for any number of images up to `images` and of rows up to hw: for `reserve`. */
static inline int64_t sweep_parts_most(const cuda_engine *e, int64_t images, int64_t hw, int64_t c, int least, int most)
{
    const int64_t slices = ceil_div(c / 8, SWEEP_LANES), stride = SWEEP_BLOCK / ceil_div(c / 8, slices);
    const int64_t fewest = images * ceil_div(hw, stride * most), finest = images * ceil_div(hw, stride * least);
    return min64(finest, max64(fewest, ceil_div((int64_t)e->sms * SWEEP_WAVES, slices) + images));
}

/* Passes that only sum choose long parts, because each ends in a reduction; passes that write choose short ones. */
static inline sweep sweep_to_sum(const cuda_engine *e, int64_t images, int64_t hw, int64_t c)   { return sweep_of(e, images, hw, c, 8, SUM_RUN); }
static inline sweep sweep_to_write(const cuda_engine *e, int64_t images, int64_t hw, int64_t c) { return sweep_of(e, images, hw, c, 4, 16); }
static inline int64_t parts_to_sum_most(const cuda_engine *e, int64_t images, int64_t hw, int64_t c) { return sweep_parts_most(e, images, hw, c, 8, SUM_RUN); }

#ifdef EN_DEVICE
/* ---- inside kernels ------------------------------------------------------------------------------------------------------ */

/* Where a thread stands: rows first, first + stride, ... < end of its image, 8 channels from `channel`.  A thread without
 * work has first == end and channel 0, so that it may load what belongs to the channel. */
struct sweep_place { int64_t image, part, first, end; int channel; };

EN_DEVICE sweep_place place_in(const sweep &s)
{
    const unsigned slice = blockIdx.x % (unsigned)s.slices, rest = blockIdx.x / (unsigned)s.slices;
    const int row = (int)threadIdx.x / s.lanes, vector = (int)slice * s.lanes + (int)threadIdx.x % s.lanes;
    const bool works = row < s.stride && vector * 8 < s.c;
    sweep_place p;
    p.image   = rest / (unsigned)s.parts;
    p.part    = rest % (unsigned)s.parts;
    p.end     = (p.part + 1) * s.per < s.hw ? (p.part + 1) * s.per : s.hw;
    p.first   = works ? p.part * s.per + row : p.end;
    p.channel = works ? vector * 8 : 0;
    return p;
}
EN_DEVICE int64_t at_row(const sweep &s, const sweep_place &p, int64_t row) { return (p.image * s.hw + row) * s.c + p.channel; }

/* 8 stored values as they lie in registers between the load and the arithmetic: half the registers of 8 floats */
template <typename T> struct raw8;
template <> struct raw8<bf16>  { uint4 w; };
template <> struct raw8<float> { float4 a, b; };
EN_DEVICE raw8<bf16>  fetch8(const bf16 *p)  { return { *(const uint4 *)p }; }
EN_DEVICE raw8<float> fetch8(const float *p) { return { ((const float4 *)p)[0], ((const float4 *)p)[1] }; }
EN_DEVICE void open8(const raw8<bf16> &r, float v[8])
{
    const unsigned w[4] = { r.w.x, r.w.y, r.w.z, r.w.w };
#pragma unroll
    for (int i = 0; i < 4; i++) v[2 * i] = __uint_as_float(w[i] << 16), v[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
}
EN_DEVICE void open8(const raw8<float> &r, float v[8])
{
    v[0] = r.a.x, v[1] = r.a.y, v[2] = r.a.z, v[3] = r.a.w, v[4] = r.b.x, v[5] = r.b.y, v[6] = r.b.z, v[7] = r.b.w;
}
EN_DEVICE void fill8(float v[8], float x)
{
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = x;
}

/* u = act(z), slope = act'(z), with one sigmoid for both */
template <typename T> EN_DEVICE void act_both(en_act act, float z, float *u, float *slope)
{
    if (act == EN_ACT_SILU) {
        const float s = sigmoid<T>(z), v = z * s;
        *u = v;
        *slope = fmaf(v, 1.f - s, s);
    } else if (act == EN_ACT_NONE) *u = z, *slope = 1.f;
    else *u = rectified(act, z), *slope = rectified_slope(act, z);
}

/* Image of a row that a thread reaches in steps: one division, then additions. */
struct image_walk { int64_t image, in_image; };
EN_DEVICE image_walk walk_from(int64_t row, int64_t hw) { return { row / hw, row % hw }; }
EN_DEVICE void walk_on(image_walk *w, int64_t rows, int64_t hw)
{
    for (w->in_image += rows; w->in_image >= hw; w->in_image -= hw) w->image++;
}

/* The sums of NS quantities over a block's rows: emit(k, channel, sum) once for every k < NS and channel of the slice.  All
 * threads of the block take part, `held` is SWEEP_SHARED(NS) floats of shared memory.  Two levels, both in order: first up to 256
 * columns (or pieces of columns), each a run of rows; then the pieces of a column.  About 8*NS reads of shared memory a thread. */
#define SWEEP_SHARED(NS) ((NS) * SWEEP_BLOCK * 8)
template <int NS, typename emit_f> EN_DEVICE void block_sums(const sweep &s, const float sums[NS][8], float *held, emit_f emit)
{
    enum { EACH = SWEEP_BLOCK * 8 };
    const int t = (int)threadIdx.x, columns = s.lanes * 8, base = (int)(blockIdx.x % (unsigned)s.slices) * columns;
    if (t < s.lanes * s.stride) {
#pragma unroll
        for (int k = 0; k < NS; k++) {
            ((float4 *)(held + k * EACH))[2 * t]     = make_float4(sums[k][0], sums[k][1], sums[k][2], sums[k][3]);
            ((float4 *)(held + k * EACH))[2 * t + 1] = make_float4(sums[k][4], sums[k][5], sums[k][6], sums[k][7]);
        }
    }
    __syncthreads();
    if (columns > SWEEP_BLOCK / 2) {                            /* a column is one piece */
        for (int i = t; i < columns; i += SWEEP_BLOCK) {
#pragma unroll
            for (int k = 0; k < NS; k++) {
                double sum = 0;
                for (int r = 0; r < s.stride; r++) sum += held[k * EACH + r * columns + i];
                if (base + i < s.c) emit(k, base + i, sum);
            }
        }
        return;                                                 /* the same for the whole block */
    }
    const int pieces = SWEEP_BLOCK / columns, piece = t / columns, i = t % columns, rows = (s.stride + pieces - 1) / pieces;
    double mine[NS];
#pragma unroll
    for (int k = 0; k < NS; k++) {
        mine[k] = 0;
        for (int r = piece * rows; r < (piece + 1) * rows && r < s.stride; r++) mine[k] += held[k * EACH + r * columns + i];
    }
    __syncthreads();
    double *const joined = (double *)held;                   /* NS * 256 doubles in the room of NS * 2048 floats */
#pragma unroll
    for (int k = 0; k < NS; k++) joined[k * SWEEP_BLOCK + t] = mine[k];
    __syncthreads();
    if (t < columns && base + t < s.c) {
#pragma unroll
        for (int k = 0; k < NS; k++) {
            double sum = 0;
            for (int q = 0; q < pieces; q++) sum += joined[k * SWEEP_BLOCK + q * columns + t];
            emit(k, base + t, sum);
        }
    }
}
#endif
#endif
