/* sorted.h - numbers in order, and what stands at a share of them. */
#ifndef EN_SORTED_H
#define EN_SORTED_H

#include <math.h>
#include <stdlib.h>

static inline int en_by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static inline void en_sort(double *v, size_t n)
{
    if (n > 1) qsort(v, n, sizeof *v, en_by_value);
}

/* Of sorted numbers: linear between the two that the share lies between (numpy's default), 0.5 the median; NaN of none. */
static inline double en_quantile(const double *sorted, size_t n, double share)
{
    if (n == 0) return NAN;
    const double at = share * (double)(n - 1);
    const size_t below = (size_t)at;
    return below + 1 < n ? sorted[below] + (at - (double)below) * (sorted[below + 1] - sorted[below]) : sorted[n - 1];
}

#endif
