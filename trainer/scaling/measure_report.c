/* scaling/measure_report.c - what `effnet scaling --ranks` found: tables, JSON, CSV.  Predicted numbers stand beside measured ones and say so. */
#define _GNU_SOURCE
#include "trainer/scaling/measure.h"

#include "trainer/json.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

const char *en_study_text(const en_study *s, char *text, size_t size)
{
    char batch[96], model[160] = "";
    const en_options *o = s->o;
    if (o->strong) snprintf(batch, sizeof batch, "strong scaling, %" PRId64 " images a step", o->global_batch);
    else snprintf(batch, sizeof batch, "weak scaling, %" PRId64 " images a rank and step", s->images);
    if (s->model) snprintf(model, sizeof model, "%s at %d px", s->model->name, s->model->resolution);
    snprintf(text, size, "%s, %s", s->model ? model : o->model, batch);
    return text;
}

static double error_of(const en_count *k) { return k->model.step_s / k->step.median - 1; }
static double p10_error_of(const en_count *k) { return k->predicted_p10_s / k->step.p10 - 1; }
static double rest_of(const en_count *k) { return k->part[EN_COST_CHECKPOINT] + k->part[EN_COST_EVALUATION] + k->part[EN_COST_OTHER]; }

/* ---- tables ------------------------------------------------------------------------------------------------------------------ */

static void print_head(const en_study *s)
{
    static const char *const by[] = { "launch/run", "mpirun", "srun" };
    char text[400];
    printf("Measured: %s\n", en_study_text(s, text, sizeof text));
    printf("  runs     ");
    if (s->o->rounds > 1) printf("%" PRId64 " of each number, in turn; ", s->o->rounds);
    printf("%" PRId64 " steps each, after %" PRId64 " to warm up; %s; started by %s%s%s\n", s->steps, s->warm,
           s->o->data[0] ? s->o->data : "drawn pictures, kept decoded, not augmented", by[s->by], s->o->hosts[0] ? " on the hosts of " : "", s->o->hosts);
    if (s->threads > 0) printf("  threads  %d a rank", s->threads);
    else printf("  threads  as many as the program chooses");
    if (s->one_machine) printf("; %d core%s, one machine", s->cores, s->cores == 1 ? "" : "s");
    printf("\n");
    if (s->not_compared[0]) printf("  results  not compared: %s\n", s->not_compared);
    else if (!s->apart) printf("  results  losses of the first %d steps against those of %d rank%s, all within %g of each other where #wrong is 0\n", EN_COMPARED_STEPS, s->base->ranks,
                             s->base->ranks == 1 ? "" : "s", en_loss_tolerance(s));
    else printf("  results  losses of a short run of equal global batches on each rank count, within %g; weights compared over the ranks\n", en_loss_tolerance(s));
}

static void print_counts(const en_study *s)
{
    printf("\n%6s %6s %8s %10s %10s %10s %9s %8s %10s %12s %7s %7s\n", "ranks", "nodes", "images", "images/s", "p10", "p90", "speed-up", "linear", "step ms", "predicted ms",
           "error", "#wrong");
    for (int i = 0; i < s->counts; i++) {
        const en_count *k = &s->count[i];
        if (k->state != EN_COUNT_MEASURED) {
            printf("%6d        %s\n", k->ranks, k->state == EN_COUNT_FAILED ? "failed" : "not measured");
            continue;
        }
        printf("%6d %6d %8" PRId64 " %10.1f %10.1f %10.1f %9.2f %7.1f%% %10.2f", k->ranks, k->sums.nodes > 0 ? k->sums.nodes : 1, k->global_batch, k->rate.median, k->rate.p10,
               k->rate.p90, k->speedup, 100 * k->efficiency, 1e3 * k->step.median);
        if (k->predicted) printf(" %12.2f %+6.1f%%", 1e3 * k->model.step_s, 100 * error_of(k));
        else printf(" %12s %7s", "-", "-");
        if (k->checked > 0) printf(" %7" PRId64 "\n", k->wrong);
        else printf(" %7s\n", "-");
    }
    printf("images/s, step: medians, as rank 0 saw the steps; linear: of as much as the smallest number of ranks does, each\n");
}

/* What ranks lose to one another, and not to sums: cores, memory, clock. */
static void print_alone(const en_study *s)
{
    int n = 0;
    for (int i = 0; i < s->counts; i++) {
        const en_count *k = &s->count[i];
        if (k->state != EN_COUNT_MEASURED || k->alone_step_s == 0) continue;
        printf("%s %d ranks %.2f ms", n++ ? ";" : "without sums, each rank by itself, the slowest one:", k->ranks, 1e3 * k->alone_step_s);
        if (!s->o->strong && s->base->ranks == 1) printf(" (%+.1f%% on 1 rank)", 100 * (k->alone_step_s / s->base->step.median - 1));
        if (en_study_meets(s, k)) printf(", forward and backward %.2f if they waited for each other at each batch norm", 1e3 * k->meeting.median);
    }
    if (n > 0) printf("; predictions are made from these and from the sums by themselves\n");
}

/* What is left of the error where nobody disturbs: other programs make a step longer, never shorter. */
static void print_undisturbed(const en_study *s)
{
    int n = 0;
    for (int i = 0; i < s->counts; i++) {
        const en_count *k = &s->count[i];
        if (k->state != EN_COUNT_MEASURED || !k->predicted || k->ranks == 1) continue;
        if (n++ == 0) printf("steps that were hardly disturbed (p10: one in ten is shorter), predicted from such:");
        printf("%s %d ranks %.2f ms, predicted %.2f (%+.1f%%)", n > 1 ? "," : "", k->ranks, 1e3 * k->step.p10, 1e3 * k->predicted_p10_s, 100 * p10_error_of(k));
    }
    if (n > 0) printf("\n");
}

static void print_parts(const en_study *s)
{
    static const struct { const char *name; en_cost cost; } parts[] = {
        { "data", EN_COST_DATA }, { "forward", EN_COST_FORWARD }, { "backward", EN_COST_BACKWARD }, { "bn fwd", EN_COST_BN_FORWARD }, { "bn back", EN_COST_BN_BACKWARD },
        { "gradients", EN_COST_GRADIENTS }, { "update", EN_COST_UPDATE } };
    enum { PARTS = sizeof parts / sizeof *parts };
    printf("\nWhere the time goes, ms of a step: measured means over steps and ranks (second line: least to most of a rank), then predicted\n%6s", "ranks");
    for (int j = 0; j < PARTS; j++) printf(" %15s", parts[j].name);
    printf(" %15s\n", "other");
    for (int i = 0; i < s->counts; i++) {
        const en_count *k = &s->count[i];
        char range[40];
        if (k->state != EN_COUNT_MEASURED) continue;
        printf("%6d", k->ranks);
        for (int j = 0; j < PARTS; j++) printf(" %15.2f", 1e3 * k->part[parts[j].cost]);
        printf(" %15.2f\n", 1e3 * rest_of(k));
        if (k->ranks > 1) {
            printf("%6s", "");
            for (int j = 0; j < PARTS; j++) {
                snprintf(range, sizeof range, "%.4g-%.4g", 1e3 * k->least[parts[j].cost], 1e3 * k->most[parts[j].cost]);
                printf(" %15s", range);
            }
            printf("\n");
        }
        if (!k->predicted) continue;
        printf("%6s %15.2f %15.2f %15.2f %15s %15.2f %15.2f %15.2f %15.2f  predicted\n", "", 1e3 * k->model.data_s, 1e3 * k->model.forward_s, 1e3 * k->model.backward_s,
               "both:", 1e3 * k->model.bn_s, 1e3 * k->model.grads_s, 1e3 * k->model.update_s, 1e3 * (k->model.other_s + k->model.straggler_s));
    }
    printf("predicted: data holds all that a rank by itself did besides computing; other: small sums, and ranks that wait for the slowest\n");
}

static void print_notes(const en_study *s)
{
    for (int i = 0; i < s->counts; i++) {
        const en_count *k = &s->count[i];
        if (k->why[0]) printf("%d rank%s: %s\n", k->ranks, k->ranks == 1 ? "" : "s", k->why);
        if (k->sums_wrong > 0) printf("%d ranks: %" PRId64 " elements of sums are wrong (effnet bench comm)\n", k->ranks, k->sums_wrong);
        if (k->wrong > 0) printf("%d ranks: losses are up to %.1e from those of %d\n", k->ranks, k->apart, s->base->ranks);
        if (s->one_machine && k->ranks * s->threads > s->cores)
            printf("%d ranks of %d thread%s share %d cores: linear would be %.1f %% here\n", k->ranks, s->threads, s->threads == 1 ? "" : "s", s->cores,
                   100. * s->cores / (k->ranks * s->threads));
    }
    if (s->no_model[0]) printf("not predicted: %s\n", s->no_model);
}

void en_study_print(const en_study *s)
{
    print_head(s);
    print_counts(s);
    print_alone(s);
    print_undisturbed(s);
    print_parts(s);
    print_notes(s);
}

/* ---- JSON, CSV ------------------------------------------------------------------------------------------------------------------ */

static void number(FILE *f, bool csv, const char *name, double v)
{
    if (!csv) fprintf(f, ",\"%s\":", name);
    else fprintf(f, ",");
    if (isfinite(v)) fprintf(f, "%.9g", v);
    else if (!csv) fprintf(f, "null");
}

/* The same columns in both. */
static void figures(FILE *f, bool csv, const en_count *k)
{
    char name[48];
    number(f, csv, "nodes", k->sums.nodes > 0 ? k->sums.nodes : 1);
    number(f, csv, "global_batch", (double)k->global_batch);
    number(f, csv, "passes", (double)k->passes);
    number(f, csv, "steps", k->lines.n);
    number(f, csv, "images_per_s", k->rate.median);
    number(f, csv, "images_per_s_p10", k->rate.p10);
    number(f, csv, "images_per_s_p90", k->rate.p90);
    number(f, csv, "speedup", k->speedup);
    number(f, csv, "efficiency", k->efficiency);
    number(f, csv, "step_s", k->step.median);
    number(f, csv, "predicted_step_s", k->predicted ? k->model.step_s : NAN);
    number(f, csv, "error", k->predicted ? error_of(k) : NAN);
    number(f, csv, "step_p10_s", k->step.p10);
    number(f, csv, "predicted_p10_s", k->predicted ? k->predicted_p10_s : NAN);
    number(f, csv, "error_p10", k->predicted ? p10_error_of(k) : NAN);
    number(f, csv, "alone_step_s", k->alone_step_s > 0 ? k->alone_step_s : NAN);
    number(f, csv, "alone_met_s", k->meeting.median > 0 ? k->meeting.median : NAN);
    number(f, csv, "checked", (double)k->checked);
    number(f, csv, "wrong", (double)(k->wrong + k->sums_wrong));
    for (int i = 0; i < EN_COSTS; i++) {
        number(f, csv, en_cost_key[i], k->part[i]);
        snprintf(name, sizeof name, "%s_least", en_cost_key[i]);
        number(f, csv, name, k->least[i]);
        snprintf(name, sizeof name, "%s_most", en_cost_key[i]);
        number(f, csv, name, k->most[i]);
    }
    for (int i = 0; i < EN_STEP_PARTS; i++) {
        snprintf(name, sizeof name, "predicted_part_%d_s", i);
        number(f, csv, name, k->predicted ? en_step_part(&k->model, i) : NAN);
    }
}

static void print_sums(const en_count *k)
{
    printf(",\"sums\":[");
    for (int i = 0; i < k->sums.n_gradients; i++) {
        const en_measured_sum *m = &k->sums.gradients[i];
        printf("%s{\"bytes\":%.0f,\"us\":%.3f,\"bus_gb_per_s\":%.6f}", i ? "," : "", m->bytes, 1e6 * m->seconds, 1e-9 * comm_bus_bytes(m->bytes, k->ranks) / m->seconds);
    }
    printf("]");
}

void en_study_print_json(const en_study *s)
{
    char text[400];
    printf("{\"measured\":");
    en_json_print(en_study_text(s, text, sizeof text));
    printf(",\"scaling\":\"%s\",\"steps\":%" PRId64 ",\"rounds\":%" PRId64 ",\"warm_steps\":%" PRId64 ",\"threads\":%d,\"cores\":%d,\"stopped\":%s,\"not_predicted\":", s->o->strong ? "strong" : "weak",
           s->steps, s->o->rounds, s->warm, s->threads, s->cores, s->stopped ? "true" : "false");
    en_json_print(s->no_model);
    printf(",\"not_compared\":");
    en_json_print(s->not_compared);
    printf(",\"points\":[");
    for (int i = 0, n = 0; i < s->counts; i++) {
        const en_count *k = &s->count[i];
        printf("%s{\"ranks\":%d,\"state\":\"%s\"", n++ ? "," : "", k->ranks, k->state == EN_COUNT_MEASURED ? "measured" : k->state == EN_COUNT_FAILED ? "failed" : "not measured");
        if (k->why[0]) {
            printf(",\"why\":");
            en_json_print(k->why);
        }
        if (k->state == EN_COUNT_MEASURED) {
            figures(stdout, false, k);
            print_sums(k);
        }
        printf("}");
    }
    printf("]}\n");
}

static void write_names(FILE *f)
{
    static const char *const first[] = { "ranks", "nodes", "global_batch", "passes", "steps", "images_per_s", "images_per_s_p10", "images_per_s_p90", "speedup", "efficiency",
                                         "step_s", "predicted_step_s", "error", "step_p10_s", "predicted_p10_s", "error_p10", "alone_step_s", "alone_met_s", "checked", "wrong" };
    for (size_t i = 0; i < sizeof first / sizeof *first; i++) fprintf(f, "%s%s", i ? "," : "", first[i]);
    for (int i = 0; i < EN_COSTS; i++) fprintf(f, ",%s,%s_least,%s_most", en_cost_key[i], en_cost_key[i], en_cost_key[i]);
    for (int i = 0; i < EN_STEP_PARTS; i++) fprintf(f, ",predicted_part_%d_s", i);
    fprintf(f, "\n");
}

static en_status write_csv(const en_study *s, const char *path)
{
    char text[400];
    FILE *f = fopen(path, "w");
    EN_REQUIRE(f, EN_EIO, "%s cannot be written: %s; choose another --folder", path, strerror(errno));
    fprintf(f, "# %s; predicted parts:", en_study_text(s, text, sizeof text));
    for (int i = 0; i < EN_STEP_PARTS; i++) fprintf(f, " %d %s%s", i, en_step_part_name(i), i + 1 < EN_STEP_PARTS ? "," : "\n");
    write_names(f);
    for (int i = 0; i < s->counts; i++) {
        if (s->count[i].state != EN_COUNT_MEASURED) continue;
        fprintf(f, "%d", s->count[i].ranks);
        figures(f, true, &s->count[i]);
        fprintf(f, "\n");
    }
    const bool bad = ferror(f);
    EN_REQUIRE((fclose(f) == 0) & !bad, EN_EIO, "%s cannot be written: %s; choose another --folder", path, strerror(errno));
    return EN_OK;
}

en_status en_study_write(const en_study *s, const char *folder)
{
    char path[EN_PATH + 64];
    EN_REQUIRE(mkdir(folder, 0777) == 0 || errno == EEXIST, EN_EIO, "%s cannot be made: %s; choose another --folder", folder, strerror(errno));
    snprintf(path, sizeof path, "%s/scaling.csv", folder);
    EN_TRY(write_csv(s, path), "the table");
    return en_study_draw(s, folder);
}
