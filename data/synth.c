/* synth.c - ten classes of drawn pictures: something to train on before any data is there.
 *
 * Each class is a pattern that survives what training does to a picture: a crop of a tenth of it, a flip, a change of
 * aspect by a third.  So the pattern is repeated or fills the picture, and colour says nothing: both colours are drawn at
 * random, only their distance in brightness is kept.
 *
 *     checker   two square waves at right angles     noise     independent cells, light or dark
 *     circles   3 to 6 filled discs                  rings     3 to 6 outlines of discs
 *     crosses   3 to 6 plus signs, turned            squares   3 to 6 filled squares, turned
 *     dots      a grid of small discs                stripes   one square wave
 *     gradients a smooth ramp, nothing else          triangles 3 to 6 filled triangles, turned
 *
 * Shapes are signed distances: inside(d) is 1 within, 0 without, and a ramp of one pixel between. */
#include "synth.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <jpeglib.h>

enum { CHECKER, CIRCLES, CROSSES, DOTS, GRADIENTS, NOISE, RINGS, SQUARES, STRIPES, TRIANGLES, MAX_OBJECTS = 6, QUALITY = 90 };

const char *const en_synth_names[EN_SYNTH_CLASSES] = {
    [CHECKER] = "checker", [CIRCLES] = "circles", [CROSSES] = "crosses", [DOTS] = "dots", [GRADIENTS] = "gradients",
    [NOISE] = "noise", [RINGS] = "rings", [SQUARES] = "squares", [STRIPES] = "stripes", [TRIANGLES] = "triangles",
};

typedef struct {                               /* lengths in pixels, angles as cosine and sine */
    int   objects;
    float x[MAX_OBJECTS], y[MAX_OBJECTS], r[MAX_OBJECTS], cos[MAX_OBJECTS], sin[MAX_OBJECTS];
    float pitch, phase, turn_cos, turn_sin;
    uint32_t salt;
} pattern;

static float between(en_rng *rng, float lo, float hi) { return lo + (hi - lo) * en_rng_uniform(rng); }
static float inside(float d)                          { return d < -0.5f ? 1 : d > 0.5f ? 0 : 0.5f - d; }

/* +-1 with steep flanks, period 2 * pitch */
static float wave(float x, float pitch)
{
    const float at = x / pitch - floorf(x / pitch);                /* [0, 1) within a stripe */
    const float edge = fminf(at, 1 - at) * pitch;                  /* pixels to the nearest flank */
    const float sign = ((int64_t)floorf(x / pitch) & 1) ? 1 : -1;
    return sign * fminf(edge * 2, 1);
}

static uint32_t hash(uint32_t x)               /* Wellons' lowbias32: noise for pixels needs no more than that */
{
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

/* How much of the foreground shows at (px, py): 0 to 1. */
static float coverage(int class, const pattern *p, int size, float px, float py)
{
    const float u = p->turn_cos * px + p->turn_sin * py + p->phase, v = p->turn_cos * py - p->turn_sin * px + p->phase;
    switch (class) {
    case STRIPES:   return 0.5f + 0.5f * wave(u, p->pitch);
    case CHECKER:   return 0.5f + 0.5f * wave(u, p->pitch) * wave(v, p->pitch);
    case GRADIENTS: { const float centre = p->phase + 0.5f * (float)size * (p->turn_cos + p->turn_sin);
                      const float s = 0.5f + (u - centre) / (1.3f * (float)size);
                      return s < 0 ? 0 : s > 1 ? 1 : s; }
    case NOISE:     { const uint32_t cx = (uint32_t)(px / (0.4f * p->pitch)), cy = (uint32_t)(py / (0.4f * p->pitch));
                      return hash(cx * 0x9e3779b9u ^ hash(cy ^ p->salt)) >> 31 ? 1 : 0; }
    case DOTS:      { const float q = 1.2f * p->pitch, du = u - q * roundf(u / q), dv = v - q * roundf(v / q);
                      return inside(sqrtf(du * du + dv * dv) - 0.3f * q); }
    default: break;
    }
    float most = 0;
    for (int i = 0; i < p->objects; i++) {
        const float dx = px - p->x[i], dy = py - p->y[i], r = p->r[i];
        const float a = fabsf(p->cos[i] * dx + p->sin[i] * dy), along = p->cos[i] * dy - p->sin[i] * dx, b = fabsf(along);
        float d;
        switch (class) {
        case CIRCLES: d = sqrtf(dx * dx + dy * dy) - r; break;
        case RINGS:   d = fabsf(sqrtf(dx * dx + dy * dy) - 0.85f * r) - 0.17f * r; break;
        case SQUARES: d = fmaxf(a, b) - 0.88f * r; break;
        case CROSSES: d = fminf(fmaxf(a - 1.1f * r, b - 0.27f * r), fmaxf(b - 1.1f * r, a - 0.27f * r)); break;
        default:      d = fmaxf(0.8660254f * a + 0.5f * along, -along) - 0.6f * r; break;       /* equilateral triangle */
        }
        most = fmaxf(most, inside(d));
    }
    return most;
}

void en_synth_draw(int class, int size, uint64_t seed, uint64_t picture, uint8_t *rgb)
{
    en_rng rng = en_rng_at(seed, EN_RNG_SYNTH, (uint64_t)class, picture, 0);
    const float side = (float)size;
    pattern p = { .objects = 3 + (int)en_rng_below(&rng, MAX_OBJECTS - 2), .pitch = side * between(&rng, 0.06f, 0.12f) };
    if (p.pitch < 3) p.pitch = 3;
    p.phase = between(&rng, 0, 4 * p.pitch) + 4 * side;            /* keeps u and v on one side of 0 */
    const float turn = between(&rng, 0, 6.2831853f);
    p.turn_cos = cosf(turn);
    p.turn_sin = sinf(turn);
    p.salt = en_rng_u32(&rng);
    for (int i = 0; i < p.objects; i++) {
        const float angle = between(&rng, 0, 6.2831853f);
        p.r[i] = side * between(&rng, 0.10f, 0.19f);
        p.x[i] = between(&rng, 0.1f, 0.9f) * side;
        p.y[i] = between(&rng, 0.1f, 0.9f) * side;
        p.cos[i] = cosf(angle);
        p.sin[i] = sinf(angle);
    }
    /* two colours whose brightness differs by 70 to 120 levels, either the brighter one */
    float back[3], fore[3];
    const float gap = between(&rng, 70, 120), low = between(&rng, 40, 215 - gap);
    const bool dark_on_light = en_rng_u32(&rng) >> 31;
    for (int d = 0; d < 3; d++) {
        back[d] = (dark_on_light ? low + gap : low) + between(&rng, -35, 35);
        fore[d] = (dark_on_light ? low : low + gap) + between(&rng, -35, 35);
    }
    const float slope_x = between(&rng, -20, 20) / side, slope_y = between(&rng, -20, 20) / side, grain = between(&rng, 4, 24);

    uint32_t state = en_rng_u32(&rng);
    for (int y = 0; y < size; y++)
        for (int x = 0; x < size; x++, rgb += 3) {
            const float px = (float)x + 0.5f, py = (float)y + 0.5f, m = coverage(class, &p, size, px, py);
            const uint32_t noise = hash(state++);
            const float slope = slope_x * (px - side / 2) + slope_y * (py - side / 2);
            const float light = slope + grain * ((float)(noise >> 16) / 65536 - 0.5f);
            for (int d = 0; d < 3; d++) {
                const float v = back[d] + m * (fore[d] - back[d]) + light + 6 * ((float)(noise >> 4 * d & 15) / 16 - 0.5f);
                rgb[d] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
            }
        }
}

/* ---- JPEG ---- */

struct writer {
    struct jpeg_compress_struct cinfo;
    struct jpeg_error_mgr       errors;
    jmp_buf                     escape;
    char                        reason[JMSG_LENGTH_MAX];
    unsigned char              *bytes;
    unsigned long               n;
};

static void leave(j_common_ptr cinfo)
{
    struct writer *w = cinfo->client_data;
    cinfo->err->format_message(cinfo, w->reason);
    longjmp(w->escape, 1);
}

static bool compress(struct writer *w, const uint8_t *rgb, int size)
{
    if (setjmp(w->escape)) return false;
    jpeg_create_compress(&w->cinfo);
    jpeg_mem_dest(&w->cinfo, &w->bytes, &w->n);
    w->cinfo.image_width = w->cinfo.image_height = (JDIMENSION)size;
    w->cinfo.input_components = 3;
    w->cinfo.in_color_space = JCS_RGB;
    jpeg_set_defaults(&w->cinfo);
    jpeg_set_quality(&w->cinfo, QUALITY, TRUE);
    jpeg_start_compress(&w->cinfo, TRUE);
    while (w->cinfo.next_scanline < w->cinfo.image_height) {
        JSAMPROW row = (JSAMPROW)(uintptr_t)(rgb + (size_t)w->cinfo.next_scanline * (size_t)size * 3);
        jpeg_write_scanlines(&w->cinfo, &row, 1);
    }
    jpeg_finish_compress(&w->cinfo);
    return true;
}

en_status en_synth_jpeg(int class, int size, uint64_t seed, uint64_t picture, uint8_t **buf, size_t *capacity, size_t *n)
{
    /* pixels first, then room for the file: libjpeg leaves a buffer only when it is too small, and 2 bytes a sample are not */
    const size_t pixels = (size_t)size * (size_t)size * 3, room = 2 * pixels + 16384;
    if (*capacity < pixels + room) {
        uint8_t *grown = realloc(*buf, pixels + room);
        EN_REQUIRE(grown, EN_ENOMEM, "no memory for a made-up picture of %d x %d", size, size);
        *buf = grown;
        *capacity = pixels + room;
    }
    uint8_t *rgb = *buf + room;
    en_synth_draw(class, size, seed, picture, rgb);

    struct writer w;
    memset(&w, 0, sizeof w);
    w.bytes = *buf;
    w.n = room;
    w.cinfo.err = jpeg_std_error(&w.errors);
    w.cinfo.client_data = &w;
    w.errors.error_exit = leave;
    const bool done = compress(&w, rgb, size);
    jpeg_destroy_compress(&w.cinfo);
    EN_REQUIRE(done && w.bytes == *buf, EN_EINVAL, "libjpeg could not write a made-up picture: %s", w.reason);
    *n = w.n;
    return EN_OK;
}

/* ---- a folder of them ---- */

static en_status make_folder(const char *path)
{
    EN_REQUIRE(mkdir(path, 0777) == 0 || errno == EEXIST, EN_EIO, "cannot make the folder %s: %s", path, strerror(errno));
    return EN_OK;
}

static en_status write_file(const char *path, const uint8_t *bytes, size_t n)
{
    FILE *f = fopen(path, "wbe");
    EN_REQUIRE(f, EN_EIO, "cannot write %s: %s", path, strerror(errno));
    const bool written = fwrite(bytes, 1, n, f) == n;
    const int first = written ? 0 : errno;
    const bool closed = fclose(f) == 0;
    EN_REQUIRE(written && closed, EN_EIO, "cannot write %s: %s", path, strerror(first ? first : errno));
    return EN_OK;
}

static en_status must_be_new_or_empty(const char *dir)
{
    DIR *d = opendir(dir);
    if (!d) {
        EN_REQUIRE(errno == ENOENT, EN_EUSAGE, "cannot put made-up pictures into %s: %s", dir, strerror(errno));
        return EN_OK;
    }
    const struct dirent *e;
    bool empty = true;
    while (empty && (e = readdir(d))) empty = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
    closedir(d);
    EN_REQUIRE(empty, EN_EUSAGE, "%s exists and is not empty; nothing was written. Name another folder or empty it", dir);
    return EN_OK;
}

en_status en_synth_write(const char *dir, int classes, int train_per_class, int val_per_class, int size, uint64_t seed)
{
    EN_REQUIRE(dir && *dir, EN_EUSAGE, "made-up pictures: no folder named");
    EN_REQUIRE(classes >= 1 && classes <= EN_SYNTH_CLASSES, EN_EUSAGE, "made-up pictures: %d classes; there are 1 to %d", classes,
               EN_SYNTH_CLASSES);
    EN_REQUIRE(train_per_class >= 1 && val_per_class >= 0, EN_EUSAGE,
               "made-up pictures: %d for training and %d for validation a class; at least 1 and 0",
               train_per_class, val_per_class);
    EN_REQUIRE(size >= 8 && size <= 4096, EN_EUSAGE, "made-up pictures: %d pixels wide; 8 to 4096 are drawn", size);
    EN_TRY(must_be_new_or_empty(dir), "making a dataset");

    en_status status = EN_OK;
    uint8_t *buf = NULL;
    size_t capacity = 0, n = 0;
    char path[4096];
    EN_TRY_OUT(make_folder(dir), "making a dataset");
    for (int split = 0; split < 2; split++) {
        const int pictures = split ? val_per_class : train_per_class;
        if (pictures == 0) continue;
        const char *name = split ? "val" : "train";
        EN_REQUIRE_OUT(snprintf(path, sizeof path, "%s/%s", dir, name) < (int)sizeof path - 64, EN_EUSAGE,
                       "the path %.100s... is too long", dir);
        EN_TRY_OUT(make_folder(path), "making a dataset");
        for (int c = 0; c < classes; c++) {
            snprintf(path, sizeof path, "%s/%s/%s", dir, name, en_synth_names[c]);
            EN_TRY_OUT(make_folder(path), "making a dataset");
            for (int i = 0; i < pictures; i++) {
                const uint64_t picture = (uint64_t)split << 32 | (uint64_t)i;
                EN_TRY_OUT(en_synth_jpeg(c, size, seed, picture, &buf, &capacity, &n), "drawing %s", en_synth_names[c]);
                snprintf(path, sizeof path, "%s/%s/%s/%s_%05d.jpg", dir, name, en_synth_names[c], en_synth_names[c], i);
                EN_TRY_OUT(write_file(path, buf, n), "making a dataset");
            }
        }
    }
out:
    free(buf);
    return status;
}
