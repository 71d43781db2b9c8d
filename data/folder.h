/* folder.h - what image folders and packed files share, for this folder alone. */
#ifndef EN_DATA_FOLDER_H
#define EN_DATA_FOLDER_H

#include "dataset.h"

/* Which parts `path` is divided into; both false: none, and any split is all of it.  EN_EDATA, EN_EIO: it is no folder. */
en_status en_folder_splits(const char *path, bool *train, bool *val);

/* The label of a class: its place in classes_like (EN_EDATA when it is not there: `where` says of what, `remedy` what to do), or,
 * without, simply the next one. */
en_status en_class_label(const char *where, const char *name, const char *remedy, int64_t next, const en_dataset *like, int64_t *label);
/* ds->class_names = copies of like's. */
en_status en_class_names_copy(en_dataset *ds, const en_dataset *like);

#endif
