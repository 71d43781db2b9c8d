/* sums.cu - sums over rows in two stages of fixed order, and the sums that batch norm needs of a raw tensor.
 *
 * Stage one is a kernel's: partials[part][width].  Stage two, here, gives 32 columns to a block of 32 x 32 threads; each sums
 * every 32nd part of its column in double, and a tree joins the 32.  A thousand parts are then 32 loads deep, not 1000. */
#include "sweep.h"

enum { COLLECT_COLUMNS = 32, COLLECT_LANES = 32 };

/* grid (ceil(width/32) * batches), block (32, 1..32): out[b][i] = (add ? out[b][i] : 0) + sum over parts of partials[b][part][i].
 * Bytes: every partial once.  `rows` (NULL: none) receives n_rows beside the sums.  Edge: columns beyond width read nothing. */
template <typename P, typename O, bool ADD>
static __global__ void __launch_bounds__(COLLECT_COLUMNS *COLLECT_LANES)
    collect_parts(const P *partials, int64_t parts, int64_t width, O *out, double *rows, double n_rows)
{
    __shared__ double held[COLLECT_LANES][COLLECT_COLUMNS];
    const int64_t tiles = (width + COLLECT_COLUMNS - 1) / COLLECT_COLUMNS, batch = blockIdx.x / tiles;
    const int x = (int)threadIdx.x, y = (int)threadIdx.y, lanes = (int)blockDim.y;
    const int64_t i = blockIdx.x % tiles * COLLECT_COLUMNS + x;
    const P *column = partials + batch * parts * width + i;
    double sum = 0;
    if (i < width) {
        int64_t part = y;
        for (; part + 3 * lanes < parts; part += 4 * lanes) {  /* four loads in flight, summed in order */
            const double a = (double)column[part * width], b = (double)column[(part + lanes) * width];
            const double c = (double)column[(part + 2 * lanes) * width], d = (double)column[(part + 3 * lanes) * width];
            sum += a, sum += b, sum += c, sum += d;
        }
        for (; part < parts; part += lanes) sum += (double)column[part * width];
    }
    held[y][x] = sum;
    __syncthreads();
    for (int half = lanes / 2; half > 0; half /= 2) {
        if (y < half) held[y][x] += held[y + half][x];
        __syncthreads();
    }
    if (y == 0 && i < width) {
        O *o = out + batch * width + i;
        *o = (O)((ADD ? (double)*o : 0) + held[0][x]);
        if (rows && i == 0 && batch == 0) *rows = n_rows;
    }
}

template <typename P, typename O, bool ADD>
static en_status queue_collect(en_backend *be, const P *partials, int64_t batches, int64_t parts, int64_t width, O *out, double *rows, double n_rows)
{
    if (batches == 0 || width == 0) return EN_OK;
    unsigned lanes = 1;
    while (lanes < COLLECT_LANES && lanes < parts) lanes *= 2;
    collect_parts<P, O, ADD><<<(unsigned)(ceil_div(width, COLLECT_COLUMNS) * batches), dim3(COLLECT_COLUMNS, lanes), 0, engine(be)->compute>>>(
        partials, parts, width, out, rows, n_rows);
    CU_LAUNCHED("collecting %lld sums of %lld parts", (long long)width, (long long)parts);
    return EN_OK;
}

en_status collect(en_backend *be, const double *partials, int64_t parts, int64_t width, double *out)
{
    return queue_collect<double, double, false>(be, partials, 1, parts, width, out, NULL, 0);
}

en_status collect_add(en_backend *be, const float *partials, int64_t parts, int64_t width, float *out)
{
    return queue_collect<float, float, true>(be, partials, 1, parts, width, out, NULL, 0);
}

en_status collect_each(en_backend *be, const float *partials, int64_t batches, int64_t parts, int64_t width, float *out)
{
    return queue_collect<float, float, false>(be, partials, batches, parts, width, out, NULL, 0);
}

en_status collect_rows(en_backend *be, const double *partials, int64_t parts, en_bn *bn, int64_t rows)
{
    return queue_collect<double, double, false>(be, partials, 1, rows > 0 ? parts : 0, 2 * bn->c, bn->local, bn->local + 2 * bn->c, (double)rows);
}

static __global__ void __launch_bounds__(32) store_rows(double *rows, double n_rows)
{
    if (threadIdx.x == 0) *rows = n_rows;
}

en_status set_rows(en_backend *be, en_bn *bn, int64_t rows)
{
    if (rows == 0) return collect_rows(be, NULL, 0, bn, 0);
    store_rows<<<1, 32, 0, engine(be)->compute>>>(bn->local + 2 * bn->c, (double)rows);
    CU_LAUNCHED("row count");
    return EN_OK;
}

/* ---- sums of a raw tensor -------------------------------------------------------------------------------------------------- */

/* sweep (1, rows, c): partials[part] = { sum(y - s), sum((y - s)^2) } with s = shift[c].  Bytes: y once, 2 (or 4) a value.
 * Four rows are fetched before the first is summed: 64 bytes in flight a thread. */
template <typename T> static __global__ void __launch_bounds__(SWEEP_BLOCK, 4) sum_rows(sweep s, const T *__restrict__ y, const float *shift, double *partials)
{
    enum { BATCH = sizeof(T) == 2 ? 4 : 2 };
    __shared__ __align__(16) float held[SWEEP_SHARED(2)];
    const sweep_place p = place_in(s);
    float about[8], sums[2][8];
    load8(shift + p.channel, about);
    fill8(sums[0], 0.f), fill8(sums[1], 0.f);
    for (int64_t r = p.first; r < p.end; r += BATCH * s.stride) {
        raw8<T> raw[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (r + k * s.stride < p.end) raw[k] = fetch8(y + at_row(s, p, r + k * s.stride));
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (r + k * s.stride < p.end) {
                float v[8];
                open8(raw[k], v);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const float d = v[i] - about[i];
                    sums[0][i] += d;
                    sums[1][i] = fmaf(d, d, sums[1][i]);
                }
            }
    }
    double *const out = partials + p.part * 2 * s.c;
    block_sums<2>(s, sums, held, [&](int k, int64_t channel, double sum) { out[k * s.c + channel] = sum; });
}

en_status sweep_sums(en_backend *be, int64_t rows, int64_t c, const void *y, en_bn *bn)
{
    CU_CHANNELS(c);
    if (rows == 0) return set_rows(be, bn, 0);
    const sweep s = sweep_to_sum(engine(be), 1, rows, c);
    scratch_carver scratch = carver_of(be);
    double *partials = scratch.take<double>(sweep_parts(s) * 2 * c);
    SCRATCH_FITS(be, scratch);
    BY_TYPE(be, T, (sum_rows<T><<<sweep_grid(s), SWEEP_BLOCK, 0, engine(be)->compute>>>(s, (const T *)y, bn->running_mean, partials)));
    CU_LAUNCHED("sums of %lld rows of %lld channels", (long long)rows, (long long)c);
    return collect_rows(be, partials, sweep_parts(s), bn, rows);
}

/* Sums of either end of a convolution of geometry g, forward and backward; join_backward leaves those of two batch norms. */
size_t scratch_of_norm(const cuda_engine *e, const en_conv_geom *g)
{
    scratch_carver in = { NULL, 0 }, out = { NULL, 0 };
    if (g->c % 8 == 0) in.take<double>(parts_to_sum_most(e, 1, g->n * g->h * g->w, g->c) * 4 * g->c);
    if (g->oc % 8 == 0) out.take<double>(parts_to_sum_most(e, 1, g->n * g->oh * g->ow, g->oc) * 4 * g->oc);
    return in.used > out.used ? in.used : out.used;
}
