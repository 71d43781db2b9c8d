/* json.h - text inside a JSON string. */
#ifndef EN_JSON_H
#define EN_JSON_H

enum { EN_JSON_CHAR = 8 };

const char *en_json_char(char c, char out[EN_JSON_CHAR]);   /* as it stands between the quotes: c, \", \\ or \u00XX   */
void        en_json_print(const char *text);               /* on stdout, with the quotes                             */

#endif
