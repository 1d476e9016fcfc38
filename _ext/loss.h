/* loss.h - cross-entropy and its gradient, row by row, in one go.
 *
 *     loss = mean of -log p[target]     p = softmax(z)     dz = (p - onehot(target)) / (how many count)
 */
#ifndef KVQ_LOSS_H
#define KVQ_LOSS_H

#include <math.h>

#include "part.h"

/* The largest of a row; NaN if it holds NaN, or nothing finite to measure by. */
INLINE real top_of(const real *z, idx n)
{
    vec tops = splat(-REAL_INFINITY), probe = {0};
    for (idx i = 0; i < n; i += LANES) {
        const vec x = load_part(z + i, n - i, -REAL_INFINITY);
        tops = largest(x, tops);
        probe += keep((ivec)(x != x), x); /* NaN */
    }
    const real top = largest_of_lanes(tops);
    return (top - top) + top + sum_of_lanes(probe); /* inf - inf is NaN */
}

static double cross_entropy(idx rows, idx n, const void *logits, const int64_t *targets, const uint8_t *counts,
                            void *gradient)
{
    const real *z = logits;
    real *dz = gradient;
    idx counted = rows;
    if (counts) {
        counted = 0;
        for (idx r = 0; r < rows; r++) counted += counts[r] != 0;
    }
    const real share = 1 / (real)(counted > 0 ? counted : 1);
    double loss = 0;
    for (idx r = 0; r < rows; r++, z += n, dz += n) {
        const real top = top_of(z, n), mine = counts && !counts[r] ? 0 : share;
        vec sums = {0};
        for (idx i = 0; i < n; i += LANES) {
            const vec e = exp2_of_nonpositive((load_part(z + i, n - i, -REAL_INFINITY) - top) * LOG2_E);
            store_part(dz + i, e, n - i);
            sums += e;
        }
        const real total = sum_of_lanes(sums) + (top - top); /* NaN where top is */
        const real factor = mine / total;
        for (idx i = 0; i < n; i += LANES) store_part(dz + i, load_part(dz + i, n - i, 0) * factor, n - i);
        double surprise = log((double)total);
        if (0 <= targets[r] && targets[r] < n) {
            dz[targets[r]] -= mine;
            surprise -= (double)(z[targets[r]] - top);
        }
        loss += surprise * (double)mine;
    }
    return loss;
}

#endif
