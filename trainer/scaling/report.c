/* scaling/report.c - what `effnet scaling --predict` prints and writes.  Every output says that it is predicted, and from what. */
#define _GNU_SOURCE
#include "trainer/scaling/predict.h"

#include "trainer/json.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* The parts of a step, in the order of the table. */
typedef struct { const char *name, *shown, *column; size_t at; } part;
#define PART(name_, shown_, column_, field_) { name_, shown_, column_, offsetof(en_scaling_result, field_) }
static const part parts[] = {
    PART("forward", "forward", "forward", forward_s), PART("backward", "backward", "backward", backward_s),
    PART("batch-norm sums", "batch norm", "bn_comm", bn_s), PART("gradients, exposed", "gradients", "grad_comm_exposed", grads_s),
    PART("other sums", "other", "other_comm", other_s), PART("optimizer", "optimizer", "optimizer", update_s),
    PART("stragglers", "stragglers", "straggler", straggler_s), PART("waiting for data", "data", "data", data_s),
};
_Static_assert(sizeof parts / sizeof *parts == EN_STEP_PARTS, "a part that the header does not count");

double en_step_part(const en_scaling_result *r, int i) { return *(const double *)((const char *)r + parts[i].at); }
const char *en_step_part_name(int i)                   { return parts[i].name; }

const char *en_predict_source(const en_prediction *p, char *text, size_t size)
{
    const en_scaling_step *s = &p->known[0].step;
    const en_cluster *c = &p->cluster;
    char at[96] = "";
    if (p->o->gpu_rate > 0) snprintf(at, sizeof at, ", stretched to %g images/s of one rank by itself", p->o->gpu_rate);
    if (p->times.n) snprintf(text, size, "passes measured on %s with %" PRId64 " images (%s)", p->times.device, p->times.images, p->o->times);
    else snprintf(text, size, "floors at %.4g GB/s and %.4g TFLOP/s, %.3g %% of their speed reached, %.3g us more for each pass%s",
                  s->memory_gb_per_s, c->matrix_tflop_per_s,
                  100 * c->efficiency, c->pass_us, at);
    return text;
}

/* ---- the table --------------------------------------------------------------------------------------------------------------- */

static void print_head(const en_prediction *p)
{
    const en_cluster *c = &p->cluster;
    const en_point *last = &p->point[p->points - 1];
    char text[400], group[32];
    printf("Predicted, not measured: %s at %d px, %s scaling, ", p->model->name, p->model->resolution, p->o->strong ? "strong" : "weak");
    if (p->o->strong) printf("%" PRId64 " images a step in passes of at most %" PRId64 " a rank\n", p->o->global_batch, p->choice.micro_batch);
    else printf("%" PRId64 " images a rank and step\n", p->choice.micro_batch);
    printf("  from     %s\n", en_predict_source(p, text, sizeof text));
    printf("  machine  %s: %g %s a node, %g GB/s within it, %g x %g GB/s between nodes (%g %% of that reached), jitter %g %%\n", p->o->cluster,
           c->ranks_per_node, en_ranks_word(c), c->link_gb_per_s, c->nics_per_node, c->nic_gb_per_s, 100 * c->nic_efficiency, 100 * c->jitter);
    printf("  sums     batch-norm group %s; gradients %.1f MB in %d buckets, cut at about %zu MiB\n", en_group_text(&p->choice.group, group),
           (double)p->model->param_elems * 4e-6, last->r.buckets, p->choice.bucket_bytes >> 20);
    if (p->memory_bytes > 0) printf("  memory   %.1f of %g GB a rank%s\n", 1e-9 * p->memory_bytes, c->memory_gb,
                                    p->memory_bytes > 0.9e9 * c->memory_gb ? ": it does NOT fit, choose a smaller --micro-batch" : "");
    if (p->o->data_rate > 0) printf("  input    %g images/s a rank\n", p->o->data_rate);
}

static void print_points(const en_prediction *p)
{
    const char *who = en_ranks_word(&p->cluster);
    printf("\n%8s %6s %10s %10s %11s %8s   %s\n", who, "nodes", "images", "step ms", "images/s", "linear", "held back by (share of the step)");
    for (int i = 0; i < p->points; i++) {
        const en_point *k = &p->point[i];
        double share;
        const char *limit = en_scaling_limit(&k->r, &share);
        printf("%8d %6d %10" PRId64 " %10.2f %11.1f %7.1f%%   %s (%.1f %%)\n", k->ranks, k->nodes, k->global_batch, 1e3 * k->r.step_s,
               k->r.images_per_s,
               100 * k->efficiency, limit, 100 * share);
    }
    printf("\nWhere the predicted time goes, ms of a step\n%8s", who);
    for (int i = 0; i < EN_STEP_PARTS; i++) printf(" %10s", parts[i].shown);
    printf(" %10s  %s\n", "(hidden)", "batch-norm group");
    for (int i = 0; i < p->points; i++) {
        const en_point *k = &p->point[i];
        printf("%8d", k->ranks);
        for (int j = 0; j < EN_STEP_PARTS; j++) printf(" %10.2f", 1e3 * en_step_part(&k->r, j));
        printf(" %10.2f  %d %s, %" PRId64 " images\n", 1e3 * k->r.grads_hidden_s, k->bn_group, k->bn_group == 1 ? "rank" : who,
               k->bn_group * k->images);
    }
    printf("gradients: sums that computing did not hide; (hidden): those it did.  other: tally, roll call, statistics of groups.\n");
}

static void print_advice(const en_prediction *p)
{
    const en_point *last = &p->point[p->points - 1];
    printf("\nAt %d %s, what the same model predicts to gain more than 1 %%:%s\n", last->ranks, en_ranks_word(&p->cluster),
           p->n_advice ? "" : " nothing that was tried");
    for (int i = 0; i < p->n_advice; i++) printf("  %+6.1f %%  %s: %s\n", 100 * p->advice[i].gain, p->advice[i].what, p->advice[i].because);
}

void en_predict_print(const en_prediction *p)
{
    print_head(p);
    print_points(p);
    print_advice(p);
}

/* ---- JSON, CSV ----------------------------------------------------------------------------------------------------------------- */

static void print_json_text(const char *name, const char *text)
{
    printf("\"%s\":", name);
    en_json_print(text);
    printf(",");
}

void en_predict_print_json(const en_prediction *p)
{
    char text[400], group[32];
    printf("{\"predicted\":true,");
    print_json_text("model", p->model->name);
    print_json_text("from", en_predict_source(p, text, sizeof text));
    print_json_text("cluster", p->o->cluster);
    print_json_text("bn_group", en_group_text(&p->choice.group, group));
    printf("\"resolution\":%d,\"scaling\":\"%s\",\"micro_batch\":%" PRId64 ",\"bucket_bytes\":%zu,\"memory_bytes\":%.0f,\"points\":[", p->model->resolution,
           p->o->strong ? "strong" : "weak",
           p->choice.micro_batch, p->choice.bucket_bytes, p->memory_bytes);
    for (int i = 0; i < p->points; i++) {
        const en_point *k = &p->point[i];
        double share;
        const char *limit = en_scaling_limit(&k->r, &share);
        printf("%s{\"ranks\":%d,\"nodes\":%d,\"bn_group_ranks\":%d,\"global_batch\":%" PRId64 ",\"passes\":%" PRId64 ",\"step_s\":%.9f,\"images_per_s\":%.3f,"
               "\"efficiency\":%.6f,", i ? "," : "", k->ranks, k->nodes, k->bn_group, k->global_batch, k->passes, k->r.step_s, k->r.images_per_s, k->efficiency);
        for (int j = 0; j < EN_STEP_PARTS; j++) printf("\"%s_s\":%.9f,", parts[j].column, en_step_part(&k->r, j));
        printf("\"grad_comm_hidden_s\":%.9f,\"bn_behind_gradients_s\":%.9f,\"limit\":\"%s\",\"limit_share\":%.6f}", k->r.grads_hidden_s,
               k->r.bn_behind_s, limit, share);
    }
    printf("],\"advice\":[");
    for (int i = 0; i < p->n_advice; i++) {
        printf("%s{\"gain\":%.6f,", i ? "," : "", p->advice[i].gain);
        print_json_text("what", p->advice[i].what);
        printf("\"because\":");
        en_json_print(p->advice[i].because);
        printf("}");
    }
    printf("]}\n");
}

static en_status write_csv(const en_prediction *p, const char *path)
{
    char text[400];
    FILE *f = fopen(path, "w");
    EN_REQUIRE(f, EN_EIO, "%s cannot be written: %s; choose another --folder", path, strerror(errno));
    fprintf(f, "# predicted, not measured: %s at %d px; %s; %s\n", p->model->name, p->model->resolution, en_predict_source(p, text, sizeof text),
            p->o->cluster);
    fprintf(f, "ranks,nodes,bn_group_ranks,global_batch,step_s,images_per_s,efficiency");
    for (int j = 0; j < EN_STEP_PARTS; j++) fprintf(f, ",%s_s", parts[j].column);
    fprintf(f, ",grad_comm_hidden_s\n");
    for (int i = 0; i < p->points; i++) {
        const en_point *k = &p->point[i];
        fprintf(f, "%d,%d,%d,%" PRId64 ",%.9f,%.3f,%.6f", k->ranks, k->nodes, k->bn_group, k->global_batch, k->r.step_s, k->r.images_per_s,
                k->efficiency);
        for (int j = 0; j < EN_STEP_PARTS; j++) fprintf(f, ",%.9f", en_step_part(&k->r, j));
        fprintf(f, ",%.9f\n", k->r.grads_hidden_s);
    }
    const bool bad = ferror(f);
    EN_REQUIRE((fclose(f) == 0) & !bad, EN_EIO, "%s cannot be written: %s; choose another --folder", path, strerror(errno));
    return EN_OK;
}

en_status en_predict_write(const en_prediction *p, const char *folder)
{
    char path[4096];
    EN_REQUIRE(strlen(folder) < sizeof path - 64, EN_EUSAGE, "--folder: the name is too long");
    EN_REQUIRE(mkdir(folder, 0777) == 0 || errno == EEXIST, EN_EIO, "%s cannot be made: %s; choose another --folder", folder, strerror(errno));
    snprintf(path, sizeof path, "%s/predicted.csv", folder);
    EN_TRY(write_csv(p, path), "the table");
    return en_predict_draw(p, folder);
}
