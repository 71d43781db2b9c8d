/* wire.c - the links of a cluster on one machine: a switch in a program, whose ports have a delay, a rate and a loss.
 *
 *     wire LINKS PORT...         in the namespace of the ports; the last port is the head's, which is never shaped
 *
 * A port is one end of a veth pair, the node's eth0 being the other.  Frames come in through a packet socket, wait in a heap
 * until they are due, and leave through the socket of the port they are for.  What is due when (a: sender, b: receiver):
 *
 *     sent    = max(now, a.sends until) + bytes/a.rate                 a's link is busy until then
 *     arrives = sent + (a.delay + b.delay)/2
 *     due     = max(arrives, b.receives until + bytes/b.rate)          b's link is busy until then, with other senders' frames too
 *
 * One frame through idle links of one rate so takes bytes/rate + delay, and no link carries more than its rate.  A frame that
 * would wait more than QUEUE_NS for a busy link (and for more than a few frames) is dropped, as by a switch; TCP slows down then.
 *
 * The kernel hands over what TCP sent in one piece, up to 64 KiB, with sums not yet computed: PACKET_VNET_HDR has it say so in a
 * header in front of the frame, which goes out again as it came, so frames are neither cut up nor summed on the way.
 *
 * Stations are known by their addresses, 02:00:00:00:00:K for port "portK", which `cluster` gives them.
 * LINKS has a line for each port but the last: delay in ms, rate in Mbit/s, loss in percent (0: none of it), 1 or 0 for cut.  It is
 * read again at SIGHUP.  "ready" on stderr: frames pass. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PORTS = 80, HEADER = sizeof(struct virtio_net_hdr), FRAME = 1 << 17, BATCH = 32, FEW_BYTES = 1 << 18 };
static const int64_t QUEUE_NS = 100 * 1000 * 1000, TURN_NS = 2 * 1000 * 1000;

typedef struct {
    int      fd, station;                      /* the last byte of the address of who is behind it                       */
    double   delay_ns, ns_per_byte, loss;      /* ns_per_byte 0: as fast as it goes; loss: a share of 1                  */
    bool     passes;
    int64_t  sends_until, receives_until;
} port;

typedef struct {
    int64_t  due;                              /* CLOCK_MONOTONIC, ns                                                    */
    uint64_t order;                            /* frames that are due together leave as they came                        */
    int      from, to;
    size_t   bytes;
    unsigned char *data;                       /* owned: header and frame                                                */
} frame;

static port   ports[PORTS];
static int    n_ports;
static frame *heap;                            /* owned; the earliest first                                              */
static size_t n_heap, heap_room;
static volatile sig_atomic_t changed = 1;

static void on_hup(int sig) { (void)sig; changed = 1; }

static _Noreturn void die(const char *what, const char *which)
{
    fprintf(stderr, "%s %s: %s\n", what, which, strerror(errno));
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void read_links(const char *path)
{
    changed = 0;
    FILE *f = fopen(path, "r");
    if (!f) die("links", path);
    for (int i = 0; i < n_ports - 1; i++) {
        double delay_ms, mbit, percent;
        int passes;
        if (fscanf(f, "%lf %lf %lf %d", &delay_ms, &mbit, &percent, &passes) != 4) die("links: a line is missing or malformed in", path);
        ports[i].delay_ns = 1e6 * delay_ms;
        ports[i].ns_per_byte = mbit > 0 ? 8e3 / mbit : 0;
        ports[i].loss = percent / 100;
        ports[i].passes = passes;
    }
    ports[n_ports - 1].passes = true;
    fclose(f);
}

static int open_port(const char *name)
{
    const int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, htons(ETH_P_ALL)), on = 1, room = 32 << 20;
    const struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = (int)if_nametoindex(name) };
    if (fd < 0 || at.sll_ifindex == 0) die("no port", name);
    if (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on) != 0) die("PACKET_VNET_HDR on", name);
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) != 0) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    if (bind(fd, (const struct sockaddr *)&at, sizeof at) != 0) die("binding to", name);
    return fd;
}

/* ---- the heap -------------------------------------------------------------------------------------------------------- */

static bool before(const frame *a, const frame *b) { return a->due != b->due ? a->due < b->due : a->order < b->order; }

static void push(frame f)
{
    if (n_heap == heap_room && !(heap = realloc(heap, (heap_room = 2 * heap_room + 256) * sizeof *heap))) die("no memory for", "frames");
    size_t i = n_heap++;
    for (; i > 0 && before(&f, &heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = f;
}

static frame pop(void)
{
    const frame first = heap[0], last = heap[--n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < n_heap; i = child) {
        if (child + 1 < n_heap && before(&heap[child + 1], &heap[child])) child++;
        if (!before(&heap[child], &last)) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return first;
}

/* ---- frames ---------------------------------------------------------------------------------------------------------- */

static void forward(int from, int to, const unsigned char *data, size_t bytes, int64_t now)
{
    static uint64_t order;
    port *a = &ports[from], *b = &ports[to];
    if (!a->passes || !b->passes) return;
    int64_t due = now;
    if (from != n_ports - 1 && to != n_ports - 1) {
        const double size = (double)(bytes - HEADER);
        const double few_a = FEW_BYTES * a->ns_per_byte, few_b = FEW_BYTES * b->ns_per_byte;
        if ((a->loss > 0 && drand48() < a->loss) || (b->loss > 0 && drand48() < b->loss)) return;
        const int64_t starts = a->sends_until > now ? a->sends_until : now;
        const int64_t sent = starts + (int64_t)(size * a->ns_per_byte);
        const int64_t arrives = sent + (int64_t)((a->delay_ns + b->delay_ns) / 2);
        const int64_t behind = b->receives_until + (int64_t)(size * b->ns_per_byte);
        due = arrives > behind ? arrives : behind;
        if ((double)(starts - now) > (double)QUEUE_NS + few_a || (double)(due - arrives) > (double)QUEUE_NS + few_b) return;
        a->sends_until = sent;
        b->receives_until = due;
    }
    unsigned char *copy = malloc(bytes);
    if (!copy) die("no memory for", "a frame");
    memcpy(copy, data, bytes);
    push((frame){ .due = due, .order = order++, .from = from, .to = to, .bytes = bytes, .data = copy });
}

static void receive(int from)
{
    static unsigned char data[FRAME];
    for (int i = 0; i < BATCH; i++) {
        struct sockaddr_ll who;
        socklen_t n_who = sizeof who;
        const ssize_t n = recvfrom(ports[from].fd, data, sizeof data, 0, (struct sockaddr *)&who, &n_who);
        if (n < 0) return;                     /* nothing more, or the link was down for a moment */
        if (who.sll_pkttype == PACKET_OUTGOING || n < HEADER + ETHER_HDR_LEN) continue;
        const unsigned char *to = data + HEADER;
        const int64_t now = now_ns();
        for (int k = 0; k < n_ports; k++)      /* the lowest bit of the first byte: for all */
            if (k != from && (to[0] & 1 || to[5] == ports[k].station)) forward(from, k, data, (size_t)n, now);
    }
}

static void deliver(void)
{
    while (n_heap && heap[0].due <= now_ns()) {
        frame f = pop();
        /* a full receiver drops, as a machine does that cannot follow */
        if (ports[f.from].passes && ports[f.to].passes && send(ports[f.to].fd, f.data, f.bytes, 0) < 0) errno = 0;
        free(f.data);
    }
}

/* A switch takes no processor from the nodes, and does not wait until they have computed.  This one has to run somewhere: ahead of what
 * computes, or frames lie for milliseconds while all processors are busy, and a little while on each processor in turn, or it is always
 * the same node that is late, and all others wait for it. */
static void run_ahead(void)
{
    if (sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){ .sched_priority = 1 }) != 0)
        fprintf(stderr, "wire: no real-time priority (%s): frames may be late\n", strerror(errno));
}

static void take_turns(int64_t now)
{
    static cpu_set_t all;
    static int64_t until;
    static int at, n;
    if (now < until) return;
    if (n == 0 && (sched_getaffinity(0, sizeof all, &all) != 0 || (n = CPU_COUNT(&all)) == 0)) n = 1;
    until = now + TURN_NS;
    if (n == 1) return;
    do at = (at + 1) % CPU_SETSIZE; while (!CPU_ISSET(at, &all));
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(at, &one);
    sched_setaffinity(0, sizeof one, &one);
}

int main(int argc, char **argv)
{
    struct pollfd ready[PORTS];
    sigset_t none, hup;
    if (argc < 3 || argc - 2 > PORTS) {
        fprintf(stderr, "usage: wire LINKS PORT...\n");
        return 2;
    }
    n_ports = argc - 2;
    for (int k = 0; k < n_ports; k++) {
        ports[k] = (port){ .fd = open_port(argv[2 + k]), .station = atoi(argv[2 + k] + strlen("port")) };
        ready[k] = (struct pollfd){ ports[k].fd, POLLIN, 0 };
    }
    sigemptyset(&none);
    sigemptyset(&hup);
    sigaddset(&hup, SIGHUP);
    sigprocmask(SIG_BLOCK, &hup, NULL);        /* let in by ppoll alone: none is missed */
    sigaction(SIGHUP, &(struct sigaction){ .sa_handler = on_hup }, NULL);
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);      /* else 50 us late */
    run_ahead();
    for (bool told = false;;) {
        if (changed) read_links(argv[1]);
        if (!told) fprintf(stderr, "ready\n"), told = true;
        const int64_t wait = n_heap ? heap[0].due - now_ns() : 0;
        const struct timespec t = { wait > 0 ? wait / 1000000000 : 0, wait > 0 ? wait % 1000000000 : 0 };
        const int n = ppoll(ready, (nfds_t)n_ports, n_heap ? &t : NULL, &none);
        if (n < 0 && errno != EINTR) die("waiting for", "frames");
        for (int k = 0; n > 0 && k < n_ports; k++)
            if (ready[k].revents) receive(k);
        deliver();
        take_turns(now_ns());
    }
}
