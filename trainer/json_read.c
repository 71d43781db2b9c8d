#include "trainer/json_read.h"

#include <stddef.h>

static bool wrong(en_json_cursor *c, const char *why)
{
    c->why = why;
    return false;
}

static void pass_blanks(en_json_cursor *c)
{
    while (c->p < c->end && (*c->p == ' ' || *c->p == '\t' || *c->p == '\n' || *c->p == '\r')) c->p++;
}

bool en_json_next(en_json_cursor *c, char mark)
{
    pass_blanks(c);
    if (c->p == c->end || *c->p != mark) return false;
    c->p++;
    return true;
}

bool en_json_take(en_json_cursor *c, char mark)
{
    if (en_json_next(c, mark)) return true;
    switch (mark) {
    case '{': return wrong(c, "'{' is missing");
    case '}': return wrong(c, "'}' or ',' is missing");
    case '[': return wrong(c, "'[' is missing");
    case ']': return wrong(c, "']' or ',' is missing");
    case ':': return wrong(c, "':' is missing");
    case ',': return wrong(c, "',' is missing");
    default:  return wrong(c, "another mark was expected");
    }
}

bool en_json_end(en_json_cursor *c)
{
    pass_blanks(c);
    return c->p == c->end || wrong(c, "more follows after the end");
}

bool en_json_count(en_json_cursor *c, int64_t *n)
{
    pass_blanks(c);
    const char *first = c->p;
    *n = 0;
    for (; c->p < c->end && *c->p >= '0' && *c->p <= '9'; c->p++)
        if (__builtin_mul_overflow(*n, (int64_t)10, n) || __builtin_add_overflow(*n, (int64_t)(*c->p - '0'), n)) return wrong(c, "a number is too large");
    if (c->p == first) return wrong(c, "a whole number that is not negative is missing");
    if (*first == '0' && c->p > first + 1) return wrong(c, "a number begins with 0");
    if (c->p < c->end && (*c->p == '.' || *c->p == 'e' || *c->p == 'E')) return wrong(c, "a number is not whole");
    return true;
}

/* ---- strings -------------------------------------------------------------------------------------------------------- */

static bool hex4(en_json_cursor *c, uint32_t *code)
{
    *code = 0;
    if (c->end - c->p < 4) return wrong(c, "the text ends within \\u");
    for (int i = 0; i < 4; i++, c->p++) {
        const char d = *c->p;
        if (d >= '0' && d <= '9') *code = *code * 16 + (uint32_t)(d - '0');
        else if (d >= 'a' && d <= 'f') *code = *code * 16 + (uint32_t)(d - 'a') + 10;
        else if (d >= 'A' && d <= 'F') *code = *code * 16 + (uint32_t)(d - 'A') + 10;
        else return wrong(c, "\\u without four hexadecimal digits");
    }
    return true;
}

/* After \u: the code point, of two halves where it is beyond 16 bits (RFC 8259, section 7), as UTF-8.  Six or twelve characters
 * become at most four bytes. */
static bool unicode(en_json_cursor *c, char **to)
{
    uint32_t code, low;
    if (!hex4(c, &code)) return false;
    if (code == 0) return wrong(c, "a text has a 0 in it");
    if (code >= 0xdc00 && code <= 0xdfff) return wrong(c, "the second half of a character stands alone");
    if (code >= 0xd800 && code <= 0xdbff) {
        if (c->end - c->p < 6 || c->p[0] != '\\' || c->p[1] != 'u') return wrong(c, "the first half of a character stands alone");
        c->p += 2;
        if (!hex4(c, &low)) return false;
        if (low < 0xdc00 || low > 0xdfff) return wrong(c, "the first half of a character stands alone");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    const int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const uint8_t lead[] = { 0, 0xc0, 0xe0, 0xf0 };
    *(*to)++ = (char)(lead[more] | code >> 6 * more);
    for (int i = more; i-- > 0;) *(*to)++ = (char)(0x80 | (code >> 6 * i & 0x3f));
    return true;
}

bool en_json_string(en_json_cursor *c, char **text)
{
    if (!en_json_next(c, '"')) return wrong(c, "a text in quotes is missing");
    char *to = *text = c->p;
    while (c->p < c->end && *c->p != '"') {
        const char ch = *c->p++;
        if ((unsigned char)ch < 0x20) return wrong(c, "a text has a control character in it");
        if (ch != '\\') {
            *to++ = ch;
            continue;
        }
        if (c->p == c->end) break;
        switch (*c->p++) {
        case '"':  *to++ = '"';  break;
        case '\\': *to++ = '\\'; break;
        case '/':  *to++ = '/';  break;
        case 'b':  *to++ = '\b'; break;
        case 'f':  *to++ = '\f'; break;
        case 'n':  *to++ = '\n'; break;
        case 'r':  *to++ = '\r'; break;
        case 't':  *to++ = '\t'; break;
        case 'u':
            if (!unicode(c, &to)) return false;
            break;
        default: return wrong(c, "an escape that JSON does not have");
        }
    }
    if (c->p == c->end) return wrong(c, "a text does not end");
    c->p++;
    *to = '\0';
    return true;
}
