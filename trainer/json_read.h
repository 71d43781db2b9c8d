/* json_read.h - a cursor over JSON text, for readers that know what must come next and refuse everything else.
 *
 * The text is changed on the way: a string is decoded where it stands, which never takes more room, and ends with a 0 in place of
 * its quote.  Nothing is allocated, nothing recurses. */
#ifndef EN_JSON_READ_H
#define EN_JSON_READ_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    char *start, *p, *end;                       /* borrowed; p: what comes next                        */
    const char *why;                             /* after a false: what was wrong, at p                 */
} en_json_cursor;

/* Each passes blanks first.  False: it is something else, and `why` says what was expected. */
bool en_json_take(en_json_cursor *c, char mark);                     /* exactly this mark               */
bool en_json_next(en_json_cursor *c, char mark);                     /* this mark?  Passes it only then, and is no error otherwise */
bool en_json_string(en_json_cursor *c, char **text);                 /* without 0 characters in it      */
bool en_json_count(en_json_cursor *c, int64_t *n);                   /* digits alone, up to 2^63 - 1    */
bool en_json_end(en_json_cursor *c);                                 /* nothing but blanks              */

#endif
