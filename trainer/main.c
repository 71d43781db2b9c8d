/* main.c - effnet: picks the subcommand, and is the one place that exits. */
#include "trainer/commands.h"
#include "trainer/nearest.h"
#include "trainer/recipes.h"
#include "trainer/trainer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* single: the command runs on one process; under mpirun the other ranks leave at once. */
static const struct { int bit; const char *name, *summary; en_status (*run)(const en_options *); bool single; } commands[] = {
#define ROW(bit_, name_, fewest_, most_, usage_, summary_)                                                               \
    { bit_, #name_, summary_, en_command_##name_, ((bit_) & (EN_PREDICT | EN_DESCRIBE | EN_SYNTH | EN_PACK | EN_CAM | EN_EXPORT | EN_IMPORT | EN_SCALING)) != 0 },
    EN_COMMANDS(ROW)
#undef ROW
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void print_commands(FILE *f)
{
    fprintf(f, "effnet " EN_VERSION " - trains EfficientNet from scratch, on one machine or a cluster\n\n"
               "usage: effnet COMMAND [--option value]...\n\n");
    for (int i = 0; i < N_COMMANDS; i++) fprintf(f, "  %-9s %s\n", commands[i].name, commands[i].summary);
    fprintf(f, "\n`effnet help COMMAND` lists its options, `effnet help recipes` settings that belong together.  A first try, without a download:\n\n"
               "  effnet synth /tmp/shapes\n"
               "  mpirun -n 2 effnet train --data /tmp/shapes --run /tmp/run --image-size 96 --epochs 10\n\n"
               "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused data or checkpoint, 4 diverged, 5 lost or stalled rank,\n"
               "75 stopped on request with a checkpoint written (the same command goes on from it); without --run nothing is written,\n"
               "and a run that is stopped has failed.\n");
}

static en_status find_command(const char *name, int *out)
{
    en_nearest nearest = { .typed = name };
    for (*out = 0; *out < N_COMMANDS; ++*out) {
        if (strcmp(commands[*out].name, name) == 0) return EN_OK;
        en_nearest_offer(&nearest, commands[*out].name);
    }
    en_nearest_offer(&nearest, "help");
    const char *best = en_nearest_best(&nearest);
    EN_REQUIRE(!best, EN_EUSAGE, "there is no command '%s'; did you mean `effnet %s`?", name, best);
    return en_raise(EN_EUSAGE, __FILE__, __LINE__, __func__, "there is no command '%s'; `effnet help` lists them", name);
}

static en_status run(int argc, char **argv)
{
    int world_size, which;
    const int rank = en_launch_rank(&world_size);
    const char *word = argc > 1 ? argv[1] : "help";
    if (strcmp(word, "--version") == 0 || strcmp(word, "version") == 0) {
        if (rank == 0) printf("effnet " EN_VERSION "\n");
        return EN_OK;
    }
    if (strcmp(word, "help") == 0 || strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
        if (argc <= 2) {
            if (rank == 0) print_commands(argc > 1 ? stdout : stderr);
            EN_REQUIRE(argc > 1, EN_EUSAGE, "which command?");
            return EN_OK;
        }
        if (strcmp(argv[2], "recipes") == 0) {
            if (rank == 0) en_recipes_help(stdout);
            return EN_OK;
        }
        EN_REQUIRE(en_edit_distance(argv[2], "recipes") != 1, EN_EUSAGE, "there is no command '%s'; did you mean `effnet help recipes`?", argv[2]);
        EN_TRY(find_command(argv[2], &which), "looking for help");
        if (rank == 0) en_options_help(commands[which].bit, stdout);
        return EN_OK;
    }

    en_options o;
    bool wants_help;
    EN_TRY(find_command(word, &which), "reading the command line");
    EN_TRY(en_options_parse(commands[which].bit, argc, argv, 2, &o, &wants_help), "reading the options of %s", word);
    if (wants_help) {
        if (rank == 0) en_options_help(commands[which].bit, stdout);
        return EN_OK;
    }
    if (commands[which].single && rank > 0) return EN_OK;
    return commands[which].run(&o);
}

int main(int argc, char **argv)
{
    en_program_began();                        /* --stop-after counts from here: starting the ranks is part of its time */
    en_status s = run(argc, argv);
    if (fflush(stdout) != 0 && s == EN_OK)     /* what was printed did not arrive: a full disk behind > */
        s = en_raise(EN_EIO, __FILE__, __LINE__, __func__, "writing to standard output: %s", strerror(errno));
    if (s != EN_OK && s != EN_ESTOPPED) en_report_error(NULL, s);
    return en_status_exit_code(s);
}
