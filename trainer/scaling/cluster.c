/* scaling/cluster.c - reading cluster files.  The table of scaling/cluster.h is parser, limits and messages. */
#define _GNU_SOURCE
#include "trainer/scaling/cluster.h"

#include "trainer/nearest.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BYTES = 65536, SHOWN = 48 };

typedef enum { TYPE_WORD, TYPE_NUM, TYPE_THREE } value_type;
typedef struct { const char *name; value_type type; char must; const char *limits, *meaning; size_t at; } key;

static const key keys[] = {
#define ROW(field_, type_, must_, limits_, meaning_) { #field_, TYPE_##type_, #must_[0], limits_, meaning_, offsetof(en_cluster, field_) },
    EN_CLUSTER_KEYS(ROW)
#undef ROW
};
enum { KEYS = sizeof keys / sizeof *keys };

typedef struct { const char *path; int line; } place;

/* "[1,65536]": both ends are numbers, ( and ) leave them out */
static bool within(const char *limits, double v)
{
    char *end;
    const double least = strtod(limits + 1, &end), most = strtod(end + 1, &end);
    return isfinite(v) && (limits[0] == '(' ? v > least : v >= least) && (*end == ')' ? v < most : v <= most);
}

/* One number at *text, which moves behind it.  Decimal digits: no inf, nan, hexadecimals. */
static bool read_number(const char **text, double *v)
{
    char *end;
    const char *first = *text + strspn(*text, " \t");
    if (!strchr("+-.0123456789", *first) || !*first || strncasecmp(first + (*first == '0'), "x", 1) == 0) return false;
    *v = strtod(first, &end);
    *text = end;
    return end != first && isfinite(*v) && !strpbrk(first, "xXnN");
}

static en_status take_numbers(const key *k, const char *value, place at, double *out)
{
    const int n = k->type == TYPE_THREE ? EN_PROTOCOLS : 1;
    const char *p = value;
    for (int i = 0; i < n; i++) {
        EN_REQUIRE(read_number(&p, &out[i]), EN_EUSAGE, "%s:%d: %s = '%.*s': %s wanted, in %s (%s)", at.path, at.line, k->name, SHOWN, value,
                   n > 1 ? "three numbers are" : "a number is", k->limits, k->meaning);
        EN_REQUIRE(within(k->limits, out[i]), EN_EUSAGE, "%s:%d: %s = %.*s is out of range; use %s (%s)", at.path, at.line, k->name, SHOWN, value,
                   k->limits, k->meaning);
    }
    EN_REQUIRE(!p[strspn(p, " \t")], EN_EUSAGE, "%s:%d: %s = '%.*s': %s wanted and nothing after %s; a comment begins with #", at.path, at.line,
               k->name,
               SHOWN, value, n > 1 ? "three numbers are" : "a number is", n > 1 ? "them" : "it");
    return EN_OK;
}

static en_status take_word(const key *k, const char *value, place at, int *out)
{
    static const struct { const char *word; int means; } words[] = { { "nccl", EN_NET_NCCL }, { "mpi", EN_NET_MPI }, { "bf16", EN_BF16 }, { "fp32",
                                                                                                                                            EN_F32 } };
    const size_t n = strlen(value);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        const char *in = strstr(k->limits, words[i].word);
        if (!in || n != strlen(words[i].word) || strcmp(words[i].word, value) != 0) continue;
        *out = words[i].means;
        return EN_OK;
    }
    return en_raise(EN_EUSAGE, __FILE__, __LINE__, __func__, "%s:%d: %s = '%.*s': use %s (%s)", at.path, at.line, k->name, SHOWN, value, k->limits,
                    k->meaning);
}

/* A line without its comment and without blanks at either end; changed in place. */
static char *trimmed(char *line)
{
    line[strcspn(line, "#")] = '\0';
    line += strspn(line, " \t\r");
    size_t n = strlen(line);
    while (n > 0 && strchr(" \t\r", line[n - 1])) line[--n] = '\0';
    return line;
}

static en_status find_key(const char *name, place at, int *out)
{
    en_nearest nearest = { .typed = name };
    for (*out = 0; *out < KEYS; ++*out) {
        if (strcmp(keys[*out].name, name) == 0) return EN_OK;
        en_nearest_offer(&nearest, keys[*out].name);
    }
    const char *best = en_nearest_best(&nearest);
    EN_REQUIRE(!best, EN_EUSAGE, "%s:%d: there is no key '%.*s'; did you mean %s?", at.path, at.line, SHOWN, name, best);
    return en_raise(EN_EUSAGE, __FILE__, __LINE__, __func__, "%s:%d: there is no key '%.*s'; launch/clusters/h200-ndr.txt has them all with comments",
                    at.path,
                    at.line, SHOWN, name);
}

static en_status take_line(char *line, place at, int where[KEYS], en_cluster *out)
{
    int i;
    char *name = trimmed(line);
    if (!*name) return EN_OK;
    char *equals = strchr(name, '=');
    EN_REQUIRE(equals, EN_EUSAGE, "%s:%d: '%.*s' is not `key = value`; a comment begins with #", at.path, at.line, SHOWN, name);
    *equals = '\0';
    const char *value = trimmed(equals + 1);
    name = trimmed(name);
    EN_TRY(find_key(name, at, &i), "a cluster file");
    EN_REQUIRE(!where[i], EN_EUSAGE, "%s:%d: %s stands in line %d already; leave one out", at.path, at.line, name, where[i]);
    where[i] = at.line;
    void *member = (char *)out + keys[i].at;
    if (keys[i].type == TYPE_WORD) return take_word(&keys[i], value, at, member);
    return take_numbers(&keys[i], value, at, member);
}

/* What must be there, and whole numbers where something is counted. */
static en_status check(const char *path, const int where[KEYS], const en_cluster *c)
{
    for (int i = 0; i < KEYS; i++) {
        const bool must = keys[i].must == 'A' || (keys[i].must == 'N' && c->comm == EN_NET_NCCL) || (keys[i].must == 'M' && c->comm == EN_NET_MPI);
        EN_REQUIRE(!must || where[i], EN_EUSAGE, "%s: %s is missing: %s; add `%s = ...`%s", path, keys[i].name, keys[i].meaning, keys[i].name,
                   keys[i].type == TYPE_THREE ? ", three numbers" : "");
    }
    const struct { const char *name; double v; } counts[] = { { "ranks_per_node", c->ranks_per_node }, { "nics_per_node", c->nics_per_node } };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        EN_REQUIRE(counts[i].v == floor(counts[i].v), EN_EUSAGE, "%s: %s = %g: use a whole number", path, counts[i].name, counts[i].v);
    return EN_OK;
}

static void name_from(const char *path, char *name, size_t size)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    const size_t n = strlen(base), stem = n > 4 && strcmp(base + n - 4, ".txt") == 0 ? n - 4 : n;
    snprintf(name, size, "%.*s", (int)(stem < size ? stem : size - 1), base);
}

en_status en_cluster_parse(const char *path, const char *text, size_t bytes, en_cluster *out)
{
    int where[KEYS] = { 0 };                   /* the line of each key; 0: not there */
    en_status status = EN_OK;
    *out = (en_cluster){ 0 };
    EN_REQUIRE(bytes <= MOST_BYTES, EN_EUSAGE, "%s has more than %d bytes: it is no cluster file", path, MOST_BYTES);
    EN_REQUIRE(!memchr(text, 0, bytes), EN_EUSAGE, "%s holds a byte 0: it is no text", path);
    char *copy = strndup(text, bytes), *rest = copy;
    EN_REQUIRE(copy, EN_ENOMEM, "no memory for %s", path);
    name_from(path, out->name, sizeof out->name);
    for (int line = 1; rest && status == EN_OK; line++)
        EN_TRY_OUT(take_line(strsep(&rest, "\n"), (place){ path, line }, where, out), "reading %s", path);
    EN_TRY_OUT(check(path, where, out), "reading %s", path);
out:
    free(copy);
    return status;
}

en_status en_cluster_read(const char *path, en_cluster *out)
{
    en_status status = EN_OK;
    char *text = malloc(MOST_BYTES + 1);
    EN_REQUIRE(text, EN_ENOMEM, "no memory for %s", path);
    FILE *f = fopen(path, "rb");
    EN_REQUIRE_OUT(f, EN_EIO, "%s cannot be read: %s; launch/clusters/ has some to begin with", path, strerror(errno));
    const size_t n = fread(text, 1, MOST_BYTES + 1, f);
    EN_REQUIRE_OUT(!ferror(f), EN_EIO, "%s cannot be read: %s; --cluster wants a file", path, strerror(errno));
    EN_TRY_OUT(en_cluster_parse(path, text, n, out), "the cluster file");
out:
    if (f) fclose(f);
    free(text);
    return status;
}
