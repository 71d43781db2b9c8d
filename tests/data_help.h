/* data_help.h - what the tests of data/ share: pictures, encoders that make odd files, and temporary folders. */
#ifndef EN_TESTS_DATA_HELP_H
#define EN_TESTS_DATA_HELP_H

#include <stdint.h>

#include "data/data.h"

/* cmocka.h wants these first */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

typedef struct { uint8_t *at; size_t n; } bytes;               /* at owned */
void bytes_free(bytes *b);
bytes bytes_copy(const bytes *b);
void  bytes_insert(bytes *b, size_t at, const void *what, size_t n);

/* A smooth picture with some edges, (h, w, 3); owned by the caller. */
uint8_t *make_picture(int w, int h, unsigned seed);

typedef struct {
    int  components;                           /* 1, 3, 4 (CMYK, the ink values of 255 - rgb and k = 0, stored as told) */
    int  quality, luma_h, luma_v, restart;
    bool progressive, arithmetic, rgb, adobe_inverted, many_scans;
} jpeg_kind;
bytes make_jpeg(const uint8_t *rgb, int w, int h, const jpeg_kind *kind);

/* Rows as stored: samples of `depth` bits, packed; colour_type and interlace as in png.h.  Palette: 4 fixed colours. */
bytes make_png(const uint8_t *rows, size_t row_bytes, int w, int h, int colour_type, int depth, int interlace);

/* A folder of its own, removed with everything in it by temp_close. */
char *temp_open(void);
void  temp_close(char *dir);
const char *path_in(const char *dir, const char *name);        /* static, four in turn */
void  put_file(const char *dir, const char *name, const void *what, size_t n);  /* makes the folders it needs */
void  put_folder(const char *dir, const char *name);
bytes slurp(const char *path);                                 /* a whole file; at owned, and no byte longer, so that the sanitizer sees its end */

/* Runs f with stderr going to a file and returns what was written there; owned by the caller. */
char *stderr_of(void (*f)(void *), void *argument);

void fail_with_trace(const char *what) __attribute__((noreturn));
#define OK(call) do { en_error_clear(); if ((call) != EN_OK) fail_with_trace(#call); } while (0)

#endif
