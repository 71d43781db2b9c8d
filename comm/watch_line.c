/* watch_line.c - what the threads of the ranks tell each other, outside of MPI, about once a second.
 *
 * A thread may not call MPI here (MPI_THREAD_FUNNELED), and MPI would not answer when it matters.  So rank 0 listens on a TCP port;
 * its addresses and two random tokens went round by MPI when the world opened.  Everybody else calls:
 *
 *     rank r                         rank 0
 *     hello  token[0], r     ──▶     knows the token, or hangs up
 *     knows the token        ◀──     hello  token[1]
 *     where r stands         ──▶     table[r]                         once a turn
 *     table[0]               ◀──     where rank 0 stands              once a turn
 *     goodbye, or: the job ends      either way
 *
 * Frames have one size, so that a stranger cannot announce a length; what a frame says is checked before it is believed.
 * No socket blocks, and nobody sleeps here: all is done in turns that watch.c's thread takes, so a turn costs a system call or two
 * for each line.  A line that breaks is called anew; rank 0 takes a rank's newest call for its line.  A frame that finds no room is
 * left out: the other side hears a newer one, or nothing, which is what it is to know. */
#define _GNU_SOURCE
#include "comm/watch_inside.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { STRANGERS = 128, CALLS_A_TURN = 1024, STRANGER_S = 10, ANSWER_S = 3, SPARE_FILES = 256 };

/* ---- frames ---------------------------------------------------------------------------------------------------------------- */

typedef enum { HELLO = 0x45464e31, STANDS, GOODBYE, END_JOB } frame_kind;

typedef struct {
    uint32_t kind;
    union {
        struct { int32_t rank, pid; uint8_t token[EN_WATCH_TOKEN]; } hello;
        struct {
            uint64_t met;
            int64_t  step;
            float    since_s, limit_s;
            uint32_t section, waits;
            char     call[EN_WATCH_CALL], detail[EN_WATCH_DETAIL], more[EN_WATCH_MORE];
        } place;
    } u;
} frame;

size_t en_watch_frame_bytes(void) { return sizeof(frame); }

/* One end of a connection: what has come of the next frame, and what is left to send of the last. */
typedef struct { int fd; size_t got, left; frame in, out; } wire;

static void hang_up(wire *w)
{
    if (w->fd >= 0) close(w->fd);
    *w = (wire){ .fd = -1 };
}

/* False: the connection is broken. */
static bool flush_wire(wire *w)
{
    while (w->left > 0) {
        const ssize_t n = send(w->fd, (const char *)&w->out + sizeof w->out - w->left, w->left, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
        w->left -= (size_t)n;
    }
    return true;
}

static bool say(wire *w, const frame *f)
{
    if (w->fd < 0 || !flush_wire(w)) return false;
    if (w->left > 0) return true;              /* no room: left out */
    w->out = *f;
    w->left = sizeof w->out;
    return flush_wire(w);
}

typedef enum { NOTHING, FRAME, BROKEN } heard;

static heard hear(wire *w, frame *f)
{
    for (;;) {
        const ssize_t n = recv(w->fd, (char *)&w->in + w->got, sizeof w->in - w->got, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK ? NOTHING : BROKEN;
        if (n == 0) return errno = 0, BROKEN;
        w->got += (size_t)n;
        if (w->got < sizeof w->in) continue;
        w->got = 0;
        *f = w->in;
        return FRAME;
    }
}

static frame hello(int rank, int pid, const uint8_t token[EN_WATCH_TOKEN])
{
    frame f;
    memset(&f, 0, sizeof f);
    f.kind = HELLO;
    f.u.hello.rank = rank;
    f.u.hello.pid = pid;
    memcpy(f.u.hello.token, token, EN_WATCH_TOKEN);
    return f;
}

static bool same_token(const uint8_t a[EN_WATCH_TOKEN], const uint8_t b[EN_WATCH_TOKEN])
{
    unsigned differ = 0;                       /* in a time that does not tell how far they agree */
    for (int i = 0; i < EN_WATCH_TOKEN; i++) differ |= a[i] ^ b[i];
    return differ == 0;
}

static frame of_place(const en_place *p)
{
    frame f;
    memset(&f, 0, sizeof f);
    f.kind = STANDS;
    f.u.place.met = p->met;
    f.u.place.step = p->step;
    f.u.place.since_s = (float)p->since_s;
    f.u.place.limit_s = (float)p->limit_s;
    f.u.place.section = p->section;
    f.u.place.waits = p->waits;
    memcpy(f.u.place.call, p->call, sizeof p->call);
    memcpy(f.u.place.detail, p->detail, sizeof p->detail);
    memcpy(f.u.place.more, p->more, sizeof p->more);
    return f;
}

static void take_text(char *out, const char *in, size_t size)
{
    for (size_t i = 0; i + 1 < size && in[i]; i++) *out++ = (unsigned char)in[i] < ' ' || in[i] == 127 ? '?' : in[i];
    *out = 0;
}

/* False: no rank says that. */
static bool to_place(const frame *f, en_place *p)
{
    if (f->u.place.section >= EN_SECTIONS || f->u.place.waits > 1 || f->u.place.step < 0 || !(f->u.place.since_s >= 0 && f->u.place.since_s < 1e12f) ||
        !(f->u.place.limit_s >= 0 && f->u.place.limit_s < 1e12f)) return false;
    *p = (en_place){ .met = f->u.place.met, .step = f->u.place.step, .since_s = (double)f->u.place.since_s, .limit_s = (double)f->u.place.limit_s,
                     .section = (en_section)f->u.place.section, .waits = f->u.place.waits };
    take_text(p->call, f->u.place.call, sizeof p->call);
    take_text(p->detail, f->u.place.detail, sizeof p->detail);
    take_text(p->more, f->u.place.more, sizeof p->more);
    return true;
}

static void ready(int fd)
{
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
}

/* The network gave up, which says nothing about the process at the other end. */
static bool out_of_reach(int error) { return error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH; }

/* What one end hears of the other, all of it.  True: the job ends. */
static bool listen_to(wire *w, en_peer *peer)
{
    frame f;
    heard h;
    while (w->fd >= 0 && (h = hear(w, &f)) != NOTHING) {
        if (h == FRAME && f.kind == END_JOB) return true;
        if (h == FRAME && f.kind == STANDS && to_place(&f, &peer->at)) {
            peer->state = EN_HEARD;
            peer->silent_s = 0;
            continue;
        }
        if (h == FRAME && f.kind == GOODBYE) peer->state = EN_LEFT;
        else if (peer->state == EN_HEARD && (h == FRAME || !out_of_reach(errno))) peer->state = EN_GONE, peer->silent_s = 0;
        hang_up(w);
    }
    return false;
}

/* ---- rank 0 ----------------------------------------------------------------------------------------------------------------- */

struct en_watch_hub {
    int      fd, ranks;
    uint8_t  token[2][EN_WATCH_TOKEN];
    wire    *line;                             /* owns (ranks); [0] is not used                                        */
    int      strangers;
    struct { wire w; double age_s; } stranger[STRANGERS];      /* called, and have not said who they are              */
};

static void list_addresses(en_watch_invitation *out)
{
    struct ifaddrs *all = NULL;
    if (getifaddrs(&all) != 0) return;
    for (int loopback = 0; loopback < 2; loopback++)           /* the host's own address last: it is everybody's */
        for (const struct ifaddrs *i = all; i; i = i->ifa_next) {
            if (!i->ifa_addr || !(i->ifa_flags & IFF_UP) || !(i->ifa_flags & IFF_LOOPBACK) != !loopback || out->addresses == EN_WATCH_ADDRESSES) continue;
            const int k = out->addresses;
            if (i->ifa_addr->sa_family == AF_INET) {
                memcpy(out->address[k].bytes, &((const struct sockaddr_in *)(const void *)i->ifa_addr)->sin_addr, 4);
                out->address[k].v6 = 0;
            } else if (i->ifa_addr->sa_family == AF_INET6) {
                const struct in6_addr *a = &((const struct sockaddr_in6 *)(const void *)i->ifa_addr)->sin6_addr;
                if (IN6_IS_ADDR_LINKLOCAL(a)) continue;        /* means another interface on each host */
                memcpy(out->address[k].bytes, a, 16);
                out->address[k].v6 = 1;
            } else {
                continue;
            }
            out->address[k].loopback = (uint8_t)loopback;
            out->addresses++;
        }
    freeifaddrs(all);
}

/* One socket for both families where the machine has them; *port = what it got. */
static int listen_somewhere(uint16_t *port)
{
    const int kind = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
    struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_addr = in6addr_any };
    struct sockaddr_in four = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY) };
    int fd = socket(AF_INET6, kind, 0);
    if (fd >= 0 && (setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &(int){ 0 }, sizeof(int)) != 0 || bind(fd, (struct sockaddr *)&six, sizeof six) != 0)) {
        close(fd);
        fd = -1;
    }
    if (fd < 0) {
        fd = socket(AF_INET, kind, 0);
        if (fd >= 0 && bind(fd, (struct sockaddr *)&four, sizeof four) != 0) close(fd), fd = -1;
    }
    socklen_t length = sizeof six;
    if (fd >= 0 && (listen(fd, SOMAXCONN) != 0 || getsockname(fd, (struct sockaddr *)&six, &length) != 0)) close(fd), fd = -1;
    if (fd >= 0) *port = ntohs(six.sin6_port);                 /* at the same place in both */
    return fd;
}

/* A line for each rank, beside what MPI and the loader keep open. */
static void allow_files(int ranks)
{
    struct rlimit r;
    const rlim_t want = (rlim_t)ranks + STRANGERS + SPARE_FILES;
    if (ranks < 256 || getrlimit(RLIMIT_NOFILE, &r) != 0 || r.rlim_cur >= 2 * want) return;
    r.rlim_cur = r.rlim_max == RLIM_INFINITY || r.rlim_max > 2 * want ? 2 * want : r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
}

en_status en_watch_hub_open(int ranks, en_watch_invitation *out, en_watch_hub **hub)
{
    memset(out, 0, sizeof *out);
    *hub = NULL;
    en_watch_hub *h = calloc(1, sizeof *h);
    wire *line = calloc((size_t)ranks, sizeof *line);
    if (!h || !line || getrandom(h->token, sizeof h->token, GRND_NONBLOCK) != sizeof h->token) {
        free(h), free(line);
        EN_REQUIRE(false, EN_ENOMEM, "no memory or no randomness to watch %d ranks", ranks);
    }
    h->line = line;
    h->ranks = ranks;
    for (int r = 0; r < ranks; r++) line[r].fd = -1;
    allow_files(ranks);
    h->fd = listen_somewhere(&out->port);
    if (h->fd < 0) {
        const int error = errno;
        en_watch_hub_close(h);
        EN_REQUIRE(false, EN_ENOTSUP, "no port to listen on: %s", strerror(error));
    }
    list_addresses(out);
    memcpy(out->token, h->token, sizeof out->token);
    *hub = h;
    return EN_OK;
}

/* A caller says who it is: the wire becomes that rank's line.  False: it is not one of us. */
static bool admit(en_watch_hub *h, wire *w, const frame *f, en_peer *peer)
{
    const int r = f->u.hello.rank;
    if (f->kind != HELLO || !same_token(f->u.hello.token, h->token[0]) || r < 1 || r >= h->ranks) return false;
    const frame answer = hello(0, 0, h->token[1]);
    if (!say(w, &answer)) return false;
    hang_up(&h->line[r]);
    h->line[r] = *w;
    if (peer[r].state != EN_HEARD) peer[r].state = EN_UNHEARD, peer[r].silent_s = 0;
    return true;
}

static void take_calls(en_watch_hub *h, double passed_s, en_peer *peer)
{
    for (int k = 0; k < CALLS_A_TURN && h->strangers < STRANGERS; k++) {
        const int fd = accept4(h->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && errno == EINTR) continue;
        if (fd < 0) break;
        ready(fd);
        h->stranger[h->strangers].w = (wire){ .fd = fd };
        h->stranger[h->strangers++].age_s = 0;
    }
    for (int i = 0; i < h->strangers; i++) {
        frame f;
        const heard what = hear(&h->stranger[i].w, &f);
        h->stranger[i].age_s += passed_s;
        if (what == NOTHING && h->stranger[i].age_s < STRANGER_S) continue;
        if (!(what == FRAME && admit(h, &h->stranger[i].w, &f, peer))) hang_up(&h->stranger[i].w);
        h->stranger[i--] = h->stranger[--h->strangers];
    }
}

bool en_watch_hub_turn(en_watch_hub *h, double passed_s, const en_place *mine, en_peer *peer)
{
    const frame now = of_place(mine);
    take_calls(h, passed_s, peer);
    for (int r = 1; r < h->ranks; r++) {
        peer[r].silent_s += passed_s;
        if (h->line[r].fd < 0) continue;
        if (listen_to(&h->line[r], &peer[r])) return true;
        if (h->line[r].fd >= 0) (void)say(&h->line[r], &now);  /* a broken line is heard to be broken */
    }
    return false;
}

static void tell_all(en_watch_hub *h, frame_kind kind)
{
    const frame f = { .kind = kind };
    for (int r = 1; r < h->ranks; r++) (void)say(&h->line[r], &f);
}

void en_watch_hub_end_job(en_watch_hub *h) { tell_all(h, END_JOB); }

void en_watch_hub_close(en_watch_hub *h)
{
    if (!h) return;
    tell_all(h, GOODBYE);
    for (int r = 1; r < h->ranks; r++) hang_up(&h->line[r]);
    for (int i = 0; i < h->strangers; i++) hang_up(&h->stranger[i].w);
    if (h->fd >= 0) close(h->fd);
    free(h->line);
    free(h);
}

/* ---- the others --------------------------------------------------------------------------------------------------------------- */

struct en_watch_line {
    en_watch_invitation to;
    int    rank, pid, at;                      /* at: the address that is tried, or was                                */
    wire   w;
    enum { IDLE, CALLING, GREETING, UP } state;
    double tried_s, pause_s;                   /* in this state; before the next call                                  */
};

en_status en_watch_line_open(const en_watch_invitation *to, int rank, int pid, bool same_host, en_watch_line **line)
{
    en_watch_line *l = *line = calloc(1, sizeof *l);
    EN_REQUIRE(l, EN_ENOMEM, "no memory for a line to rank 0");
    *l = (en_watch_line){ .to = *to, .rank = rank, .pid = pid, .at = -1, .w.fd = -1 };
    if (l->to.addresses < 0 || l->to.addresses > EN_WATCH_ADDRESSES) l->to.addresses = 0;
    for (int i = 0; i < l->to.addresses && same_host; i++)     /* the loopback is the surest on one host, and leads astray elsewhere */
        if (l->to.address[i].loopback) {
            l->at = i - 1;
            break;
        }
    return EN_OK;
}

static void call(en_watch_line *l)
{
    l->state = IDLE;
    l->tried_s = 0;
    if (l->to.port == 0 || l->to.addresses == 0) return;
    l->at = (l->at + 1) % l->to.addresses;
    const uint8_t *bytes = l->to.address[l->at].bytes;
    const bool v6 = l->to.address[l->at].v6;
    struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(l->to.port) };
    struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons(l->to.port) };
    memcpy(&six.sin6_addr, bytes, 16);
    memcpy(&four.sin_addr, bytes, 4);
    const int fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return;
    ready(fd);
    const int error = v6 ? connect(fd, (struct sockaddr *)&six, sizeof six) : connect(fd, (struct sockaddr *)&four, sizeof four);
    if (error != 0 && errno != EINPROGRESS) {
        close(fd);
        return;
    }
    l->w = (wire){ .fd = fd };
    l->state = CALLING;
}

static void give_up_call(en_watch_line *l)
{
    hang_up(&l->w);
    l->state = IDLE;
    l->tried_s = 0;
    l->pause_s = l->at + 1 == l->to.addresses ? 1 : 0;         /* after a round */
}

/* One step on the way to rank 0.  A stranger who listens there does not know the second token. */
static void advance(en_watch_line *l, double passed_s)
{
    frame f;
    l->tried_s += passed_s;
    if (l->state == IDLE && l->tried_s >= l->pause_s) call(l);
    if (l->state == CALLING) {
        f = hello(l->rank, l->pid, l->to.token[0]);
        if (!(l->w.left > 0 ? flush_wire(&l->w) : say(&l->w, &f))) give_up_call(l);      /* until it is connected there is no room */
        else if (l->w.left == 0) l->state = GREETING;
    }
    if (l->state == GREETING) {
        const heard h = hear(&l->w, &f);
        if (h == FRAME && f.kind == HELLO && same_token(f.u.hello.token, l->to.token[1])) l->state = UP;
        else if (h != NOTHING) give_up_call(l);
    }
    if ((l->state == CALLING || l->state == GREETING) && l->tried_s > ANSWER_S) give_up_call(l);
}

bool en_watch_line_turn(en_watch_line *l, double passed_s, const en_place *mine, en_peer *root)
{
    root->silent_s += passed_s;
    if (l->state != UP && root->state != EN_LEFT) advance(l, passed_s);
    if (l->state != UP) return false;
    const frame now = of_place(mine);
    (void)say(&l->w, &now);
    if (listen_to(&l->w, root)) return true;
    if (l->w.fd < 0) give_up_call(l);
    return false;
}

bool en_watch_line_busy(const en_watch_line *l) { return l->state == CALLING || l->state == GREETING; }

void en_watch_line_words(const en_watch_line *l, char *words, size_t size)
{
    size_t n = 0;
    words[0] = 0;
    for (int i = 0; i < l->to.addresses && n < size; i++) {
        char text[INET6_ADDRSTRLEN] = "?";
        inet_ntop(l->to.address[i].v6 ? AF_INET6 : AF_INET, l->to.address[i].bytes, text, sizeof text);
        n += (size_t)snprintf(words + n, size - n, "%s%s", i ? ", " : "", text);
    }
    if (n < size) snprintf(words + n, size - n, " port %d", l->to.port);
}

void en_watch_line_end_job(en_watch_line *l)
{
    const frame f = { .kind = END_JOB };
    if (l->state == UP) (void)say(&l->w, &f);
}

void en_watch_line_close(en_watch_line *l)
{
    if (!l) return;
    const frame f = { .kind = GOODBYE };
    if (l->state == UP) (void)say(&l->w, &f);
    hang_up(&l->w);
    free(l);
}
