/* fixture_inside.h - what the files of the fixture share and no test sees. */
#ifndef EN_TESTS_FIXTURE_INSIDE_H
#define EN_TESTS_FIXTURE_INSIDE_H

#include "fixture.h"

/* The problem at hand. */
extern struct en_problem { char name[256]; bool exact, zeros, floats; int failures, printed, ran, left_out; uint64_t random; } now;
extern bool some_bf16;                          /* a variant stores bf16 */

#endif
