#include "trainer/json.h"

#include <stdio.h>

const char *en_json_char(char c, char out[EN_JSON_CHAR])
{
    if (c == '"' || c == '\\') snprintf(out, EN_JSON_CHAR, "\\%c", c);
    else if ((unsigned char)c < 0x20) snprintf(out, EN_JSON_CHAR, "\\u%04x", (unsigned)c);
    else snprintf(out, EN_JSON_CHAR, "%c", c);
    return out;
}

void en_json_print(const char *text)
{
    char c[EN_JSON_CHAR];
    putchar('"');
    for (; *text; text++) fputs(en_json_char(*text, c), stdout);
    putchar('"');
}
