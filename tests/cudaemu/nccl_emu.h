/* nccl_emu.h - a communicator, as nccl_comms.cpp makes it and nccl_collectives.cpp uses it. */
#pragma once
#include "runtime.h"
#include <mpi.h>
#include <nccl.h>

namespace cudaemu {

struct Comm {
    int rank = 0, n = 1, device = 0;
    bool blocking = true, aborted = false, warm = false;
    ncclResult_t state = ncclSuccess;                // what ncclCommGetAsyncError says
    std::function<ncclResult_t()> setup;             // asked again while it says ncclInProgress
    MPI_Comm data = MPI_COMM_NULL, control = MPI_COMM_NULL;         // none for one rank
    uint64_t issued = 0, finished = 0;               // collectives: they run in the order of their calls, on whatever stream
    std::string bus, host;
    std::vector<std::weak_ptr<Comm>> children;       // split off, perhaps still in progress
};
using CommRef = std::shared_ptr<Comm>;
ncclResult_t complain(ncclResult_t r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
struct Id { char magic[8]; int world_rank, number; };
bool         mpi_is_up();
std::function<ncclResult_t()> meet(CommRef c, const Id &id);                                       // nccl_meeting.cpp
std::function<ncclResult_t()> divide(CommRef parent, CommRef c, int color, int key);
ncclResult_t poll_setup(Comm &c);
ncclResult_t ready(ncclComm_t c);                    // ncclSuccess: collectives may be called

} // namespace cudaemu

struct ncclComm { cudaemu::CommRef s; };
