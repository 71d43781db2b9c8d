/* gemm_choice.cu - which of the library's algorithms computes a product: measured once, remembered, and kept in a file if wanted.
 *
 * The library proposes several algorithms for a shape, best first by an estimate.  Measuring them is worth a few milliseconds
 * a shape; but algorithms differ in the last bits of their sums, and a stopwatch does not say the same twice.  So a choice, once
 * made, holds for the whole process, whatever engine asks; and a run that must be continued with the same bits keeps its
 * choices in a file (en_cuda_keep_choices) that the next process reads.
 *
 *     EN_GEMM_TUNE=0     the library's first proposal, always: the same bits everywhere without a file
 *
 * The file is text: a line that names library and device, then one line a choice, the numbers of its key and the eight words of
 * the algorithm, which NVIDIA documents as storable for the same version of the library.  A file of another library or
 * device is begun afresh.  A line that a crash cut short is passed over. */
#include "gemm.h"
#include "kernels/plugin.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TIMED = 4, WORDS = sizeof(cublasLtMatmulAlgo_t) / sizeof(uint64_t) };

struct choice { int device; gemm_key key; cublasLtMatmulAlgo_t algo; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;   /* all below */
static choice *choices;
static int n_choices, room;
static FILE *kept;
static int kept_device;

namespace { struct locked { locked() { (void)pthread_mutex_lock(&lock); } ~locked() { (void)pthread_mutex_unlock(&lock); } }; }

/* ---- memory ------------------------------------------------------------------------------------------------------------------- */

static const choice *find(int device, const gemm_key *key)
{
    for (int i = 0; i < n_choices; i++)
        if (choices[i].device == device && memcmp(&choices[i].key, key, sizeof *key) == 0) return &choices[i];
    return NULL;
}

static void remember(int device, const gemm_key *key, const cublasLtMatmulAlgo_t *algo)
{
    if (n_choices == room) {
        choice *bigger = (choice *)realloc(choices, (size_t)(room ? 2 * room : 256) * sizeof *choices);
        if (!bigger) return;                    /* it will be chosen again */
        choices = bigger;
        room = room ? 2 * room : 256;
    }
    choices[n_choices++] = choice{ device, *key, *algo };
}

/* ---- the file ----------------------------------------------------------------------------------------------------------------- */

static void write_choice(const gemm_key *key, const cublasLtMatmulAlgo_t *algo)
{
    uint64_t words[WORDS];
    memcpy(words, algo, sizeof words);
    for (int64_t v : key->v) fprintf(kept, "%" PRId64 " ", v);
    for (uint64_t w : words) fprintf(kept, "%016" PRIx64 " ", w);
    fprintf(kept, "end\n");
    fflush(kept);                               /* a full disk costs the next process the same bits, not this one its work */
}

static bool read_choice(const char *line, gemm_key *key, cublasLtMatmulAlgo_t *algo)
{
    uint64_t words[WORDS];
    char *end = NULL;
    for (int64_t &v : key->v) {
        v = strtoll(line, &end, 10);
        if (end == line) return false;
        line = end;
    }
    for (uint64_t &w : words) {
        w = strtoull(line, &end, 16);
        if (end == line) return false;
        line = end;
    }
    memcpy(algo, words, sizeof words);
    return strcmp(line, " end\n") == 0;
}

static void read_choices(FILE *file, int device)
{
    char line[1024];
    gemm_key key;
    cublasLtMatmulAlgo_t algo;
    while (fgets(line, sizeof line, file))
        if (read_choice(line, &key, &algo) && !find(device, &key)) remember(device, &key, &algo);
}

/* Choices on the device of `be` are read from the file and, from now on, added to it.  NULL: no longer.  One process a file. */
extern "C" en_status en_cuda_keep_choices(en_backend *be, const char *path)
{
    const cuda_engine *e = engine(be);
    const locked here;
    if (kept) (void)fclose(kept);
    kept = NULL;
    if (!path) return EN_OK;
    cudaDeviceProp prop;
    char title[400], found[400] = "";
    CU_TRY(cudaGetDeviceProperties(&prop, e->device), "GPU %d", e->device);
    snprintf(title, sizeof title, "effnet matrix products 1, cuBLASLt %zu, %s with %d multiprocessors\n", cublasLtGetVersion(), prop.name,
             prop.multiProcessorCount);
    FILE *before = fopen(path, "r");
    const bool same = before && fgets(found, sizeof found, before) && strcmp(found, title) == 0;
    if (same) read_choices(before, e->device);
    if (before) (void)fclose(before);
    kept = fopen(path, same ? "a" : "w");
    EN_REQUIRE(kept, EN_EIO, "cannot keep the choice of matrix products in %s: %s", path, strerror(errno));
    kept_device = e->device;
    fprintf(kept, "%s", same ? "\n" : title);   /* the newline ends a line that was cut short */
    fflush(kept);
    return EN_OK;
}

/* ---- measuring ---------------------------------------------------------------------------------------------------------------- */

/* Milliseconds of the quickest of a few runs, negative when the algorithm cannot. */
static float time_of(cuda_engine *e, const gemm_plan *p, const cublasLtMatmulAlgo_t *algo, const gemm_call *g, const void *c, void *d)
{
    float best = -1.f;
    for (int i = 0; i < TIMED; i++) {
        float ms = 0;
        if (cudaEventRecord(e->gemms->begin, e->compute) != cudaSuccess || gemm_run(e, p, algo, g, c, d) != CUBLAS_STATUS_SUCCESS ||
            cudaEventRecord(e->gemms->end, e->compute) != cudaSuccess || cudaEventSynchronize(e->gemms->end) != cudaSuccess ||
            cudaEventElapsedTime(&ms, e->gemms->begin, e->gemms->end) != cudaSuccess) return -1.f;
        if (i == 1 || (i > 1 && ms < best)) best = ms;                      /* the first run warms up */
    }
    return best;
}

/* The output may be spoilt where the call overwrites it anyway; a call that adds to it is measured on memory of its own, and
 * where there is none left the first proposal stands. */
static int fastest(cuda_engine *e, const gemm_plan *p, const gemm_call *g, const void *c, const cublasLtMatmulHeuristicResult_t *proposals, int n)
{
    const size_t bytes = (size_t)(p->key.v[KEY_M] * p->key.v[KEY_LDD]) * en_dtype_bytes(g->d_type);
    void *spare = NULL;
    if (g->beta != 0 && (cudaMalloc(&spare, bytes) != cudaSuccess || cudaMemsetAsync(spare, 0, bytes, e->compute) != cudaSuccess)) {
        if (spare) (void)cudaFree(spare);
        (void)cudaGetLastError();
        return 0;
    }
    void *d = spare ? spare : g->d;
    int best = -1;
    float least = 0;
    for (int i = 0; i < n; i++) {
        const float ms = time_of(e, p, &proposals[i].algo, g, c == g->d ? d : c, d);
        if (ms >= 0 && (best < 0 || ms < 0.97f * least)) best = i, least = ms;         /* near ties go to the earlier */
    }
    if (spare) (void)cudaStreamSynchronize(e->compute), (void)cudaFree(spare);
    (void)cudaGetLastError();
    return best < 0 ? 0 : best;
}

void gemm_choose(cuda_engine *e, gemm_plan *p, const gemm_call *g, const void *c, const cublasLtMatmulHeuristicResult_t *proposals, int n)
{
    p->algo = proposals[0].algo;
    if (!e->gemms->tune) return;
    const locked here;
    if (const choice *before = find(e->device, &p->key)) {
        p->algo = before->algo;
        return;
    }
    cudaStreamCaptureStatus recording = cudaStreamCaptureStatusNone;
    const bool may_wait = cudaStreamIsCapturing(e->compute, &recording) == cudaSuccess && recording == cudaStreamCaptureStatusNone;
    if (may_wait && n > 1) p->algo = proposals[fastest(e, p, g, c, proposals, n)].algo;
    remember(e->device, &p->key, &p->algo);
    if (kept && kept_device == e->device) write_choice(&p->key, &p->algo);
}
