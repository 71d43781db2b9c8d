/* internal.h - what the files of this folder know of each other. */
#ifndef EN_COMM_INTERNAL_H
#define EN_COMM_INTERNAL_H

#include "comm/comm.h"

en_status en_comm_open_self(en_comm **out);
en_status en_comm_begin_mpi(void);
/* expected: the number of ranks the launcher announced, 0 when it did not say */
en_status en_comm_open_mpi(int expected, en_comm **out);
_Noreturn void en_comm_abort_mpi(int exit_code);
/* For tests: gradients of an MPI communicator go in chunks, as between hosts, or not.  Nothing may be in flight. */
void      en_comm_pace_mpi(en_comm *c, bool paced);

/* watch.c: every call that waits for other ranks stands between enter and leave */
void      en_watch_enter(const char *call);                          /* a literal */
void      en_watch_enter_for(const char *call, int within_s);        /* a limit of its own, in whole seconds                 */
void      en_watch_leave(void);
void      en_watch_alive(void);                                      /* the device got on: no change of section, but no standstill */
void      en_watch_device_sums(bool on);                             /* from now on EN_DEVICE is a wait for other ranks       */
void      en_watch_where(char *words, size_t size);                  /* "device at step 12"                                   */
double    en_watch_limit_here(void);                                 /* of a wait that watches itself; 0: none                */
en_status en_watch_open(en_comm *world);                             /* collective; borrows nothing                           */
void      en_watch_part(void);                                       /* the ranks need not hear of this one any more          */
void      en_watch_close(void);

enum { EN_SUMS_IN_FLIGHT = 128 };              /* at most this many sums begun and not yet waited for */

/* ---- tensor communicators ------------------------------------------------------------------------------------------ */

/* Through host memory by control's sums; and for a rank without others.  `owns`: closes control with itself, also on failure. */
en_status en_comm_open_staged(en_comm *control, bool owns, en_backend *be, en_comm **out);
en_status en_comm_open_alone(en_comm *control, bool owns, en_backend *be, en_comm **out);

/* nccl.c lives in the plugin (en_cuda_symbol): what it needs of this folder comes with the call. */
struct en_waits {
    void (*enter)(const char *call, int within_s);
    void (*leave)(void);
    void (*alive)(void);
    double (*limit_s)(void);                                         /* where the rank is now; 0: none */
    void (*where)(char *words, size_t size);                         /* "device at step 12"            */
};
typedef en_status en_nccl_open_fn(en_comm *control, en_backend *be, const struct en_waits *w, en_comm **out);
typedef void      en_nccl_give_up_fn(en_comm *c);                    /* closes it without the other ranks */
typedef bool      en_nccl_probe_fn(char *why, size_t size);          /* false: no NCCL that would do, and why, in words */
en_nccl_open_fn    en_nccl_open;                                     /* collective; the caller tells the ranks of each other's status */
en_nccl_give_up_fn en_nccl_give_up;
en_nccl_probe_fn   en_nccl_probe;

/* The host side of a tensor communicator is control's. */
static inline en_status en_control_broadcast(en_comm *c, void *buf, size_t bytes, int root)
{
    return c->control->ops->broadcast(c->control, buf, bytes, root);
}
static inline en_status en_control_gather(en_comm *c, const void *in, size_t bytes, void *out, int root)
{
    return c->control->ops->gather(c->control, in, bytes, out, root);
}
static inline en_status en_control_barrier(en_comm *c) { return c->control->ops->barrier(c->control); }

/* A communicator with control's places. */
static inline en_comm en_beside(en_comm *control, const char *name, const struct en_comm_ops *ops, void *impl)
{
    en_comm c = *control;
    c.name = name, c.ops = ops, c.impl = impl, c.control = control, c.captures = false, c.why[0] = 0;
    return c;
}

#endif
