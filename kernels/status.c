#include "status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct { const char *name; int exit_code; } table[] = {
    [EN_OK] = { "ok", 0 },
    [EN_EINVAL] = { "internal error", 1 },
    [EN_ENOMEM] = { "out of memory", 1 },
    [EN_EIO] = { "input/output error", 1 },
    [EN_ENOTSUP] = { "not supported here", 1 },
    [EN_EUSAGE] = { "wrong usage", 2 },
    [EN_EDATA] = { "bad data", 3 },
    [EN_EDIVERGED] = { "diverged", 4 },
    [EN_EPEER] = { "another rank failed", 5 },
    [EN_ESTOPPED] = { "stopped on request", 75 },
};

const char *en_status_name(en_status s) { return (size_t)s < sizeof table / sizeof *table ? table[s].name : "unknown status"; }
int en_status_exit_code(en_status s)    { return (size_t)s < sizeof table / sizeof *table ? table[s].exit_code : 1; }

static _Thread_local char trace[4096];     /* frames, innermost first, each ended by a newline */
static _Thread_local char innermost[2048];
static _Thread_local size_t used;

en_status en_raise(en_status code, const char *file, int line, const char *func, const char *fmt, ...)
{
    char message[2048];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    if (used == 0) snprintf(innermost, sizeof innermost, "%s", message);
    const char *slash = strrchr(file, '/');
    int n = snprintf(trace + used, sizeof trace - used, used ? "    while %s (%s:%d %s)\n" : "%s (%s:%d %s)\n",
                     message, slash ? slash + 1 : file, line, func);
    if (n > 0) used = used + (size_t)n < sizeof trace ? used + (size_t)n : sizeof trace - 1;
    return code;
}

const char *en_error_text(void)    { return used ? trace : ""; }
const char *en_error_message(void) { return used ? innermost : ""; }

void en_error_clear(void)
{
    used = 0;
    trace[0] = innermost[0] = '\0';
}
