/* internal.h - what the files of this folder know of each other. */
#ifndef EN_COMM_INTERNAL_H
#define EN_COMM_INTERNAL_H

#include "comm/comm.h"

en_status en_comm_open_self(en_comm **out);
/* expected: the number of ranks the launcher announced, 0 when it did not say */
en_status en_comm_open_mpi(int expected, en_comm **out);
_Noreturn void en_comm_abort_mpi(int exit_code);

/* stall.c: every call that waits for other ranks stands between enter and leave */
void      en_stall_enter(const char *call);
void      en_stall_leave(void);
en_status en_stall_watch(const en_comm *world);
void      en_stall_end(void);

enum { EN_SUMS_IN_FLIGHT = 128 };              /* at most this many sums begun and not yet waited for */

#endif
