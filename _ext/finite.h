/* finite.h - whether an array holds neither NaN nor infinity, at the speed of memory. */
#ifndef KVQ_FINITE_H
#define KVQ_FINITE_H

#include "simd.h"

/* 0 * x is 0 for a finite x and NaN for the others; NaN survives addition. Four sums hide the
 * latency of one. */
static int all_finite(const void *data, size_t count)
{
    const real *x = (const real *)data;
    const size_t step = 4 * LANES, whole = count - count % step;
    const size_t page = 64 * step; /* look at the sums this often, and stop early */
    size_t i = 0;
    while (i < whole) {
        const size_t end = whole - i < page ? whole : i + page;
        vec sum[4] = {{0}, {0}, {0}, {0}};
        for (; i < end; i += step)
            UNROLL for (int u = 0; u < 4; u++) sum[u] += load(x + i + u * LANES) * 0;
        const vec total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        real probe = 0;
        for (int lane = 0; lane < LANES; lane++) probe += total[lane];
        if (probe != 0) return 0; /* NaN != 0 */
    }
    real probe = 0;
    for (; i < count; i++) probe += x[i] * 0;
    return probe == 0;
}

#endif
