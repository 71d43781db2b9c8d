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

/* ---- cutting a shape -------------------------------------------------------------------------------------------------------
 *
 * How many vecs and strips make a block, how many rows an item, how many items a part: the choice with the least estimated
 * time, in slots (instructions of a warp).  A multiprocessor works off the blocks it gets, `resident` at a time; fewer
 * than FULL warps leave it idle between instructions, so they take as long as FULL would. */

enum { FULL = 8, FORWARD_CHANNELS = 2048, BACKWARD_CHANNELS = 512 };       /* parts * c <= sms * CHANNELS: bounds the partial sums */

struct block_cut { int vecs, strips, warps, slices, resident, rows; int64_t parts; double slots; };

static inline double slots_of(int64_t blocks, int sms, int resident, int warps, double slots_of_warp)
{
    const int64_t mine = ceil_div(blocks, sms), full = mine / resident, rest = mine % resident;
    const int all = resident * warps > FULL ? resident * warps : FULL, some = rest * warps > FULL ? (int)rest * warps : FULL;
    return (double)(full * all + (rest > 0 ? some : 0)) * slots_of_warp;
}
/* What it costs to write and to add `bytes` of partial sums: 4 TB/s, against 4 instructions per cycle of 0.6 ns */
static inline double slots_of_partials(double bytes) { return 2 * bytes / 4e12 / .57e-9 * 4; }

/* Neighbouring bytes of a row that a block reads: half a line or less costs the memory more than its bytes. */
static inline double scattered(int vecs, int all) { return vecs >= 4 || vecs == all ? 1. : vecs == 3 ? 1.05 : vecs == 2 ? 1.15 : 1.6; }

/* The blocks for c channels, on multiprocessors that hold `warps` warps of the kernel and `shared` bytes: the best of
 * judge(cut), which sets rows and parts and returns the slots, or a negative number where the cut does not do.
 * shared_of(vecs, strips): bytes that a block takes. */
template <typename S, typename J> static inline block_cut best_cut(int64_t c, int warps, size_t shared, S shared_of, J judge)
{
    const int all = (int)(c / 8);
    block_cut best = {};
    for (int vecs = 1; vecs <= (all < MAX_VECS ? all : MAX_VECS); vecs++)
        for (int strips = 1; strips <= MAX_STRIPS; strips++) {
            block_cut cut = { vecs, strips, (vecs * 4 * strips + 31) / 32, (all + vecs - 1) / vecs, 0, 0, 0, 0 };
            const size_t bytes = shared_of(vecs, strips) + 1024;                /* a block costs 1 KB beside its own */
            if (cut.warps > warps || bytes > shared) break;
            const int fit = (int)(shared / bytes);
            cut.resident = warps / cut.warps < fit ? warps / cut.warps : fit;
            cut.slots    = judge(&cut) * scattered(vecs, all);
            if (cut.slots >= 0 && (best.vecs == 0 || cut.slots < best.slots)) best = cut;
        }
    return best;
}

/* Rows to try for an item, of `all`: every count of blocks that differs from the last by a tenth or more */
static inline int64_t more_blocks(int64_t blocks) { return blocks + 1 + blocks / 10; }

/* A shape is cut once: the answers by geometry, for as many as a network has. */
template <typename L> struct cut_memory {
    struct entry { en_conv_geom g; en_dtype dtype; int variant, sms; size_t shared; L launch; } entries[256];
    int used, next;
    template <typename F> const L *find(const cuda_engine *e, const en_conv_geom *g, int variant, F make)
    {
        for (int i = 0; i < used; i++) {
            const entry &k = entries[i];
            if (k.g.n == g->n && k.g.h == g->h && k.g.w == g->w && k.g.c == g->c && k.g.oh == g->oh && k.g.ow == g->ow && k.g.kernel == g->kernel &&
                k.g.stride == g->stride && k.g.pad == g->pad && k.dtype == e->dtype && k.variant == variant && k.sms == e->sms && k.shared == e->shared_max)
                return &k.launch;
        }
        const int at = used < 256 ? used++ : next++ % 256;
        entries[at] = { *g, e->dtype, variant, e->sms, e->shared_max, make() };
        return &entries[at].launch;
    }
};

#endif
