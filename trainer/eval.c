/* eval.c - `effnet eval`: a checkpoint over a dataset, every image exactly once on any number of ranks. */
#include "trainer/commands.h"
#include "trainer/input.h"
#include "trainer/weights.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { DEFAULT_BATCH = 32 };

static en_status open_images(const en_options *o, const en_weights *w, en_dataset **out)
{
    EN_REQUIRE(o->data[0], EN_EUSAGE, "which images? --data DIR with DIR/val/<class>/... or DIR/<class>/...");
    EN_REQUIRE(w->class_names, EN_EDATA, "%s does not name its classes: its labels could be any", w->path);
    const en_dataset names = { .classes = w->model->classes, .class_names = w->class_names, .source = "the checkpoint" };
    EN_TRY(en_dataset_open(o->data, "val", &names, out), "opening --data %s", o->data);
    return EN_OK;
}

static en_status evaluate(const en_options *o, en_comm *comm)
{
    en_weights w = { 0 };
    en_dataset *images = NULL;
    en_dump *logits = NULL;
    en_eval_result r;
    en_status status = EN_OK, mine = EN_OK;
    const bool root = comm->rank == 0;
    EN_TRY_OUT(en_check_same_options(comm, o), "comparing the options of the ranks");
    mine = en_weights_open(o, comm, &w);
    if (mine == EN_OK) mine = open_images(o, &w, &images);
    if (mine == EN_OK && root && o->logits[0]) mine = en_dump_open(o->logits, &logits);
    EN_TRY_OUT(en_agree(comm, mine), "starting");
    const en_eval_config c = { .comm = comm, .be = w.be, .model = w.model, .params = w.params, .stats = w.stats, .dataset = images,
                               .batch = o->eval_batch > 0 ? o->eval_batch : DEFAULT_BATCH, .workers = en_workers_of(o, w.be),
                               .max_bad = o->max_bad, .max_pixels = o->max_pixels, .prefetch = o->prefetch,
                               .kernel = en_resize_of(o, w.info.options).kernel, .want_logits = o->logits[0] != 0, .logits = logits };
    EN_TRY_OUT(en_evaluate(&c, &r), "evaluating %s", w.path);
    if (logits) {
        en_dump *done = logits;
        logits = NULL;
        mine = en_dump_close(done);
    }
    EN_TRY_OUT(en_agree(comm, mine), "--logits %s", o->logits);
    if (!root) goto out;
    if (o->json) {
        char loss[40] = "null";                            /* JSON has no NaN and no infinity */
        if (isfinite(r.loss)) snprintf(loss, sizeof loss, "%.6f", r.loss);
        printf("{\"top1\":%.6f,\"top5\":%.6f,\"loss\":%s,\"images\":%" PRId64 ",\"weights\":\"%s\"}\n", r.top1, r.top5, loss, r.images,
               w.ema ? "ema" : "raw");
    } else {
        printf("%s, step %" PRId64 ", %s weights, %s at %d px\n", w.path, w.step, w.ema ? "ema" : "raw", w.model->name, w.model->resolution);
        printf("top-1 %.2f%%  top-5 %.2f%%  loss %.4f over %" PRId64 " images of %s in %.1f s", 100 * r.top1, 100 * r.top5, r.loss, r.images, images->source,
               r.seconds);
        if (r.bad) printf("; %" PRId64 " could not be decoded", r.bad);
        printf("\n");
    }
out:
    en_dump_discard(logits);
    en_dataset_close(images);
    en_weights_close(&w);
    return status;
}

en_status en_command_eval(const en_options *o)
{
    en_comm *comm = NULL;
    EN_TRY(en_watch_as_asked(o, NULL), "starting");
    EN_TRY(en_comm_open(&comm), "starting the ranks");
    const en_status s = evaluate(o, comm);
    if (s != EN_OK) en_report_error(comm, s);
    en_comm_close(comm);
    return s;
}
