/* folder.c - an image folder as a dataset.
 *
 * The layout is torchvision's ImageFolder: the folders of DIR are the classes, in byte order of their names, and every file
 * below one belongs to it, however deep.  Opening reads names only - a folder of 1.3 million files is listed in seconds
 * where its file system tells types with names (d_type) - and what a file is shows when it is decoded.
 *
 * Which folder is a split?  DIR/val (or DIR/validation) always is; DIR/train when it holds folders itself.  So a data set
 * with a class called "train" is read as what it is, unless it also has one called "val".
 *
 * Symbolic links are followed.  A folder reached twice within a class, through links, is read once (device and inode
 * tell), so a link to one's own parent ends.  A link that leads nowhere stays in the list and is reported like any other
 * file that cannot be read: leaving it out in silence would change the data without a word. */
#include "folder.h"
#include "pack.h"
#include "synth.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_DEPTH = 64 };                       /* folders below a class; the walk recurses */
static const int64_t max_file_bytes = (int64_t)1 << 30;

/* ---- lists of names ---- */

typedef struct { char **at; int64_t n, room; } names;          /* owns every string */

static en_status names_add(names *l, char *owned)              /* takes `owned`, NULL is no memory */
{
    if (owned && l->n == l->room) {
        const int64_t room = l->room ? 2 * l->room : 64;
        char **grown = realloc(l->at, (size_t)room * sizeof *grown);
        if (grown) { l->at = grown; l->room = room; }
        else { free(owned); owned = NULL; }
    }
    EN_REQUIRE(owned, EN_ENOMEM, "no memory for %" PRId64 " file names", l->n + 1);
    l->at[l->n++] = owned;
    return EN_OK;
}

static void names_free(names *l)
{
    for (int64_t i = 0; i < l->n; i++) free(l->at[i]);
    free(l->at);
    *l = (names){ 0 };
}

static int by_bytes(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }
static void names_sort(names *l) { if (l->n > 1) qsort(l->at, (size_t)l->n, sizeof *l->at, by_bytes); }

static int64_t names_find(char *const *at, int64_t n, const char *name)
{
    for (int64_t i = 0; i < n; i++) if (strcmp(at[i], name) == 0) return i;
    return -1;
}

static bool has(const names *l, const char *name) { return names_find(l->at, l->n, name) >= 0; }

static char *join(const char *dir, const char *name)
{
    const size_t n = strlen(dir), m = strlen(name);
    const bool slash = n && dir[n - 1] != '/';
    char *path = malloc(n + m + 2);
    if (!path) return NULL;
    memcpy(path, dir, n);
    if (slash) path[n] = '/';
    memcpy(path + n + slash, name, m + 1);
    return path;
}

/* ---- reading a folder ---- */

static bool left_out(const char *name) { return name[0] == '.' || strcmp(name, "Thumbs.db") == 0; }

/* The visible entries of the open folder `fd` (consumed), sorted: folders in *folders, all else in *files.  Bare names. */
static en_status list(int fd, const char *path, names *folders, names *files)
{
    en_status status = EN_OK;
    DIR *d = fdopendir(fd);
    if (!d) {
        const int reason = errno;
        close(fd);
        return en_raise(EN_EIO, __FILE__, __LINE__, __func__, "cannot read the folder %s: %s", path, strerror(reason));
    }
    for (;;) {
        errno = 0;
        const struct dirent *e = readdir(d);
        EN_REQUIRE_OUT(e || errno == 0, EN_EIO, "cannot read the folder %s: %s", path, strerror(errno));
        if (!e) break;
        if (left_out(e->d_name)) continue;
        bool folder = e->d_type == DT_DIR;
        if (e->d_type == DT_LNK || e->d_type == DT_UNKNOWN) {
            struct stat st;
            folder = fstatat(dirfd(d), e->d_name, &st, 0) == 0 && S_ISDIR(st.st_mode);
        }
        EN_TRY_OUT(names_add(folder ? folders : files, strdup(e->d_name)), "listing %s", path);
    }
    names_sort(folders);
    names_sort(files);
out:
    closedir(d);
    return status;
}

static en_status list_path(const char *path, names *folders, names *files)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == ENOTDIR) {
        EN_REQUIRE(faccessat(AT_FDCWD, path, R_OK, AT_EACCESS) == 0, EN_EDATA, "%s cannot be read: %s", path, strerror(errno));
        return en_raise(EN_EDATA, __FILE__, __LINE__, __func__,
                        "%s is not a folder, nor a file that `effnet pack` made; name the folder that holds train/ and val/, or the "
                        "class folders", path);
    }
    if (fd < 0 && errno == ENOENT)
        return en_raise(EN_EDATA, __FILE__, __LINE__, __func__,
                        "%s does not exist; name a folder of images, DIR/<class>/..., or \"synthetic\"", path);
    EN_REQUIRE(fd >= 0, EN_EDATA, "cannot open the folder %s: %s", path, strerror(errno));
    return list(fd, path, folders, files);
}

typedef struct { dev_t dev; ino_t ino; } place;
typedef struct {
    names  files;                              /* paths */
    place *seen;                               /* folders of this class read so far */
    size_t seen_n, seen_room;
} walk;

static en_status seen_before(walk *w, const struct stat *st, bool *seen)
{
    for (size_t i = 0; i < w->seen_n; i++)
        if (w->seen[i].dev == st->st_dev && w->seen[i].ino == st->st_ino) { *seen = true; return EN_OK; }
    *seen = false;
    if (w->seen_n == w->seen_room) {
        const size_t room = w->seen_room ? 2 * w->seen_room : 16;
        place *grown = realloc(w->seen, room * sizeof *grown);
        EN_REQUIRE(grown, EN_ENOMEM, "no memory for %zu folders", room);
        w->seen = grown;
        w->seen_room = room;
    }
    w->seen[w->seen_n++] = (place){ st->st_dev, st->st_ino };
    return EN_OK;
}

static en_status collect(walk *w, const char *path, int depth)
{
    EN_REQUIRE(depth < MAX_DEPTH, EN_EDATA, "%s: folders nested more than %d deep", path, MAX_DEPTH);
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    EN_REQUIRE(fd >= 0, EN_EDATA, "cannot open the folder %s: %s", path, strerror(errno));
    struct stat st;
    bool seen = false;
    en_status status = fstat(fd, &st) == 0 ? seen_before(w, &st, &seen)
                     : en_raise(EN_EIO, __FILE__, __LINE__, __func__, "cannot look at the folder %s: %s", path, strerror(errno));
    if (status != EN_OK || seen) { close(fd); return status; }

    names folders = { 0 }, files = { 0 };
    EN_TRY_OUT(list(fd, path, &folders, &files), "collecting files");
    for (int64_t i = 0; i < files.n; i++)
        EN_TRY_OUT(names_add(&w->files, join(path, files.at[i])), "collecting files in %s", path);
    for (int64_t i = 0; i < folders.n; i++) {
        char *below = join(path, folders.at[i]);
        EN_REQUIRE_OUT(below, EN_ENOMEM, "no memory for the path of %s", folders.at[i]);
        status = collect(w, below, depth + 1);
        free(below);
        if (status != EN_OK) goto out;
    }
out:
    names_free(&folders);
    names_free(&files);
    return status;
}

/* ---- the table of operations ---- */

/* O_NONBLOCK: a pipe with an image's name must not hold up the run. */
en_status en_file_read(const char *path, uint8_t **buf, size_t *capacity, size_t *n)
{
    en_status status = EN_OK;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        const int reason = errno;
        struct stat st;
        const bool link = lstat(path, &st) == 0 && S_ISLNK(st.st_mode);
        EN_REQUIRE(reason != EMFILE && reason != ENFILE, EN_ENOTSUP, "too many files are open to read %s; raise `ulimit -n`",
                   path);
        return en_raise(reason == ENOMEM ? EN_ENOMEM : EN_EIO, __FILE__, __LINE__, __func__, "%s cannot be opened (%s)", path,
                        link && reason == ENOENT ? "a symbolic link that leads nowhere" : strerror(reason));
    }
    struct stat st;
    EN_REQUIRE_OUT(fstat(fd, &st) == 0, EN_EIO, "%s cannot be looked at (%s)", path, strerror(errno));
    EN_REQUIRE_OUT(S_ISREG(st.st_mode), EN_EDATA, "%s is not a regular file", path);
    EN_REQUIRE_OUT(st.st_size <= max_file_bytes, EN_EDATA, "%s is too large for an image (%" PRId64 " bytes; the limit is 1 GiB)",
                   path, (int64_t)st.st_size);
    const size_t size = (size_t)st.st_size;
    if (size > *capacity) {
        uint8_t *grown = realloc(*buf, size);
        EN_REQUIRE_OUT(grown, EN_ENOMEM, "no memory for the %zu bytes of %s", size, path);
        *buf = grown;
        *capacity = size;
    }
    size_t have = 0;
    while (have < size) {
        const ssize_t got = read(fd, *buf + have, size - have);
        if (got < 0 && errno == EINTR) continue;
        EN_REQUIRE_OUT(got >= 0, EN_EIO, "%s cannot be read (%s)", path, strerror(errno));
        EN_REQUIRE_OUT(got > 0, EN_EDATA, "%s shrank while it was read (from %zu bytes to %zu)", path, size, have);
        have += (size_t)got;
    }
    *n = size;
out:
    close(fd);
    return status;
}

static en_status folder_read(const en_dataset *ds, int64_t i, uint8_t **buf, size_t *capacity, size_t *n)
{
    EN_REQUIRE(i >= 0 && i < ds->samples, EN_EINVAL, "sample %" PRId64 " of %" PRId64, i, ds->samples);
    return en_file_read(ds->files[i], buf, capacity, n);
}

static void folder_close(en_dataset *ds)
{
    for (int64_t c = 0; ds->class_names && c < ds->classes; c++) free(ds->class_names[c]);
    for (int64_t i = 0; ds->files && i < ds->samples; i++) free(ds->files[i]);
    free(ds->class_names);
    free(ds->files);
    free(ds->labels);
}

static const struct en_dataset_ops folder_ops = { .read = folder_read, .close = folder_close };

void en_dataset_close(en_dataset *ds)
{
    if (!ds) return;
    ds->ops->close(ds);
    free(ds);
}

/* ---- opening ---- */

typedef struct { const char *train, *val; } splits;            /* bare names of folders; NULL: there is none */

static en_status find_splits(const char *dir, splits *s)
{
    en_status status = EN_OK;
    names folders = { 0 }, files = { 0 }, below = { 0 }, below_files = { 0 };
    char *train = NULL;
    *s = (splits){ 0 };
    EN_TRY_OUT(list_path(dir, &folders, &files), "opening the images");
    const char *val = has(&folders, "val") ? "val" : has(&folders, "validation") ? "validation" : NULL;
    const bool has_train = has(&folders, "train");
    if (has_train && !val) {
        train = join(dir, "train");
        EN_REQUIRE_OUT(train, EN_ENOMEM, "no memory for the path of %s/train", dir);
        EN_TRY_OUT(list_path(train, &below, &below_files), "opening the images");
    }
    if (val || (has_train && (below.n > 0 || folders.n == 1))) *s = (splits){ .train = has_train ? "train" : NULL, .val = val };
out:
    free(train);
    names_free(&folders);
    names_free(&files);
    names_free(&below);
    names_free(&below_files);
    return status;
}

en_status en_folder_splits(const char *path, bool *train, bool *val)
{
    splits s;
    EN_TRY(find_splits(path, &s), "looking for train/ and val/");
    *train = s.train;
    *val = s.val;
    return EN_OK;
}

/* The folder whose folders are the classes: DIR itself, or its split.  *root is owned by the caller. */
static en_status pick_split(const char *dir, const char *split, char **root)
{
    splits s;
    EN_TRY(find_splits(dir, &s), "opening the images");
    const bool training = strcmp(split, "train") == 0;
    const char *pick = training ? s.train : s.val, *other = training ? s.val : s.train;
    EN_REQUIRE(pick || !other, EN_EDATA, "%s has %s/ but no %s/; add it, or name another folder for it", dir, other,
               training ? "train" : "val");
    *root = pick ? join(dir, pick) : strdup(dir);
    EN_REQUIRE(*root, EN_ENOMEM, "no memory for the path of %s", dir);
    return EN_OK;
}

en_status en_class_label(const char *where, const char *name, const char *remedy, int64_t next, const en_dataset *like, int64_t *label)
{
    *label = like ? names_find(like->class_names, like->classes, name) : next;
    EN_REQUIRE(*label >= 0, EN_EDATA, "%s/%s: the class \"%s\" is not among the %" PRId64 " of %s; %s", where, name, name,
               like->classes, *like->source ? like->source : "the trained network", remedy);
    return EN_OK;
}

en_status en_class_names_copy(en_dataset *ds, const en_dataset *like)
{
    ds->class_names = calloc((size_t)like->classes, sizeof *ds->class_names);
    EN_REQUIRE(ds->class_names, EN_ENOMEM, "no memory for %" PRId64 " class names", like->classes);
    for (ds->classes = 0; ds->classes < like->classes; ds->classes++) {
        ds->class_names[ds->classes] = strdup(like->class_names[ds->classes]);
        EN_REQUIRE(ds->class_names[ds->classes], EN_ENOMEM, "no memory for %" PRId64 " class names", like->classes);
    }
    return EN_OK;
}

static en_status grow_labels(en_dataset *ds, int64_t samples, int32_t label)
{
    int32_t *grown = realloc(ds->labels, (size_t)samples * sizeof *grown);
    EN_REQUIRE(grown, EN_ENOMEM, "no memory for %" PRId64 " labels", samples);
    ds->labels = grown;
    while (ds->samples < samples) ds->labels[ds->samples++] = label;
    return EN_OK;
}

static en_status open_folder(const char *root, const en_dataset *like, en_dataset *ds)
{
    en_status status = EN_OK;
    names folders = { 0 }, strays = { 0 };
    walk w = { 0 };
    char *path = NULL;
    EN_TRY_OUT(list_path(root, &folders, &strays), "opening the images");
    EN_REQUIRE_OUT(folders.n > 0 || strays.n > 0, EN_EDATA, "%s is empty; it should hold one folder of images for each class",
                   root);
    EN_REQUIRE_OUT(folders.n > 0, EN_EDATA,
                   "%s has %" PRId64 " file%s (%s%s) and no class folders; put the images of each class into a folder of its "
                   "own, %s/<class>/...", root, strays.n, strays.n == 1 ? "" : "s", strays.at[0], strays.n > 1 ? ", ..." : "", root);
    EN_REQUIRE_OUT(folders.n <= INT32_MAX, EN_EDATA, "%s has %" PRId64 " class folders", root, folders.n);

    for (int64_t c = 0; c < folders.n; c++) {
        int64_t label;
        EN_TRY_OUT(en_class_label(root, folders.at[c], "rename the folder or take it out", c, like, &label), "opening the images");
        free(path);
        path = join(root, folders.at[c]);
        EN_REQUIRE_OUT(path, EN_ENOMEM, "no memory for the path of %s", folders.at[c]);
        w.seen_n = 0;
        const int64_t before = w.files.n;
        EN_TRY_OUT(collect(&w, path, 0), "opening the class %s", folders.at[c]);
        EN_REQUIRE_OUT(w.files.n > before, EN_EDATA, "the class folder %s holds no files; add its images or remove the folder",
                       path);
        EN_TRY_OUT(grow_labels(ds, w.files.n, (int32_t)label), "opening the class %s", folders.at[c]);
    }
    if (like) {
        EN_TRY_OUT(en_class_names_copy(ds, like), "copying the class names");
    } else {
        ds->class_names = folders.at;
        ds->classes = folders.n;
        folders = (names){ 0 };
    }
    ds->files = w.files.at;
    w.files = (names){ 0 };
out:
    if (status != EN_OK) ds->samples = 0;      /* the files are still the walk's */
    free(path);
    free(w.seen);
    names_free(&w.files);
    names_free(&folders);
    names_free(&strays);
    return status;
}

en_status en_dataset_open(const char *path, const char *split, const en_dataset *classes_like, en_dataset **out)
{
    EN_REQUIRE(out, EN_EINVAL, "opening a dataset: out is NULL");
    *out = NULL;
    if (!split) split = "train";
    EN_REQUIRE(strcmp(split, "train") == 0 || strcmp(split, "val") == 0, EN_EINVAL, "opening a dataset: split \"%s\"", split);
    EN_REQUIRE(path && *path, EN_EDATA, "no dataset named; name a folder of images, or \"synthetic\"");
    EN_REQUIRE(strlen(path) < sizeof (*out)->source, EN_EDATA, "the path of the dataset has %zu bytes; %zu are the limit",
               strlen(path), sizeof (*out)->source - 1);
    if (strcmp(path, "synthetic") == 0 || strncmp(path, "synthetic:", 10) == 0)
        return en_synthetic_open(path, split, classes_like, out);
    if (en_is_packed(path)) return en_packed_open(path, split, classes_like, out);

    char *root = NULL;
    EN_TRY(pick_split(path, split, &root), "opening %s for %s", path, split);
    en_status status = EN_OK;
    en_dataset *ds = calloc(1, sizeof *ds);
    EN_REQUIRE_OUT(ds, EN_ENOMEM, "no memory for a dataset");
    ds->ops = &folder_ops;
    strcpy(ds->source, path);
    EN_TRY_OUT(open_folder(root, classes_like, ds), "opening %s for %s", path, split);
    *out = ds;
    ds = NULL;
out:
    en_dataset_close(ds);
    free(root);
    return status;
}

bool en_dataset_has(const char *path, const char *split)
{
    const bool training = strcmp(split, "train") == 0;
    const char *const folders[2] = { training ? "train" : "val", training ? "train" : "validation" };
    if (en_is_packed(path)) return en_packed_has(path, folders[0]);
    bool found = false;
    for (int i = 0; i < 2 && !found; i++) {
        struct stat st;
        char *dir = join(path, folders[i]);
        found = dir && stat(dir, &st) == 0 && S_ISDIR(st.st_mode);
        free(dir);
    }
    return found;
}
