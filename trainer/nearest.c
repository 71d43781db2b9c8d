#include "trainer/nearest.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

enum { LONGEST = 63 };

static char folded(char c) { return c == '-' ? '_' : (char)tolower((unsigned char)c); }
static int  least(int a, int b) { return a < b ? a : b; }

int en_edit_distance(const char *a, const char *b)
{
    const size_t m = strlen(a), n = strlen(b);
    if (m > LONGEST || n > LONGEST) return LONGEST + 1;
    int d[LONGEST + 1][LONGEST + 1];                       /* d[i][j]: from the first i of a to the first j of b */
    for (size_t i = 0; i <= m; i++) d[i][0] = (int)i;
    for (size_t j = 0; j <= n; j++) d[0][j] = (int)j;
    for (size_t i = 1; i <= m; i++)
        for (size_t j = 1; j <= n; j++) {
            const char x = folded(a[i - 1]), y = folded(b[j - 1]);
            d[i][j] = least(least(d[i - 1][j], d[i][j - 1]) + 1, d[i - 1][j - 1] + (x != y));
            if (i > 1 && j > 1 && x == folded(b[j - 2]) && folded(a[i - 2]) == y)
                d[i][j] = least(d[i][j], d[i - 2][j - 2] + 1);
        }
    return d[m][n];
}

/* A beginning of the name is as good as one slip: --glob for --global-batch. */
void en_nearest_offer(en_nearest *n, const char *name)
{
    int distance = en_edit_distance(n->typed, name);
    const size_t length = strlen(n->typed);
    bool begins = length >= 3;
    for (size_t i = 0; begins && i < length; i++) begins = name[i] && folded(n->typed[i]) == folded(name[i]);
    if (begins && distance > 1) distance = 1;
    if (!n->best || distance < n->distance) {
        n->best = name;
        n->distance = distance;
    }
}

const char *en_nearest_best(const en_nearest *n)
{
    const int length = (int)strlen(n->typed), tolerated = length < 4 ? 1 : length < 7 ? 2 : length / 3;
    return n->best && n->distance <= tolerated ? n->best : NULL;
}
