#include "h5_error.h"

#include <stdio.h>

#include <hdf5.h>

static herr_t take_innermost(unsigned n, const H5E_error2_t *e, void *text)
{
    if (n == 0) snprintf(text, 256, "%s", e->desc ? e->desc : "no description");
    return 0;
}

const char *en_h5_error(void)
{
    static _Thread_local char text[256];
    text[0] = '\0';
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_innermost, text);
    if (!text[0]) snprintf(text, sizeof text, "no reason given");
    for (char *p = text; *p; p++)
        if (*p == '\n') *p = ' ';
    return text;
}
