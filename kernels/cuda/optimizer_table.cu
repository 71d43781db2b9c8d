/* optimizer_table.cu - segments, cut into chunks, in device memory: see optimizer.h. */
#include "optimizer.h"

#include <stdlib.h>
#include <string.h>

static bool same_segments(const optimizer_table *t, const en_segment *s, int64_t n)
{
    if (t->n_segments != n) return false;
    for (int64_t k = 0; k < n; k++)
        if (t->segments[k].offset != s[k].offset || t->segments[k].elems != s[k].elems || t->segments[k].decay != s[k].decay ||
            t->segments[k].adapt != s[k].adapt) return false;
    return true;
}

/* Counts the chunks of the segments, and writes them and where each segment begins where `out` is not NULL. */
static int64_t cut(const en_segment *s, int64_t n, chunk *out, int64_t *first)
{
    int64_t count = 0;
    for (int64_t k = 0; k < n; k++) {
        if (out) first[k] = count;
        for (int64_t at = s[k].offset, end = at + s[k].elems, size; at < end; at += size, count++) {
            size = at % 4 ? min64(4 - at % 4, end - at) : min64(OPTIMIZER_CHUNK, end - at);       /* up to where 16 bytes are aligned */
            if (out) out[count] = { at, (int)size, (int)k, s[k].decay, s[k].adapt };
        }
    }
    if (out) first[n] = count;
    return count;
}

static void free_table(optimizer_table *t)
{
    if (!t) return;
    void *const device[] = { t->chunks, t->first, t->squares, t->weights, t->rate, t->factors };
    for (void *p : device)
        if (p) cudaFree(p);
    free(t->segments);
    free(t);
}

static en_status fill_table(cuda_engine *e, optimizer_table *t, const en_segment *s, int64_t n)
{
    t->n_segments = n;
    t->n_chunks = cut(s, n, nullptr, nullptr);
    t->segments = (en_segment *)malloc((size_t)(n + 1) * sizeof *s);
    const size_t chunks = (size_t)t->n_chunks + 1, segments = (size_t)n + 1;
    chunk *host = (chunk *)calloc(chunks, sizeof *host);
    int64_t *first = (int64_t *)malloc(segments * sizeof *first);
    cudaError_t error = cudaErrorMemoryAllocation;
    if (t->segments && host && first) {
        if (n) memcpy(t->segments, s, (size_t)n * sizeof *s);
        cut(s, n, host, first);
        const struct { void **to; size_t bytes; const void *from; } arrays[] = {
            { (void **)&t->chunks, chunks * sizeof *host, host }, { (void **)&t->first, segments * sizeof *first, first },
            { (void **)&t->squares, chunks * sizeof(double), nullptr }, { (void **)&t->weights, chunks * sizeof(double), nullptr },
            { (void **)&t->rate, segments * sizeof(float), nullptr }, { (void **)&t->factors, 2 * sizeof(float), nullptr } };
        error = cudaSuccess;
        for (const auto &a : arrays) {
            if (error == cudaSuccess) error = cudaMalloc(a.to, a.bytes);
            if (error == cudaSuccess && a.from) error = cudaMemcpyAsync(*a.to, a.from, a.bytes, cudaMemcpyHostToDevice, e->compute);
        }
        const cudaError_t copied = cudaStreamSynchronize(e->compute);
        if (error == cudaSuccess) error = copied;
    }
    free(host);
    free(first);
    CU_TRY(error, "a table of %lld chunks", (long long)t->n_chunks);
    return EN_OK;
}

en_status table_of(en_backend *be, const en_segment *s, int64_t n, const optimizer_table **out)
{
    cuda_engine *e = engine(be);
    for (optimizer_table *t = e->chunks; t; t = t->before)
        if (same_segments(t, s, n)) return *out = t, EN_OK;
    cudaStreamCaptureStatus recording = cudaStreamCaptureStatusNone;
    CU_TRY(cudaStreamIsCapturing(e->compute, &recording), "asking the stream");
    EN_REQUIRE(recording == cudaStreamCaptureStatusNone, EN_EINVAL, "segments seen for the first time inside a recording: update once before it");
    optimizer_table *t = (optimizer_table *)calloc(1, sizeof *t);
    EN_REQUIRE(t, EN_ENOMEM, "no memory for a table");
    const en_status status = fill_table(e, t, s, n);
    if (status != EN_OK) return free_table(t), status;
    t->before = e->chunks;
    *out = e->chunks = t;
    return EN_OK;
}

void optimizer_close(cuda_engine *e)
{
    while (e->chunks) {
        optimizer_table *t = e->chunks;
        e->chunks = t->before;
        free_table(t);
    }
}

/* Sums of squares lie with the table: their number is the arena's, which no geometry tells. */
size_t scratch_of_optimizer(const cuda_engine *) { return 0; }
