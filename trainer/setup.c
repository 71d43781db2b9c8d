#define _GNU_SOURCE
#include "trainer/commands.h"
#include "trainer/trainer.h"

#include <dirent.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

double en_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double en_program_began(void)
{
    static double began;                                     /* main asks first, before there are threads */
    if (began == 0) {
        began = en_seconds();
        const char *text = getenv("EFFNET_STARTED_AT");
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        const double then = text ? strtod(text, NULL) : 0, ago = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec - then;
        if (then > 0 && ago > 0) began -= ago;
    }
    return began;
}

/* OMP_NUM_THREADS, where it begins with a number: of a rank, as everywhere.  Else the cores of this host that may run us:
 * what is online, which an affinity mask narrows.  A launcher that binds each rank to its own cores has already shared
 * them out: then the mask is ours alone. */
int en_threads_of(const en_options *o, const en_comm *c)
{
    if (o->threads > 0) return (int)o->threads;
    const char *text = getenv("OMP_NUM_THREADS");
    const long wanted = text ? strtol(text, NULL, 10) : 0;
    if (wanted > 0) return wanted < 1024 ? (int)wanted : 1024;
    cpu_set_t set;
    const int online = (int)sysconf(_SC_NPROCESSORS_ONLN);
    const int usable = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : online;
    const int mine = usable < online ? usable : usable / (c->local_size > 0 ? c->local_size : 1);
    return mine > 0 ? mine : 1;
}

en_backend_config en_config_of(const en_options *o, const en_comm *c)
{
    return (en_backend_config){ .threads = en_threads_of(o, c), .lanes = (int)o->lanes, .local_rank = c->local_rank,
                                .precision = strcmp(o->precision, "bf16") == 0 ? EN_PRECISION_BF16 : strcmp(o->precision, "fp32") == 0 ? EN_PRECISION_F32
                                                                                                       : EN_PRECISION_AUTO };
}

uint64_t en_hash_text(uint64_t h, const char *p)
{
    do h = (h ^ (unsigned char)*p) * 1099511628211u;
    while (*p++);
    return h;
}

en_status en_agree(en_comm *c, en_status mine)
{
    double few[256] = { 0 }, *status = c->world_size <= 256 ? few : calloc((size_t)c->world_size, sizeof *status);
    if (!status) en_comm_abort(c, en_status_exit_code(EN_ENOMEM));
    status[c->rank] = mine;
    const en_status s = c->ops->sum_f64(c, status, status, (size_t)c->world_size);
    int first = -1;
    for (int r = c->world_size - 1; s == EN_OK && r >= 0; r--)
        if (status[r] != EN_OK) first = r;
    const en_status all = first < 0 ? EN_OK : (en_status)status[first];
    if (status != few) free(status);
    if (s != EN_OK) return en_raise(EN_EPEER, __FILE__, __LINE__, __func__, "agreeing with the other ranks");
    if (all != EN_OK && first != c->rank) en_report_hush();       /* one rank tells it; all leave with its exit code */
    return all;
}

static bool may_differ(const char *line)
{
    static const char *const names[] = { "data=", "val=", "checkpoint=", "threads=", "workers=", "log-every=" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strncmp(line, names[i], strlen(names[i])) == 0) return true;
    return false;
}

static en_status compare_options(const en_comm *c, const char *mine, const char *first)
{
    while (*mine && *first) {                                /* the same options in the same order */
        const size_t m = strcspn(mine, "\n"), f = strcspn(first, "\n");
        EN_REQUIRE((m == f && memcmp(mine, first, m) == 0) || may_differ(mine), EN_EUSAGE, "host %s was started with --%.*s, rank 0 with --%.*s: start all "
                   "ranks with the same options", c->host, (int)(m < 300 ? m : 300), mine, (int)(f < 300 ? f : 300), first);
        mine += m + (mine[m] == '\n');
        first += f + (first[f] == '\n');
    }
    EN_REQUIRE(!*mine && !*first, EN_EUSAGE, "host %s has another version of this program than rank 0", c->host);
    return EN_OK;
}

en_status en_check_same_options(en_comm *c, const en_options *o)
{
    if (c->world_size == 1) return EN_OK;
    char *mine = en_options_text(o), *first = NULL;
    uint64_t bytes = mine ? strlen(mine) + 1 : 0;
    en_status status = c->ops->broadcast(c, &bytes, sizeof bytes, 0);
    if (status == EN_OK && bytes > 0) first = malloc(bytes);
    if (status == EN_OK) status = en_agree(c, mine && first ? EN_OK : en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory to compare options"));
    if (status == EN_OK && c->rank == 0) memcpy(first, mine, bytes);
    if (status == EN_OK) status = c->ops->broadcast(c, first, bytes, 0);
    if (status == EN_OK) status = en_agree(c, compare_options(c, mine, first));
    free(mine);
    free(first);
    return status;
}

en_status en_checkpoint_resolve(const char *argument, char path[4096])
{
    struct stat st;
    EN_REQUIRE(argument[0], EN_EUSAGE, "which checkpoint? --checkpoint FILE.h5, or a run's folder");
    EN_REQUIRE(stat(argument, &st) == 0, EN_EDATA, "%s: no such checkpoint or run folder", argument);
    if (!S_ISDIR(st.st_mode)) {
        snprintf(path, 4096, "%s", argument);
        return EN_OK;
    }
    char dir[4000];
    snprintf(dir, sizeof dir, "%s/checkpoints", argument);
    if (stat(dir, &st) != 0 || !S_ISDIR(st.st_mode)) snprintf(dir, sizeof dir, "%s", argument);
    snprintf(path, 4096, "%s/best.h5", dir);
    if (access(path, R_OK) == 0) return EN_OK;
    EN_TRY(en_checkpoint_newest(dir, path, NULL), "looking for a checkpoint in %s", argument);
    EN_REQUIRE(path[0], EN_EDATA, "%s holds no checkpoint (best.h5 or step-*.h5)", argument);
    return EN_OK;
}

int64_t en_memory_held(void)
{
    long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%*s %lld", &pages) != 1) pages = 0;
    if (f) fclose(f);
    return pages * sysconf(_SC_PAGESIZE);
}
