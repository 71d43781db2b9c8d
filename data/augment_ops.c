/* augment_ops.c - the sixteen operations of the reference's autoaugment.py on 8-bit RGB, to the bit.
 *
 * They resemble Pillow's, from which they were copied by way of TensorFlow, and differ from it in ways that a network sees.
 * The reference is followed, because published accuracies were reached with it, here:
 *
 *   geometry     nearest neighbour: x' = (a0 x + a1 y) + a2 in float32, rounded half away from zero; outside is (128,128,128).
 *                Shears start at the centre of pixel (0, 0); Pillow's coordinates start at its corner, half a shear away.
 *   blend        A + f (B - A) in float32, then truncated, not rounded; outside of [0, 1] clipped first.  Pillow does the same.
 *   Color        grey is TensorFlow's rgb_to_grayscale: bytes scaled by 1/255, weights .2989 .5870 .1140, scaled by 255.5,
 *                truncated; Pillow has (19595 R + 38470 G + 7471 B + 32768) >> 16.
 *   Contrast     blends with the grey m = min(255, pixels/256), where Pillow takes the mean grey of the picture.  The reference sums
 *                the counts of the histogram and forgets to multiply by the levels: 196 at 224 x 224, 255 from 256 x 256 on.
 *   Sharpness    the smoothed picture is a sum of nine products in float32, truncated (Pillow rounds).  1/13 and 5/13 are not floats,
 *                so a flat area may come out one level darker before the blend.
 *   Posterize    0 bits keep the top bit: TensorFlow clamps the shift of a byte to 7.  Pillow makes the picture black.
 *   AutoContrast in float32, where Pillow's table is made in double: sometimes one level apart.
 *   Equalize     as Pillow: step = (pixels - count of the last level that occurs) / 255, no change when that is 0.
 *   Cutout       a square of side 2p about a pixel, clipped at the border, in the grey above.
 *
 * It is not followed where its behaviour was an accident of types: bits above 8 and thresholds above 256, which RandAugment reaches
 * at magnitudes above 10 and which wrap around in a byte there, mean "no change" here, as the sequence of levels below suggests.
 * So Solarize at level 10, threshold 256, does nothing.
 *
 * Three orders of summation are TensorFlow's own affair and were chosen: the grey sums red, green, blue; the smoothing sums its taps
 * row by row from zero, as the loop in depthwise_conv_op.cc does; sine and cosine are rounded from double.  None is contracted to
 * fused multiply-adds (CMakeLists.txt says so to the compiler), so every machine has the same pixels.
 *
 * What makes it fast: operations that see one value at a time are a table of 256 or plain vector code; histograms count into four
 * tables in turn, so that equal neighbours do not wait for each other; and a shift of a whole row is a copy. */
#include "augment.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Compiled a second time for AVX2, chosen when the program is loaded.  AVX2 alone has no fused multiply-add, so the bits stay. */
#if defined __x86_64__ && defined __GLIBC__ && defined __GNUC__ && !defined __clang__ && !defined EN_NO_CLONES
#define VECTOR __attribute__((target_clones("avx2", "default")))
#else
#define VECTOR
#endif

enum { CHUNK = 256, FILL = 128 };              /* pixels of a row at a time; their scratch lies on the stack */

typedef uint8_t tables[3][256];                /* new value of each channel's old one */

const char *en_op_name(en_op op)
{
    static const char *const names[EN_OPS] = { "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast",
        "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout", "SolarizeAdd" };
    assert(op < EN_OPS);
    return names[op];
}

static int clamp(int v, int low, int high) { return v < low ? low : v > high ? high : v; }

/* ---- one value at a time ---------------------------------------------------------------------------------------------- */

static void look_up(const tables table, int64_t pixels, uint8_t *rgb)
{
    for (int64_t i = 0; i < pixels; i++, rgb += 3) {
        rgb[0] = table[0][rgb[0]];
        rgb[1] = table[1][rgb[1]];
        rgb[2] = table[2][rgb[2]];
    }
}

VECTOR static void invert_from(int threshold, int64_t n, uint8_t *rgb)      /* threshold 0...255 */
{
    const uint8_t t = (uint8_t)threshold;
    for (int64_t i = 0; i < n; i++) rgb[i] = rgb[i] < t ? rgb[i] : (uint8_t)~rgb[i];
}

VECTOR static void keep_bits(uint8_t mask, int64_t n, uint8_t *rgb)
{
    for (int64_t i = 0; i < n; i++) rgb[i] &= mask;
}

VECTOR static void add_below_128(int addend, int64_t n, uint8_t *rgb)
{
    const int16_t add = (int16_t)clamp(addend, -255, 255);
    for (int64_t i = 0; i < n; i++) {
        const int16_t sum = (int16_t)(rgb[i] + add), low = sum < 0 ? 0 : sum, clipped = low > 255 ? 255 : low;
        rgb[i] = rgb[i] < 128 ? (uint8_t)clipped : rgb[i];
    }
}

/* ---- tables of the whole picture ---------------------------------------------------------------------------------------- */

VECTOR static void extrema(int64_t pixels, const uint8_t *rgb, uint8_t low[3], uint8_t high[3])
{
    uint8_t lo[48], hi[48];                    /* 16 pixels side by side: lane i belongs to channel i % 3 */
    memset(lo, 255, sizeof lo);
    memset(hi, 0, sizeof hi);
    int64_t i = 0;
    for (; i + 48 <= 3 * pixels; i += 48)
        for (int j = 0; j < 48; j++) {
            const uint8_t v = rgb[i + j];
            lo[j] = v < lo[j] ? v : lo[j];
            hi[j] = v > hi[j] ? v : hi[j];
        }
    for (int j = 0; i < 3 * pixels; i++, j++) {
        if (rgb[i] < lo[j]) lo[j] = rgb[i];
        if (rgb[i] > hi[j]) hi[j] = rgb[i];
    }
    for (int c = 0; c < 3; c++) {
        low[c] = 255;
        high[c] = 0;
        for (int j = c; j < 48; j += 3) {
            if (lo[j] < low[c]) low[c] = lo[j];
            if (hi[j] > high[c]) high[c] = hi[j];
        }
    }
}

static void autocontrast(int64_t pixels, uint8_t *rgb)
{
    uint8_t low[3], high[3];
    extrema(pixels, rgb, low, high);
    tables table;
    for (int c = 0; c < 3; c++) {
        const float lo = low[c], hi = high[c], scale = hi > lo ? 255.0f / (hi - lo) : 1, offset = hi > lo ? -lo * scale : 0;
        for (int v = 0; v < 256; v++) {
            const float scaled = (float)v * scale, t = scaled + offset;
            table[c][v] = (uint8_t)(t < 0 ? 0 : t > 255 ? 255 : t);
        }
    }
    look_up(table, pixels, rgb);
}

static void equalize(int64_t pixels, uint8_t *rgb)
{
    uint32_t count[4][3][256] = { 0 };
    const uint8_t *p = rgb;
    int64_t i = 0;
    for (; i + 4 <= pixels; i += 4)
        for (int k = 0; k < 4; k++, p += 3) {
            count[k][0][p[0]]++;
            count[k][1][p[1]]++;
            count[k][2][p[2]]++;
        }
    for (; i < pixels; i++, p += 3)
        for (int c = 0; c < 3; c++) count[0][c][p[c]]++;

    tables table;
    for (int c = 0; c < 3; c++) {
        int64_t n[256], last = 0, below = 0;
        for (int v = 0; v < 256; v++) {
            n[v] = (int64_t)count[0][c][v] + count[1][c][v] + count[2][c][v] + count[3][c][v];
            if (n[v]) last = n[v];
        }
        const int64_t step = (pixels - last) / 255;
        for (int v = 0; v < 256; below += n[v++]) {
            const int64_t level = step ? (below + step / 2) / step : v;
            table[c][v] = (uint8_t)(level > 255 ? 255 : level);
        }
    }
    look_up(table, pixels, rgb);
}

/* ---- blends --------------------------------------------------------------------------------------------------------------- */

static inline uint8_t blended(float from, float to, float factor)
{
    const float t = from + factor * (to - from), low = t < 0 ? 0 : t;
    return (uint8_t)(int)(low > 255 ? 255 : low);
}

VECTOR static void blend_with_level(uint8_t level, float factor, int64_t n, uint8_t *rgb)
{
    for (int64_t i = 0; i < n; i++) rgb[i] = blended(level, rgb[i], factor);
}

VECTOR static void color(float factor, int64_t pixels, uint8_t *rgb)
{
    const float unit = 1.0f / 255, red = 0.2989f, green = 0.5870f, blue = 0.1140f;
    for (int64_t done = 0; done < pixels; done += CHUNK) {
        const int n = pixels - done < CHUNK ? (int)(pixels - done) : CHUNK;
        uint8_t *p = rgb + 3 * done, grey[3 * CHUNK];
        for (int i = 0; i < n; i++) {
            const float sum = (float)p[3 * i] * unit * red + (float)p[3 * i + 1] * unit * green + (float)p[3 * i + 2] * unit * blue;
            const uint8_t g = (uint8_t)(int)(sum * 255.5f);
            grey[3 * i] = grey[3 * i + 1] = grey[3 * i + 2] = g;
        }
        for (int i = 0; i < 3 * n; i++) p[i] = blended(grey[i], p[i], factor);
    }
}

/* values [1, n-1) of one row, of which `in` holds the old picture; the border keeps its value */
VECTOR static void sharpen_row(float factor, int64_t w, const uint8_t *in, uint8_t *restrict out)
{
    const float side = 1.0f / 13, centre = 5.0f / 13;
    const uint8_t *up = in - 3 * w, *down = in + 3 * w;
    for (int64_t i = 3; i < 3 * w - 3; i++) {
        float sum = (float)up[i - 3] * side;
        sum += (float)up[i] * side;
        sum += (float)up[i + 3] * side;
        sum += (float)in[i - 3] * side;
        sum += (float)in[i] * centre;
        sum += (float)in[i + 3] * side;
        sum += (float)down[i - 3] * side;
        sum += (float)down[i] * side;
        sum += (float)down[i + 3] * side;
        out[i] = blended((float)(int)sum, in[i], factor);     /* sum is below 256, whatever was rounded */
    }
}

static void sharpness(float factor, int64_t w, int64_t h, uint8_t *rgb, uint8_t *spare)
{
    memcpy(spare, rgb, (size_t)(3 * w * h));
    for (int64_t y = 1; y + 1 < h; y++) sharpen_row(factor, w, spare + 3 * w * y, rgb + 3 * w * y);
}

/* ---- geometry -------------------------------------------------------------------------------------------------------------- */

typedef struct { float x[3], y[3]; } transform;        /* source x = (x[0]*x + x[1]*y) + x[2], source y likewise */

/* Pixel i of a row's chunk comes from in + from[i], or from nowhere where from[i] < 0.  A coordinate v is inside when it rounds to
 * 0...size-1, half away from zero: v > -1/2 and v < size - 1/2; there, rounding is truncating v + 1/2, of which the float below 1/2
 * is added lest the sum round up from just below a half.  (Just above -1/2 the sum is a negative fraction, and truncates to 0.) */
VECTOR static void places(const transform *t, int64_t y, int first, int n, int w, int h, int32_t *restrict from)
{
    const float half = 0x1.fffffep-2f, right = (float)w - 0.5f, bottom = (float)h - 0.5f;
    const float x1 = t->x[1] * (float)y, y1 = t->y[1] * (float)y, x0 = t->x[0], x2 = t->x[2], y0 = t->y[0], y2 = t->y[2];
    for (int i = 0; i < n; i++) {
        const float x = (float)(first + i), u = x0 * x + x1 + x2, v = y0 * x + y1 + y2;
        const int inside = (u > -0.5f) & (u < right) & (v > -0.5f) & (v < bottom);
        const int column = (int)(inside ? u + half : 0), row = (int)(inside ? v + half : 0);
        from[i] = inside ? (row * w + column) * 3 : -1;
    }
}

static void gather_row(const transform *t, int64_t y, int w, int h, const uint8_t *in, uint8_t *out)
{
    const int32_t wide = w * h * 3 - 4;        /* up to here a pixel may be read as four bytes */
    int32_t from[CHUNK];
    for (int first = 0; first < w; first += CHUNK) {
        const int n = w - first < CHUNK ? w - first : CHUNK;
        uint8_t *p = out + 3 * first;
        places(t, y, first, n, w, h, from);
        for (int i = 0; i + 1 < n; i++, p += 3) {      /* four bytes written: the next pixel mends the last of them */
            uint32_t pixel = FILL * 0x010101u;
            if (from[i] > wide) memcpy(&pixel, in + from[i], 3);
            else if (from[i] >= 0) memcpy(&pixel, in + from[i], 4);
            memcpy(p, &pixel, 4);
        }
        if (from[n - 1] < 0) memset(p, FILL, 3);
        else memcpy(p, in + from[n - 1], 3);
    }
}

/* The row moved left by `by` pixels, as gather_row would when x[0] = 1 and y[0] = 0: x + by is rounded twice, in the sum and to a
 * pixel, and the shift is the same for all x unless `by` lies within the sum's rounding of a half. */
static bool shift_row(float by, int w, const uint8_t *in, uint8_t *out)
{
    const float fraction = by - floorf(by);
    if (fabsf(fraction - 0.5f) <= 0x1p-22f * ((float)w + fabsf(by) + 1)) return false;
    const int shift = (int)fmaxf(fminf(floorf(by + 0.5f), (float)w), (float)-w), kept = w - (shift < 0 ? -shift : shift);
    const int left = shift < 0 ? -shift : 0;
    memset(out, FILL, (size_t)left * 3);
    memcpy(out + 3 * left, in + 3 * (shift > 0 ? shift : 0), (size_t)kept * 3);
    memset(out + 3 * (left + kept), FILL, (size_t)(w - left - kept) * 3);
    return true;
}

static void warp(transform t, int64_t w64, int64_t h64, uint8_t *rgb, uint8_t *spare)
{
    assert(w64 * h64 <= INT32_MAX / 3);        /* offsets are of 32 bits, to go eight at a time */
    const int w = (int)w64, h = (int)h64;
    const bool rows = t.x[0] == 1 && t.y[0] == 0;    /* a shear or translation along x, a translation along y: rows stay rows */
    for (int y = 0; y < h; y++) {
        uint8_t *out = spare + (size_t)y * (size_t)w * 3;
        if (rows) {
            const float v = roundf((float)y + t.y[2]);
            if (!(v >= 0 && v < (float)h)) {
                memset(out, FILL, (size_t)w * 3);
                continue;
            }
            if (shift_row(t.x[1] * (float)y + t.x[2], w, rgb + (size_t)v * (size_t)w * 3, out)) continue;
        }
        gather_row(&t, y, w, h, rgb, out);
    }
    memcpy(rgb, spare, (size_t)w * (size_t)h * 3);
}

static transform rotation(double degrees, int64_t w, int64_t h)
{
    const float radians = (float)degrees * (float)(3.14159265358979323846 / 180.0);
    const float c = (float)cos((double)radians), s = (float)sin((double)radians), right = (float)(w - 1), bottom = (float)(h - 1);
    return (transform){ .x = { c, -s, (right - (c * right - s * bottom)) / 2 }, .y = { s, c, (bottom - (s * right + c * bottom)) / 2 } };
}

static void cutout(int64_t half, int64_t cx, int64_t cy, int64_t w, int64_t h, uint8_t *rgb)
{
    const int64_t x0 = cx - half > 0 ? cx - half : 0, x1 = cx + half < w ? cx + half : w;
    const int64_t y0 = cy - half > 0 ? cy - half : 0, y1 = cy + half < h ? cy + half : h;
    if (x0 < x1)
        for (int64_t y = y0; y < y1; y++) memset(rgb + (y * w + x0) * 3, FILL, (size_t)(x1 - x0) * 3);
}

/* ---- */

void en_op_apply(en_op op, double argument, int64_t cx, int64_t cy, int64_t w, int64_t h, uint8_t *rgb, uint8_t *spare)
{
    const int64_t pixels = w * h, n = 3 * pixels;
    const float f = (float)argument;
    switch (op) {
    case EN_OP_AUTOCONTRAST: autocontrast(pixels, rgb); break;
    case EN_OP_EQUALIZE:     equalize(pixels, rgb); break;
    case EN_OP_INVERT:       invert_from(0, n, rgb); break;
    case EN_OP_ROTATE:       if (f != 0) warp(rotation(argument, w, h), w, h, rgb, spare); break;
    case EN_OP_POSTERIZE:    keep_bits((uint8_t)(0xff << clamp(8 - clamp((int)argument, 0, 8), 0, 7)), n, rgb); break;
    case EN_OP_SOLARIZE:     if (argument < 256) invert_from(clamp((int)argument, 0, 255), n, rgb); break;
    case EN_OP_COLOR:        if (f != 1) color(f, pixels, rgb); break;
    case EN_OP_CONTRAST:     if (f != 1) blend_with_level((uint8_t)(pixels < 255 * 256 ? pixels / 256 : 255), f, n, rgb); break;
    case EN_OP_BRIGHTNESS:   if (f != 1) blend_with_level(0, f, n, rgb); break;
    case EN_OP_SHARPNESS:    if (f != 1) sharpness(f, w, h, rgb, spare); break;
    case EN_OP_SHEAR_X:      if (f != 0) warp((transform){ { 1, f, 0 }, { 0, 1, 0 } }, w, h, rgb, spare); break;
    case EN_OP_SHEAR_Y:      if (f != 0) warp((transform){ { 1, 0, 0 }, { f, 1, 0 } }, w, h, rgb, spare); break;
    case EN_OP_TRANSLATE_X:  if (f != 0) warp((transform){ { 1, 0, f }, { 0, 1, 0 } }, w, h, rgb, spare); break;
    case EN_OP_TRANSLATE_Y:  if (f != 0) warp((transform){ { 1, 0, 0 }, { 0, 1, f } }, w, h, rgb, spare); break;
    case EN_OP_CUTOUT:       cutout((int64_t)argument, cx, cy, w, h, rgb); break;
    case EN_OP_SOLARIZE_ADD: add_below_128((int)argument, n, rgb); break;
    case EN_OPS:             assert(!"an operation"); break;
    }
}
