/* rows.h - rows of q, k, v of any length, for products that read and write whole vectors. */
#ifndef KVQ_ROWS_H
#define KVQ_ROWS_H

#include "tile.h" /* vectors(), padded(), carve() */

#define ROWS 64 /* rows of q, k, v that are looked at at a time: they and H stay in cache */

/* Rows that can be read a vector at a time: as they lie, or a copy with zeros after each. */
INLINE const real *whole_vectors(idx n, idx columns, const real *rows, real *copy)
{
    if (columns % LANES == 0) return rows;
    for (idx r = 0; r < n; r++)
        for (idx v = 0; v < padded(columns); v += LANES) {
            real *to = copy + r * padded(columns) + v;
            const real *from = rows + r * columns + v;
            if (v + LANES <= columns) {
                store(to, load(from));
            } else {
                store(to, (vec){0});
                for (idx c = 0; c < columns - v; c++) to[c] = from[c];
            }
        }
    return copy;
}

/* The reverse: where a product may write rows of this length, and how they get to their place. */
INLINE real *room_for_rows(idx columns, real *rows, real *copy)
{
    return columns % LANES ? copy : rows;
}

INLINE void put_rows(idx n, idx columns, const real *from, real *rows, real factor)
{
    if (from == rows && factor == 1) return;
    for (idx r = 0; r < n; r++)
        for (idx c = 0; c < columns; c++)
            rows[r * columns + c] = factor * from[r * padded(columns) + c];
}

/* to (columns x padded(n)) = x^T for an x of n rows; what pads the lanes is zero. */
INLINE void turn(idx n, idx columns, const real *x, idx stride, real *to, idx to_stride)
{
    if (n % LANES)
        for (idx c = 0; c < columns; c++) store(to + c * to_stride + n - n % LANES, (vec){0});
    transpose(n, columns, x, stride, to, to_stride, 1);
}

#endif
