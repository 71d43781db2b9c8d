/* pack_help.h - what the tests of packing share: each test in a folder of its own, and short names for what they do. */
#ifndef EN_TESTS_PACK_HELP_H
#define EN_TESTS_PACK_HELP_H

#include "data_help.h"

#include "data/pack.h"

extern char *dir;                              /* the test's folder */

int         pack_setup(void **state);
int         pack_teardown(void **state);       /* fails when an HDF5 object is still open */
#define IN_A_FOLDER(f) cmocka_unit_test_setup_teardown(f, pack_setup, pack_teardown)

const char *in_dir(const char *name);          /* static, 32 in turn */
void        shapes(const char *name, int classes);             /* DIR/<name>: pictures, 7 to train on and 3 to validate of each class */
bool        there(const char *path);
void        assert_equal_files(const char *a, const char *b);

en_pack_config config_of(const char *source, const char *target);      /* two workers, 1 % may be bad, nothing printed */
en_pack_report packed(const char *source, const char *target);
void        pack_fails(const en_pack_config *c, en_status code, const char *says);
en_dataset *opened(const char *path, const char *split, const en_dataset *like);
void        assert_same_dataset(const en_dataset *folder, const en_dataset *file);
/* Folder and file as datasets of `split`, alone or with the classes of their training part. */
void        assert_same(const char *folder, const char *file, const char *split, bool like_train);

#endif
