/* backend.c - devices by name.  The cpu is part of this program; cuda is a plugin, a shared library that is looked for only
 * when it is wanted: NVIDIA's libraries weigh 700 MB, and a machine without them must train all the same.
 *
 * The plugin is $EFFNET_CUDA_PLUGIN when that is set, else libeffnet_cuda.so beside the program or in ../lib/effnet.  A program
 * that has the backend linked in (tests do) needs no file.  The plugin takes error traces and randomness from the program. */
#define _GNU_SOURCE
#include "kernels/cpu/backend.h"
#include "kernels/plugin.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *library;
static char  missing[512];

/* The first place that has a plugin: all others are named in the reason. */
static void *open_library(void)
{
    char self[3900] = "", path[4096];
    const char *named = getenv("EFFNET_CUDA_PLUGIN");
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n > 0) self[n] = 0;
    char *slash = strrchr(self, '/');
    if (slash) *slash = 0;
    const char *const places[] = { "%s/libeffnet_cuda.so", "%s/../lib/effnet/libeffnet_cuda.so" };
    for (size_t i = 0; i < (named ? 1 : sizeof places / sizeof *places); i++) {
        if (named) snprintf(path, sizeof path, "%s", named);
        else snprintf(path, sizeof path, places[i], self);
        if (access(path, F_OK) != 0) continue;
        void *driver = named ? NULL : dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);       /* asked first: the plugin brings 200 MB of libraries */
        if (!named && !driver) {
            snprintf(missing, sizeof missing, "no NVIDIA driver on this machine");
            return NULL;
        }
        void *h = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
        if (h) return h;
        snprintf(missing, sizeof missing, "%.400s", dlerror());      /* a library of CUDA's that is not installed is named here */
        return NULL;
    }
    if (named) snprintf(missing, sizeof missing, "EFFNET_CUDA_PLUGIN names %.400s, which is not there", named);
    else snprintf(missing, sizeof missing, "this program was built without CUDA (no libeffnet_cuda.so beside it)");
    return NULL;
}

void *en_cuda_symbol(const char *name)
{
    void *linked = dlsym(RTLD_DEFAULT, name);
    if (linked) return linked;
    if (!library && !missing[0]) library = open_library();
    return library ? dlsym(library, name) : NULL;
}

const char *en_cuda_missing(void)
{
    static char why[512];
    const uint32_t *abi = en_cuda_symbol("en_cuda_abi");
    if (!abi) return missing[0] ? missing : "the plugin is no plugin of this program";
    if (*abi != EN_CUDA_ABI) {
        snprintf(why, sizeof why, "libeffnet_cuda.so is of another version (%u, want %u): build both together", *abi, EN_CUDA_ABI);
        return why;
    }
    en_cuda_probe_fn *probe;
    *(void **)&probe = en_cuda_symbol("en_cuda_probe");
    return probe(why, sizeof why) ? NULL : why;
}

void en_cuda_devices(char *text, size_t size)
{
    en_cuda_list_fn *list;
    if (size) text[0] = 0;
    if (en_cuda_missing()) return;
    *(void **)&list = en_cuda_symbol("en_cuda_list");
    if (list) list(text, size);
}

en_status en_backend_open(const char *name, const en_backend_config *config, en_backend **out)
{
    static const en_backend_config none;
    *out = NULL;
    if (strcmp(name, "cpu") == 0) return cpu_open(config, out);
    EN_REQUIRE(strcmp(name, "cuda") == 0 || strcmp(name, "auto") == 0, EN_ENOTSUP, "no device '%s': cpu, cuda or auto", name);
    const char *why = en_cuda_missing();
    if (why && strcmp(name, "auto") == 0) return cpu_open(config, out);
    EN_REQUIRE(!why, EN_ENOTSUP, "--device cuda: %s", why);
    en_cuda_open_fn *open;
    *(void **)&open = en_cuda_symbol("en_cuda_open");
    return open(config ? config : &none, out);
}

void en_backend_close(en_backend *be)
{
    if (be) be->ops->close(be);
}
