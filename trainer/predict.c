/* predict.c - `effnet predict FILE...`: classes and probabilities, file by file.  A file that cannot be decoded is named,
 * the others are still predicted, and the exit code says that something was refused. */
#include "trainer/commands.h"
#include "trainer/input.h"
#include "trainer/json.h"
#include "trainer/weights.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {                             /* what is kept from file to file */
    en_net *net; const en_model *model;
    en_decoder *decoder;
    en_resize_kernel kernel;
    uint8_t *bytes; size_t capacity;         /* owns: a file           */
    float *pixels;                           /* owns: an image         */
} desk;

static en_crop centre(const void *model, int64_t w, int64_t h, int channels)
{
    (void)channels;
    return en_crop_eval(w, h, ((const en_model *)model)->resolution);
}

/* File -> probabilities over the classes */
static en_status predict_file(desk *b, const char *path, float *p)
{
    const en_model *m = b->model;
    en_net *net = b->net;
    float *pixels = b->pixels;
    size_t n = 0;
    en_image img;
    en_crop crop;
    en_status status = en_file_read(path, &b->bytes, &b->capacity, &n);
    if (status == EN_OK) status = en_decode_crop(b->decoder, path, b->bytes, n, centre, m, 0, &img, &crop);
    if (status != EN_OK) return status;
    if (en_net_reads_bytes(net)) en_resize_bytes(&img, &crop, b->kernel, m->resolution, false, (uint8_t *)pixels);
    else en_resize(&img, &crop, b->kernel, m->resolution, &en_imagenet_normalise, pixels);
    EN_TRY(en_net_input(net, 1, pixels, NULL), "predicting %s", path);
    EN_TRY(en_net_forward(net, 0), "predicting %s", path);
    EN_TRY(en_net_logits(net, p), "predicting %s", path);
    float top = p[0];
    double total = 0;
    for (int i = 1; i < m->classes; i++) top = fmaxf(top, p[i]);
    for (int i = 0; i < m->classes; i++) total += exp((double)p[i] - top);
    for (int i = 0; i < m->classes; i++) p[i] = (float)(exp((double)p[i] - top) / total);
    return EN_OK;
}

static void print_top(const en_options *o, const en_weights *w, const char *path, const float *p, bool first)
{
    const int classes = w->model->classes, top = o->top < classes ? (int)o->top : classes;
    if (o->json) printf("%s{\"file\":", first ? "" : ","), en_json_print(path), printf(",\"top\":[");
    else printf("%s\n", path);
    double above = INFINITY;                                 /* the next smaller probability, ties by index */
    int at = -1;
    for (int k = 0; k < top; k++) {
        int best = -1;
        for (int i = 0; i < classes; i++)
            if ((p[i] < above || (p[i] == above && i > at)) && (best < 0 || p[i] > p[best])) best = i;
        if (best < 0) break;                                 /* not a number */
        above = p[best];
        at = best;
        char number[24];
        snprintf(number, sizeof number, "class %d", best);
        const char *name = w->class_names ? w->class_names[best] : number;
        if (o->json) printf("%s{\"class\":", k ? "," : ""), en_json_print(name), printf(",\"index\":%d,\"probability\":%.6f}", best, p[best]);
        else printf("  %6.2f%%  %s\n", 100 * p[best], name);
    }
    if (o->json) printf("]}");
}

static en_status predict(const en_options *o, en_weights *w)
{
    const en_model *m = w->model;
    const en_net_config config = { .be = w->be, .model = m, .max_images = 1 };
    en_net *net = NULL;
    en_status status = EN_OK;
    float *p = malloc((size_t)m->classes * sizeof *p);
    desk b = { .model = m, .kernel = en_resize_of(o, w->info.options).kernel,
                         .pixels = malloc((size_t)m->resolution * (size_t)m->resolution * 3 * sizeof *b.pixels) };
    EN_REQUIRE_OUT(b.pixels && p, EN_ENOMEM, "no memory for an image");
    EN_TRY_OUT(en_decoder_open(o->max_pixels, &b.decoder), "taking memory");
    en_decoder_to_the_end(b.decoder, true);
    EN_TRY_OUT(en_net_open(&config, &net), "taking memory");
    b.net = net;
    en_net_bind(net, w->params, NULL, w->stats);
    EN_TRY_OUT(en_net_freeze(net), "running statistics");
    int refused = 0, done = 0;
    if (o->json) printf("{\"checkpoint\":"), en_json_print(w->path), printf(",\"predictions\":[");
    for (int i = 0; i < o->operands; i++) {
        const en_status s = predict_file(&b, o->operand[i], p);
        if (s == EN_OK) print_top(o, w, o->operand[i], p, done++ == 0);
        else if (s == EN_EDATA || s == EN_EIO) {
            fflush(stdout);
            fprintf(stderr, "effnet: bad data: %s\n", en_error_message());
            en_error_clear();
            refused++;
        } else {
            status = s;
            break;
        }
    }
    if (o->json) printf("],\"refused\":%d}\n", refused);
    fflush(stdout);
    EN_REQUIRE_OUT(refused == 0 || status != EN_OK, EN_EDATA, "%d of %d file%s refused", refused, o->operands, o->operands == 1 ? " was" : "s were");
out:
    en_net_close(net);
    en_decoder_close(b.decoder);
    free(b.bytes);
    free(b.pixels);
    free(p);
    return status;
}

en_status en_command_predict(const en_options *o)
{
    en_weights w;
    const en_comm alone = { .world_size = 1, .local_size = 1 };
    EN_REQUIRE(o->operands > 0, EN_EUSAGE, "which images? effnet predict --checkpoint RUN FILE...");
    EN_TRY(en_weights_open(o, &alone, &w), "--checkpoint %s", o->checkpoint);
    const en_status s = predict(o, &w);
    en_weights_close(&w);
    return s;
}
