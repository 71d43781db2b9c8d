/* plan_describe.c - `effnet describe --memory`: what a rank will need, tensor by tensor.  For a GPU too, without one. */
#include "trainer/commands.h"
#include "trainer/freeze.h"
#include "trainer/net.h"
#include "kernels/cuda/footprint.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { DEFAULT_IMAGES = 32 };

static en_status open_planner(const en_options *o, en_backend **be)
{
    const bool fp32 = strcmp(o->precision, "fp32") == 0, bf16 = strcmp(o->precision, "bf16") == 0;
    const en_backend_config config = { .threads = 1, .precision = fp32 ? EN_PRECISION_F32 : bf16 ? EN_PRECISION_BF16 : EN_PRECISION_AUTO };
    if (strcmp(o->device, "cuda") == 0) return en_cuda_plan_open(&config, be);
    return en_backend_open("cpu", &config, be);
}

static void print_tensors(FILE *f, const en_net_plan *plan, const en_model *m, int64_t n)
{
    fprintf(f, "activations of %" PRId64 " images (times: stem 0, block b from %s, head %d, and back)\n", n, "1+3b", 1 + 3 * m->n_blocks);
    fprintf(f, "  %-24s %12s %14s   %s\n", "tensor", "MiB", "at MiB", "alive");
    for (int i = 0; i < plan->activations.n; i++) {
        const en_plan_buffer *b = &plan->activations.buffer[i];
        if (b->bytes) fprintf(f, "  %-24s %12.2f %14.2f   %d..%d\n", b->name, (double)b->bytes / 0x1p20, (double)b->offset / 0x1p20, b->first, b->last);
    }
}

static void print_sums(FILE *f, const en_backend *be, const en_net_plan *plan, const en_net_plan *twice, const en_model *m, int64_t n)
{
    size_t sum = 0;
    for (int i = 0; i < plan->activations.n; i++) sum += plan->activations.buffer[i].bytes;
    const double a = (double)plan->activations.bytes, small = (double)plan->small_bytes, params = (double)m->param_elems * sizeof(float);
    const double copies = 5 * params + (be->dtype == EN_F32 ? 0 : params / 2);
    const double more = ((double)(twice->activations.bytes + twice->small_bytes) - a - small) / (double)n;
    fprintf(f, "on %s, %s\n", be->name, be->dtype == EN_BF16 ? "bf16" : "fp32");
    fprintf(f, "activations          %10.1f MiB (%.1f MiB of tensors share it)\n", a / 0x1p20, (double)sum / 0x1p20);
    fprintf(f, "images, statistics   %10.1f MiB\n", small / 0x1p20);
    fprintf(f, "weights              %10.1f MiB, as much each for gradients, mean squares, momentum and the moving average%s\n", params / 0x1p20,
            be->dtype == EN_F32 ? "" : ", half of it for their copy in bf16");
    fprintf(f, "in all               %10.1f MiB a rank, scratch and snapshots apart\n", (a + small + copies) / 0x1p20);
    fprintf(f, "one image more       %10.1f MiB (%.1f MB)\n", more / 0x1p20, more / 1e6);
}

en_status en_plan_describe(const en_options *o, void *stream)
{
    en_backend *be = NULL;
    en_model *m = NULL;
    en_frozen frozen;
    en_net_plan plan = { 0 }, twice = { 0 };
    en_status status = open_planner(o, &be);
    EN_TRY(status, "planning memory");
    EN_TRY_OUT(en_model_from_options(o, 0, be->channel_align, &m), "planning memory");
    EN_TRY_OUT(en_frozen_of(m, o->freeze, &frozen), "--freeze %s", o->freeze);
    en_net_config c = { .be = be, .model = m, .max_images = o->micro_batch > 0 ? o->micro_batch : DEFAULT_IMAGES, .training = true, .frozen = frozen.layers, .slots = be->slots };
    EN_TRY_OUT(en_net_plan_make(&c, &plan), "planning memory");
    const int64_t n = c.max_images;
    c.max_images = 2 * n;
    EN_TRY_OUT(en_net_plan_make(&c, &twice), "planning memory");
    print_tensors(stream, &plan, m, n);
    print_sums(stream, be, &plan, &twice, m, n);
out:
    en_net_plan_free(&plan);
    en_net_plan_free(&twice);
    en_model_free(m);
    en_backend_close(be);
    return status;
}
