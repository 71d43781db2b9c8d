/* watch_inside.h - what the files of the watch know of each other: watch.c (this rank, the thread), watch_line.c (what the ranks'
 * threads tell each other), watch_judge.c (whom they blame). */
#ifndef EN_WATCH_INSIDE_H
#define EN_WATCH_INSIDE_H

#include <stdbool.h>
#include <stdint.h>

#include "comm/watch.h"

enum { EN_WATCH_DETAIL = 64, EN_WATCH_CALL = 32, EN_WATCH_MORE = 160, EN_WATCH_HOST = 64 };

/* Where a rank stands, as its own thread saw it. */
typedef struct {
    uint64_t   met;                            /* calls that meet other ranks, entered so far: the same calls on all   */
    int64_t    step;
    double     since_s, limit_s;               /* without a change; of this section, 0: none                           */
    en_section section;                        /* of before, where it waits                                            */
    bool       waits;                          /* in a call, or for a device that sums                                 */
    char       call[EN_WATCH_CALL], detail[EN_WATCH_DETAIL], more[EN_WATCH_MORE];
} en_place;

typedef enum {
    EN_UNHEARD,                                /* no line between the two: nothing is known                            */
    EN_HEARD,
    EN_GONE,                                   /* its line broke, and it did not call again                            */
    EN_LEFT                                    /* said goodbye                                                         */
} en_peer_state;

/* A rank, as another rank's thread knows it. */
typedef struct {
    int           rank, pid;
    char          host[EN_WATCH_HOST];
    en_peer_state state;
    double        silent_s;                    /* since it was last heard; where it is gone, since then                */
    en_place      at;                          /* HEARD, GONE: where it was then                                       */
    int64_t       step_then;                   /* the furthest step of all ranks then: who gets further gets on without it */
} en_peer;

/* ---- watch_judge.c ----------------------------------------------------------------------------------------------------- */

typedef struct {
    const double *limit_s;                     /* [EN_SECTIONS], borrowed                                              */
    bool          strict;                      /* a rank may not stand anywhere for longer than that, waited for or not */
    bool          apart;                       /* steps of others say nothing about a rank: not all meet               */
    double        patience_s;                  /* on top of what others allow: not all ranks shall speak at once       */
    const char   *advice, *source;             /* borrowed; source: who sets the limits, or NULL                                  */
} en_watch_rules;

/* Whether the job is to end, and the line that says why (without newline).  mark: room for n, scratch. */
bool en_watch_judge(const en_watch_rules *r, const en_peer *peer, int n, bool *mark, char *line, size_t size);

/* "forward of blocks.3 at step 120" */
void en_watch_place_words(const en_place *p, char *words, size_t size);

/* ---- watch_line.c ------------------------------------------------------------------------------------------------------ */

size_t en_watch_frame_bytes(void);             /* all frames are of one size */

enum { EN_WATCH_ADDRESSES = 24, EN_WATCH_TOKEN = 16 };

/* What rank 0 tells all others, by MPI, when the world opens. */
typedef struct {
    uint8_t  token[2][EN_WATCH_TOKEN];         /* the caller shows the first, rank 0 the second                        */
    uint16_t port;                             /* 0: rank 0 does not listen                                            */
    int32_t  addresses;
    struct { uint8_t v6, loopback, bytes[16]; } address[EN_WATCH_ADDRESSES];
} en_watch_invitation;

/* Rank 0's end: who listens. */
typedef struct en_watch_hub en_watch_hub;
en_status en_watch_hub_open(int ranks, en_watch_invitation *out, en_watch_hub **hub);
/* Takes calls, reads what the others say into peer[1 .. ranks), adds passed_s to their silence, and tells them where rank 0 stands.
 * True: a rank says that the job ends. */
bool      en_watch_hub_turn(en_watch_hub *h, double passed_s, const en_place *mine, en_peer *peer);
void      en_watch_hub_end_job(en_watch_hub *h);           /* tells all: leave, it has been said why                    */
void      en_watch_hub_close(en_watch_hub *h);             /* with a goodbye; NULL is fine                              */

/* The other ranks' end. */
typedef struct en_watch_line en_watch_line;
en_status en_watch_line_open(const en_watch_invitation *to, int rank, int pid, bool same_host, en_watch_line **line);
bool      en_watch_line_turn(en_watch_line *l, double passed_s, const en_place *mine, en_peer *root);
bool      en_watch_line_busy(const en_watch_line *l);      /* on its way to rank 0: turn again soon                     */
/* "10.0.0.1 port 4242, ...": where rank 0 was looked for */
void      en_watch_line_words(const en_watch_line *l, char *words, size_t size);
void      en_watch_line_end_job(en_watch_line *l);
void      en_watch_line_close(en_watch_line *l);

#endif
