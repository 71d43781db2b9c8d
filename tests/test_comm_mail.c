/* test_comm_mail.c - letters between ranks: alone, and by mpirun on 1 to 4 ranks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "comm/mail.h"

static en_comm *world;

#define check(cond)                                                                                                    \
    do { if (!(cond)) { fprintf(stderr, "[rank %d/%d] %s:%d: %s\n%s", world->rank, world->world_size, __FILE__, __LINE__, #cond, en_error_text()); \
                        en_comm_abort(world, 1); } } while (0)

enum { LETTERS = 40 };
typedef struct { int from, to, number; char filling[EN_LETTER_BYTES - 3 * sizeof(int)]; } letter;

static size_t length_of(int number) { return 3 * sizeof(int) + (size_t)number * 24 % sizeof ((letter *)0)->filling; }

static void send_to(en_mail *m, int to, int number)
{
    letter l = { .from = world->rank, .to = to, .number = number };
    memset(l.filling, number, sizeof l.filling);
    check(en_mail_send(m, to, &l, length_of(number)) == EN_OK);
    memset(&l, 0, sizeof l);                                 /* it was copied */
}

/* Everybody to everybody, itself included, while a collective is between the letters; those of one sender come in their order. */
static void letters_arrive_whole_and_in_order(void **state)
{
    (void)state;
    en_mail *m;
    check(en_mail_open(world, &m) == EN_OK);
    int *next = calloc((size_t)world->world_size, sizeof *next), sent = 0, taken = 0, from;
    size_t bytes;
    check(next);
    while (taken < LETTERS * world->world_size) {
        if (sent < LETTERS) {
            for (int r = 0; r < world->world_size; r++) send_to(m, r, sent);
            double sum = 1;
            check(world->ops->sum_f64(world, &sum, &sum, 1) == EN_OK && sum == world->world_size);
            sent++;
        }
        letter l;
        check(en_mail_take(m, &l, &bytes, &from) == EN_OK);
        if (from < 0) continue;
        check(l.from == from && l.to == world->rank && l.number == next[from] && bytes == length_of(l.number));
        for (size_t i = 0; i < bytes - 3 * sizeof(int); i++) check(l.filling[i] == (char)l.number);
        next[from]++, taken++;
    }
    check(world->ops->barrier(world) == EN_OK);
    letter l;
    check(en_mail_take(m, &l, &bytes, &from) == EN_OK && from == -1);
    en_mail_close(m);
    free(next);
}

/* Nobody need look while one sends: it is not kept waiting. */
static void nobody_waits_for_a_reader(void **state)
{
    (void)state;
    en_mail *m;
    check(en_mail_open(world, &m) == EN_OK);
    const int to = world->world_size - 1;
    if (world->rank == 0)
        for (int i = 0; i < 1000; i++) send_to(m, to, i);
    check(world->ops->barrier(world) == EN_OK);
    for (int i = 0; world->rank == to && i < 1000;) {
        letter l;
        size_t bytes;
        int from;
        check(en_mail_take(m, &l, &bytes, &from) == EN_OK);
        if (from >= 0) check(from == 0 && l.number == i++);
    }
    en_mail_close(m);
}

static void what_is_no_letter_is_refused(void **state)
{
    (void)state;
    en_mail *m;
    char text[EN_LETTER_BYTES + 1] = "";
    check(en_mail_open(world, &m) == EN_OK);
    check(en_mail_send(m, world->rank, text, sizeof text) == EN_EINVAL);
    check(en_mail_send(m, world->world_size, text, 1) == EN_EINVAL);
    check(en_mail_send(m, -1, text, 1) == EN_EINVAL);
    en_error_clear();
    check(en_mail_send(m, world->rank, text, 0) == EN_OK);   /* left lying: closing takes it along */
    en_mail_close(m);
    en_mail_close(NULL);
}

int main(void)
{
    if (en_comm_open(&world) != EN_OK) {
        fprintf(stderr, "%s", en_error_text());
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(letters_arrive_whole_and_in_order),
        cmocka_unit_test(nobody_waits_for_a_reader),
        cmocka_unit_test(what_is_no_letter_is_refused),
    };
    const int failed = cmocka_run_group_tests_name("mail", tests, NULL, NULL);
    en_comm_close(world);
    return failed != 0;
}
