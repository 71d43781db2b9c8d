/* mail.c - letters (mail.h): MPI_Isend of few bytes, looked for by MPI_Iprobe.  A rank's letters to itself stay here. */
#include "comm/mail.h"

#include <mpi.h>
#include <stdlib.h>
#include <string.h>

typedef struct letter {
    struct letter *next;
    MPI_Request request;                       /* of one that was sent */
    size_t bytes;
    char   text[EN_LETTER_BYTES];
} letter;

struct en_mail {
    bool     by_mpi;
    int      rank, world_size;
    MPI_Comm comm;                             /* ours; its ranks are the world's, which is a duplicate of MPI's */
    letter  *own, **own_end;                   /* owns: to itself, oldest first                                  */
    letter  *sent;                             /* owns: not known to have left                                   */
};

static const char *words(int rc, char text[MPI_MAX_ERROR_STRING])
{
    int length = 0;
    MPI_Error_string(rc, text, &length);
    return text;
}
#define MPI_DO(call, what)                                                                                             \
    do { char text_[MPI_MAX_ERROR_STRING]; const int rc_ = (call);                                                     \
         EN_REQUIRE(rc_ == MPI_SUCCESS, EN_EPEER, "%s: %s", what, words(rc_, text_)); } while (0)

en_status en_mail_open(en_comm *world, en_mail **out)
{
    *out = NULL;
    en_mail *m = calloc(1, sizeof *m);
    EN_REQUIRE(m, EN_ENOMEM, "no memory for letters");
    *m = (en_mail){ .by_mpi = strcmp(world->name, "mpi") == 0, .rank = world->rank, .world_size = world->world_size, .comm = MPI_COMM_NULL };
    m->own_end = &m->own;
    *out = m;
    if (!m->by_mpi) return EN_OK;
    MPI_DO(MPI_Comm_dup(MPI_COMM_WORLD, &m->comm), "MPI_Comm_dup");
    MPI_DO(MPI_Comm_set_errhandler(m->comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    return EN_OK;
}

/* Those that have left are forgotten; wait: all have left. */
static void forget_sent(en_mail *m, bool wait)
{
    for (letter **at = &m->sent, *l; (l = *at);) {
        int left = 0;
        if (wait) left = MPI_Wait(&l->request, MPI_STATUS_IGNORE) == MPI_SUCCESS || true;
        else if (MPI_Test(&l->request, &left, MPI_STATUS_IGNORE) != MPI_SUCCESS) left = 0;
        if (left) *at = l->next, free(l);
        else at = &l->next;
    }
}

en_status en_mail_send(en_mail *m, int to, const void *text, size_t bytes)
{
    EN_REQUIRE(to >= 0 && to < m->world_size && bytes <= EN_LETTER_BYTES, EN_EINVAL, "a letter of %zu bytes to rank %d of %d", bytes, to, m->world_size);
    if (m->by_mpi) forget_sent(m, false);
    letter *l = malloc(sizeof *l);
    EN_REQUIRE(l, EN_ENOMEM, "no memory for a letter");
    l->next = NULL;
    l->bytes = bytes;
    memcpy(l->text, text, bytes);
    if (to == m->rank) {
        *m->own_end = l;
        m->own_end = &l->next;
        return EN_OK;
    }
    const int rc = MPI_Isend(l->text, (int)bytes, MPI_BYTE, to, 0, m->comm, &l->request);
    if (rc != MPI_SUCCESS) {
        char why[MPI_MAX_ERROR_STRING];
        free(l);
        return en_raise(EN_EPEER, __FILE__, __LINE__, __func__, "MPI_Isend: %s", words(rc, why));
    }
    l->next = m->sent;
    m->sent = l;
    return EN_OK;
}

en_status en_mail_take(en_mail *m, void *text, size_t *bytes, int *from)
{
    *from = -1;
    letter *l = m->own;
    if (l) {
        memcpy(text, l->text, l->bytes);
        *bytes = l->bytes, *from = m->rank;
        m->own = l->next;
        if (!m->own) m->own_end = &m->own;
        free(l);
        return EN_OK;
    }
    if (!m->by_mpi) return EN_OK;
    MPI_Status status;
    int there = 0, n = 0;
    forget_sent(m, false);
    MPI_DO(MPI_Iprobe(MPI_ANY_SOURCE, 0, m->comm, &there, &status), "MPI_Iprobe");
    if (!there) return EN_OK;
    MPI_DO(MPI_Get_count(&status, MPI_BYTE, &n), "MPI_Get_count");
    EN_REQUIRE(n >= 0 && n <= EN_LETTER_BYTES, EN_EPEER, "a letter of %d bytes from rank %d", n, status.MPI_SOURCE);
    MPI_DO(MPI_Recv(text, n, MPI_BYTE, status.MPI_SOURCE, 0, m->comm, MPI_STATUS_IGNORE), "MPI_Recv");
    *bytes = (size_t)n, *from = status.MPI_SOURCE;
    return EN_OK;
}

void en_mail_close(en_mail *m)
{
    if (!m) return;
    if (m->by_mpi) forget_sent(m, true);
    for (letter *l; (l = m->own);) m->own = l->next, free(l);
    if (m->comm != MPI_COMM_NULL) MPI_Comm_free(&m->comm);
    free(m);
}
