/* nccl_meeting.cpp - how the ranks of a communicator find each other, over MPI.
 *
 * The unique id names the process that made it (it has to be rank 0 here): everybody sends it who and where he is, and gets the
 * list of all; for a split, the parent gathers the same.  The list shows two ranks on one GPU, which NCCL refuses;
 * CUDAEMU_SAME_GPU=1 allows it, and so does another NCCL_HOSTID in each process, as with NCCL itself.  Then the ranks open two MPI
 * communicators, one for collectives and one for splits.  A step that has to wait says ncclInProgress, and is asked again. */
#include "nccl_emu.h"
#include <algorithm>
#include <cstdarg>
#include <cstdlib>
#include <cstring>

namespace cudaemu {

struct Member {
    int rank, n, world_rank, color, key;
    char bus[32], host[96];
};
bool mpi_is_up()
{
    int up = 0, down = 0;
    MPI_Initialized(&up);
    if (up) MPI_Finalized(&down);
    return up && !down;
}
Member describe(const Comm &c)
{
    Member m = {};
    m.rank = c.rank;
    m.n = c.n;
    if (mpi_is_up()) MPI_Comm_rank(MPI_COMM_WORLD, &m.world_rank);
    snprintf(m.bus, sizeof m.bus, "%s", c.bus.c_str());
    snprintf(m.host, sizeof m.host, "%s", c.host.c_str());
    return m;
}
// members in rank order; `over` contains them all
static ncclResult_t open_group(Comm &c, const std::vector<Member> &members, const std::vector<int> &ranks_there,
                               MPI_Comm over, int tag)
{
    const char *same = getenv("CUDAEMU_SAME_GPU");
    for (size_t i = 0; i < members.size(); i++)
        for (size_t j = 0; j < i; j++)
            if (!strcmp(members[i].host, members[j].host) && !strcmp(members[i].bus, members[j].bus) && !(same && *same == '1'))
                return complain(ncclInvalidUsage, "Duplicate GPU detected : rank %zu and rank %zu both on CUDA device %s", i, j,
                                members[i].bus);
    if (c.n == 1) return ncclSuccess;
    MPI_Group all, mine;
    MPI_Comm_group(over, &all);
    MPI_Group_incl(all, c.n, ranks_there.data(), &mine);
    MPI_Comm_create_group(over, mine, tag, &c.data);
    MPI_Comm_create_group(over, mine, tag + 1, &c.control);
    MPI_Group_free(&mine);
    MPI_Group_free(&all);
    return ncclSuccess;
}

// ---- meeting by unique id --------------------------------------------------------------------------------------------
struct Meeting {
    CommRef c;
    Id id;
    bool begun = false, have_all = false;
    std::vector<Member> members, arrived;
    std::vector<MPI_Request> requests;
    int tag() const { return 20000 + 2 * (id.number % 5000); }
    void begin()
    {
        const int n = c->n, bytes = (int)sizeof(Member);
        members.resize((size_t)n);
        arrived.resize((size_t)n);
        arrived[0] = describe(*c);
        if (c->rank == 0) {
            requests.resize((size_t)n - 1);
            for (int i = 1; i < n; i++)
                MPI_Irecv(&arrived[(size_t)i], bytes, MPI_BYTE, MPI_ANY_SOURCE, tag(), MPI_COMM_WORLD, &requests[(size_t)i - 1]);
        } else {
            requests.resize(2);
            MPI_Isend(&arrived[0], bytes, MPI_BYTE, id.world_rank, tag(), MPI_COMM_WORLD, &requests[0]);
            MPI_Irecv(members.data(), n * bytes, MPI_BYTE, id.world_rank, tag() + 1, MPI_COMM_WORLD, &requests[1]);
        }
        begun = true;
    }
    ncclResult_t step()
    {
        if (!begun) begin();
        int done = 0;
        MPI_Testall((int)requests.size(), requests.data(), &done, MPI_STATUSES_IGNORE);
        if (!done) return ncclInProgress;
        if (c->rank == 0 && !have_all) {
            for (auto &m : arrived) {
                if (m.n != c->n || m.rank < 0 || m.rank >= c->n)
                    return complain(ncclInvalidArgument, "ranks disagree about their number");
                members[(size_t)m.rank] = m;
            }
            for (size_t i = 1; i < requests.size() + 1; i++)
                MPI_Isend(members.data(), c->n * (int)sizeof(Member), MPI_BYTE, arrived[i].world_rank, tag() + 1, MPI_COMM_WORLD,
                          &requests[i - 1]);
            have_all = true;
            return ncclInProgress;
        }
        std::vector<int> ranks;
        for (auto &m : members) ranks.push_back(m.world_rank);
        return open_group(*c, members, ranks, MPI_COMM_WORLD, tag());
    }
};
// ---- splitting -------------------------------------------------------------------------------------------------------
struct Division {
    CommRef parent, c;                               // c: nobody's, for a rank without a colour
    Member me;
    std::vector<Member> all;
    MPI_Request request = MPI_REQUEST_NULL;
    bool begun = false;
    ncclResult_t step()
    {
        if (!begun && parent->n > 1) {
            all.resize((size_t)parent->n);
            MPI_Iallgather(&me, (int)sizeof me, MPI_BYTE, all.data(), (int)sizeof me, MPI_BYTE, parent->control, &request);
        } else if (!begun) {
            all = {me};
        }
        begun = true;
        int done = parent->n == 1;
        if (!done) MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (!done) return ncclInProgress;
        if (me.color == NCCL_SPLIT_NOCOLOR) return ncclSuccess;
        std::vector<Member> members;
        for (auto &m : all)
            if (m.color == me.color) members.push_back(m);
        std::stable_sort(members.begin(), members.end(), [](const Member &a, const Member &b) { return a.key < b.key; });
        std::vector<int> ranks;
        for (auto &m : members) {
            if (m.rank == me.rank) c->rank = (int)ranks.size();
            ranks.push_back(m.rank);
        }
        c->n = (int)ranks.size();
        return open_group(*c, members, ranks, parent->control, 10);
    }
};
std::function<ncclResult_t()> meet(CommRef c, const Id &id)
{
    auto m = std::make_shared<Meeting>();
    m->c = std::move(c);
    m->id = id;
    return [m] { return m->step(); };
}
std::function<ncclResult_t()> divide(CommRef parent, CommRef c, int color, int key)
{
    auto d = std::make_shared<Division>();
    d->me = describe(*parent);
    d->me.color = color;
    d->me.key = key;
    d->parent = std::move(parent);
    d->c = std::move(c);
    return [d] { return d->step(); };
}

} // namespace cudaemu
