/* plan_describe.c - `effnet describe --memory`: what a rank will need, tensor by tensor. */
#include "trainer/commands.h"
#include "trainer/net.h"

#include <inttypes.h>
#include <stdio.h>

enum { DEFAULT_IMAGES = 32 };

en_status en_plan_describe(const en_options *o, const en_model *m, void *stream)
{
    FILE *f = stream;
    en_backend *be = NULL;
    EN_TRY(en_backend_open("cpu", NULL, &be), "planning memory");
    const en_net_config c = { .be = be, .model = m, .max_images = o->micro_batch > 0 ? o->micro_batch : DEFAULT_IMAGES, .training = true };
    en_net_plan plan = { 0 };
    const en_status s = en_net_plan_make(&c, &plan);
    en_backend_close(be);
    EN_TRY(s, "planning memory");
    size_t sum = 0;
    fprintf(f, "activations of %" PRId64 " images (times: stem 0, block b 1+b, head %d, and back)\n", c.max_images, m->n_blocks + 1);
    fprintf(f, "  %-20s %12s %14s   %s\n", "tensor", "MiB", "at MiB", "alive");
    for (int i = 0; i < plan.activations.n; i++) {
        const en_plan_buffer *b = &plan.activations.buffer[i];
        sum += b->bytes;
        if (b->bytes) fprintf(f, "  %-20s %12.2f %14.2f   %d..%d\n", b->name, (double)b->bytes / 0x1p20, (double)b->offset / 0x1p20, b->first, b->last);
    }
    const double params = (double)m->param_elems * sizeof(float) / 0x1p20;
    fprintf(f, "activations          %10.1f MiB (%.1f MiB of tensors share it)\n", (double)plan.activations.bytes / 0x1p20, (double)sum / 0x1p20);
    fprintf(f, "images, statistics   %10.1f MiB\n", (double)plan.small_bytes / 0x1p20);
    fprintf(f, "weights              %10.1f MiB, as much each for gradients, mean squares, momentum and the moving average\n", params);
    fprintf(f, "in all               %10.1f MiB a rank, scratch and snapshots apart\n",
            (double)(plan.activations.bytes + plan.small_bytes) / 0x1p20 + 5 * params);
    en_net_plan_free(&plan);
    return EN_OK;
}
