/* finite.h - whether numbers are neither NaN nor infinite, at the speed of memory. */
#ifndef KVQ_FINITE_H
#define KVQ_FINITE_H

#include "part.h"

/* 0 * x is 0 for a finite x and NaN for the others; NaN survives addition. Four sums hide the
 * latency of one. */
INLINE vec doubt_about(const real *x, idx n)
{
    vec sum[4] = {{0}, {0}, {0}, {0}};
    idx i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        UNROLL for (int u = 0; u < 4; u++) sum[u] += load(x + i + u * LANES) * 0;
    for (; i < n; i += LANES) sum[0] += load_part(x + i, n - i, 0) * 0;
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

INLINE int is_doubt(vec sum) { return has_nan(sum); }

/* From inside a task, of which there may be several at a time. */
INLINE void tell_if_doubtful(int *not_finite, vec sum)
{
    if (is_doubt(sum)) __atomic_store_n(not_finite, 1, __ATOMIC_RELAXED);
}

/* Whoever asks is told whether these numbers are finite, while they are still in the cache. */
INLINE void tell_of(int *not_finite, const real *x, idx n)
{
    if (not_finite) tell_if_doubtful(not_finite, doubt_about(x, n));
}

NOINLINE int all_finite(const void *data, size_t count)
{
    const real *x = (const real *)data;
    const idx n = (idx)count, page = 256 * LANES; /* look at the sums this often, and stop early */
    for (idx i = 0; i < n; i += page)
        if (is_doubt(doubt_about(x + i, n - i < page ? n - i : page))) return 0;
    return 1;
}

#endif
