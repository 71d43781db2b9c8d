/* mail.h - letters between single ranks, for work that is handed out while everybody computes.
 *
 * A collective would make a rank that trains wait for one that does not; a letter waits until its receiver looks.  Letters between the
 * same two ranks arrive in the order in which they were sent.  By the thread that opened the world. */
#ifndef EN_MAIL_H
#define EN_MAIL_H

#include "comm/comm.h"

typedef struct en_mail en_mail;

enum { EN_LETTER_BYTES = 1024 };

/* Collective over `world`, which is en_comm_open's. */
en_status en_mail_open(en_comm *world, en_mail **out);
/* Copies the letter and returns at once; to = own rank is fine. */
en_status en_mail_send(en_mail *m, int to, const void *letter, size_t bytes);
/* *from: who sent it; -1: there is none.  letter: room for EN_LETTER_BYTES. */
en_status en_mail_take(en_mail *m, void *letter, size_t *bytes, int *from);
/* Waits until own letters are on their way: each must have been taken, or be taken before its receiver closes.  NULL is fine. */
void      en_mail_close(en_mail *m);

#endif
