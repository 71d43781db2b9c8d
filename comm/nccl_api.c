/* nccl_api.c - finding NCCL: in this process already, or libnccl.so.2 where the loader looks. */
#define _GNU_SOURCE
#include "comm/nccl_api.h"

#include <dlfcn.h>
#include <stdio.h>

const struct en_nccl_api *en_nccl_load(char *why, size_t size)
{
    static struct en_nccl_api api;
    static bool loaded;
    int version = 0;
    if (loaded) return &api;
    void *library = RTLD_DEFAULT;
    if (!dlsym(RTLD_DEFAULT, "ncclGetVersion") && !(library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL))) {
        snprintf(why, size, "NCCL is not to be had: %.160s", dlerror());
        return NULL;
    }
    *(void **)&api.GetVersion = dlsym(library, "ncclGetVersion");
    if (!api.GetVersion || api.GetVersion(&version) != ncclSuccess || version < NCCL_VERSION(2, 18, 0)) {
        snprintf(why, size, "NCCL %d.%d is too old, 2.18 is the first that will do", version / (version < 10000 ? 1000 : 10000),
                 version / 100 % (version < 10000 ? 10 : 100));
        return NULL;
    }
#define LOOK_UP(call)                                                                                                  \
    if (!(*(void **)&api.call = dlsym(library, "nccl" #call))) {                                                       \
        snprintf(why, size, "NCCL has no nccl" #call ": a damaged or foreign libnccl.so.2");                           \
        return NULL;                                                                                                   \
    }
    EN_NCCL_CALLS(LOOK_UP)
    loaded = true;
    return &api;
}
