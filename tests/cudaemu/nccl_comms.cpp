/* nccl_comms.cpp - NCCL's communicators.
 *
 * A communicator of one rank needs no MPI; more find each other in nccl_meeting.cpp: before the call returns, or, with
 * config.blocking = 0, while ncclCommGetAsyncError is asked.  MPI is called by the thread that calls NCCL or that waits for a
 * stream, and by no other. */
#include "nccl_emu.h"
#include <algorithm>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

namespace cudaemu {

static char last_error[512];
ncclResult_t complain(ncclResult_t r, const char *fmt, ...)
{
    va_list a;
    va_start(a, fmt);
    vsnprintf(last_error, sizeof last_error, fmt, a);
    va_end(a);
    fprintf(stderr, "CUDAEMU: NCCL: %s\n", last_error);
    return r;
}
static void check_thread()
{
    int level = 0, main_thread = 0;
    if (!mpi_is_up()) return;
    MPI_Query_thread(&level);
    MPI_Is_thread_main(&main_thread);
    if (level < MPI_THREAD_SERIALIZED && !main_thread) fail("NCCL over MPI on a thread from which this MPI must not be called");
}
static void locate(Comm &c)
{
    char bus[32] = "", host[96] = "";
    cudaGetDevice(&c.device);
    cudaDeviceGetPCIBusId(bus, sizeof bus, c.device);
    gethostname(host, sizeof host - 1);
    const char *id = getenv("NCCL_HOSTID");
    c.bus = bus;
    c.host = id && *id ? id : host;
}
ncclResult_t poll_setup(Comm &c)
{
    if (!c.setup) return c.state;
    check_thread();
    c.state = c.setup();
    if (c.state != ncclInProgress) c.setup = nullptr;
    return c.state;
}
static ncclResult_t begin_setup(ncclComm_t *out, CommRef c, std::function<ncclResult_t()> setup)
{
    *out = new ncclComm{c};
    c->setup = std::move(setup);
    c->state = ncclInProgress;
    if (!c->blocking) return ncclInProgress;
    while (poll_setup(*c) == ncclInProgress) give_way();
    if (c->state == ncclSuccess) return ncclSuccess;
    delete *out;
    *out = nullptr;
    return c->state;
}
static ncclResult_t read_config(const ncclConfig_t *f, Comm &c)
{
    if (!f) return ncclSuccess;
    if (f->magic != 0xcafebeef) return complain(ncclInvalidArgument, "the config was not made with NCCL_CONFIG_INITIALIZER");
    if (f->blocking != NCCL_CONFIG_UNDEF_INT) c.blocking = f->blocking != 0;
    return ncclSuccess;
}
ncclResult_t ready(ncclComm_t c)
{
    if (!c) return complain(ncclInvalidArgument, "no communicator");
    if (c->s->state == ncclInProgress) return complain(ncclInvalidArgument, "the communicator is used while it is ncclInProgress");
    return c->s->state;
}

} // namespace cudaemu
using namespace cudaemu;

extern "C" {
ncclResult_t ncclGetVersion(int *v) { return *v = NCCL_VERSION_CODE, ncclSuccess; }
const char *ncclGetErrorString(ncclResult_t r)
{
    static const char *const text[] = {"no error", "unhandled cuda error", "unhandled system error", "internal error",
                                       "invalid argument", "invalid usage", "remote process exited or there was a network error",
                                       "NCCL operation in progress"};
    return r >= 0 && r < (int)(sizeof text / sizeof *text) ? text[r] : "unknown result code";
}
const char *ncclGetLastError(ncclComm_t) { return last_error; }
ncclResult_t ncclGetUniqueId(ncclUniqueId *out)
{
    Api api;
    static int number;
    Id id = {"cudaemu", -1, number++};
    if (no_device()) return complain(ncclUnhandledCudaError, "no CUDA device");
    if (mpi_is_up()) MPI_Comm_rank(MPI_COMM_WORLD, &id.world_rank);
    memset(out, 0, sizeof *out);
    memcpy(out->internal, &id, sizeof id);
    return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int n, ncclUniqueId id_bytes, int rank, ncclConfig_t *config)
{
    Api api;
    Id id;
    memcpy(&id, id_bytes.internal, sizeof id);
    *out = nullptr;
    if (no_device()) return complain(ncclUnhandledCudaError, "no CUDA device");
    if (n < 1 || rank < 0 || rank >= n || strcmp(id.magic, "cudaemu"))
        return complain(ncclInvalidArgument, "rank %d of %d", rank, n);
    auto c = std::make_shared<Comm>();
    c->rank = rank;
    c->n = n;
    locate(*c);
    if (ncclResult_t r = read_config(config, *c)) return r;
    if (n == 1) return begin_setup(out, c, [] { return ncclSuccess; });
    int world_rank = -1;
    if (mpi_is_up()) MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
    if (world_rank < 0 || id.world_rank < 0) return complain(ncclSystemError, "several ranks, but MPI is not initialised");
    if ((rank == 0) != (id.world_rank == world_rank))
        return complain(ncclInvalidUsage, "cudaemu: rank 0 has to make the unique id");
    return begin_setup(out, c, meet(c, id));
}
ncclResult_t ncclCommInitRank(ncclComm_t *out, int n, ncclUniqueId id, int rank)
{
    return ncclCommInitRankConfig(out, n, id, rank, nullptr);
}
ncclResult_t ncclCommSplit(ncclComm_t parent, int color, int key, ncclComm_t *out, ncclConfig_t *config)
{
    Api api;
    *out = nullptr;
    if (ncclResult_t r = ready(parent)) return r;
    auto c = std::make_shared<Comm>();
    c->blocking = parent->s->blocking;
    if (ncclResult_t r = read_config(config, *c)) return r;
    locate(*c);
    const auto step = divide(parent->s, c, color, key);
    parent->s->children.push_back(c);
    if (color != NCCL_SPLIT_NOCOLOR) return begin_setup(out, c, step);
    while (step() == ncclInProgress) give_way();
    return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *out)
{
    Api api;
    if (!c) return complain(ncclInvalidArgument, "no communicator");
    *out = poll_setup(*c->s);
    for (auto &w : c->s->children)                   // a split shows at the parent too
        if (const CommRef child = w.lock())
            if (child->setup && *out == ncclSuccess) *out = poll_setup(*child);
    if (*out == ncclSuccess || *out == ncclInProgress) {
        pump();
        if (!c->s->setup && c->s->state == ncclInProgress) c->s->state = ncclSuccess;       // said once: see nccl_collectives
        give_way();
    }
    return ncclSuccess;
}
ncclResult_t ncclCommCount(const ncclComm_t c, int *n)
{
    if (ncclResult_t r = ready(c)) return r;
    return *n = c->s->n, ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t c, int *rank)
{
    if (ncclResult_t r = ready(c)) return r;
    return *rank = c->s->rank, ncclSuccess;
}
ncclResult_t ncclCommCuDevice(const ncclComm_t c, int *device)
{
    if (ncclResult_t r = ready(c)) return r;
    return *device = c->s->device, ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t c)
{
    Api api;
    if (!c) return complain(ncclInvalidArgument, "no communicator");
    while (!c->s->aborted && c->s->finished < c->s->issued) {
        pump();
        give_way();
    }
    return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t c)
{
    Api api;
    if (!c) return ncclSuccess;
    if (ncclResult_t r = ncclCommFinalize(c)) return r;
    if (!c->s->aborted && mpi_is_up() && !c->s->setup) {
        if (c->s->data != MPI_COMM_NULL) MPI_Comm_free(&c->s->data);
        if (c->s->control != MPI_COMM_NULL) MPI_Comm_free(&c->s->control);
    }
    delete c;
    return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t c)             // what is queued ends without result; MPI's communicators stay behind
{
    Api api;
    if (!c) return ncclSuccess;
    c->s->aborted = true;
    static auto &left_behind = *new std::vector<CommRef>;
    left_behind.push_back(c->s);
    pump();
    delete c;
    return ncclSuccess;
}
ncclResult_t ncclMemAlloc(void **p, size_t n) { return cudaMalloc(p, n) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError; }
ncclResult_t ncclMemFree(void *p) { return cudaFree(p) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError; }
ncclResult_t ncclCommRegister(const ncclComm_t, void *, size_t, void **handle) { return *handle = nullptr, ncclSuccess; }
ncclResult_t ncclCommDeregister(const ncclComm_t, void *) { return ncclSuccess; }
}
