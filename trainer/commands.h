/* commands.h - one function a subcommand, and what they share. */
#ifndef EN_COMMANDS_H
#define EN_COMMANDS_H

#include "comm/comm.h"
#include "trainer/model.h"
#include "trainer/options.h"

/* en_status en_command_train(const en_options *o), en_command_eval, ...: runs the command, prints its results on stdout and
 * returns; main.c reports the error, if any, and exits with its code.  A command that works over ranks opens and closes
 * its communicator; the others run on one process, and main.c keeps them from running on any rank but 0. */
#define EN_COMMAND_DECLARED(bit, name, ...) en_status en_command_##name(const en_options *o);
EN_COMMANDS(EN_COMMAND_DECLARED)
#undef EN_COMMAND_DECLARED

/* The model that --model, --width, --depth, --resolution, --phi, --image-size, --dropout and --drop-path ask for.  classes 0:
 * --classes.  `describe` shows it at the size of its published figures, that of evaluation; for the others it is one to train. */
en_status en_model_from_options(const en_options *o, int classes, int channel_align, en_model **out);

/* The same tensors for images of another size, with another dropout. */
en_status en_model_resized(const en_model *m, int side, float dropout, en_model **out);

/* The same tensors at the size of evaluation: --eval-size, else the model's own (en_model_eval_side). */
en_status en_eval_model_from_options(const en_options *o, const en_model *trained, en_model **out);

/* --stall-timeout: limit_s[EN_SECTIONS] of comm/watch.h, in seconds; EN_EUSAGE, in words. */
en_status en_stall_timeout_read(const char *text, double limit_s[]);
/* The watch keeps these limits, or EFFNET_STALL_S where the option was not given.  Before en_comm_open.  advice: what to do after a
 * stall; borrowed. */
en_status en_watch_as_asked(const en_options *o, const char *advice);

/* The activations' memory plan for --micro-batch images, as text on `stream` (a FILE *): `effnet describe --memory`. */
en_status en_plan_describe(const en_options *o, void *stream);

/* Prints this thread's trace on stderr in one piece, under "effnet: [rank 3/8 node7] bad data: ", and clears it.  Once a trace
 * has been printed, a call without one prints nothing: a command may report while its communicator is open (c), and main.c
 * reports what is left.  c NULL: rank and host from the launcher's environment. */
void en_report_error(const en_comm *c, en_status s);

/* Another rank tells what went wrong: this one prints nothing any more. */
void en_report_hush(void);
bool en_report_hushed(void);
/* It prints again, after a failure that the program survived; whether it was hushed. */
bool en_report_unhush(void);

/* This process's rank as the launcher announced it; 0 and *world_size 1 without a launcher. */
int en_launch_rank(int *world_size);

#endif
