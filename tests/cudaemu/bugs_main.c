/* bugs_main.c - bugs NAME planted|repaired: runs one mistake, or its repaired twin. */
#include "bugs.h"
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    const struct bug *const tables[] = {kernel_bugs, host_bugs};
    for (int t = 0; t < 2 && argc == 3; t++)
        for (const struct bug *b = tables[t]; b->name; b++)
            if (!strcmp(b->name, argv[1])) {
                const int r = b->run(!strcmp(argv[2], "planted"));
                puts(r ? "WRONG RESULT" : "looks right");
                return r;
            }
    fprintf(stderr, "usage: bugs NAME planted|repaired\n");
    return 2;
}
