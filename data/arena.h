/* arena.h - memory that is taken in pieces and given back all at once, for the codecs of this folder. */
#ifndef EN_DATA_ARENA_H
#define EN_DATA_ARENA_H

#include <stddef.h>

typedef struct { struct en_arena_block *blocks; size_t taken; } en_arena;     /* { 0 } is an empty one; owns its blocks */

void *en_arena_take(en_arena *a, size_t bytes);        /* aligned to 64 bytes; NULL: no memory */
void  en_arena_reset(en_arena *a, size_t keep);        /* gives all pieces back; at most `keep` bytes stay for the next ones */
void  en_arena_free(en_arena *a);

#endif
