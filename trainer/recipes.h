/* recipes.h - settings that belong together, by name: `--recipe finetune`, `effnet help recipes`.
 *
 * A recipe is rows of (option, value, source).  It sets what does not stand on the command line, in the parser, so that everything
 * behind it sees plain options.  What a recipe set is written down like everything else: each option in run.txt and in checkpoints. */
#ifndef EN_RECIPES_H
#define EN_RECIPES_H

#include "trainer/options.h"

typedef struct {
    const char *recipe;
    const char *when;                          /* "": always; "v2s v2m": these models; "batch>=24576": from this --global-batch on */
    const char *option, *value;                /* as in the table of options and on the command line       */
    const char *unless;                        /* "steps": not where that was given; "augment none": not with that; "": always */
    const char *source;                        /* where the value comes from, in words                     */
} en_recipe_row;

const en_recipe_row *en_recipe_row_at(int i);  /* NULL after the last */
const char *en_recipe_at(int i);               /* the recipes' names; NULL after the last */

/* Sets every option of --recipe that was not given; of rows for one option the last that fits counts.  Nothing without --recipe.
 * EN_EUSAGE: no such recipe (names the nearest), or it needs an option that is missing. */
en_status en_recipe_apply(en_options *o);

/* "finetune: lr 0.01 (given), lr-schedule cosine, ...": all options of the recipe as they are; broken into lines that begin with
 * `indent` blanks.  Nothing without --recipe.  stream: FILE * */
void en_recipe_say(const en_options *o, int indent, void *stream);
void en_recipes_help(void *stream);            /* all recipes with values and sources */

/* A run goes on: `then` is its options as text.  EN_EUSAGE, naming `path`, when it was another recipe, or when an option that the recipe
 * sets, and nobody has given, had another value then. */
en_status en_recipe_check_same(const en_options *now, const char *then, const char *path);

#endif
