/* signals.c - a request to stop is a flag; the step's agreement carries it to all ranks (step.c). */
#include "trainer/trainer.h"

#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

static atomic_int requested;

static void on_signal(int sig)
{
    if (atomic_fetch_add(&requested, 1) > 0 && sig == SIGINT) _exit(130);     /* asked twice by hand: end at once */
}

void en_stop_on_signals(void)
{
    struct sigaction a = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
    sigemptyset(&a.sa_mask);
    const int signals[] = { SIGUSR1, SIGTERM, SIGINT };
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) sigaction(signals[i], &a, NULL);
    signal(SIGPIPE, SIG_IGN);                                                 /* a closed terminal is no reason to die */
    signal(SIGXFSZ, SIG_IGN);                                                 /* nor is `ulimit -f`: the write says EFBIG */
}

static atomic_bool asked_for;                    /* by the program itself: no signal was asked twice */

void en_stop_request(void)   { atomic_store(&asked_for, true); }
bool en_stop_requested(void) { return atomic_load(&requested) > 0 || atomic_load(&asked_for); }
