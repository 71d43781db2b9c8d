/* decode_jpeg.c - JPEG through libjpeg-turbo, with its defaults: the accurate integer IDCT and fancy upsampling.
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
 * setjmp: everything that changes between setjmp and longjmp lives in struct reader, which belongs to the caller of the
 * function that calls setjmp, so its values are determined after the jump (C17 7.13.2.1). */
#include "decode.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

/* A progressive file may rewrite the same coefficients in any number of scans of a few bytes each.  Encoders make about 10
 * (jpegtran's default script), a hundred only somebody who means harm. */
enum { MAX_SCANS = 100 };

struct reader {
    struct jpeg_decompress_struct cinfo;       /* client_data leads back here */
    struct jpeg_error_mgr         errors;
    struct jpeg_progress_mgr      progress;
    jmp_buf                       escape;
    const en_decode_job          *job;
    en_status                     status;      /* of our own checks */
    char                          reason[JMSG_LENGTH_MAX];
    int                           code;        /* of the message in `reason` */
};

static struct reader *reader_of(j_common_ptr cinfo) { return cinfo->client_data; }

static void leave(j_common_ptr cinfo)
{
    struct reader *r = reader_of(cinfo);
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
    struct reader *r = reader_of(cinfo);
    if (r->cinfo.input_scan_number <= MAX_SCANS) return;
    snprintf(r->reason, sizeof r->reason, "more than %d scans", MAX_SCANS);
    r->code = 0;
    longjmp(r->escape, 1);
}

/* A Huffman code has at least one bit and every block at least one code in the scan that brings its DC coefficient, so
 * fewer bits than blocks cannot be a whole picture.  (Arithmetic coding has no such floor.) */
static bool fewer_bits_than_blocks(const struct jpeg_decompress_struct *cinfo, size_t n, int64_t *blocks)
{
    *blocks = 0;
    for (int c = 0; c < cinfo->num_components; c++)
        *blocks += (int64_t)cinfo->comp_info[c].width_in_blocks * cinfo->comp_info[c].height_in_blocks;
    return !cinfo->arith_code && n < (size_t)*blocks / 8;
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

static en_status read_picture(struct reader *r)
{
    struct jpeg_decompress_struct *cinfo = &r->cinfo;
    const en_decode_job *job = r->job;
    jpeg_create_decompress(cinfo);
    cinfo->client_data = r;                    /* jpeg_create_decompress keeps err and client_data; set again to be plain */
    cinfo->progress = &r->progress;
    jpeg_mem_src(cinfo, job->bytes, (unsigned long)job->n);
    jpeg_read_header(cinfo, TRUE);

    const int channels = cinfo->num_components;
    EN_REQUIRE(channels == 1 || channels == 3 || channels == 4, EN_EDATA,
               "%s is of an unsupported kind (a JPEG of %d components)", job->name, channels);
    EN_TRY(en_decode_reserve(job, cinfo->image_width, cinfo->image_height, channels), "reading its header");
    int64_t blocks;
    EN_REQUIRE(!fewer_bits_than_blocks(cinfo, job->n, &blocks), EN_EDATA,
               "%s is truncated or damaged (it claims %u x %u pixels, %" PRId64 " blocks, in %zu bytes)", job->name,
               cinfo->image_width, cinfo->image_height, blocks, job->n);

    cinfo->out_color_space = channels == 4 ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(cinfo);
    const size_t stride = (size_t)job->img->w * 3;
    if (channels == 4) {
        JSAMPARRAY row = cinfo->mem->alloc_sarray((j_common_ptr)cinfo, JPOOL_IMAGE, cinfo->output_width * 4, 1);
        while (cinfo->output_scanline < cinfo->output_height) {
            uint8_t *rgb = job->img->rgb + stride * cinfo->output_scanline;
            if (jpeg_read_scanlines(cinfo, row, 1) == 1) cmyk_to_rgb(row[0], job->img->w, cinfo->saw_Adobe_marker, rgb);
        }
    } else {
        while (cinfo->output_scanline < cinfo->output_height) {
            JSAMPROW rows[8];
            JDIMENSION some = cinfo->output_height - cinfo->output_scanline;
            if (some > 8) some = 8;
            for (JDIMENSION i = 0; i < some; i++) rows[i] = job->img->rgb + stride * (cinfo->output_scanline + i);
            jpeg_read_scanlines(cinfo, rows, some);
        }
    }
    jpeg_finish_decompress(cinfo);             /* reads on to EOI, and so finds out when there is none */
    return EN_OK;
}

static bool guarded(struct reader *r)          /* false: libjpeg left by longjmp, r->reason says why */
{
    if (setjmp(r->escape)) return false;
    r->status = read_picture(r);
    return true;
}

en_status en_decode_jpeg(const en_decode_job *job)
{
    struct reader r;
    memset(&r, 0, sizeof r);
    r.job = job;
    r.cinfo.client_data = &r;
    r.cinfo.err = jpeg_std_error(&r.errors);
    r.errors.error_exit = leave;
    r.errors.emit_message = on_message;
    r.errors.output_message = on_output;
    r.progress.progress_monitor = on_progress;
    const bool returned = guarded(&r);
    jpeg_destroy_decompress(&r.cinfo);
    if (returned) return r.status;

    const char *kind = "damaged";
    en_status status = EN_EDATA;
    switch (r.code) {
    case JWRN_JPEG_EOF: case JERR_INPUT_EOF: case JERR_INPUT_EMPTY: kind = "truncated"; break;
    case JERR_BAD_PRECISION: case JERR_SOF_UNSUPPORTED: case JERR_ARITH_NOTIMPL: case JERR_CONVERSION_NOTIMPL:
        kind = "of an unsupported kind"; break;
    case JERR_OUT_OF_MEMORY: kind = "too large for the memory left"; status = EN_ENOMEM; break;
    default: break;
    }
    return en_raise(status, __FILE__, __LINE__, __func__, "%s is %s (%s, %zu bytes)", job->name, kind, r.reason, job->n);
}
