/* stall_timeout.c - `--stall-timeout 10m,startup=30m`: how long a rank may stand in each section (comm/watch.h).
 *
 *     SPAN[,section=SPAN]...        the first for all sections that are not named; 0: for ever */
#include "comm/watch.h"
#include "trainer/commands.h"
#include "trainer/input.h"
#include "trainer/nearest.h"

#include <stdio.h>
#include <string.h>

enum { WORD = 64 };

/* "start-up" without its dash: what one types */
static void spell(en_section s, char out[WORD])
{
    size_t n = 0;
    for (const char *c = en_section_name(s); *c && n + 1 < WORD; c++)
        if (*c != '-') out[n++] = *c;
    out[n] = 0;
}

static en_status find_section(const char *typed, en_section *out)
{
    char name[EN_SECTIONS][WORD], all[EN_SECTIONS * (WORD + 2)] = "";
    size_t used = 0;
    en_nearest nearest = { .typed = typed };
    for (int s = 0; s < EN_SECTIONS; s++) {
        spell((en_section)s, name[s]);
        *out = (en_section)s;
        if (strcmp(typed, name[s]) == 0 || strcmp(typed, en_section_name(*out)) == 0) return EN_OK;
        en_nearest_offer(&nearest, name[s]);
        used += (size_t)snprintf(all + used, sizeof all - used, "%s%s", s ? ", " : "", name[s]);
    }
    const char *best = en_nearest_best(&nearest);
    EN_REQUIRE(!best, EN_EUSAGE, "--stall-timeout: there is no section '%s'; did you mean %s?", typed, best);
    return en_raise(EN_EUSAGE, __FILE__, __LINE__, __func__, "--stall-timeout: there is no section '%s'; there are %s", typed, all);
}

static en_status read_limit(const char *text, double *seconds)
{
    en_span s;
    char meant[48], with_unit[WORD + 2];
    const bool ok = en_span_read(text, &s);
    if (ok && s.unit == EN_SPAN_STEPS && s.count > 0) {
        snprintf(with_unit, sizeof with_unit, "%ss", text);
        return en_raise(EN_EUSAGE, __FILE__, __LINE__, __func__, "--stall-timeout '%s': did you mean %s? (a time: 30s, 10m, 1h30m; 0 for no limit)",
                        text, with_unit);
    }
    const bool time = ok && (s.unit == EN_SPAN_SECONDS || s.count == 0) && s.count >= 0 && s.count <= 1e9;
    EN_REQUIRE(time || ok || !en_span_guess(text, meant, sizeof meant), EN_EUSAGE, "--stall-timeout '%s': did you mean %s? (a time: 30s, 10m, 1h30m; 0 for"
               " no limit)", text, meant);
    EN_REQUIRE(time, EN_EUSAGE, "--stall-timeout '%s': use a time (30s, 10m, 1h30m; 0 for no limit)", text);
    *seconds = s.count;
    return EN_OK;
}

en_status en_stall_timeout_read(const char *text, double limit_s[])
{
    bool named[EN_SECTIONS] = { false };
    double general = 0;
    bool first = true;
    for (const char *at = text; ; first = false) {
        const size_t n = strcspn(at, ",");
        char part[WORD];
        EN_REQUIRE(n > 0 && n < sizeof part, EN_EUSAGE, "--stall-timeout '%s': use a time and, after commas, times of single sections: 10m,startup=30m", text);
        snprintf(part, sizeof part, "%.*s", (int)n, at);
        char *equals = strchr(part, '=');
        if (!equals) {
            EN_REQUIRE(first, EN_EUSAGE, "--stall-timeout: '%s' is for which section? The time for all stands first: 10m,startup=30m", part);
            EN_TRY(read_limit(part, &general), "reading --stall-timeout");
        } else {
            en_section s;
            EN_REQUIRE(!first, EN_EUSAGE, "--stall-timeout begins with the time for all sections that are not named: 10m,%s", text);
            *equals = 0;
            EN_TRY(find_section(part, &s), "reading --stall-timeout");
            EN_REQUIRE(!named[s], EN_EUSAGE, "--stall-timeout names %s twice", part);
            EN_TRY(read_limit(equals + 1, &limit_s[s]), "reading --stall-timeout");
            named[s] = true;
        }
        if (!at[n]) break;
        at += n + 1;
    }
    for (int s = 0; s < EN_SECTIONS; s++)
        if (!named[s]) limit_s[s] = general;
    return EN_OK;
}

static void name_image(void *loader, char *words, size_t size) { en_loader_slowest(loader, words, size); }

void en_watch_images(en_section s, en_loader *l) { en_watch_about(s, l ? name_image : NULL, l); }

en_status en_watch_as_asked(const en_options *o, const char *advice)
{
    en_watch_limits l = { .asked = en_option_given(o, "stall_timeout"), .option = "--stall-timeout", .advice = advice };
    EN_TRY(en_stall_timeout_read(o->stall_timeout, l.limit_s), "reading the options");
    en_watch_keep(&l);
    return EN_OK;
}
