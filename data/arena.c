/* arena.c - pieces are cut from the front of a block; a new block is taken when they do not fit.  A reset that finds more than
 * one block replaces them by one that is as large as all pieces together were, so whoever comes with the same wishes again
 * meets no malloc.  What would be more than `keep` is given back to the system: one odd picture must not stay for good. */
#include "arena.h"

#include <stdint.h>
#include <stdlib.h>

enum { ALIGN = 64, LEAST = 1 << 18 };

typedef struct en_arena_block { struct en_arena_block *next; size_t room, used; } block;   /* `room` bytes follow at ALIGN */

static block *add(en_arena *a, size_t room)
{
    if (room > SIZE_MAX - 2 * ALIGN) return NULL;
    room = (room + ALIGN - 1) / ALIGN * ALIGN;
    block *b = aligned_alloc(ALIGN, ALIGN + room);
    if (!b) return NULL;
    *b = (block){ .next = a->blocks, .room = room };
    return a->blocks = b;
}

void *en_arena_take(en_arena *a, size_t bytes)
{
    if (bytes > SIZE_MAX - 2 * ALIGN) return NULL;
    bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    block *b = a->blocks;
    if (!b || b->room - b->used < bytes) b = add(a, bytes > LEAST ? bytes : LEAST);
    if (!b) return NULL;
    void *piece = (char *)b + ALIGN + b->used;
    b->used += bytes;
    a->taken += bytes;
    return piece;
}

void en_arena_reset(en_arena *a, size_t keep)
{
    const size_t taken = a->taken;
    a->taken = 0;
    if (a->blocks && !a->blocks->next && a->blocks->room <= keep) {
        a->blocks->used = 0;
        return;
    }
    en_arena_free(a);
    if (taken > 0 && taken <= keep) add(a, taken);     /* without memory the next piece will say so */
}

void en_arena_free(en_arena *a)
{
    for (block *b = a->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    *a = (en_arena){ 0 };
}
