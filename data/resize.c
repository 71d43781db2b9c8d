/* resize.c - TF1's legacy resize_bicubic, with flip and normalisation on the way out.
 *
 * Source: tensorflow/core/kernels/image/resize_bicubic_op.cc with half_pixel_centers = false.  Output index i of `size`
 * looks at c = i * (in / size), in float32, and at the four samples floor(c) - 1 ... floor(c) + 2, clamped to the crop.
 * With t = c - floor(c) rounded to 1/1024 and Keys' kernel at A = -0.75 the weights are
 *
 *     k(1 + t), k(t), k(1 - t), k(2 - t)        k(x) = (A+2) x^3 - (A+3) x^2 + 1            0 <= x <= 1
 *                                               k(x) = A x^3 - 5A x^2 + 8A x - 4A           1 <  x <= 2
 *
 * No half-pixel shift, no antialiasing, no clipping of the overshoot: not what Pillow or PyTorch do, and what the published
 * networks were trained on.
 *
 * Separable: first down the columns, then along the rows, as the reference does it.  An output row needs four input rows,
 * so rows that no tap falls on are never touched; the pass over them is a sum of four byte rows times four scalars, which a
 * compiler vectorises.  The pass along the row takes four pixels of three floats each at computed places: one 16-byte load
 * a pixel, whose fourth lane belongs to the neighbour and is thrown away.
 *
 * Nothing is allocated: columns go in strips that fit the stack.  When a strip would span too many input columns (a crop
 * shrunk more than fourfold), fewer than all of those carry a tap, and it is cheaper to sum the 16 taps of a pixel at once.
 * Both ways sum in the same order, so the strip borders cannot be seen in the result, which the tests hold them to. */
#include "data.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

const en_normalise en_imagenet_normalise = {
    .mean = { 255 * 0.485f, 255 * 0.456f, 255 * 0.406f },
    .std  = { 255 * 0.229f, 255 * 0.224f, 255 * 0.225f },
};

enum { TABLE = 1024, STRIP = 256, SPAN = 1280 };    /* SPAN: input columns of a strip, 4 * STRIP and some */

typedef float f32x4 __attribute__((vector_size(16)));
static f32x4 load4(const float *p)             { f32x4 v; memcpy(&v, p, sizeof v); return v; }
static void  store4(float *p, f32x4 v)         { memcpy(p, &v, sizeof v); }

static float near_weight[TABLE + 1], far_weight[TABLE + 1];   /* k(t), k(1 + t) at t = i/1024 */
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static void make_table(void)
{
    const double a = -0.75;
    for (int i = 0; i <= TABLE; i++) {
        float x = (float)i / TABLE;            /* exact */
        near_weight[i] = (float)(((a + 2) * x - (a + 3)) * x * x + 1);
        x += 1.0f;
        far_weight[i] = (float)(((a * x - 5 * a) * x + 8 * a) * x - 4 * a);
    }
}

typedef struct { float weight[4]; int64_t at[4]; } taps;

static int64_t clamp(int64_t i, int64_t n) { return i < 0 ? 0 : i >= n ? n - 1 : i; }

static taps taps_at(int64_t out, float scale, int64_t in)
{
    const float c = (float)out * scale;
    const int64_t floor_c = (int64_t)floorf(c);
    const long t = lrintf((c - (float)floor_c) * TABLE);
    return (taps){ { far_weight[t], near_weight[t], near_weight[TABLE - t], far_weight[TABLE - t] },
                   { clamp(floor_c - 1, in), clamp(floor_c, in), clamp(floor_c + 1, in), clamp(floor_c + 2, in) } };
}

/* column[i] = sum_k weight[k] * row[k][i]; n floats, three a pixel */
static void blend_rows(const uint8_t *const row[4], const float weight[4], int64_t n, float *restrict column)
{
    const uint8_t *restrict r0 = row[0], *restrict r1 = row[1], *restrict r2 = row[2], *restrict r3 = row[3];
    const float w0 = weight[0], w1 = weight[1], w2 = weight[2], w3 = weight[3];
    for (int64_t i = 0; i < n; i++) column[i] = (float)r0[i] * w0 + (float)r1[i] * w1 + (float)r2[i] * w2 + (float)r3[i] * w3;
}

void en_resize_bicubic(const en_image *img, const en_crop *crop, int size, const en_normalise *norm, float *out)
{
    pthread_once(&table_once, make_table);
    const float scale_x = (float)crop->w / (float)size, scale_y = (float)crop->h / (float)size;
    const f32x4 mean = { norm->mean[0], norm->mean[1], norm->mean[2], 0 }, std = { norm->std[0], norm->std[1], norm->std[2], 1 };
    const uint8_t *origin = img->rgb + (crop->y * img->w + crop->x) * 3;

    for (int64_t strip = 0; strip < size; strip += STRIP) {
        const int64_t columns = size - strip < STRIP ? size - strip : STRIP;
        taps across[STRIP];                    /* of output column strip + j, mirrored when flipped; `at` in floats */
        int64_t first = crop->w - 1, last = 0;
        for (int64_t j = 0; j < columns; j++) {
            across[j] = taps_at(crop->flip ? size - 1 - (strip + j) : strip + j, scale_x, crop->w);
            for (int k = 0; k < 4; k++) {
                if (across[j].at[k] < first) first = across[j].at[k];
                if (across[j].at[k] > last) last = across[j].at[k];
            }
        }
        const bool direct = last - first + 1 > SPAN;
        for (int64_t j = 0; j < columns; j++)
            for (int k = 0; k < 4; k++) across[j].at[k] = (across[j].at[k] - first) * 3;

        float column[SPAN * 3 + 1];            /* + 1: the last pixel's fourth lane */
        column[SPAN * 3] = 0;
        for (int64_t i = 0; i < size; i++) {
            const taps down = taps_at(i, scale_y, crop->h);
            const uint8_t *row[4];
            for (int k = 0; k < 4; k++) row[k] = origin + (down.at[k] * img->w + first) * 3;
            if (!direct) {
                blend_rows(row, down.weight, (last - first + 1) * 3, column);
                column[(last - first + 1) * 3] = 0;
            }
            float *pixel = out + (i * size + strip) * 3;
            for (int64_t j = 0; j < columns; j++, pixel += 3) {
                f32x4 tap[4];
                for (int k = 0; k < 4; k++) {
                    const int64_t at = across[j].at[k];
                    if (direct) {
                        float sum[4] = { 0 };
                        const uint8_t *const here[4] = { row[0] + at, row[1] + at, row[2] + at, row[3] + at };
                        blend_rows(here, down.weight, 3, sum);
                        tap[k] = load4(sum);
                    } else tap[k] = load4(column + at);
                }
                const float *weight = across[j].weight;
                const f32x4 value = tap[0] * weight[0] + tap[1] * weight[1] + tap[2] * weight[2] + tap[3] * weight[3];
                const f32x4 normal = (value - mean) / std;
                if (j + 1 < columns) store4(pixel, normal);           /* the fourth lane is overwritten by the next pixel */
                else memcpy(pixel, &normal, 3 * sizeof *pixel);
            }
        }
    }
}

void en_round_pixels(const float *value, size_t n, uint8_t *out)
{
    for (size_t i = 0; i < n; i++) {
        const float v = value[i] < 0 ? 0 : value[i] > 255 ? 255 : value[i];
        out[i] = (uint8_t)lrintf(v);
    }
}
