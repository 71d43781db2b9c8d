/* order.c - the part of the table that is about order: on a processor a pass is done when it returns, so input needs no
 * slots, a step no recording, and time is what the clock says. */
#include "backend.h"
#include "cpu.h"

#include <time.h>

int64_t cpu_memory_available(en_backend *be) { (void)be; return 0; }

en_status cpu_keep_weights(en_backend *be, float *w, int64_t elems) { (void)be; (void)w; (void)elems; return EN_OK; }

en_status cpu_stage(en_backend *be, int slot, const en_copy *copies, int n)
{
    (void)be; (void)slot;
    for (int i = 0; i < n; i++)
        if (copies[i].bytes) memcpy(copies[i].dst, copies[i].host, copies[i].bytes);
    return EN_OK;
}

en_status cpu_scale(en_backend *be, int64_t elems, float factor, float *x)
{
    (void)be;
    for (int64_t i = 0; i < elems; i++) x[i] *= factor;
    return EN_OK;
}

en_status cpu_stage_step(en_backend *be, int slot) { (void)be; (void)slot; return EN_OK; }

en_status cpu_capture_begin(en_backend *be)
{
    EN_REQUIRE(be->captures, EN_ENOTSUP, "a processor records no steps");
    return EN_OK;
}

en_status cpu_capture_end(en_backend *be, void **graph)       { *graph = NULL; return cpu_capture_begin(be); }
en_status cpu_graph_launch(en_backend *be, void *graph)       { (void)graph; return cpu_capture_begin(be); }
void      cpu_graph_free(en_backend *be, void *graph)         { (void)be; (void)graph; }

en_status cpu_mark(en_backend *be, int i)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    engine(be)->marked[i] = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    return EN_OK;
}

double cpu_elapsed(en_backend *be, int from, int to) { return engine(be)->marked[to] - engine(be)->marked[from]; }

size_t  cpu_workspace_bytes(en_backend *be, en_work kind, const en_conv_geom *g)       { (void)be; (void)kind; (void)g; return 0; }
int64_t cpu_fold_floats(en_backend *be, int64_t rows, int64_t ci, int64_t co)          { (void)be; (void)rows; (void)ci; (void)co; return 0; }
