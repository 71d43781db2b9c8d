/* test_nccl.c - the communicators and collectives of the harness, on one process without MPI and on several by mpirun.
 *
 *     test_nccl            sums, averages, broadcasts, splits, groups and graphs, on all ranks there are
 *     test_nccl duplicate  two ranks on one GPU are refused
 *     test_nccl fault      the second collective goes wrong (see CUDAEMU_NCCL_FAIL): seen by polling, ended by ncclCommAbort */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>
#include <mpi.h>
#include <nccl.h>

static int rank, ranks = 1;
static cudaStream_t stream;
#define CHECK(cond)                                                                                                     \
    do {                                                                                                                \
        if (!(cond)) {                                                                                                  \
            fprintf(stderr, "[%d/%d] %s:%d: %s\n", rank, ranks, __FILE__, __LINE__, #cond);                             \
            _Exit(1);                                                                                                   \
        }                                                                                                               \
    } while (0)
#define OK(call) CHECK((call) == 0)

static ncclResult_t open_comm(ncclComm_t *c, int blocking)
{
    ncclUniqueId id;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = blocking;
    if (rank == 0) OK(ncclGetUniqueId(&id));
    if (ranks > 1) MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, MPI_COMM_WORLD);
    ncclResult_t r = ncclCommInitRankConfig(c, ranks, id, rank, &config);
    if (!blocking) CHECK(r == ncclInProgress);
    while (r == ncclInProgress) OK(ncclCommGetAsyncError(*c, &r));
    return r;
}
static void settle(ncclComm_t c, ncclResult_t r)
{
    while (r == ncclInProgress) OK(ncclCommGetAsyncError(c, &r));
    OK(r);
}
static float *upload(const float *h, size_t n)
{
    float *d;
    OK(cudaMalloc((void **)&d, n * sizeof *d));
    OK(cudaMemcpy(d, h, n * sizeof *d, cudaMemcpyHostToDevice));
    return d;
}
static void expect(const float *d, float first, float second)
{
    float h[2];
    OK(cudaStreamSynchronize(stream));
    OK(cudaMemcpy(h, d, sizeof h, cudaMemcpyDeviceToHost));
    CHECK(h[0] == first && h[1] == second);
}

static void collectives(ncclComm_t c, int me, int n)
{
    const float h[2] = {(float)me + 1, 10};
    const float sum = (float)(n * (n + 1) / 2);
    float *d = upload(h, 2), *e = upload(h, 2);
    settle(c, ncclAllReduce(d, e, 2, ncclFloat32, ncclSum, c, stream));
    expect(e, sum, 10.0f * (float)n);
    expect(d, h[0], 10);
    settle(c, ncclGroupStart());
    OK(ncclAllReduce(d, d, 2, ncclFloat32, ncclMax, c, stream));
    OK(ncclBroadcast(d, e, 2, ncclFloat32, 0, c, stream));
    settle(c, ncclGroupEnd());
    expect(d, (float)n, 10);
    expect(e, (float)n, 10);
    OK(cudaMemcpy(d, h, sizeof h, cudaMemcpyHostToDevice));
    settle(c, ncclAllReduce(d, d, 2, ncclFloat32, ncclAvg, c, stream));
    expect(d, sum / (float)n, 10);

    const uint16_t one = 0x3f80;                       /* bf16; ranks' ones add up to a number that bf16 has */
    uint16_t *b, got;
    OK(cudaMalloc((void **)&b, sizeof one));
    OK(cudaMemcpy(b, &one, sizeof one, cudaMemcpyHostToDevice));
    settle(c, ncclAllReduce(b, b, 1, ncclBfloat16, ncclSum, c, stream));
    OK(cudaStreamSynchronize(stream));
    OK(cudaMemcpy(&got, b, sizeof got, cudaMemcpyDeviceToHost));
    const float want = (float)n;
    uint32_t bits;
    memcpy(&bits, &want, 4);
    CHECK(got == bits >> 16);

    cudaGraph_t graph;                                 /* captured: each replay sums again */
    cudaGraphExec_t exec;
    OK(cudaMemcpy(d, h, sizeof h, cudaMemcpyHostToDevice));
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    OK(ncclAllReduce(d, d, 2, ncclFloat32, ncclSum, c, stream));
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphLaunch(exec, stream));
    OK(cudaGraphLaunch(exec, stream));
    expect(d, sum * (float)n, 10.0f * (float)(n * n));
    OK(cudaGraphExecDestroy(exec));
    OK(cudaGraphDestroy(graph));
    OK(cudaFree(b));
    OK(cudaFree(d));
    OK(cudaFree(e));
}
static void everything(void)
{
    for (int blocking = 0; blocking < 2; blocking++) {
        ncclComm_t c, half;
        int n, me, version;
        OK(open_comm(&c, blocking));
        OK(ncclCommCount(c, &n));
        OK(ncclCommUserRank(c, &me));
        OK(ncclGetVersion(&version));
        CHECK(n == ranks && me == rank && version == NCCL_VERSION_CODE);
        collectives(c, rank, ranks);
        settle(c, ncclCommSplit(c, rank % 2, -rank, &half, NULL));
        OK(ncclCommCount(half, &n));
        OK(ncclCommUserRank(half, &me));
        CHECK(n == (ranks + 1 - rank % 2) / 2 && me == n - 1 - rank / 2);
        collectives(half, me, n);
        OK(ncclCommDestroy(half));
        OK(ncclCommFinalize(c));
        OK(ncclCommDestroy(c));
    }
}
static void fault(void)
{
    const char *how = getenv("CUDAEMU_NCCL_FAIL");
    const int call = how && !strcmp(how, "call"), hang = how && !strcmp(how, "hang");
    const float h[2] = {1, 1};
    float *d = upload(h, 2);
    ncclComm_t c;
    ncclResult_t r;
    cudaEvent_t e;
    OK(open_comm(&c, 1));
    OK(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    OK(ncclAllReduce(d, d, 2, ncclFloat32, ncclSum, c, stream));
    expect(d, (float)ranks, (float)ranks);
    r = ncclAllReduce(d, d, 2, ncclFloat32, ncclSum, c, stream);
    CHECK(call ? r == ncclSystemError : r == ncclSuccess);
    OK(cudaEventRecord(e, stream));
    for (int i = 0; i < 100 && !call; i++) CHECK(cudaEventQuery(e) == cudaErrorNotReady);
    OK(ncclCommGetAsyncError(c, &r));
    CHECK(r == (call || hang ? ncclSuccess : ncclRemoteError));
    OK(ncclCommAbort(c));
    OK(cudaStreamSynchronize(stream));
    OK(cudaEventDestroy(e));
    OK(cudaFree(d));
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (getenv("OMPI_COMM_WORLD_SIZE")) {
        MPI_Init(&argc, &argv);
        MPI_Comm_rank(MPI_COMM_WORLD, &rank);
        MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    }
    int devices = 0;
    OK(cudaGetDeviceCount(&devices));
    OK(cudaSetDevice(rank % devices));
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    if (!strcmp(what, "duplicate")) {
        ncclComm_t c;
        CHECK(open_comm(&c, 1) == ncclInvalidUsage);
    } else if (!strcmp(what, "fault")) {
        fault();
    } else {
        everything();
    }
    OK(cudaStreamDestroy(stream));
    if (ranks > 1) MPI_Barrier(MPI_COMM_WORLD);
    if (getenv("OMPI_COMM_WORLD_SIZE")) MPI_Finalize();
    return 0;
}
