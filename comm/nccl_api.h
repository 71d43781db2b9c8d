/* nccl_api.h - the calls of NCCL that we make, looked up when they are wanted.
 *
 * libnccl weighs 220 MB and a machine with one GPU needs none of it: the plugin is linked without it, and a cluster's own
 * build of it is the one that LD_LIBRARY_PATH finds.  NCCL's header declares the functions; the table holds them. */
#ifndef EN_NCCL_API_H
#define EN_NCCL_API_H

#include <cuda_runtime.h>
#include <nccl.h>
#include <stdbool.h>
#include <stddef.h>

#if NCCL_VERSION_CODE < NCCL_VERSION(2, 18, 0)
#error "comm/nccl.c needs the header of NCCL 2.18 or newer (ncclCommSplit)"
#endif

#define EN_NCCL_CALLS(X)                                                                                               \
    X(GetVersion) X(GetUniqueId) X(GetErrorString) X(GetLastError) X(CommInitRankConfig) X(CommSplit) X(CommGetAsyncError) \
    X(CommFinalize) X(CommDestroy) X(CommAbort) X(AllReduce)

struct en_nccl_api {
#define EN_NCCL_MEMBER(call) __typeof__(&nccl##call) call;
    EN_NCCL_CALLS(EN_NCCL_MEMBER)
#undef EN_NCCL_MEMBER
};

/* The table, or NULL and the reason in words. */
const struct en_nccl_api *en_nccl_load(char *why, size_t size);

#endif
