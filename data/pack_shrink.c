/* pack_shrink.c - a picture with its longer side shortened, as a JPEG.
 *
 * By Pillow's antialiased bicubic, whose bits do not depend on the machine (resize.c); so the same folder, options and libjpeg give the same
 * file. */
#include "pack_inside.h"
#include "resize.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

struct writer {
    struct jpeg_compress_struct cinfo;
    struct jpeg_error_mgr       errors;
    jmp_buf        escape;
    unsigned char *bytes;
    unsigned long  n;
    char           reason[JMSG_LENGTH_MAX];
};

static void leave(j_common_ptr cinfo)
{
    struct writer *w = cinfo->client_data;
    cinfo->err->format_message(cinfo, w->reason);
    longjmp(w->escape, 1);
}

static bool compress(struct writer *w, const uint8_t *rgb, int64_t ow, int64_t oh, int quality, bool gray, uint8_t *row)
{
    if (setjmp(w->escape)) return false;
    struct jpeg_compress_struct *c = &w->cinfo;
    jpeg_create_compress(c);
    jpeg_mem_dest(c, &w->bytes, &w->n);
    c->image_width = (JDIMENSION)ow;
    c->image_height = (JDIMENSION)oh;
    c->input_components = gray ? 1 : 3;
    c->in_color_space = gray ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_set_defaults(c);                      /* 4:2:0 */
    jpeg_set_quality(c, quality, TRUE);
    c->optimize_coding = TRUE;
    jpeg_start_compress(c, TRUE);
    while (c->next_scanline < c->image_height) {
        const uint8_t *from = rgb + (size_t)c->next_scanline * (size_t)ow * 3;
        for (int64_t x = 0; gray && x < ow; x++) row[x] = from[3 * x];
        JSAMPROW rows = gray ? row : (JSAMPROW)(uintptr_t)from;
        jpeg_write_scanlines(c, &rows, 1);
    }
    jpeg_finish_compress(c);
    return true;
}

/* A gray picture stays one: training crops those by a rule of their own. */
en_status en_pack_shrink(const en_image *img, int64_t max_side, int quality, uint8_t **buf, size_t *n)
{
    const int64_t longer = img->w > img->h ? img->w : img->h;
    EN_REQUIRE(max_side > 0 && max_side < longer && max_side <= 65500, EN_EINVAL, "shrinking %" PRId64 " x %" PRId64 " to %" PRId64, img->w, img->h,
               max_side);
    int64_t ow = (2 * img->w * max_side + longer) / (2 * longer), oh = (2 * img->h * max_side + longer) / (2 * longer);
    if (ow < 1) ow = 1;
    if (oh < 1) oh = 1;
    en_status status = EN_OK;
    uint8_t *rgb = malloc((size_t)ow * (size_t)oh * 3), *row = malloc((size_t)ow);
    struct writer *w = calloc(1, sizeof *w);
    EN_REQUIRE_OUT(row && rgb && w, EN_ENOMEM, "no memory for a picture of %" PRId64 " x %" PRId64, ow, oh);
    en_resize_job job = en_resize_job_of(img, &(en_crop){ .w = img->w, .h = img->h }, EN_RESIZE_BICUBIC_AA, ow, oh);
    job.bytes = rgb;
    en_resize_run(&job);
    w->cinfo.err = jpeg_std_error(&w->errors);
    w->cinfo.client_data = w;
    w->errors.error_exit = leave;
    const bool done = compress(w, rgb, ow, oh, quality, img->channels <= 2, row);
    jpeg_destroy_compress(&w->cinfo);
    if (!done) free(w->bytes);
    EN_REQUIRE_OUT(done, EN_ENOMEM, "libjpeg could not write a picture of %" PRId64 " x %" PRId64 ": %s", ow, oh, w->reason);
    *buf = w->bytes;
    *n = w->n;
out:
    free(row);
    free(rgb);
    free(w);
    return status;
}
