/* ahead.h - asking for numbers before they are needed.
 *
 * A processor foresees that an array is read in order, but it foresees no jump from array to array, and it never
 * looks beyond the end of a page, which for arrays of a head comes soon.
 */
#ifndef KVQ_AHEAD_H
#define KVQ_AHEAD_H

#include "tile.h"

enum { LINE = 64 / (int)sizeof(real), PAGE = 64 * LINE }; /* of memory: what comes at a time, and what is foreseen */

INLINE void fetch_ahead(const real *x, idx n, const int IS_WRITTEN)
{
    for (idx i = 0; i < n; i += LINE) __builtin_prefetch(x + i, IS_WRITTEN, 3);
}

/* While one head is multiplied, the arrays of the next are asked for, a piece of each at every step: all at once they
 * would stand in each other's way. */
typedef struct {
    idx head;
    idx from, piece; /* in each array. piece is 0 where there is no next head, or the processor does without */
} ahead;

INLINE ahead ahead_of(const tiled_problem *P, idx batch, idx numbers, idx steps)
{
    ahead next = {batch + 1, 0, 0};
    if (numbers > PAGE && next.head < P->batch) next.piece = (numbers + steps * LINE - 1) / (steps * LINE) * LINE;
    return next;
}

/* The next piece of an array that has n numbers for a head. */
INLINE void fetch_piece(const ahead *next, const void *x, idx n)
{
    if (next->from >= n) return;
    fetch_ahead((const real *)x + next->head * n + next->from, min_idx(next->piece, n - next->from), 0);
}

#endif
