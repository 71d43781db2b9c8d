/* bench/data_report.c - what `effnet bench data` found: a table, what an image's time is made of, and whether cores or GPU wait. */
#include "trainer/bench/data.h"
#include "trainer/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const way_names[DATA_WAYS] = { "cold", "read", "whole", "crop", "augment", "scaled", "cached", "loader" };
static const char *const part_names[DATA_PARTS] = { "read", "decode", "resize", "augment", "rest" };

static const char *way_text(const data_result *r, data_way way, char out[96])
{
    switch (way) {
    case DATA_COLD: return "read, page cache cold";
    case DATA_READ: return strncmp(r->o->data, "synthetic", 9) == 0 ? "draw and encode" : "read, page cache warm";
    case DATA_WHOLE: return "decode, whole picture";
    case DATA_CROP: return "decode crop, resize, normalise";
    case DATA_AUGMENT: snprintf(out, 96, "  and %s%s", r->o->augment, r->o->erase > 0 ? ", erasing" : ""); return out;
    case DATA_SCALED: return "the run, --decode scaled";
    case DATA_CACHED: return "the run, decoded before (--cache)";
    default: snprintf(out, 96, "the run: loader, %d worker%s", r->workers, r->workers == 1 ? "" : "s"); return out;
    }
}

static double per_core(const data_result *r) { return r->core[DATA_LOADER].median; }

/* The loader with another way inside: what it takes besides (reading, batches, threads) stays, but a cache is not read. */
static void print_remedy(const data_result *r, data_way way, const char *option)
{
    if (!r->measured[way]) return;
    const double alone = 1 / r->core[way].median, now = 1 / r->core[r->measured[DATA_AUGMENT] ? DATA_AUGMENT : DATA_CROP].median,
                 besides = 1 / per_core(r) - now - (way == DATA_CACHED ? r->part_s[PART_READ] : 0), rate = 1 / (alone + fmax(besides, 0));
    if (rate <= 1.05 * per_core(r)) return;                      /* within the spread: no remedy */
    printf("  %-20s: %.0f images/s of a core, %.0f cores\n", option, rate, ceil(data_cores_needed(r, rate)));
}

static void print_need(const data_result *r)
{
    const double need = ceil(data_cores_needed(r, per_core(r)));
    if (r->rate <= 0) {
        printf("How fast a GPU can train %s is not known here: --rate says what yours trains.\n", r->model);
        return;
    }
    if (r->floor)
        printf("%s at %d px: no H200 trains more than %.0f images/s (the floor of a step of %d images: %.1f TB/s, %.0f TFLOP/s of bf16);\n"
               "one that came so far would need %.0f cores like these.  --rate says what yours trains.  ", r->model, r->size, r->rate, EN_H200_IMAGES,
               1e-12 * en_h200_bytes_per_s, 1e-12 * en_h200_flops_per_s, need);
    else printf("One GPU at %.0f images/s (--rate) needs %.0f core%s like these.  ", r->rate, need, need == 1 ? "" : "s");
    if (need <= r->cores) {
        printf("%d %s here: enough for one.\n", r->cores, r->cores == 1 ? "is" : "are");
        return;
    }
    printf("%d %s here: input-bound above %.0f images/s.\n", r->cores, r->cores == 1 ? "is" : "are", r->cores * per_core(r));
    print_remedy(r, DATA_SCALED, "with --decode scaled");
    print_remedy(r, DATA_CACHED, "with --cache");
    const double longer = fmax(r->width, r->height), shorter = fmin(r->width, r->height), side = 32 * ceil(8.0 / 7 * r->size * longer / shorter / 32);
    if (r->part_s[PART_DECODE] * per_core(r) > 0.5 && longer > 1.1 * side)          /* the shorter side keeps 8/7 of the image, as in a cache */
        printf("  %-20s: decoding is most of the time; effnet pack --max-side %.0f, and this again\n", "with smaller files", side);
}

void data_print_text(const data_result *r)
{
    char text[96];
    printf("%s (%s): %" PRId64 " images; measured %" PRId64 ", %.1f kB and %.0f x %.0f (%.3f M pixels) in the mean, of which crops look at %.0f %%\n",
           r->o->data, r->split, r->samples, r->images, 1e-3 * r->bytes, r->width, r->height, 1e-6 * r->pixels, 100 * r->looked_at);
    printf("%d px, %s, augment %s, decode %s, to %s; batches of %" PRId64 "; %d rounds\n\n", r->size, r->kernel, r->o->augment, r->o->decode,
           r->bytes_out ? "bytes" : "floats", r->batch, r->rounds);
    printf("%-36s %37s %10s %10s %19s\n", "", "images/s of a core: median least most", "MB/s", "us CPU", "images/s by clock");
    for (int way = 0; way < DATA_WAYS; way++) {
        if (!r->measured[way]) continue;
        const data_range *c = &r->core[way];
        printf("%-36s %21.1f %7.1f %7.1f %10.1f %10.1f %19.1f\n", way_text(r, (data_way)way, text), c->median, c->least, c->most, 1e-6 * r->bytes * c->median,
               1e6 / c->median, r->clock[way].median);
    }
    double all = 0;
    for (int part = 0; part < DATA_PARTS; part++) all += r->part_s[part];
    printf("\nthe run's CPU time: ");
    for (int part = 0; part < DATA_PARTS; part++)
        if (part != PART_AUGMENT || r->measured[DATA_AUGMENT]) printf("%s%s %.1f %%", part ? ", " : "", part_names[part], 100 * r->part_s[part] / all);
    printf("  (rest: batches, threads%s, and what threads cost each other)\n", r->o->mixup > 0 || r->o->cutmix > 0 ? ", mixing" : "");
    print_need(r);
}

static void print_range(const char *name, const data_range *v)
{
    printf("\"%s\":%.3f,\"%s_least\":%.3f,\"%s_most\":%.3f", name, v->median, name, v->least, name, v->most);
}

void data_print_json(const data_result *r)
{
    const en_options *o = r->o;
    printf("{\"data\":");
    en_json_print(o->data);
    printf(",\"split\":\"%s\",\"samples\":%" PRId64 ",\"images\":%" PRId64 ",\"bad\":%" PRId64 ",\"image_size\":%d,\"resize\":\"%s\",\"augment\":\"%s\","
           "\"erase\":%g,\"mixup\":%g,\"cutmix\":%g,\"decode\":\"%s\",\"u8\":%s,\"bytes_mean\":%.1f,\"width_mean\":%.2f,\"height_mean\":%.2f,"
           "\"pixels_mean\":%.1f,\"crop_share_mean\":%.4f,\"rounds\":%d,\"batch\":%" PRId64 ",\"workers\":%d,\"ways\":{", r->split, r->samples, r->images,
           r->bad, r->size, r->kernel, o->augment, o->erase, o->mixup, o->cutmix, o->decode, r->bytes_out ? "true" : "false", r->bytes, r->width, r->height,
           r->pixels, r->looked_at, r->rounds, r->batch, r->workers);
    for (int way = 0, first = 1; way < DATA_WAYS; way++) {
        if (!r->measured[way]) continue;
        printf("%s\"%s\":{", first ? "" : ",", way_names[way]);
        print_range("images_per_core_s", &r->core[way]);
        printf(",");
        print_range("images_per_s", &r->clock[way]);
        printf(",\"cpu_us\":%.2f,\"mb_per_core_s\":%.3f}", 1e6 / r->core[way].median, 1e-6 * r->bytes * r->core[way].median);
        first = 0;
    }
    printf("},\"cpu_us\":{");
    for (int part = 0; part < DATA_PARTS; part++) printf("%s\"%s\":%.2f", part ? "," : "", part_names[part], 1e6 * r->part_s[part]);
    printf("},\"model\":\"%s\",", r->model);
    if (r->rate > 0) printf("\"rate\":%.2f,\"rate_is_floor\":%s,\"cores_needed\":%.2f,", r->rate, r->floor ? "true" : "false", data_cores_needed(r, per_core(r)));
    else printf("\"rate\":null,\"rate_is_floor\":false,\"cores_needed\":null,");                 /* no floor is known of this model, and no --rate given */
    printf("\"cores\":%d}\n", r->cores);
}
