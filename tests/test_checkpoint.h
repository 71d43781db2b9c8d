/* test_checkpoint.h - what the tests of checkpoints share: a folder, a model with padding, snapshots that know their step. */
#ifndef EN_TEST_CHECKPOINT_H
#define EN_TEST_CHECKPOINT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tiny_model.h"

#define OK(call)                                                                                                          \
    do { en_error_clear(); if ((call) != EN_OK) fail_msg("%s:\n%s", #call, en_error_text()); } while (0)
#define REFUSED(code, call, part)                                                                                         \
    do { en_error_clear(); const en_status got_ = (call);                                                                 \
         if (got_ != (code)) fail_msg("%s: %s instead of %s\n%s", #call, en_status_name(got_), en_status_name(code), en_error_text()); \
         if (!strstr(en_error_message(), (part))) fail_msg("%s: no '%s' in: %s", #call, (part), en_error_message());      \
         if (strchr(en_error_message(), '\n')) fail_msg("more than one line: %s", en_error_message()); } while (0)

/* ---- folders ------------------------------------------------------------------------------------------------------- */

static char folder[64];                                        /* of this test; path("x") is a file in it              */

static inline int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/en_checkpoint_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static inline int remove_folder(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static inline const char *path(const char *name)
{
    static char paths[8][256];
    static int next;
    char *p = paths[next++ % 8];
    snprintf(p, sizeof paths[0], "%s/%s", folder, name);
    return p;
}

static inline const char *step_path(int64_t step)
{
    char name[64];
    snprintf(name, sizeof name, "step-%08" PRId64 ".h5", step);
    return path(name);
}

static inline bool exists(const char *p) { struct stat st; return lstat(p, &st) == 0; }

static inline char *slurp(const char *p, size_t *n)
{
    FILE *f = fopen(p, "rb");
    if (!f) fail_msg("cannot open %s", p);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    char *bytes = malloc(*n + 1);
    assert_int_equal(fread(bytes, 1, *n, f), *n);
    fclose(f);
    bytes[*n] = '\0';
    return bytes;
}

static inline void spill(const char *p, const void *bytes, size_t n)
{
    FILE *f = fopen(p, "wb");
    if (!f) fail_msg("cannot write %s", p);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* Equal logical elements, bit by bit, and zeros in what `got` has as padding. */
static inline void same_arena(const en_model *m, en_arena which, const float *got, const float *want, const char *what)
{
    const int64_t n = which == EN_ARENA_PARAMS ? m->param_elems : m->stat_elems;
    float *expected = calloc((size_t)n, sizeof *expected), *logical = malloc((size_t)n * sizeof *logical);
    for (int i = 0; i < m->n_tensors; i++) {
        if (m->tensors[i].arena != which) continue;
        en_tensor_gather(&m->tensors[i], want, logical);
        en_tensor_scatter(&m->tensors[i], logical, expected);
    }
    if (memcmp(got, expected, (size_t)n * sizeof *got)) fail_msg("%s differ", what);
    free(expected);
    free(logical);
}

static inline void same_state(const en_run_state *a, const en_run_state *b)
{
    assert_int_equal(a->step, b->step);
    assert_int_equal(a->epoch, b->epoch);
    assert_int_equal(a->position, b->position);
    assert_int_equal(a->ema_updates, b->ema_updates);
    assert_true(a->seed == b->seed);
    assert_int_equal(a->global_batch, b->global_batch);
    assert_int_equal(a->samples, b->samples);
    assert_int_equal(a->lanes, b->lanes);
    assert_int_equal(a->accum, b->accum);
    assert_int_equal(a->world_size, b->world_size);
    assert_int_equal(a->evaluation_owed, b->evaluation_owed);
    assert_true(a->best_top1 == b->best_top1 && a->seconds == b->seconds);
}

static inline void same_snapshot(const en_snapshot *got, const en_snapshot *want)
{
    const en_model *m = want->model;
    same_state(&got->state, &want->state);
    same_arena(m, EN_ARENA_PARAMS, got->params, want->params, "params");
    same_arena(m, EN_ARENA_STATS, got->stats, want->stats, "stats");
    if (want->ema_params) same_arena(m, EN_ARENA_PARAMS, got->ema_params, want->ema_params, "ema_params");
    if (want->ema_params) same_arena(m, EN_ARENA_STATS, got->ema_stats, want->ema_stats, "ema_stats");
    for (int i = 0; i < want->n_slots; i++) same_arena(m, EN_ARENA_PARAMS, got->slot[i], want->slot[i], want->slot_name[i]);
}

/* The file holds what fill(step) makes. */
static inline void holds_step(const char *p, const en_model *m, int n_slots, int64_t step)
{
    en_snapshot want, got;
    OK(en_snapshot_alloc(m, n_slots, slots, true, &want));
    OK(en_snapshot_alloc(m, n_slots, slots, true, &got));
    fill(&want, step);
    OK(en_checkpoint_read(p, &got, false));
    same_snapshot(&got, &want);
    en_snapshot_free(&want);
    en_snapshot_free(&got);
}

#endif
