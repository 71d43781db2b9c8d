/* loader_bad.c - files that cannot be used: noted by workers, told and counted by one thread.
 *
 * A worker that meets one hangs a note on the image it was making and goes on.  The notes are read when the batch is delivered: in batch
 * order, by the thread that asks for batches, so what is printed, counted and refused is the same whatever the workers' timing. */
#include "loader.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct en_bad_note { en_bad_note *next; int64_t sample; char text[]; };

en_status en_bad_note_add(en_bad_note **list, int64_t sample, const char *text)
{
    const size_t n = strlen(text) + 1;
    en_bad_note *added = malloc(sizeof *added + n);
    EN_REQUIRE(added, EN_ENOMEM, "no memory to report: %s", text);
    added->next = NULL;
    added->sample = sample;
    memcpy(added->text, text, n);
    while (*list) list = &(*list)->next;
    *list = added;
    return EN_OK;
}

void en_bad_note_free(en_bad_note *list)
{
    while (list) {
        en_bad_note *next = list->next;
        free(list);
        list = next;
    }
}

en_status en_bad_files_open(const en_loader_config *config, en_bad_files *b)
{
    *b = (en_bad_files){ .config = config };
    b->is_bad = calloc((size_t)config->dataset->samples / 8 + 1, 1);
    EN_REQUIRE(b->is_bad, EN_ENOMEM, "no memory for a list of bad files");
    return EN_OK;
}

void en_bad_files_close(en_bad_files *b)
{
    for (int i = 0; i < EN_BAD_LISTED; i++) free(b->listed[i]);
    free(b->is_bad);
    free(b->files);
    *b = (en_bad_files){ 0 };
}

static en_status remember(en_bad_files *b, const en_bad_note *bad)
{
    const en_loader_config *c = b->config;
    uint8_t *byte = &b->is_bad[bad->sample / 8];
    const uint8_t bit = (uint8_t)(1 << bad->sample % 8);
    if (*byte & bit) return EN_OK;
    *byte |= bit;
    if (b->n == b->room) {
        const int64_t room = b->room ? 2 * b->room : 64;
        const char **grown = realloc(b->files, (size_t)room * sizeof *grown);
        EN_REQUIRE(grown, EN_ENOMEM, "no memory for a list of %" PRId64 " bad files", room);
        b->files = grown;
        b->room = room;
    }
    if (b->n < EN_BAD_LISTED) b->listed[b->n] = strdup(bad->text);
    b->files[b->n++] = c->dataset->files[bad->sample];
    fprintf(stderr, "rank %d: bad file %s; %s\n", c->shard.rank, bad->text, c->training ? "another image takes its place" : "it is left out");
    return EN_OK;
}

static en_status too_many(const en_bad_files *b, int64_t allowed)
{
    char text[1900];
    size_t used = 0;
    for (int i = 0; i < EN_BAD_LISTED && i < b->n && used < sizeof text - 1; i++) {
        const int n = snprintf(text + used, sizeof text - used, "\n    %s", b->listed[i] ? b->listed[i] : b->files[i]);
        if (n > 0) used += (size_t)n;
    }
    return en_raise(EN_EDATA, __FILE__, __LINE__, __func__, "%" PRId64 " of %" PRId64 " files cannot be used, and --max-bad %g allows %" PRId64 ":%s%s",
                    b->n, b->config->dataset->samples, b->config->max_bad_fraction, allowed, text, b->n > EN_BAD_LISTED ? "\n    ..." : "");
}

en_status en_bad_files_read(en_bad_files *b, int64_t images, en_bad_note **notes)
{
    en_status status = EN_OK;
    for (int64_t i = 0; i < images; i++) {
        for (const en_bad_note *note = notes[i]; note && status == EN_OK; note = note->next) status = remember(b, note);
        en_bad_note_free(notes[i]);
        notes[i] = NULL;
    }
    if (status != EN_OK) return status;
    const double share = b->config->max_bad_fraction;
    int64_t allowed = (int64_t)(share * (double)b->config->dataset->samples);
    if (share > 0 && allowed < 1) allowed = 1;
    return b->n > allowed ? too_many(b, allowed) : EN_OK;
}
