/* rows.h - rows of q, k, v of any length, for products that read and write whole vectors. */
#ifndef KVQ_ROWS_H
#define KVQ_ROWS_H

#include "tile.h" /* vectors(), padded(), carve() */

#define ROWS 64 /* rows of q, k, v that are looked at at a time: they and H stay in cache */

/* What scratch memory a copy of n rows needs: none where rows are whole vectors as they lie. */
INLINE idx copied_rows(idx n, idx columns) { return columns % LANES ? n * padded(columns) : 0; }

/* Rows that can be read a vector at a time: as they lie, or a copy with zeros after each. A vector may
 * read into the next rows; only at the very end it must not. */
INLINE const real *whole_vectors(idx n, idx columns, const real *rows, real *copy)
{
    if (columns % LANES == 0) return rows;
    const real *end = rows + n * columns;
    const ivec beyond = from_lane(columns % LANES);
    for (idx r = 0; r < n; r++)
        for (idx c = 0; c < columns; c += LANES) {
            const real *from = rows + r * columns + c;
            real *to = copy + r * padded(columns) + c;
            vec x = {0};
            if (from + LANES <= end) x = load(from);
            else memcpy(&x, from, (size_t)(end - from) * sizeof(real));
            store(to, c + LANES <= columns ? x : keep(~beyond, x));
        }
    return copy;
}

/* The reverse: where a product may write rows of this length, and how they get to their place. */
INLINE real *room_for_rows(idx columns, real *rows, real *copy)
{
    return columns % LANES ? copy : rows;
}

/* What a vector writes into the next rows is overwritten by these. */
INLINE void put_rows(idx n, idx columns, const real *from, real *rows, real factor)
{
    if (from == rows && factor == 1) return;
    const real *end = rows + n * columns;
    for (idx r = 0; r < n; r++)
        for (idx c = 0; c < columns; c += LANES) {
            const vec x = load(from + r * padded(columns) + c) * factor;
            real *to = rows + r * columns + c;
            if (to + LANES <= end) store(to, x);
            else memcpy(to, &x, (size_t)(end - to) * sizeof(real));
        }
}

#endif
