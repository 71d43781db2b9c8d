/* doctor/json.c - everything that was found out, of every rank, as one JSON object.  null: not known, or not tried. */
#include "trainer/doctor/doctor.h"
#include "trainer/json.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static void text(const char *key, const char *s)
{
    printf("\"%s\": ", key);
    en_json_print(s);
    printf(", ");
}

static void count(const char *key, int64_t v)
{
    if (v == EN_UNKNOWN) printf("\"%s\": null, ", key);
    else printf("\"%s\": %" PRId64 ", ", key, v);
}

static void flag(const char *key, int v)       { printf("\"%s\": %s, ", key, v < 0 ? "null" : v ? "true" : "false"); }

static void real(const char *key, bool known, double v)
{
    if (known) printf("\"%s\": %.9g, ", key, v);
    else printf("\"%s\": null, ", key);
}

static void file(const char *key, int64_t bytes, uint32_t crc)
{
    if (bytes < 0) printf("\"%s\": null, ", key);
    else printf("\"%s\": {\"bytes\": %" PRId64 ", \"crc32c\": \"%08" PRIx32 "\"}, ", key, bytes, crc);
}

/* ---- a host: what its first rank saw --------------------------------------------------------------------------------------- */

static void print_machine(const en_doctor_facts *f)
{
    text("host", f->host);
    text("system", f->os);
    text("kernel", f->kernel);
    text("cpu", f->cpu);
    count("processors", f->processors);
    real("cpu_quota", f->cpu_quota > 0, f->cpu_quota);
    text("governor", f->governor);
    text("isas", f->isas);
    text("gpus", f->gpus);
    text("no_gpu", f->no_gpu);
    text("gpu_driver", f->driver);
    count("memory_bytes", f->memory_bytes);
    count("memory_available_bytes", f->memory_available_bytes);
    count("memory_limit_bytes", f->memory_limit_bytes);
    count("shm_free_bytes", f->shm_free_bytes);
    text("huge_pages", f->thp);
    count("open_files", f->open_files);
    count("locked_bytes", f->locked_bytes);
    text("network", f->network);
    text("transport", f->transport);
    text("folder", f->folder);
    text("filesystem", f->filesystem);
    count("disk_free_bytes", f->disk_free_bytes);
    count("disk_free_files", f->disk_free_files);
    flag("writable", f->writable);
    flag("flock", f->flock_works);
    flag("fcntl_locks", f->fcntl_works);
    real("write_bytes_per_s", f->write_bytes_per_s > 0, f->write_bytes_per_s);
    real("clock_offset_s", f->met, f->clock_offset_s);
    real("clock_error_s", f->met, f->clock_error_s);
    real("round_trip_s", f->met && f->round_trip_s > 0, f->round_trip_s);
    text("neighbour", f->next);
    real("neighbour_bytes_per_s", *f->next, f->next_bytes_per_s);
}

static void print_rank(const en_doctor_facts *f, int rank)
{
    char mask[160];
    printf("{\"rank\": %d, ", rank);
    text("processors", en_doctor_mask(f->allowed, mask, sizeof mask));
    count("cores", f->allowed_cores);
    count("openmp_threads", f->openmp_threads);
    text("version", f->revision);
    file("program", f->program_bytes, f->program_crc);
    file("cuda_plugin", f->plugin_bytes, f->plugin_crc);
    text("mpi", f->mpi);
    text("hdf5", f->hdf5);
    text("nccl", f->nccl);
    text("cublas", f->cublas);
    text("isa", f->isa);
    text("environment", f->environment);
    text("gpu", f->device);
    flag("data", f->data_state);
    text("data_trouble", f->data_trouble);
    count("training_images", f->train_images);
    count("validation_images", f->val_images);
    count("classes", f->classes);
    printf("\"listing\": \"%016" PRIx64 "%016" PRIx64 "\", ", f->train_hash, f->val_hash);
    real("listing_s", f->data_state == 1, f->data_s);
    file("packed", f->packed_bytes, f->packed_crc);
    flag("folder_shared", f->shared);
    real("folder_shown_after_s", f->shared == 1, f->shown_after_s);
    flag("flock_excludes", f->flock_excludes);
    flag("fcntl_excludes", f->fcntl_excludes);
    flag("sum_right", f->sum_right);
    real("sum_s", f->sum_right != EN_UNKNOWN, f->sum_s);
    real("sum_bytes_per_s", f->sum_right != EN_UNKNOWN, f->sum_bytes_per_s);
    text("gpu_sums", f->tensor);
    text("gpu_sums_why", f->tensor_why);
    real("gpu_sum_s", f->tensor_s > 0, f->tensor_s);
    printf("\"gpu_sum_right\": %s}", f->tensor_right < 0 ? "null" : f->tensor_right ? "true" : "false");
}

static void print_host(const en_doctor_job *j, int r)
{
    bool first = true;
    printf("{");
    print_machine(&j->all[r]);
    printf("\"ranks\": [");
    for (int q = 0; q < j->ranks; q++) {
        if (!en_doctor_same_host(&j->all[q], &j->all[r])) continue;
        if (!first) printf(", ");
        print_rank(&j->all[q], q);
        first = false;
    }
    printf("]}");
}

/* ---- who differs -------------------------------------------------------------------------------------------------------------- */

static void print_difference(const en_doctor_job *j, const en_doctor_row *row, const int *class_of, int classes)
{
    printf("{");
    text("what", row->what);
    text("weight", row->weight == EN_MUST ? "must" : row->weight == EN_ADVICE ? "advice" : "note");
    printf("\"values\": [");
    for (int k = 0; k < classes; k++) {
        char value[EN_VALUE] = "", who[1000];
        int r = 0;
        bool first = true;
        while (class_of[r] != k) r++;
        row->value(j, r, value, sizeof value);
        en_doctor_who(j, row, class_of, k, who, sizeof who);
        printf("%s{", k ? ", " : "");
        text("value", value);
        text("who", who);
        printf("\"ranks\": [");
        for (r = 0; r < j->ranks; r++) {
            if (class_of[r] != k) continue;
            printf("%s%d", first ? "" : ", ", r);
            first = false;
        }
        printf("]}");
    }
    printf("]}");
}

static void print_differences(const en_doctor_job *j)
{
    int *class_of = malloc((size_t)j->ranks * sizeof *class_of);
    bool first = true;
    printf("\"differences\": [");
    for (int i = 0; class_of && i < en_doctor_n_rows; i++) {
        const int classes = en_doctor_classes(j, &en_doctor_rows[i], class_of);
        if (classes < 2) continue;
        if (!first) printf(", ");
        print_difference(j, &en_doctor_rows[i], class_of, classes);
        first = false;
    }
    printf("], ");
    free(class_of);
}

static void print_findings(const en_doctor_job *j, const char *key, const en_findings *w, bool all)
{
    char line[EN_FINDING];
    bool first = true;
    printf("\"%s\": [", key);
    for (int i = 0; i < w->n; i++) {
        if (!all && !w->item[i].must) continue;
        if (!first) printf(", ");
        en_finding_text(j, w, i, line);
        en_json_print(line);
        first = false;
    }
    printf("]");
}

void en_doctor_print_json(const en_doctor_job *j, const en_findings *w)
{
    const en_doctor_facts *f = &j->all[0];
    bool first = true;
    printf("{\"version\": \"" EN_VERSION "\", \"ranks\": %d, \"nodes\": %d, ", j->ranks, j->hosts);
    flag("launched", f->launched);
    text("mpi", f->mpi);
    text("hdf5", f->hdf5);
    text("jpeg", f->jpeg);
    text("png", f->png);
    text("model", j->model);
    count("checkpoint_bytes", j->checkpoint_bytes);
    printf("\"hosts\": [");
    for (int r = 0; r < j->ranks; r++) {
        if (!en_doctor_leads(j->all, r)) continue;
        if (!first) printf(", ");
        print_host(j, r);
        first = false;
    }
    printf("], ");
    print_differences(j);
    print_findings(j, "findings", w, true);       /* what stands in the way, and advice; the former again alone */
    printf(", ");
    print_findings(j, "must", w, false);
    printf("}\n");
}
