/* nccl_collectives.cpp - sums and broadcasts between ranks, in stream order.
 *
 * Every rank sends its part to all, and adds what it got in rank order: the same bits everywhere and every time.  bf16 and f16
 * sums are rounded at each addition, as on a ring.  A collective begins when its stream gets there and those that were called
 * before it on the communicator are done; it never blocks, so other streams go on and deadlocks need a real reason.
 *
 * CUDAEMU_NCCL_FAIL_AT=k makes the k-th collective of a process (from 1; of all communicators; each replay counts) go wrong,
 * on the rank of MPI_COMM_WORLD that CUDAEMU_NCCL_FAIL_RANK names (unset: on all), in the way of CUDAEMU_NCCL_FAIL:
 *     error   never completes, and ncclCommGetAsyncError says ncclRemoteError (the default)
 *     hang    never completes, and nothing says so
 *     call    the call itself returns ncclSystemError
 * Only ncclCommAbort ends the first two. */
#include "nccl_emu.h"
#include <cstdlib>
#include <cstring>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace cudaemu {

enum What { ALL_REDUCE, REDUCE_TO_ROOT, BROADCAST, ALL_GATHER, REDUCE_SCATTER };
struct Transfer {
    CommRef c;
    What what;
    const char *send;
    char *recv;
    size_t count;                                    // elements of one rank's contribution
    ncclDataType_t type;
    ncclRedOp_t op;
    int root;
    bool wrong;                                      // an injected fault
    uint64_t turn = 0;
    bool begun = false;
    MPI_Request request = MPI_REQUEST_NULL;
    std::vector<char> mine = {}, all = {};
    bool step();
    void finish();
};
static size_t size_of(ncclDataType_t t)
{
    switch (t) {
    case ncclInt8: case ncclUint8: return 1;
    case ncclFloat16: case ncclBfloat16: return 2;
    case ncclInt64: case ncclUint64: case ncclFloat64: return 8;
    case ncclInt32: case ncclUint32: case ncclFloat32: return 4;
    default: return 0;
    }
}
template <class T, class Wide> static void combine(T *acc, const T *x, size_t n, ncclRedOp_t op)
{
    for (size_t i = 0; i < n; i++) {
        const Wide a = (Wide)acc[i], b = (Wide)x[i];
        acc[i] = op == ncclProd ? (T)(a * b) : op == ncclMax ? (b > a ? x[i] : acc[i])
               : op == ncclMin ? (b < a ? x[i] : acc[i]) : (T)(a + b);
    }
}
template <class T, class Wide>
static void reduce(const Transfer &w, size_t from, size_t n, char *out)         // elements [from, from + n) of every rank
{
    const size_t bytes = w.count * sizeof(T);
    std::vector<T> acc(n);
    memcpy(acc.data(), w.all.data() + from * sizeof(T), n * sizeof(T));
    for (int r = 1; r < w.c->n; r++) {
        std::vector<T> x(n);
        memcpy(x.data(), w.all.data() + (size_t)r * bytes + from * sizeof(T), n * sizeof(T));
        combine<T, Wide>(acc.data(), x.data(), n, w.op);
    }
    if (w.op == ncclAvg)
        for (auto &v : acc) v = (T)((Wide)v / (Wide)w.c->n);
    memcpy(out, acc.data(), n * sizeof(T));
}
static void reduce_any(const Transfer &w, size_t from, size_t n, char *out)
{
    switch (w.type) {
    case ncclFloat32: return reduce<float, float>(w, from, n, out);
    case ncclFloat64: return reduce<double, double>(w, from, n, out);
    case ncclBfloat16: return reduce<__nv_bfloat16, float>(w, from, n, out);
    case ncclFloat16: return reduce<__half, float>(w, from, n, out);
    case ncclInt32: return reduce<int32_t, int64_t>(w, from, n, out);
    case ncclUint32: return reduce<uint32_t, uint64_t>(w, from, n, out);
    case ncclInt64: return reduce<int64_t, int64_t>(w, from, n, out);
    case ncclUint64: return reduce<uint64_t, uint64_t>(w, from, n, out);
    case ncclInt8: return reduce<int8_t, int>(w, from, n, out);
    default: return reduce<uint8_t, unsigned>(w, from, n, out);
    }
}
void Transfer::finish()
{
    const size_t bytes = count * size_of(type), share = count / (size_t)c->n;
    switch (what) {
    case ALL_REDUCE: return reduce_any(*this, 0, count, recv);
    case REDUCE_TO_ROOT: return c->rank == root ? reduce_any(*this, 0, count, recv) : void();
    case BROADCAST: memcpy(recv, all.data() + (size_t)root * bytes, bytes); return;
    case ALL_GATHER: memcpy(recv, all.data(), all.size()); return;
    case REDUCE_SCATTER: return reduce_any(*this, share * (size_t)c->rank, share, recv);
    }
}
bool Transfer::step()
{
    if (c->aborted) return true;
    if (c->finished != turn) return false;
    if (!begun) {
        if (wrong) {
            const char *how = getenv("CUDAEMU_NCCL_FAIL");
            if (!how || strcmp(how, "hang")) c->state = ncclRemoteError;
            return false;
        }
        const size_t bytes = count * size_of(type);
        if (bytes > INT32_MAX) fail("a collective of %zu bytes is too large for this emulation", bytes);
        mine.assign(bytes, 0);
        if (what != BROADCAST || c->rank == root) memcpy(mine.data(), send, bytes);
        all.resize(bytes * (size_t)c->n);
        if (c->n == 1) all = mine;
        else MPI_Iallgather(mine.data(), (int)bytes, MPI_BYTE, all.data(), (int)bytes, MPI_BYTE, c->data, &request);
        begun = true;
    }
    int done = c->n == 1;
    if (!done) MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (!done) return false;
    finish();
    c->finished++;
    return true;
}

// ---- calls -----------------------------------------------------------------------------------------------------------
static int group_depth;
static auto &grouped = *new std::vector<std::pair<cudaStream_t, Task>>;
static auto &group_comms = *new std::vector<CommRef>;

static ncclResult_t hand_over(cudaStream_t stream, const Task &t)
{
    const cudaError_t e = submit(stream, t);
    return e == cudaSuccess ? ncclSuccess : complain(ncclUnhandledCudaError, "Cuda failure '%s'", cudaGetErrorString(e));
}
static ncclResult_t first_use(Comm &c)               // a non-blocking communicator connects at its first collective
{
    if (c.blocking || c.warm) return ncclSuccess;
    c.warm = true;
    c.state = ncclInProgress;
    return ncclInProgress;
}
static bool goes_wrong(bool at_the_call)             // counts what it is asked about
{
    static long asked;
    const char *at = getenv("CUDAEMU_NCCL_FAIL_AT"), *who = getenv("CUDAEMU_NCCL_FAIL_RANK"), *how = getenv("CUDAEMU_NCCL_FAIL");
    if (!at || (how && !strcmp(how, "call")) != at_the_call) return false;
    int up = 0, rank = 0;
    MPI_Initialized(&up);
    if (up) MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return ++asked == atol(at) && (!who || atoi(who) == rank);
}
static ncclResult_t collective(What what, const void *send, void *recv, size_t sent, size_t received, size_t count,
                               ncclDataType_t type, ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream)
{
    Api api;
    if (ncclResult_t r = ready(comm)) return r;
    const CommRef c = comm->s;
    if (!size_of(type) || op < ncclSum || op > ncclAvg || root < 0 || root >= c->n)
        return complain(ncclInvalidArgument, "type, op or root");
    if (goes_wrong(true)) return complain(ncclSystemError, "a fault that was asked for");
    const char *s = static_cast<const char *>(send);
    char *r = static_cast<char *>(recv);
    const size_t size = size_of(type);
    const bool sends = what != BROADCAST || c->rank == root, receives = what != REDUCE_TO_ROOT || c->rank == root;
    if (sends) check_device_range(send, sent * size, "NCCL send buffer");
    if (receives) check_device_range(recv, received * size, "NCCL receive buffer");
    const char *own = what == ALL_GATHER ? r + (size_t)c->rank * sent * size : r;
    if (sends && receives && what != REDUCE_SCATTER && s != own && s < r + received * size && r < s + sent * size)
        return complain(ncclInvalidUsage, "send and receive buffers overlap without being the same");
    const Task t = {"an NCCL collective", [=]() -> Work {
        auto w = std::make_shared<Transfer>(Transfer{c, what, s, r, count, type, op, root, goes_wrong(false), c->issued++});
        return [w] { return w->step(); };
    }, true};
    if (group_depth) {
        grouped.push_back({stream, t});
        group_comms.push_back(c);
        return ncclSuccess;
    }
    const ncclResult_t e = hand_over(stream, t);
    return e == ncclSuccess ? first_use(*c) : e;
}

} // namespace cudaemu
using namespace cudaemu;

extern "C" {
ncclResult_t ncclAllReduce(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c, cudaStream_t st)
{
    return collective(ALL_REDUCE, s, r, n, n, n, t, op, 0, c, st);
}
ncclResult_t ncclReduce(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t op, int root, ncclComm_t c, cudaStream_t st)
{
    return collective(REDUCE_TO_ROOT, s, r, n, n, n, t, op, root, c, st);
}
ncclResult_t ncclBroadcast(const void *s, void *r, size_t n, ncclDataType_t t, int root, ncclComm_t c, cudaStream_t st)
{
    return collective(BROADCAST, s, r, n, n, n, t, ncclSum, root, c, st);
}
ncclResult_t ncclBcast(void *b, size_t n, ncclDataType_t t, int root, ncclComm_t c, cudaStream_t st)
{
    return ncclBroadcast(b, b, n, t, root, c, st);
}
ncclResult_t ncclAllGather(const void *s, void *r, size_t n, ncclDataType_t t, ncclComm_t c, cudaStream_t st)
{
    return collective(ALL_GATHER, s, r, n, n * (size_t)(c ? c->s->n : 1), n, t, ncclSum, 0, c, st);
}
ncclResult_t ncclReduceScatter(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c, cudaStream_t st)
{
    const size_t all = n * (size_t)(c ? c->s->n : 1);
    return collective(REDUCE_SCATTER, s, r, all, n, all, t, op, 0, c, st);
}
ncclResult_t ncclGroupStart(void)
{
    Api api;
    group_depth++;
    return ncclSuccess;
}
ncclResult_t ncclGroupEnd(void)
{
    Api api;
    if (group_depth == 0) return complain(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    if (--group_depth) return ncclSuccess;
    auto tasks = std::move(grouped);
    auto comms = std::move(group_comms);
    grouped.clear();
    group_comms.clear();
    ncclResult_t r = ncclSuccess;
    for (auto &t : tasks)
        if (r == ncclSuccess) r = hand_over(t.first, t.second);
    for (auto &c : comms)
        if (r == ncclSuccess || r == ncclInProgress) {
            const ncclResult_t f = first_use(*c);
            if (f != ncclSuccess) r = f;
        }
    return r;
}
}
