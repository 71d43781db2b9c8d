/* fuzz.h - what the targets and their drivers share.
 *
 * A target is libFuzzer's: one function that takes any bytes and returns, or aborts when the program breaks a promise.  It is linked
 * with libFuzzer (clang), which makes the bytes, or with replay.c (any compiler), which reads them from files. */
#ifndef EN_TESTS_FUZZ_H
#define EN_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A promise that must hold whatever the bytes are. */
#define PROMISE(cond, ...)                                                                                             \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            fprintf(stderr, "%s:%d: broken: %s: ", __FILE__, __LINE__, #cond);                                         \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fputc('\n', stderr);                                                                                       \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

#endif
