/* product.h - the one micro-kernel: C[r][i] (+)= sum_k A[r][k] B[k][i].
 *
 * Rows r are broadcast from A one number at a time; columns i lie in SIMD lanes. Seven products of
 * the forward and backward pass are this one, with A read along its rows or along its columns:
 *
 *     S^T  = K   Q^T      A = K,   rows     B = Q^T  (the packed query tile)
 *     O^T  = V^T P^T      A = V,   columns  B = P^T  (already in the right order)
 *     dP^T = V   dO^T     A = V,   rows     B = dO^T (packed)
 *     dQ   = dS  K        A = dS^T, columns B = K    (as it lies in memory)
 *     dV   = P^T dO       A = P^T, rows     B = dO   (as it lies in memory)
 *     dK   = dS^T Q       A = dS^T, rows    B = Q    (as it lies in memory)
 *
 * The sum over k is made in registers from zero and then joined to what C held: sums over long
 * sequences are thereby sums of short sums, whose rounding error grows much more slowly. Each
 * element is computed alike whatever block it falls in, so a result does not depend on how rows
 * were grouped: the base of every bit-for-bit promise made here.
 */
#ifndef KVQ_PRODUCT_H
#define KVQ_PRODUCT_H

#include "simd.h"

/* How a product joins what C held before. */
typedef enum {
    OVERWRITE, /* C = A B */
    ADD,       /* C = C + A B */
    SUBTRACT,  /* C = C - A B */
    RESCALE,   /* C = C diag(factor) + A B, one factor per column: the online softmax */
    FACTOR     /* C = diag(factor) A B, one factor per row */
} join;

/* The register block. ROWS and COLUMNS are constants at every call, so the loops unroll and `sum`
 * lives in registers: 8 x 3 accumulators hide the latency of 4 cycles x 2 units of FMA with room
 * to spare, and 11 loads feed 24 FMAs. */
INLINE void block(const int ROWS, const int COLUMNS, idx depth, const real *restrict a, idx a_row,
                  idx a_depth, const real *restrict b, idx b_stride, real *restrict c,
                  idx c_stride, join how, const real *factor)
{
    vec sum[BLOCK_ROWS][BLOCK_COLUMNS];
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int i = 0; i < COLUMNS; i++) sum[r][i] = (vec){0};
    for (idx k = 0; k < depth; k++) {
        vec bk[BLOCK_COLUMNS];
        UNROLL for (int i = 0; i < COLUMNS; i++) bk[i] = load(b + k * b_stride + i * LANES);
        UNROLL for (int r = 0; r < ROWS; r++)
        {
            const vec ark = splat(a[r * a_row + k * a_depth]);
            UNROLL for (int i = 0; i < COLUMNS; i++) sum[r][i] += ark * bk[i];
        }
    }
    UNROLL for (int i = 0; i < COLUMNS; i++)
    {
        const vec f = how == RESCALE ? load(factor + i * LANES) : splat(1);
        UNROLL for (int r = 0; r < ROWS; r++)
        {
            real *out = c + r * c_stride + i * LANES;
            if (how == FACTOR) sum[r][i] *= splat(factor[r]);
            else if (how == SUBTRACT) sum[r][i] = load(out) - sum[r][i];
            else if (how != OVERWRITE) sum[r][i] += load(out) * f;
            store(out, sum[r][i]);
        }
    }
}

/* All rows of one strip of columns: whole blocks, then halves for the rest. */
INLINE void strip(const int COLUMNS, idx rows, idx depth, const real *restrict a, idx a_row,
                  idx a_depth, const real *restrict b, idx b_stride, real *restrict c,
                  idx c_stride, join how, const real *factor)
{
    idx r = 0;
#define ROWS_AT(ROWS)                                                                            \
    block(ROWS, COLUMNS, depth, a + r * a_row, a_row, a_depth, b, b_stride, c + r * c_stride,  \
          c_stride, how, how == FACTOR ? factor + r : factor)
    for (; r + BLOCK_ROWS <= rows; r += BLOCK_ROWS) ROWS_AT(BLOCK_ROWS);
#if BLOCK_ROWS > 4
    if (r + 4 <= rows) { ROWS_AT(4); r += 4; }
#endif
    if (r + 2 <= rows) { ROWS_AT(2); r += 2; }
    if (r < rows) ROWS_AT(1);
#undef ROWS_AT
}

INLINE void product(idx rows, idx columns, idx depth, const real *restrict a, idx a_row,
                    idx a_depth, const real *restrict b, idx b_stride, real *restrict c,
                    idx c_stride, join how, const real *factor)
{
    while (columns > 0) { /* columns counts vectors; 4 goes as 2 + 2, not as 3 + 1 */
        const int n = columns == 4 ? 2 : columns >= 3 ? 3 : (int)columns;
#define STRIP(N) strip(N, rows, depth, a, a_row, a_depth, b, b_stride, c, c_stride, how, factor)
        if (n == 3) STRIP(3);
        else if (n == 2) STRIP(2);
        else STRIP(1);
#undef STRIP
        columns -= n;
        b += n * LANES;
        c += n * LANES;
        factor += how == RESCALE ? n * LANES : 0;
    }
}

/* The two faces. `columns` counts vectors of LANES. */
NOINLINE void product_along_rows(idx rows, idx columns, idx depth, const real *restrict a,
                                 idx a_stride, const real *restrict b, idx b_stride,
                                 real *restrict c, idx c_stride, join how)
{
    product(rows, columns, depth, a, a_stride, 1, b, b_stride, c, c_stride, how, NULL);
}

NOINLINE void product_along_columns(idx rows, idx columns, idx depth, const real *restrict a,
                                    idx a_stride, const real *restrict b, idx b_stride,
                                    real *restrict c, idx c_stride, join how, const real *factor)
{
    product(rows, columns, depth, a, 1, a_stride, b, b_stride, c, c_stride, how, factor);
}

#endif
