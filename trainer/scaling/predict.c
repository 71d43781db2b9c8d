/* scaling/predict.c - `effnet scaling --predict`: from options to points, each the step of so many ranks by scaling/model.c. */
#define _GNU_SOURCE
#include "trainer/bucket_tuner.h"
#include "trainer/scaling/predict.h"

#include "kernels/cuda/footprint.h"
#include "trainer/net.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_IMAGES = 32, MOST_RANKS = 1 << 20 };

const char *en_ranks_word(const en_cluster *c) { return c->comm == EN_NET_NCCL ? "GPUs" : "ranks"; }

const char *en_group_text(const en_group *g, char text[32])
{
    if (g->kind == EN_GROUP_ALL) return "all";
    if (g->kind == EN_GROUP_NODE) return "node";
    snprintf(text, 32, "%" PRId64 " %s%s", g->count, g->kind == EN_GROUP_RANKS ? "rank" : "image", g->count == 1 ? "" : "s");
    return text;
}

/* ---- one point ---------------------------------------------------------------------------------------------------------- */

static en_status step_for(en_prediction *p, int64_t images, int busy, const en_scaling_step **out)
{
    for (int i = 0; i < p->n_known; i++)
        if (p->known[i].images == images && p->known[i].busy == busy) {
            *out = &p->known[i].step;
            return EN_OK;
        }
    EN_REQUIRE(p->n_known < EN_MOST_STEPS, EN_EUSAGE, "more than %d sizes of a pass: give fewer --gpus", EN_MOST_STEPS);
    en_scaling_step *s = &p->known[p->n_known].step;
    EN_TRY(en_scaling_step_of(p->model, images, &p->cluster, busy, p->times.n ? &p->times : NULL, s), "a step of %" PRId64 " images", images);
    p->known[p->n_known].images = images;
    p->known[p->n_known++].busy = busy;
    if (p->stretch > 0) en_scaling_step_stretch(s, p->stretch);
    *out = s;
    return EN_OK;
}

/* The images of a step, those of a rank, and the passes that these take. */
static en_status share_out(const en_prediction *p, const en_choice *choice, int ranks, en_point *out)
{
    const int64_t global = p->o->strong ? p->o->global_batch : choice->micro_batch * ranks;
    EN_REQUIRE(global % ranks == 0, EN_EUSAGE, "--global-batch %" PRId64 " is not a multiple of %d %s", global, ranks, en_ranks_word(&p->cluster));
    const int64_t mine = global / ranks, passes = (mine + choice->micro_batch - 1) / choice->micro_batch;
    *out = (en_point){ .ranks = ranks, .global_batch = global, .passes = passes, .images = (mine + passes - 1) / passes };
    return EN_OK;
}

en_status en_predict_calibrate(en_prediction *p)
{
    const double rate = p->o->gpu_rate;
    const en_scaling_step *s = NULL;
    en_point one;
    p->stretch = 0;
    if (rate <= 0) return EN_OK;
    EN_TRY(share_out(p, &p->choice, 1, &one), "--gpu-rate");
    EN_TRY(step_for(p, one.images, 1, &s), "--gpu-rate");
    const double step = (double)one.global_batch / rate, computing = (double)one.passes * (s->forward_s + s->backward_s);
    EN_REQUIRE(step > s->update_s, EN_EUSAGE, "--gpu-rate %g: a step of %" PRId64 " images would take %.3g s, and the optimizer alone takes %.3g s; give a lower rate, or"
               " a larger --micro-batch", rate, one.global_batch, step, s->update_s);
    p->stretch = (step - s->update_s) / computing;
    en_scaling_step_stretch(&p->known[p->n_known - 1].step, p->stretch);
    return EN_OK;
}

static int group_of(const en_group *g, const en_cluster *c, int ranks, int64_t images)
{
    const int64_t k = g->kind == EN_GROUP_ALL ? ranks : g->kind == EN_GROUP_NODE ? (int64_t)c->ranks_per_node
                    : g->kind == EN_GROUP_RANKS ? g->count : g->count / images;
    return k < 1 ? 1 : k > ranks ? ranks : (int)k;
}

en_status en_predict_point(en_prediction *p, const en_choice *choice, int ranks, en_point *out)
{
    const int per_node = (int)p->cluster.ranks_per_node, busy = ranks < per_node ? ranks : per_node;
    const en_scaling_step *s = NULL;
    EN_TRY(share_out(p, choice, ranks, out), "%d %s", ranks, en_ranks_word(&p->cluster));
    EN_TRY(step_for(p, out->images, busy, &s), "%d %s", ranks, en_ranks_word(&p->cluster));
    out->nodes = (ranks + per_node - 1) / per_node;
    out->bn_group = group_of(&choice->group, &p->cluster, ranks, out->images);
    const en_scaling_setup setup = { .ranks = ranks, .bn_group = out->bn_group, .passes = out->passes, .bucket_bytes = choice->bucket_bytes,
                                     .data_per_s = p->o->data_rate };
    en_scaling_run(s, &p->cluster, &setup, &out->r);
    out->r.images_per_s = (double)out->global_batch / out->r.step_s;    /* a last pass with fewer images takes as long */
    return EN_OK;
}

en_status en_predict_memory(const en_prediction *p, int64_t images, double *bytes)
{
    const en_net_config c = { .be = p->planner, .model = p->model, .max_images = images, .training = true, .slots = p->planner->slots };
    const double params = (double)p->model->param_elems * sizeof(float);
    en_net_plan plan = { 0 };
    EN_TRY(en_net_plan_make(&c, &plan), "planning memory for %" PRId64 " images", images);
    *bytes = (double)(plan.activations.bytes + plan.small_bytes) + 5 * params + (p->planner->dtype == EN_F32 ? 0 : params / 2);
    en_net_plan_free(&plan);
    return EN_OK;
}

/* ---- options -------------------------------------------------------------------------------------------------------------- */

static en_status read_counts(const char *text, int count[EN_MOST_POINTS], int *n)
{
    *n = 0;
    for (const char *s = text; ; s++) {
        char *end;
        errno = 0;
        const long v = *s >= '0' && *s <= '9' ? strtol(s, &end, 10) : 0;
        EN_REQUIRE(v >= 1 && v <= MOST_RANKS && errno == 0 && (*end == ',' || !*end), EN_EUSAGE,
                   "--gpus '%s': use whole numbers from 1 to %d with commas between, 8,64,512", text, MOST_RANKS);
        EN_REQUIRE(*n < EN_MOST_POINTS, EN_EUSAGE, "--gpus: more than %d numbers", EN_MOST_POINTS);
        count[(*n)++] = (int)v;
        s = end;
        if (!*s) return EN_OK;
    }
}

/* One node, two, eight, sixty-four */
static void usual_counts(const en_cluster *c, int count[EN_MOST_POINTS], int *n)
{
    static const int nodes[] = { 1, 2, 8, 64 };
    for (*n = 0; *n < 4; ++*n) count[*n] = nodes[*n] * (int)c->ranks_per_node;
}

static en_status check_options(const en_options *o)
{
    EN_REQUIRE(o->cluster[0], EN_EUSAGE,
               "which machine? --cluster FILE; launch/clusters/ has some: h200-ndr.txt, a100-hdr.txt, pcie-100gbe.txt, cpu-2-cores.txt");
    EN_REQUIRE(!(o->weak && o->strong), EN_EUSAGE, "--weak and --strong: choose one");
    EN_REQUIRE(!o->strong || o->global_batch > 0, EN_EUSAGE, "--strong keeps the images of a step: how many? --global-batch 4096");
    EN_REQUIRE(o->strong || o->global_batch == 0, EN_EUSAGE, "--global-batch is for --strong; with --weak every rank takes --micro-batch images");
    EN_REQUIRE(o->bn_images == 0 || !en_option_given(o, "bn_group"), EN_EUSAGE, "--bn-group and --bn-images: choose one");
    EN_REQUIRE(o->gpu_rate == 0 || !o->times[0], EN_EUSAGE, "--gpu-rate and --times: choose one");
    return EN_OK;
}

static en_group group_asked(const en_options *o)
{
    if (o->bn_images > 0) return (en_group){ EN_GROUP_IMAGES, o->bn_images };
    if (strcmp(o->bn_group, "all") == 0) return (en_group){ EN_GROUP_ALL, 0 };
    if (strcmp(o->bn_group, "node") == 0) return (en_group){ EN_GROUP_NODE, 0 };
    const bool images = o->bn_group[strlen(o->bn_group) - 1] == 'i';        /* "128i" */
    return (en_group){ images ? EN_GROUP_IMAGES : EN_GROUP_RANKS, strtol(o->bn_group, NULL, 10) };
}

static en_status check_times(const en_prediction *p)
{
    const en_pass_times *t = &p->times;
    const bool gpu = p->cluster.comm == EN_NET_NCCL;
    EN_REQUIRE(strcmp(t->model, p->model->name) == 0 && t->resolution == p->model->resolution, EN_EUSAGE,
               "%s was measured of %s at %d px and this is %s at %d px: measure again, or say --model and --image-size", p->o->times, t->model, t->resolution,
               p->model->name, p->model->resolution);
    EN_REQUIRE(gpu == (strcmp(t->device, "cuda") == 0), EN_EUSAGE, "%s was measured on %s and %s is of %s: measure on such a machine", p->o->times, t->device,
               p->o->cluster, gpu ? "GPUs" : "processors");
    return EN_OK;
}

static en_status open_prediction(en_prediction *p)
{
    const en_options *o = p->o;
    int count[EN_MOST_POINTS], n, most = 1;
    EN_TRY(check_options(o), "reading the options");
    EN_TRY(en_cluster_read(o->cluster, &p->cluster), "--cluster %s", o->cluster);
    if (o->gpus[0]) EN_TRY(read_counts(o->gpus, count, &n), "reading the options");
    else usual_counts(&p->cluster, count, &n);
    const en_backend_config config = { .threads = 1, .precision = p->cluster.precision == EN_F32 ? EN_PRECISION_F32 : EN_PRECISION_BF16 };
    if (p->cluster.comm == EN_NET_NCCL) EN_TRY(en_cuda_plan_open(&config, &p->planner), "planning");
    else EN_TRY(en_backend_open("cpu", &config, &p->planner), "planning");
    EN_TRY(en_model_from_options(o, 0, p->planner->channel_align, &p->model), "building --model %s", o->model);
    if (o->times[0]) {
        EN_TRY(en_pass_times_read(o->times, &p->times), "--times %s", o->times);
        EN_TRY(check_times(p), "--times %s", o->times);
    }
    for (int i = 0; i < n; i++) most = count[i] > most ? count[i] : most;
    const size_t usual = en_buckets_usual(p->cluster.comm == EN_NET_NCCL, most > p->cluster.ranks_per_node ? 2 : 1);
    p->choice = (en_choice){ .group = group_asked(o), .bucket_bytes = en_option_given(o, "bucket_mib") ? (size_t)o->bucket_mib << 20 : usual,
                             .micro_batch = o->micro_batch > 0 ? o->micro_batch : DEFAULT_IMAGES };
    p->points = 1 + n;
    p->point[0].ranks = 1;
    for (int i = 0; i < n; i++) p->point[1 + i].ranks = count[i];
    return EN_OK;
}

static en_status take_memory(en_prediction *p)
{
    int64_t most = 0;
    for (int i = 0; i < p->points; i++) most = p->point[i].images > most ? p->point[i].images : most;
    if (p->cluster.memory_gb > 0) EN_TRY(en_predict_memory(p, most, &p->memory_bytes), "a rank's memory");
    return EN_OK;
}

static void close_prediction(en_prediction *p)
{
    for (int i = 0; i < p->n_known; i++) en_scaling_step_free(&p->known[i].step);
    en_pass_times_free(&p->times);
    en_model_free(p->model);
    en_backend_close(p->planner);
}

en_status en_scaling_predict(const en_options *o)
{
    en_status status = EN_OK;
    en_prediction *p = calloc(1, sizeof *p);
    EN_REQUIRE(p, EN_ENOMEM, "no memory for a prediction");
    p->o = o;
    EN_TRY_OUT(open_prediction(p), "preparing");
    EN_TRY_OUT(en_predict_calibrate(p), "preparing");
    for (int i = 0; i < p->points; i++) {
        EN_TRY_OUT(en_predict_point(p, &p->choice, p->point[i].ranks, &p->point[i]), "predicting");
        p->point[i].efficiency = p->point[i].r.images_per_s / p->point[i].ranks / p->point[0].r.images_per_s;
    }
    EN_TRY_OUT(take_memory(p), "predicting");
    EN_TRY_OUT(en_predict_advise(p), "looking for what gains");
    if (o->json) en_predict_print_json(p);
    else en_predict_print(p);
    if (o->folder[0]) EN_TRY_OUT(en_predict_write(p, o->folder), "--folder %s", o->folder);
out:
    close_prediction(p);
    free(p);
    return status;
}
