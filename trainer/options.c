/* options.c - the table of options.h made to parse, to explain itself and to be written down. */
#include "trainer/options.h"
#include "trainer/nearest.h"
#include "trainer/recipes.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum { TYPE_STR, TYPE_I64, TYPE_F64, TYPE_FLAG, TYPE_SPAN } option_type;

typedef struct {
    const char *field;
    option_type type;
    int         commands;
    const char *unit, *limits, *help;
    size_t      at;                            /* of the member within en_options                              */
    const char *text; int64_t integer; double real;   /* the default: text for STR and SPAN, else the number   */
} option;

#define DEFAULT_STR(d)  .text = d
#define DEFAULT_SPAN(d) .text = d
#define DEFAULT_I64(d)  .integer = d
#define DEFAULT_F64(d)  .real = d
#define DEFAULT_FLAG(d) .integer = d

static const option options[] = {
#define ROW(name_, type_, default_, commands_, unit_, limits_, help_)                                                   \
    { .field = #name_, .type = TYPE_##type_, .commands = commands_, .unit = unit_, .limits = limits_, .help = help_,    \
      .at = offsetof(en_options, name_), DEFAULT_##type_(default_) },
    EN_OPTIONS(ROW)
#undef ROW
};
enum { N_OPTIONS = sizeof options / sizeof *options, SPELLING = 40 };
_Static_assert(N_OPTIONS <= 64 * EN_GIVEN_WORDS, "en_options.given has a bit for each option");

static const struct { int command; const char *name; int fewest, most; const char *usage, *summary; } commands[] = {
#define ROW(bit_, name_, fewest_, most_, usage_, summary_) { bit_, #name_, fewest_, most_, usage_, summary_ },
    EN_COMMANDS(ROW)
#undef ROW
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static int command_row(int command)
{
    for (int i = 0; i < N_COMMANDS; i++)
        if (commands[i].command == command) return i;
    return -1;
}

const char *en_command_name(int command)
{
    const int row = command_row(command);
    return row < 0 ? NULL : commands[row].name;
}

/* "global_batch" -> "--global-batch" */
static const char *spell(const char *field, char out[SPELLING])
{
    snprintf(out, SPELLING, "--%s", field);
    for (char *c = out + 2; *c; c++)
        if (*c == '_') *c = '-';
    return out;
}

/* ---- limits: "auto|cpu", "0|[32,4096]", "[0,1)" ------------------------------------------------------------------------ */

typedef struct { bool open_low, open_high; long double low, high; char letter; } interval;      /* letter: behind the number, or 0 */

/* One alternative, up to '|' or the end.  True when it is an interval; a word is left where it stands. */
static bool read_interval(const char *s, interval *v)
{
    if (*s != '[' && *s != '(') return false;
    char *end;
    v->open_low = *s == '(';
    v->low = strtold(s + 1, &end);
    v->high = strtold(end + 1, &end);          /* behind the comma; "inf" is a number to strtold */
    v->open_high = *end == ')';
    v->letter = *end && end[1] != '|' ? end[1] : '\0';
    return true;
}

static const char *next_alternative(const char *s)
{
    const char *bar = strchr(s, '|');
    return bar ? bar + 1 : s + strlen(s);
}

/* "128i" with letter 'i': 128; NaN for anything else.  Digits alone, so no 1e1. */
static long double lettered(const char *text, char letter)
{
    const size_t digits = strspn(text, "0123456789");
    return digits > 0 && text[digits] == letter && !text[digits + 1] ? strtold(text, NULL) : (long double)NAN;
}

/* Does `text`, or the number it stands for when `number` is one (not NaN), keep the limits? */
static bool within(const char *limits, const char *text, long double number)
{
    if (!*limits) return true;
    for (const char *s = limits; *s; s = next_alternative(s)) {
        interval v;
        const size_t n = strcspn(s, "|");
        if (!read_interval(s, &v)) {
            char *end;
            const long double word = strtold(s, &end);
            if (end == s + n && end != s ? word == number : strlen(text) == n && strncmp(s, text, n) == 0) return true;
        } else {
            const long double x = v.letter ? lettered(text, v.letter) : number;
            if ((v.open_low ? x > v.low : x >= v.low) && (v.open_high ? x < v.high : x <= v.high)) return true;
        }
    }
    return false;
}

/* The limits in words: "exponential, cosine or constant", "-1, or 0 or more and below 1", "0, or 32 to 4096" */
static const char *in_words(const char *limits, char *out, size_t size)
{
    size_t n = 0;
    out[0] = '\0';
    if (*limits == '|') limits++;
    for (const char *s = limits; *s && n < size; s = next_alternative(s)) {
        interval v;
        char one[96];
        const bool last = !strchr(s, '|');
        if (!read_interval(s, &v)) snprintf(one, sizeof one, "%.*s", (int)strcspn(s, "|"), s);
        else if (v.letter) snprintf(one, sizeof one, "a number with %c behind it", v.letter);
        else if (isinf(v.high)) snprintf(one, sizeof one, v.open_low ? "above %.15Lg" : "%.15Lg or more", v.low);
        else if (!v.open_low && !v.open_high) snprintf(one, sizeof one, "%.15Lg to %.15Lg", v.low, v.high);
        else snprintf(one, sizeof one, "%s %.15Lg and %s %.15Lg", v.open_low ? "above" : "at least", v.low,
                      v.open_high ? "below" : "at most", v.high);
        const char *glue = s == limits ? "" : !last ? ", " : *s == '[' || *s == '(' ? ", or " : " or ";
        const int written = snprintf(out + n, size - n, "%s%s", glue, one);
        n += written > 0 ? (size_t)written : 0;
    }
    return out;
}

/* The word of the limits that `text` may have meant, into out; NULL for none */
static const char *nearest_word(const char *limits, const char *text, char out[SPELLING])
{
    char words[8][SPELLING];
    en_nearest nearest = { .typed = text };
    int n = 0;
    for (const char *s = limits; *s && n < 8; s = next_alternative(s)) {
        if (*s == '[' || *s == '(' || *s == '|') continue;         /* a word that may be empty is not meant by one that is not */
        snprintf(words[n], SPELLING, "%.*s", (int)strcspn(s, "|"), s);
        en_nearest_offer(&nearest, words[n++]);
    }
    const char *best = en_nearest_best(&nearest);
    if (best) snprintf(out, SPELLING, "%s", best);
    return best ? out : NULL;
}

/* ---- values -------------------------------------------------------------------------------------------------------------- */

static bool read_number(const char *text, const char **end, double *out)
{
    char *e;
    const double v = strtod(text, &e);
    *end = e;
    *out = v;
    return e != text && isfinite(v) && !strpbrk(text, "xX \t\n");
}

/* Sets the member of `o` from text; the name and the value are in every refusal. */
static en_status set(const option *p, const char *text, en_options *o)
{
    char name[SPELLING], words[256], word[SPELLING];
    void *member = (char *)o + p->at;
    const char *end;
    double real = NAN;
    long double number = NAN;
    spell(p->field, name);
    in_words(p->limits, words, sizeof words);
    switch (p->type) {
    case TYPE_FLAG: *(bool *)member = true; return EN_OK;
    case TYPE_STR: {
        if (*text && !text[strspn(text, "0123456789")]) number = strtold(text, NULL);       /* a word, or digits: no 1e1 */
        const char *meant = nearest_word(p->limits, text, word);
        const bool ok = within(p->limits, text, number);
        EN_REQUIRE(ok || !meant, EN_EUSAGE, "%s %s: did you mean %s? (%s takes %s)", name, text, meant, name, words);
        EN_REQUIRE(ok, EN_EUSAGE, "%s '%s': use %s", name, text, words);
        *(const char **)member = text;
        return EN_OK;
    }
    case TYPE_I64: {
        char *e;
        errno = 0;
        const long long v = strtoll(text, &e, 10);
        const bool number_at_all = read_number(text, &end, &real) && !*end;
        EN_REQUIRE(number_at_all, EN_EUSAGE, "%s '%s': not a number; use %s (%s)", name, text, words, p->unit);
        EN_REQUIRE(e != text && !*e && errno == 0, EN_EUSAGE, "%s %s: use a whole number written out, %s (%s)", name, text, words,
                   p->unit);
        EN_REQUIRE(within(p->limits, text, v), EN_EUSAGE, "%s %s is out of range; use %s (%s)", name, text, words, p->unit);
        *(int64_t *)member = v;
        return EN_OK;
    }
    case TYPE_F64:
        EN_REQUIRE(read_number(text, &end, &real) && !*end, EN_EUSAGE, "%s '%s': not a number; use %s (%s)", name, text, words,
                   p->unit);
        EN_REQUIRE(within(p->limits, text, real), EN_EUSAGE, "%s %s is out of range; use %s (%s)", name, text, words, p->unit);
        *(double *)member = real;
        return EN_OK;
    case TYPE_SPAN: {
        en_span v;
        const bool ok = en_span_read(text, &v) && within(p->limits, text, v.count);
        EN_REQUIRE(ok || !en_span_guess(text, words, sizeof words), EN_EUSAGE,
                   "%s '%s': did you mean %s? (steps 100, epochs 2e, time 15m, 3h50m or 90s; 0 for never)", name, text, words);
        EN_REQUIRE(ok, EN_EUSAGE, "%s '%s': use whole steps (100), epochs (2e) or time (15m, 3h50m, 90s); 0 for never", name, text);
        *(en_span *)member = v;
        return EN_OK;
    }
    }
    return en_raise(EN_EINVAL, __FILE__, __LINE__, __func__, "option %s has no type", name);
}

/* The shortest decimal that reads back to the same bits; whole numbers as people write them */
static void write_real(double v, char *out, size_t size)
{
    char text[40];
    const bool whole = v == floor(v) && fabs(v) < 1e15;
    snprintf(text, sizeof text, "%.0f", whole ? v : 0);
    for (int digits = 1; !whole && digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v) break;
    }
    snprintf(out, size, "%s", text);
}

static void write_value(const option *p, const en_options *o, char *out, size_t size)
{
    const void *member = (const char *)o + p->at;
    switch (p->type) {
    case TYPE_STR: {                                            /* one option stays one line */
        size_t n = 0;
        for (const char *c = *(const char *const *)member; *c && n + 3 < size; c++) {
            if (*c == '\n' || *c == '\\') out[n++] = '\\';
            out[n++] = *c == '\n' ? 'n' : *c;
        }
        out[n] = '\0';
        return;
    }
    case TYPE_I64:  snprintf(out, size, "%" PRId64, *(const int64_t *)member); return;
    case TYPE_F64:  write_real(*(const double *)member, out, size); return;
    case TYPE_FLAG: snprintf(out, size, "%d", *(const bool *)member); return;
    case TYPE_SPAN: en_span_write(member, out, size); return;
    }
}

static void set_defaults(int command, en_options *o)
{
    memset(o, 0, sizeof *o);
    o->command = command;
    for (int i = 0; i < N_OPTIONS; i++) {
        const option *p = &options[i];
        void *member = (char *)o + p->at;
        switch (p->type) {
        case TYPE_STR:  *(const char **)member = p->text; break;
        case TYPE_I64:  *(int64_t *)member = p->integer; break;
        case TYPE_F64:  *(double *)member = p->real; break;
        case TYPE_FLAG: *(bool *)member = p->integer != 0; break;
        case TYPE_SPAN: en_span_read(p->text, member); break;
        }
    }
}

/* ---- the command line ------------------------------------------------------------------------------------------------------- */

/* Is `typed` (without dashes, n long) this option?  '_' and '-' are the same. */
static bool is_spelt(const option *p, const char *typed, size_t n)
{
    if (strlen(p->field) != n) return false;
    for (size_t i = 0; i < n; i++)
        if ((typed[i] == '-' ? '_' : typed[i]) != p->field[i]) return false;
    return true;
}

/* What to say about an option that this command does not have */
static en_status refuse_unknown(int command, const char *typed, size_t n)
{
    const char *self = en_command_name(command);
    char name[SPELLING + 24], spelt[SPELLING];
    snprintf(name, sizeof name, "%.*s", (int)n, typed);
    for (int i = 0; i < N_OPTIONS; i++) {
        if (!is_spelt(&options[i], typed, n)) continue;
        char takers[96];
        size_t used = 0;
        for (int c = 0; c < N_COMMANDS; c++)
            if (options[i].commands & commands[c].command)
                used += (size_t)snprintf(takers + used, sizeof takers - used, "%s%s", used ? ", " : "", commands[c].name);
        return en_raise(EN_EUSAGE, __FILE__, __LINE__, __func__, "--%s is no option of `effnet %s` but of: %s; `effnet help %s` lists"
                        " what it takes", name, self, takers, self);
    }
    en_nearest nearest = { .typed = name };
    for (int i = 0; i < N_OPTIONS; i++)
        if (options[i].commands & command) en_nearest_offer(&nearest, options[i].field);
    en_nearest_offer(&nearest, "help");
    const char *best = en_nearest_best(&nearest);
    EN_REQUIRE(!best, EN_EUSAGE, "there is no option --%s; did you mean %s?", name, spell(best, spelt));
    return en_raise(EN_EUSAGE, __FILE__, __LINE__, __func__, "there is no option --%s; `effnet help %s` lists what it takes", name, self);
}

static void mark_given(en_options *o, int i) { o->given[i / 64] |= (uint64_t)1 << (i % 64); }

/* argv[*at] begins with "--": takes the option, and the next argument where that is its value. */
static en_status take_option(int argc, char **argv, int *at, en_options *o, bool *wants_help)
{
    const char *typed = argv[*at] + 2, *equals = strchr(typed, '=');
    const size_t n = equals ? (size_t)(equals - typed) : strlen(typed);
    char name[SPELLING];
    if (n == 4 && strncmp(typed, "help", 4) == 0) {
        *wants_help = true;
        return EN_OK;
    }
    int i = 0;
    while (i < N_OPTIONS && !((options[i].commands & o->command) && is_spelt(&options[i], typed, n))) i++;
    if (i == N_OPTIONS) return refuse_unknown(o->command, typed, n);

    const option *p = &options[i];
    const char *value = NULL;
    spell(p->field, name);
    if (p->type == TYPE_FLAG) {
        EN_REQUIRE(!equals, EN_EUSAGE, "%s takes no value (got '%s'): leave it out, or leave the whole option out", name, equals + 1);
    } else if (equals) {
        value = equals + 1;
    } else {
        EN_REQUIRE(*at + 1 < argc, EN_EUSAGE, "%s needs a value (%s) and stands last: %s", name, p->unit, p->help);
        value = argv[++*at];
        EN_REQUIRE(strncmp(value, "--", 2) != 0, EN_EUSAGE, "%s needs a value (%s), but %s follows; write %s=%s if that is the value",
                   name, p->unit, value, name, value);
    }
    mark_given(o, i);
    return set(p, value, o);
}

en_status en_options_parse(int command, int argc, char **argv, int first, en_options *o, bool *wants_help)
{
    const int row = command_row(command);
    EN_REQUIRE(row >= 0, EN_EINVAL, "no command %d", command);
    set_defaults(command, o);
    *wants_help = false;
    o->operand = argv + first;
    bool ended = false;
    for (int i = first; i < argc; i++) {
        char *a = argv[i];
        if (!ended && strcmp(a, "--") == 0) {
            ended = true;
        } else if (!ended && strncmp(a, "--", 2) == 0) {
            const en_status s = take_option(argc, argv, &i, o, wants_help);
            if (s != EN_OK) return s;
        } else if (!ended && strcmp(a, "-h") == 0) {
            *wants_help = true;
        } else {
            EN_REQUIRE(ended || a[0] != '-' || !a[1], EN_EUSAGE, "there is no option %s; options begin with -- (`effnet help %s`), and -- stands before names that begin with -", a,
                       commands[row].name);
            o->operand[o->operands++] = a;                       /* never ahead of i */
        }
        if (*wants_help) return EN_OK;
    }
    const int most = commands[row].most;
    EN_REQUIRE(most != 0 || o->operands == 0, EN_EUSAGE, "effnet %s takes options only, but there is '%s'; options begin with --",
               commands[row].name, o->operand[0]);
    EN_REQUIRE(most < 0 || o->operands <= most, EN_EUSAGE, "one argument too many: '%s'; usage: effnet %s %s", o->operand[most],
               commands[row].name, commands[row].usage);
    EN_REQUIRE(o->operands >= commands[row].fewest, EN_EUSAGE, "something is missing; usage: effnet %s %s", commands[row].name,
               commands[row].usage);
    return en_recipe_apply(o);
}

static int find(const char *field)
{
    for (int i = 0; i < N_OPTIONS; i++)
        if (strcmp(options[i].field, field) == 0) return i;
    return -1;
}

bool en_option_given(const en_options *o, const char *field)
{
    const int i = find(field);
    return i >= 0 && (o->given[i / 64] >> (i % 64) & 1);
}

en_status en_option_set(en_options *o, const char *field, const char *text)
{
    const int i = find(field);
    EN_REQUIRE(i >= 0, EN_EINVAL, "there is no option --%s", field);
    return options[i].commands & o->command ? set(&options[i], text, o) : EN_OK;
}

bool en_option_text(const en_options *o, const char *field, char *out, size_t size)
{
    const int i = find(field);
    if (i < 0 || !(options[i].commands & o->command)) return false;
    write_value(&options[i], o, out, size);
    return true;
}

/* ---- written down ----------------------------------------------------------------------------------------------------------- */

char *en_options_text(const en_options *o)
{
    char *text = NULL, value[8192], name[SPELLING];
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    if (!f) return NULL;
    for (int i = 0; i < N_OPTIONS; i++) {
        if (!(options[i].commands & o->command)) continue;
        write_value(&options[i], o, value, sizeof value);
        fprintf(f, "%s=%s\n", spell(options[i].field, name) + 2, value);
    }
    if (fclose(f) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

bool en_options_text_find(const char *text, const char *name, char *value, size_t size)
{
    const size_t n = strlen(name);
    for (const char *line = text; *line; ) {
        const size_t length = strcspn(line, "\n");
        if (length > n && line[n] == '=' && strncmp(line, name, n) == 0) {
            snprintf(value, size, "%.*s", (int)(length - n - 1), line + n + 1);
            return true;
        }
        line += length + (line[length] == '\n');
    }
    return false;
}

/* Where a run lies, who computes it and when it speaks: it may differ from start to start. */
static const char *const of_a_start[] = {
    "data", "val", "run", "init", "fresh", "device", "precision", "comm", "decode", "prefetch", "cache", "cache-side", "checkpoint-every", "keep", "max-skipped",
    "on-divergence", "compare-every", "eval-every", "eval-weights", "eval-batch", "threads", "lanes", "workers", "max-bad", "max-pixels", "dump", "log-every",
    "metrics", "account-after", "buckets", "stop-after", "stall-timeout", "inject", "micro-batch", "uneven", "alone" };

char *en_options_text_changes(const char *then, const char *now)
{
    char *text = NULL, name[SPELLING], before[512], value[512];
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    if (!f) return NULL;
    for (int i = 0; i < N_OPTIONS; i++) {
        bool passing = false;
        spell(options[i].field, name);
        for (size_t k = 0; k < sizeof of_a_start / sizeof *of_a_start; k++) passing |= strcmp(of_a_start[k], name + 2) == 0;
        if (passing || !en_options_text_find(then, name + 2, before, sizeof before) || !en_options_text_find(now, name + 2, value, sizeof value)) continue;
        if (strcmp(before, value) != 0) fprintf(f, "%s%s %s -> %s", ftell(f) > 0 ? ", " : "", name + 2, *before ? before : "-", *value ? value : "-");
    }
    if (fclose(f) == 0 && bytes > 0) return text;
    free(text);
    return NULL;
}

void en_print_wrapped(void *stream, const char *text, int column)
{
    FILE *f = stream;
    int at = column;
    while (*text) {
        const int word = (int)strcspn(text, " ");
        if (at > column && at + 1 + word > 118) {
            fprintf(f, "\n%*s", column, "");
            at = column;
        }
        if (at > column) at += fprintf(f, " ");
        at += fprintf(f, "%.*s", word, text);
        text += word;
        while (*text == ' ') text++;
    }
    fputc('\n', f);
}

void en_options_help(int command, void *stream)
{
    FILE *f = stream;
    const int row = command_row(command);
    if (row < 0) return;
    fprintf(f, "usage: effnet %s%s%s [--option value]...\n\n%c%s.\n\n", commands[row].name, *commands[row].usage ? " " : "",
            commands[row].usage, toupper((unsigned char)commands[row].summary[0]), commands[row].summary + 1);
    en_options defaults;
    set_defaults(command, &defaults);
    int wide[3] = { 6, 5, 7 };                                    /* option, value, default */
    char name[SPELLING], value[256];
    for (int pass = 0; pass < 2; pass++) {                        /* first the widths, then the lines */
        if (pass) fprintf(f, "  %-*s  %-*s  %-*s  meaning\n", wide[0], "option", wide[1], "value", wide[2], "default");
        for (int i = 0; i < N_OPTIONS; i++) {
            const option *p = &options[i];
            if (!(p->commands & command)) continue;
            spell(p->field, name);
            write_value(p, &defaults, value, sizeof value);
            if (p->type == TYPE_FLAG) value[0] = '\0';
            else if (!*value) strcpy(value, "-");
            const char *cell[3] = { name, p->unit, value };
            for (int k = 0; !pass && k < 3; k++)
                if ((int)strlen(cell[k]) > wide[k]) wide[k] = (int)strlen(cell[k]);
            if (!pass) continue;
            fprintf(f, "  %-*s  %-*s  %-*s  ", wide[0], name, wide[1], p->unit, wide[2], value);
            en_print_wrapped(f, p->help, 8 + wide[0] + wide[1] + wide[2]);
        }
    }
}
