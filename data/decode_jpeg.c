/* decode_jpeg.c - JPEG through libjpeg-turbo, with its defaults: the accurate integer IDCT and fancy upsampling.
 *
 * What is decoded.  A caller that wants a part gets a part: columns by jpeg_crop_scanline, rows by jpeg_skip_scanlines and by
 * stopping below the part.  Entropy decoding, two thirds of the work, has to go through all that lies above; what lies below
 * costs nothing.  The pixels are those of a whole decoding, bit for bit, because everything that a pixel depends on is
 * decoded too: fancy upsampling looks at the chroma samples beside it, so the columns are widened by an MCU on each side where
 * there is upsampling along the row (rows take care of themselves: libjpeg keeps the row groups around).  Where this is not
 * so, all is decoded:
 *
 *     several scans (progressive among them)   everything has been entropy-decoded before the first row comes, so little is
 *                                              to be won, and block smoothing looks at blocks two columns away
 *     arithmetic coding                        rare
 *     sampling factors other than 1, 2 and 4x1 libjpeg-turbo before 3.0.0 reads what nobody wrote, when it scales as well
 *
 * What stopping early gives up: damage below the part goes unseen, and so does damage above it that libjpeg notices only when it
 * runs out of data at the foot of the picture.  Huffman codes find their way back after a wrong bit, so even a whole decoding
 * notices little: of ImageNet's files with one, four and sixty changed bytes it refused 5, 11 and 46 %, and the parts of
 * training 1, 4 and 36 %.  Damage is what checksums are for (pack.h).  That the file has an end is still asked: the last EOI marker
 * behind the place where the decoder stands is looked for from the back, where it usually is at once.  to_the_end: the entropy
 * decoder goes through the rest as it went through what lies above, and the last row is made, so that libjpeg arrives where it
 * compares what there is with what there should be.
 *
 * scale_to: the inverse DCT of 4, 2 or 1 points a side instead of 8, which is an average over 2, 4 or 8 pixels a side, made
 * without first making the pixels.  An antialiased kernel that shrinks the part would average over them anyway.  A plain kernel
 * would not: it takes every second, fourth or eighth pixel with its neighbours, as the published networks saw them when they
 * were trained, and so a scaled picture is smoother than what they expect.  That is why it has to be asked for.
 *
 * Memory.  One reader serves one file after the other (jpeg_abort_decompress between them), and what libjpeg takes for a file
 * comes from the decoder's arena: alloc_small, alloc_large, alloc_sarray and alloc_barray of its memory manager are ours once the
 * reader is made.  The virtual arrays that hold the coefficients of several scans stay libjpeg's own, taken and given back
 * with the file.  Quantisation and Huffman tables survive in a reader by design (abbreviated streams): a file that forgot
 * its tables would be decoded with those of the file before it.  So they are forgotten, and lie in the arena too.
 *
 * A warning of libjpeg means, with few exceptions, that it met damage and made something up: gray for the rows that were
 * never written, noise after a flipped bit.  Such a picture is wrong and looks right to a program, so the first warning
 * ends the decoding and refuses the file with the decoder's own words.  The exceptions, where every pixel is sound:
 *
 *     JWRN_EXTRANEOUS_DATA   bytes before a marker that belong to nothing: padding that some cameras and editors leave
 *     JWRN_JFIF_MAJOR        a JFIF version nobody has heard of
 *     JWRN_ADOBE_XFORM       an unknown colour transform in the Adobe segment; taken as the component count suggests
 *     JWRN_NOT_SEQUENTIAL    a sequential scan whose spectral parameters say otherwise and are ignored by definition
 *     JWRN_BOGUS_ICC         a damaged colour profile, which is not applied anyway
 *
 * Bytes after EOI are never looked at.  A missing EOI is a truncated file: that its last byte of pixels is there is luck,
 * and whoever writes files with it missing also writes them with more missing.
 *
 * setjmp: everything that changes between setjmp and longjmp lives in struct en_jpeg, which belongs to the caller of the
 * function that calls setjmp, so its values are determined after the jump (C17 7.13.2.1). */
#define _GNU_SOURCE                            /* memrchr */
#include "decode.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

/* A progressive file may rewrite the same coefficients in any number of scans of a few bytes each.  Encoders make about 10
 * (jpegtran's default script), a hundred only somebody who means harm. */
enum { MAX_SCANS = 100 };

struct en_jpeg {
    struct jpeg_decompress_struct cinfo;       /* client_data leads back here */
    struct jpeg_error_mgr         errors;
    struct jpeg_progress_mgr      progress;
    jmp_buf                       escape;
    en_arena                     *arena;       /* borrows */
    const en_decode_job          *job;
    en_status                     status;      /* of our own checks */
    char                          reason[JMSG_LENGTH_MAX];
    int                           code;        /* of the message in `reason` */
};

static en_jpeg *reader_of(j_common_ptr cinfo) { return cinfo->client_data; }

static void leave(j_common_ptr cinfo)
{
    en_jpeg *r = reader_of(cinfo);
    cinfo->err->format_message(cinfo, r->reason);
    r->code = cinfo->err->msg_code;
    longjmp(r->escape, 1);
}

static void on_message(j_common_ptr cinfo, int level)
{
    if (level >= 0) return;                    /* a trace, not a warning */
    switch (cinfo->err->msg_code) {
    case JWRN_EXTRANEOUS_DATA: case JWRN_JFIF_MAJOR: case JWRN_ADOBE_XFORM: case JWRN_NOT_SEQUENTIAL: case JWRN_BOGUS_ICC: return;
    default: leave(cinfo);
    }
}

static void on_output(j_common_ptr cinfo) { (void)cinfo; }

static void on_progress(j_common_ptr cinfo)
{
    en_jpeg *r = reader_of(cinfo);
    if (r->cinfo.input_scan_number <= MAX_SCANS) return;
    snprintf(r->reason, sizeof r->reason, "more than %d scans", MAX_SCANS);
    r->code = 0;
    longjmp(r->escape, 1);
}

/* A Huffman code has at least one bit and every block at least one code in the scan that brings its DC coefficient, so
 * fewer bits than blocks cannot be a whole picture.  Arithmetic coding has no such floor: 211 bytes can be an empty sheet of any size.
 * There a bit for 16 blocks is asked for: a photograph has a hundred times that, and a kilobyte cannot claim a gigabyte. */
static bool fewer_bits_than_blocks(const struct jpeg_decompress_struct *cinfo, size_t n, int64_t *blocks)
{
    *blocks = 0;
    for (int c = 0; c < cinfo->num_components; c++)
        *blocks += (int64_t)cinfo->comp_info[c].width_in_blocks * cinfo->comp_info[c].height_in_blocks;
    return n < (size_t)*blocks / (cinfo->arith_code ? 8 * 16 : 8);
}

/* Adobe stores CMYK inverted (255 = no ink), so R = C*K/255; without an Adobe segment the ink values are literal. */
static void cmyk_to_rgb(const uint8_t *cmyk, int64_t w, bool inverted, uint8_t *rgb)
{
    const uint8_t flip = inverted ? 0 : 255;
    for (int64_t x = 0; x < w; x++) {
        const int k = cmyk[4 * x + 3] ^ flip;
        for (int d = 0; d < 3; d++) rgb[3 * x + d] = (uint8_t)(((cmyk[4 * x + d] ^ flip) * k + 127) / 255);
    }
}

/* ---- memory ---- */

static void *take(j_common_ptr cinfo, size_t bytes)
{
    void *piece = en_arena_take(reader_of(cinfo)->arena, bytes);
    if (!piece) ERREXIT1(cinfo, JERR_OUT_OF_MEMORY, 0);
    return piece;
}

static void *take_any(j_common_ptr cinfo, int pool, size_t bytes) { (void)pool; return take(cinfo, bytes); }

/* Rows of a multiple of 64 bytes, as in libjpeg's own manager: vectorised code writes beyond the width. */
static JSAMPARRAY take_samples(j_common_ptr cinfo, int pool, JDIMENSION width, JDIMENSION rows)
{
    (void)pool;
    const size_t stride = ((size_t)width * sizeof(JSAMPLE) + 63) / 64 * 64;
    JSAMPARRAY row = take(cinfo, (rows + 1) * sizeof *row);
    JSAMPROW at = take(cinfo, stride * rows);
    for (JDIMENSION i = 0; i < rows; i++) row[i] = at + stride * i;
    return row;
}

static JBLOCKARRAY take_blocks(j_common_ptr cinfo, int pool, JDIMENSION width, JDIMENSION rows)
{
    (void)pool;
    JBLOCKARRAY row = take(cinfo, (rows + 1) * sizeof *row);
    JBLOCKROW at = take(cinfo, sizeof *at * width * rows);
    for (JDIMENSION i = 0; i < rows; i++) row[i] = at + (size_t)width * i;
    return row;
}

static void forget(en_jpeg *r)                 /* what the last file has left */
{
    struct jpeg_decompress_struct *cinfo = &r->cinfo;
    jpeg_abort_decompress(cinfo);
    for (int i = 0; i < NUM_QUANT_TBLS; i++) cinfo->quant_tbl_ptrs[i] = NULL;
    for (int i = 0; i < NUM_HUFF_TBLS; i++) cinfo->dc_huff_tbl_ptrs[i] = cinfo->ac_huff_tbl_ptrs[i] = NULL;
    en_arena_reset(r->arena, EN_KEEP_ARENA);
}

/* ---- which part ---- */

typedef struct { int64_t x, y, w, h; } region; /* of the picture as libjpeg puts it out */

/* May less than everything be decoded, and give the same pixels? */
static bool divisible(struct jpeg_decompress_struct *cinfo)
{
    if (jpeg_has_multiple_scans(cinfo) || cinfo->arith_code) return false;
    if (cinfo->max_h_samp_factor == 4 && cinfo->max_v_samp_factor == 1) return true;
    return cinfo->max_h_samp_factor <= 2 && cinfo->max_v_samp_factor <= 2;
}

static unsigned denominator(const en_crop *crop, int scale_to)
{
    unsigned d = 1;
    while (scale_to > 0 && d < 8 && crop->w >= 2 * (int64_t)d * scale_to && crop->h >= 2 * (int64_t)d * scale_to) d *= 2;
    return d;
}

/* The pixels of a picture scaled by 1/d that the part lies on; *crop in their coordinates, with the fractions that stick out. */
static region scaled(en_crop *crop, int64_t d)
{
    const int64_t right = crop->x + crop->w, bottom = crop->y + crop->h;
    region r = { crop->x / d, crop->y / d, 0, 0 };
    r.w = (right + d - 1) / d - r.x;
    r.h = (bottom + d - 1) / d - r.y;
    crop->left = (float)(crop->x - r.x * d) / (float)d;
    crop->top = (float)(crop->y - r.y * d) / (float)d;
    crop->right = (float)((r.x + r.w) * d - right) / (float)d;
    crop->bottom = (float)((r.y + r.h) * d - bottom) / (float)d;
    crop->x = crop->y = 0;
    crop->w = r.w;
    crop->h = r.h;
    return r;
}

/* Is there an EOI marker behind the decoder's place?  In entropy-coded data FF is followed by 00, so it can be nothing else there. */
static bool has_end(const struct jpeg_decompress_struct *cinfo)
{
    if (cinfo->unread_marker == JPEG_EOI) return true;
    const uint8_t *from = cinfo->src->next_input_byte, *p;
    for (size_t n = cinfo->src->bytes_in_buffer; n > 1; n = (size_t)(p - from)) {
        p = memrchr(from + 1, JPEG_EOI, n - 1);
        if (!p) return false;
        if (p[-1] == 0xff) return true;
    }
    return false;
}

/* ---- reading ---- */

static void read_rows(en_jpeg *r, int64_t first, int64_t end)
{
    struct jpeg_decompress_struct *cinfo = &r->cinfo;
    const size_t stride = (size_t)r->job->img->w * 3;
    uint8_t *rgb = r->job->img->rgb;
    JSAMPARRAY inks = cinfo->out_color_space == JCS_CMYK
                    ? cinfo->mem->alloc_sarray((j_common_ptr)cinfo, JPOOL_IMAGE, cinfo->output_width * 4, 1) : NULL;
    while (cinfo->output_scanline < (JDIMENSION)end) {
        uint8_t *to = rgb + stride * (size_t)(cinfo->output_scanline - first);
        if (inks) {
            if (jpeg_read_scanlines(cinfo, inks, 1) == 1) cmyk_to_rgb(inks[0], r->job->img->w, cinfo->saw_Adobe_marker, to);
            continue;
        }
        JSAMPROW rows[8];
        JDIMENSION some = (JDIMENSION)end - cinfo->output_scanline;
        if (some > 8) some = 8;
        for (JDIMENSION i = 0; i < some; i++) rows[i] = to + stride * i;
        jpeg_read_scanlines(cinfo, rows, some);
    }
}

/* To the last row, without pixels but for that one (jpeg_skip_scanlines to the very end would not look at the data). */
static void read_on(struct jpeg_decompress_struct *cinfo)
{
    JSAMPARRAY row = cinfo->mem->alloc_sarray((j_common_ptr)cinfo, JPOOL_IMAGE, cinfo->output_width * (JDIMENSION)cinfo->out_color_components, 1);
    const JDIMENSION rest = cinfo->output_height - cinfo->output_scanline;
    if (rest > 1) jpeg_skip_scanlines(cinfo, rest - 1);
    while (cinfo->output_scanline < cinfo->output_height) jpeg_read_scanlines(cinfo, row, 1);
}

static en_status read_picture(en_jpeg *r)
{
    struct jpeg_decompress_struct *cinfo = &r->cinfo;
    const en_decode_job *job = r->job;
    jpeg_mem_src(cinfo, job->bytes, (unsigned long)job->n);
    jpeg_read_header(cinfo, TRUE);

    const int channels = cinfo->num_components;
    EN_REQUIRE(channels == 1 || channels == 3 || channels == 4, EN_EDATA,
               "%s is of an unsupported kind (a JPEG of %d components)", job->name, channels);
    EN_REQUIRE(cinfo->data_precision == 8, EN_EDATA, "%s is of an unsupported kind (a JPEG of %d bits a sample)", job->name,
               cinfo->data_precision);
    const int64_t w = cinfo->image_width, h = cinfo->image_height;
    EN_TRY(en_decode_claim(job, w, h), "reading its header");
    if (job->header_only) {
        *job->img = (en_image){ .w = w, .h = h, .channels = channels };
        return EN_OK;
    }
    int64_t blocks;
    EN_REQUIRE(!fewer_bits_than_blocks(cinfo, job->n, &blocks), EN_EDATA,
               "%s is truncated or damaged (it claims %u x %u pixels, %" PRId64 " blocks, in %zu bytes)", job->name,
               cinfo->image_width, cinfo->image_height, blocks, job->n);
    en_crop crop;
    EN_TRY(en_decode_choose(job, w, h, channels, &crop), "choosing what to look at");

    cinfo->out_color_space = channels == 4 ? JCS_CMYK : JCS_RGB;
    cinfo->scale_num = 1;
    cinfo->scale_denom = denominator(&crop, job->scale_to);
    region part = scaled(&crop, cinfo->scale_denom);
    const bool some = divisible(cinfo);
    jpeg_start_decompress(cinfo);
    const int64_t out_w = cinfo->output_width, out_h = cinfo->output_height;
    if (!some) {
        crop.x = part.x;
        crop.y = part.y;
        part = (region){ 0, 0, out_w, out_h };
    }
    if (part.w < out_w) {
        const int64_t mcu = cinfo->max_h_samp_factor * (int64_t)DCTSIZE / cinfo->scale_denom, more = cinfo->max_h_samp_factor > 1 ? mcu : 0;
        const int64_t left = part.x > more ? part.x - more : 0, right = part.x + part.w + more < out_w ? part.x + part.w + more : out_w;
        JDIMENSION x = (JDIMENSION)left, width = (JDIMENSION)(right - left);
        if (right - left < out_w) jpeg_crop_scanline(cinfo, &x, &width);   /* moves x left to an MCU */
        crop.x = part.x - x;
    }
    EN_TRY(en_decode_reserve(job, cinfo->output_width, part.h, channels), "reading its header");
    if (part.y > 0) jpeg_skip_scanlines(cinfo, (JDIMENSION)part.y);
    EN_REQUIRE(cinfo->output_scanline == part.y, EN_EDATA, "%s is damaged (row %u comes after %" PRId64 ")", job->name,
               cinfo->output_scanline, part.y);
    read_rows(r, part.y, part.y + part.h);
    *job->crop = crop;
    if (job->to_the_end && part.y + part.h < out_h) read_on(cinfo);
    if (cinfo->output_scanline == (JDIMENSION)out_h) jpeg_finish_decompress(cinfo);       /* reads on to EOI, and so finds out when there is none */
    else EN_REQUIRE(has_end(cinfo), EN_EDATA, "%s is truncated (no end of image, %zu bytes)", job->name, job->n);
    return EN_OK;
}

static bool guarded(en_jpeg *r, en_status (*f)(en_jpeg *))     /* false: libjpeg left by longjmp, r->reason says why */
{
    if (setjmp(r->escape)) return false;
    r->status = f(r);
    return true;
}

en_status en_decode_jpeg(const en_decode_job *job)
{
    en_jpeg *r = job->jpeg;
    r->job = job;
    const bool returned = guarded(r, read_picture);
    forget(r);
    r->job = NULL;
    if (returned) return r->status;

    const char *kind = "damaged";
    en_status status = EN_EDATA;
    switch (r->code) {
    case JWRN_JPEG_EOF: case JERR_INPUT_EOF: case JERR_INPUT_EMPTY: kind = "truncated"; break;
    case JERR_BAD_PRECISION: case JERR_SOF_UNSUPPORTED: case JERR_ARITH_NOTIMPL: case JERR_CONVERSION_NOTIMPL:
        kind = "of an unsupported kind"; break;
    case JERR_OUT_OF_MEMORY: kind = "too large for the memory left"; status = EN_ENOMEM; break;
    default: break;
    }
    return en_raise(status, __FILE__, __LINE__, __func__, "%s is %s (%s, %zu bytes)", job->name, kind, r->reason, job->n);
}

/* ---- opening and closing ---- */

static en_status create(en_jpeg *r)
{
    static const uint8_t nothing[1] = { 0 };
    jpeg_create_decompress(&r->cinfo);         /* keeps err and client_data */
    r->cinfo.progress = &r->progress;
    jpeg_mem_src(&r->cinfo, nothing, 1);       /* makes the source, once: it stays with the reader */
    struct jpeg_memory_mgr *mem = r->cinfo.mem;
    mem->alloc_small = mem->alloc_large = take_any;
    mem->alloc_sarray = take_samples;
    mem->alloc_barray = take_blocks;
    return EN_OK;
}

en_status en_jpeg_open(en_arena *arena, en_jpeg **out)
{
    *out = NULL;
    en_jpeg *r = calloc(1, sizeof *r);
    EN_REQUIRE(r, EN_ENOMEM, "no memory for a JPEG decoder");
    r->arena = arena;
    r->cinfo.client_data = r;
    r->cinfo.err = jpeg_std_error(&r->errors);
    r->errors.error_exit = leave;
    r->errors.emit_message = on_message;
    r->errors.output_message = on_output;
    r->progress.progress_monitor = on_progress;
    if (!guarded(r, create)) {
        const en_status status = en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "opening a JPEG decoder: %s", r->reason);
        en_jpeg_close(r);
        return status;
    }
    *out = r;
    return EN_OK;
}

void en_jpeg_close(en_jpeg *r)
{
    if (!r) return;
    jpeg_destroy_decompress(&r->cinfo);
    free(r);
}
