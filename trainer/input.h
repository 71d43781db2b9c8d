/* input.h - what the options say about the input side, in the terms of data/. */
#ifndef EN_INPUT_H
#define EN_INPUT_H

#include "comm/watch.h"
#include "data/data.h"
#include "trainer/options.h"
#include "trainer/trainer.h"

/* --augment and what refines it.  EN_EUSAGE when options contradict each other. */
en_status en_augment_of(const en_options *o, en_augment *out);

/* --resize: auto is what `earlier` says (the options of a checkpoint as text; NULL or without it: bicubic).  `name` is a word of the
 * option's limits and lives as long as the program. */
typedef struct { en_resize_kernel kernel; const char *name; } en_resize_choice;
en_resize_choice en_resize_of(const en_options *o, const char *earlier);

/* --normalise and --eval-crop against what the weights were trained with; 0: auto.  EN_EUSAGE, naming `whose`: other pixels than theirs. */
en_normalising en_normalise_asked(const en_options *o);
en_eval_crop   en_eval_crop_asked(const en_options *o);
en_status      en_normalise_agrees(const en_options *o, en_normalising theirs, const char *whose);

/* --workers: as many threads as compute, where it is not given. */
int en_workers_of(const en_options *o, const en_backend *be);

/* Of labels, class names and the ends of the files' names: hosts may keep their copies in different places.  0: no set. */
uint64_t en_dataset_hash(const en_dataset *ds /* NULL is fine */);

/* A rank that stands in `s` says which image the loader is at work on.  NULL: none any more, before it is closed. */
void en_watch_images(en_section s, en_loader *l);

/* Batches decoded in advance, where --prefetch does not say how many bytes of them. */
enum { EN_BATCHES_AHEAD = 2 };

/* Does the step wait for its images?  Looks at steps in windows of EN_INPUT_WINDOW, the first few apart, and speaks once. */
enum { EN_INPUT_WINDOW = 50, EN_INPUT_SETTLING = 10 };
typedef struct { int64_t steps, images; double step_s, data_s; en_loader_times spent; bool said; } en_input_watch;
/* After each step of a rank with `workers` threads out of `cores` it may use; images: its own in a step.  True: `text` says what is missing
 * and what would help.  For devices that compute apart from the cores that decode. */
bool en_input_watch_step(en_input_watch *w, const en_step_report *r, int64_t images, int workers, int cores, char text[600]);

#endif
