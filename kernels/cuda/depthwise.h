/* depthwise.h - what the depthwise kernels share: channel pairs, tiles, and how a shape is cut into blocks.
 *
 * A lane owns two neighbouring channels, so the weights of a k x k window are 2*k*k registers and a warp reads whole
 * lines.  Four lanes are a *vec*, 8 channels; a block takes `vecs` of them times `strips` pieces of rows, the vec
 * running first:
 *
 *     thread = (strip * vecs + vec) * 4 + pair of the vec
 *
 * so that widths like 144 or 240 leave no lane idle.  blockIdx.y counts slices of `vecs`; blockIdx.x is the part: a block
 * walks over its items part, part + parts, ... and leaves one partial sum per channel. */
#ifndef EN_CUDA_DEPTHWISE_H
#define EN_CUDA_DEPTHWISE_H

#include "passes.h"

/* The unfolded twins (depthwise_plain.cu): one thread per 8 channels of one position, nothing kept between positions. */
en_status plain_depthwise_forward(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, void *y, en_bn *bn);
en_status plain_depthwise_backward(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, const en_grad *dy,
                                   const void *add, void *dx, float *dwt, en_bn *xbn);
size_t scratch_of_plain_depthwise(const cuda_engine *e, const en_conv_geom *g);
en_status check_depthwise(const en_conv_geom *g, const en_operand *x);

enum { FORWARD_BLOCKS = 16, BACKWARD_BLOCKS = 3 };       /* blocks (parts times slices) per multiprocessor at most: bounds the partial sums */
enum { MAX_VECS = 12, MAX_PAIRS = 4 * MAX_VECS, MAX_STRIPS = 16 };

#ifdef EN_DEVICE
/* ---- pairs of channels --------------------------------------------------------------------------------------------------- */

template <typename T> struct raw_pair;                          /* as it lies in memory */
template <> struct raw_pair<float> { float2 v; };
template <> struct raw_pair<bf16>  { unsigned v; };

EN_DEVICE raw_pair<float> load_raw(const float *p) { return { *(const float2 *)p }; }
EN_DEVICE raw_pair<bf16>  load_raw(const bf16 *p)  { return { *(const unsigned *)p }; }
EN_DEVICE float2 as_pair(raw_pair<float> r) { return r.v; }
EN_DEVICE float2 as_pair(raw_pair<bf16> r) { return make_float2(__uint_as_float(r.v << 16), __uint_as_float(r.v & 0xffff0000u)); }
EN_DEVICE float2 load_pair(const float *p) { return *(const float2 *)p; }
EN_DEVICE float2 load_pair_or(const float *p, float otherwise) { return p ? *(const float2 *)p : make_float2(otherwise, otherwise); }
/* what was stored */
EN_DEVICE float2 store_pair(float *p, float2 v) { *(float2 *)p = v; return v; }
EN_DEVICE float2 store_pair(bf16 *p, float2 v)
{
    const __nv_bfloat162 h = __floats2bfloat162_rn(v.x, v.y);
    const raw_pair<bf16> r = { *(const unsigned *)&h };
    *(unsigned *)p = r.v;
    return as_pair(r);
}

EN_DEVICE float2 pair_fma(float2 a, float2 b, float2 c) { return make_float2(fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y)); }
EN_DEVICE float2 pair_mul(float2 a, float2 b)           { return make_float2(a.x * b.x, a.y * b.y); }
EN_DEVICE float2 pair_sub(float2 a, float2 b)           { return make_float2(a.x - b.x, a.y - b.y); }
EN_DEVICE float2 pair_add(float2 a, float2 b)           { return make_float2(a.x + b.x, a.y + b.y); }
template <typename T> EN_DEVICE float2 pair_sigmoid(float2 z) { return make_float2(sigmoid<T>(z.x), sigmoid<T>(z.y)); }
/* d silu / dz = s * (1 + z * (1 - s)), with s = sigmoid(z) */
EN_DEVICE float2 silu_slope(float2 z, float2 s)
{
    return make_float2(s.x * fmaf(z.x, 1.f - s.x, 1.f), s.y * fmaf(z.y, 1.f - s.y, 1.f));
}

/* What is read from shared memory below this is read there anew, not kept in registers by a compiler that sees it unchanged. */
#define KEEP_IN_SHARED() asm volatile("" ::: "memory")
/* What follows from the int v below this is computed there, not carried through the loop in registers. */
#define RECOMPUTED(v)    asm volatile("" : "+r"(v))

/* Which lane this is: its channels (the block's first is c0), its strip.  Lanes beyond the shape are not `live`. */
struct lane { int strip, pair, channel, pairs; bool live; };
EN_DEVICE lane lane_of(int vecs, int strips, int c)
{
    const int pairs = vecs * 4, strip = (int)threadIdx.x / pairs, pair = (int)threadIdx.x % pairs;
    const int channel = ((int)blockIdx.y * pairs + pair) * 2;
    return { strip, pair, channel, pairs, strip < strips && channel < c };
}

/* partials[part][2c] from kept[4][threads]: (sum.x, sum.y, sum2.x, sum2.y) of each thread, strips in order. */
EN_DEVICE void leave_sums(const double *kept, const lane &me, int strips, int c, double *partials)
{
    __syncthreads();
    const int width = me.pairs * 2, threads = (int)blockDim.x;
    for (int i = (int)threadIdx.x; i < 2 * width; i += threads) {
        const int which = i / width, channel = i % width, at = (int)blockIdx.y * width + channel;
        const double *from = kept + (which * 2 + channel % 2) * threads + channel / 2;
        double sum = 0;
        for (int s = 0; s < strips; s++) sum += from[s * me.pairs];
        if (at < c) partials[((int64_t)blockIdx.x * 2 + which) * c + at] = sum;
    }
}
#endif

/* ---- cutting a shape ------------------------------------------------------------------------------------------------------- */

struct block_cut { int vecs, strips, warps, slices, resident /* blocks on a multiprocessor */; };

/* The block for c channels: as many lanes at work as possible, of a multiprocessor that holds `warps` warps of this kernel
 * and `shared` bytes of shared memory, of which a block takes shared_of(vecs, strips).  `across`: strips of a row of the
 * image, where a block has to take whole rows or at least `least_strips` of one (0: any). */
template <typename F> static inline block_cut cut_block(int64_t c, int warps, size_t shared, int64_t across, int least_strips, F shared_of)
{
    const int all = (int)(c / 8);
    block_cut best = { 1, 1, 1, all, 1 };
    double best_score = 0;
    for (int vecs = 1; vecs <= (all < MAX_VECS ? all : MAX_VECS); vecs++)
        for (int strips = 1; strips <= MAX_STRIPS; strips++) {
            const int lanes = vecs * 4 * strips, w = (lanes + 31) / 32, slices = (all + vecs - 1) / vecs;
            const size_t bytes = shared_of(vecs, strips) + 1024;
            if (w > warps || bytes > shared) break;
            if (strips < across && strips < least_strips) continue;
            const int fit = (int)(shared / bytes), resident = warps / w < fit ? warps / w : fit;
            double score = (double)all / (slices * vecs) * lanes / (w * 32) * (resident * w) / warps;
            score *= vecs >= 4 || vecs == all ? 1. : vecs == 3 ? .95 : vecs == 2 ? .9 : .6;       /* bytes next to each other */
            score *= strips / (strips + .3);                                                      /* partial sums by block   */
            if (across > 0) score *= strips <= across ? (double)across / (double)(ceil_div(across, strips) * strips)
                                                      : (double)(strips / across * across) / strips;
            if (score > best_score + 1e-9) best_score = score, best = { vecs, strips, w, slices, resident };
        }
    return best;
}

/* Rows of a block of rows: a strip costs rows + `lead` (rows that lead in), blocks of threads run `resident` at a time. */
static inline int cut_rows(int64_t all_rows, int64_t lead, int64_t resident, int64_t (*blocks_of)(int64_t row_blocks, const void *), const void *of)
{
    int64_t best = all_rows, best_cost = INT64_MAX;
    for (int64_t blocks = 1; blocks == 1 || all_rows / blocks >= 4; blocks++) {
        const int64_t rows = ceil_div(all_rows, blocks), cost = ceil_div(blocks_of(ceil_div(all_rows, rows), of), resident) * (rows + lead);
        if (cost < best_cost) best_cost = cost, best = rows;
    }
    return (int)best;
}

/* The partial sums of a pass: at most part_limit parts, so that part_channels floats or doubles of each kind hold them,
 * whatever the number of images. */
static inline int64_t part_limit(int64_t blocks, int64_t slices) { return max64(1, blocks / slices); }
static inline int64_t part_channels(int64_t blocks, int64_t c)   { return max64(c, blocks * MAX_VECS * 8); }

/* Parts of at most `limit` that share `items` evenly. */
static inline int64_t even_parts(int64_t items, int64_t limit) { return items <= 0 ? 0 : ceil_div(items, ceil_div(items, max64(1, limit))); }

#endif
