#include "trainer/commands.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int from_environment(const char *name)  /* -1: not set */
{
    const char *text = getenv(name);
    char *end;
    const long v = text ? strtol(text, &end, 10) : -1;
    return text && end != text && v >= 0 && v < 1 << 24 ? (int)v : -1;
}

int en_launch_rank(int *world_size)
{
    static const char *const pair[][2] = { { "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE" }, { "PMI_RANK", "PMI_SIZE" },
                                           { "PMIX_RANK", "SLURM_STEP_NUM_TASKS" }, { "SLURM_PROCID", "SLURM_STEP_NUM_TASKS" } };
    for (size_t i = 0; i < sizeof pair / sizeof *pair; i++) {
        const int rank = from_environment(pair[i][0]), size = from_environment(pair[i][1]);
        if (rank >= 0 && size > rank) {
            *world_size = size;
            return rank;
        }
    }
    *world_size = 1;
    return 0;
}

static bool hushed;

void en_report_hush(void) { hushed = true; }

bool en_report_hushed(void) { return hushed; }

bool en_report_unhush(void)
{
    const bool was = hushed;
    hushed = false;
    return was;
}

void en_report_error(const en_comm *c, en_status s)
{
    static bool reported;
    const char *trace = en_error_text();
    if (hushed || (!*trace && reported)) return;
    reported = true;

    int world_size, rank = en_launch_rank(&world_size);
    char host[64] = "", where[128] = "", text[8192];
    if (c) {
        rank = c->rank;
        world_size = c->world_size;
        snprintf(host, sizeof host, "%s", c->host);
    } else if (gethostname(host, sizeof host - 1) != 0) {
        strcpy(host, "?");
    }
    /* All ranks read the same command line, so one of them says what is wrong with it. */
    const bool for_all = s == EN_EUSAGE && !c;
    if (for_all && rank > 0) {
        usleep(300000);                        /* mpirun ends the job when the first rank leaves: rank 0 speaks before that */
        en_error_clear();
        return;
    }
    if (world_size > 1 && !for_all) snprintf(where, sizeof where, "[rank %d/%d %s] ", rank, world_size, host);

    /* A wrong command line is the user's, and its frames say nothing to them. */
    const char *shown = s == EN_EUSAGE && *trace ? en_error_message() : trace;
    size_t n = strlen(shown);
    const char *tail = n == 0 || shown[n - 1] != '\n' ? "\n" : "";
    snprintf(text, sizeof text, "effnet: %s%s%s%s%s%s", where, en_status_name(s), n ? ": " : "", shown, tail,
             s == EN_EINVAL ? "effnet: this is a mistake in effnet, not in what you did; please report it with the lines above\n" : "");
    fflush(stdout);
    fwrite(text, 1, strlen(text), stderr);     /* one piece: lines of several ranks do not mix */
    fflush(stderr);
    en_error_clear();
}
