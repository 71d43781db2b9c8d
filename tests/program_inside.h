/* program_inside.h - what the files behind program.h share and no test sees. */
#ifndef EN_TESTS_PROGRAM_INSIDE_H
#define EN_TESTS_PROGRAM_INSIDE_H

#include "program.h"

enum { PATH = 4096 };

void *keep(void *p);                            /* p, owned until the test binary ends */

#endif
