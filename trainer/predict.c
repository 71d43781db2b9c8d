/* predict.c - `effnet predict FILE...`: classes and probabilities, file by file.  A file that cannot be decoded is named,
 * the others are still predicted, and the exit code says that something was refused. */
#include "trainer/commands.h"
#include "trainer/json.h"
#include "trainer/single.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    en_single b = { 0 };
    en_status status = EN_OK;
    float *p = malloc((size_t)m->classes * sizeof *p);
    EN_REQUIRE_OUT(p, EN_ENOMEM, "no memory for %d classes", m->classes);
    EN_TRY_OUT(en_single_open(o, w, &b), "predicting");
    int refused = 0, done = 0;
    if (o->json) printf("{\"checkpoint\":"), en_json_print(w->path), printf(",\"predictions\":[");
    for (int i = 0; i < o->operands; i++) {
        const en_status s = en_single_logits(&b, o->operand[i], p);
        if (s == EN_OK) en_softmax(m->classes, p);
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
    en_single_close(&b);
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
