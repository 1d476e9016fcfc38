/* bundle.h - heads across the lanes: LANES small matrices at a time, one in each lane.
 *
 * Products of matrices with 8 or 16 rows are short, and eliminations of such matrices wait for their pivots. But
 * there are many heads. So take as many as a vector has lanes, put number (r, c) of each into one vector, and write
 * the algebra of one matrix, number by number: no lane is padding, a triangle costs a triangle, and one wait for a
 * pivot serves all.
 *
 * Rows and columns are padded to whole tiles, with zeros that cost little and change nothing. What a lane holds, be it
 * NaN, no other lane sees.
 */
#ifndef KVQ_BUNDLE_H
#define KVQ_BUNDLE_H

#include "eliminate.h"
#include "rows.h"

/* Sums that are made at a time live in registers: of 16 or of 32. */
#define SIDE 4
#if defined(KVQ_LEVEL_AVX512)
#define ACROSS 4
#else
#define ACROSS 2
#endif

INLINE idx tiles(idx n) { return (n + SIDE - 1) / SIDE * SIDE; }

/* A matrix for each lane. */
typedef struct {
    real *at;
    idx down, across; /* from a row, and from a column, to the next: in vectors */
} grid;

/* An odd number of vectors, so that numbers below each other do not share a few places of the cache. */
INLINE idx row_of_grid(idx columns) { return columns | 1; }

INLINE grid turned(grid x) { return (grid){x.at, x.across, x.down}; }
INLINE real *at(grid x, idx r, idx c) { return x.at + (r * x.down + c * x.across) * LANES; }
INLINE grid from(grid x, idx r, idx c) { return (grid){at(x, r, c), x.down, x.across}; }

/* ---- in and out ------------------------------------------------------------------------------ */
/* Lane h is head h, and a head's rows begin `apart` after those of the head before it. Lanes beyond the last head
 * repeat it. */
typedef struct {
    idx heads, apart, rows, columns;
} rows_of_heads;

INLINE void vectors_into_lanes(const int IS_WHOLE, const rows_of_heads *l, const real *here, idx columns, vec factor,
                               grid x)
{
    vec part[LANES];
    UNROLL for (int h = 0; h < LANES; h++)
    {
        part[h] = load_part(here, IS_WHOLE ? LANES : columns, 0);
        if (h + 1 < l->heads) here += l->apart;
    }
    transpose_registers(part);
    UNROLL for (int i = 0; i < LANES; i++)
        if (IS_WHOLE || i < tiles(columns)) store(at(x, 0, i), part[i] * factor);
}

/* x(r, c) <- number (r, c) of each head, times its factor; what is padded is 0. */
NOINLINE void into_lanes(rows_of_heads l, const real *numbers, vec factor, grid x)
{
    for (idx r = 0; r < l.rows; r++)
        for (idx c = 0; c < l.columns; c += LANES) {
            const real *here = numbers + r * l.columns + c;
            if (c + LANES <= l.columns) vectors_into_lanes(1, &l, here, LANES, factor, from(x, r, c));
            else vectors_into_lanes(0, &l, here, l.columns - c, factor, from(x, r, c));
        }
    for (idx r = 0; r < tiles(l.rows); r++)
        for (idx c = r < l.rows ? padded(l.columns) : 0; c < tiles(l.columns); c++) store(at(x, r, c), (vec){0});
}

INLINE void vectors_out_of_lanes(const int IS_WHOLE, const rows_of_heads *l, grid x, idx columns, real *here)
{
    vec part[LANES];
    UNROLL for (int i = 0; i < LANES; i++)
    {
        part[i] = (vec){0};
        if (IS_WHOLE || i < columns) part[i] = load(at(x, 0, i));
    }
    transpose_registers(part);
    UNROLL for (int h = 0; h < LANES; h++)
    {
        if (h == l->heads) return;
        store_part(here, part[h], IS_WHOLE ? LANES : columns);
        here += l->apart;
    }
}

NOINLINE void out_of_lanes(rows_of_heads l, grid x, real *numbers)
{
    for (idx r = 0; r < l.rows; r++)
        for (idx c = 0; c < l.columns; c += LANES) {
            real *here = numbers + r * l.columns + c;
            if (c + LANES <= l.columns) vectors_out_of_lanes(1, &l, from(x, r, c), LANES, here);
            else vectors_out_of_lanes(0, &l, from(x, r, c), l.columns - c, here);
        }
}

/* ---- products -------------------------------------------------------------------------------- */
/* Which sums, and what they run over. */
typedef enum {
    ALL,    /* all c, all k */
    UPPER,  /* c >= r, or in the same tile: what lies below the diagonal there is nobody's */
    BEFORE, /* k <= r */
    AFTER   /* k >= r */
} region;

/* sum[i][j] += a(i, k) b(k, j) for the next SIDE of k. A tile on the diagonal leaves out what the region does. */
INLINE void add_products(const int IS_DIAGONAL, const region WHICH, const real **ak, const real **bk, grid a, grid b,
                         vec sum[SIDE][ACROSS])
{
    UNROLL for (int step = 0; step < SIDE; step++)
    {
        vec row[ACROSS];
        UNROLL for (int j = 0; j < ACROSS; j++) row[j] = load(*bk + j * b.across * LANES);
        UNROLL for (int i = 0; i < SIDE; i++)
        {
            if (IS_DIAGONAL && (WHICH == BEFORE ? i < step : i > step)) continue;
            const vec aik = load(*ak + i * a.down * LANES);
            UNROLL for (int j = 0; j < ACROSS; j++) sum[i][j] += aik * row[j];
        }
        *ak += a.across * LANES;
        *bk += b.down * LANES;
    }
}

/* The tile of c that begins at row r; a, b and c begin at the tile. */
INLINE void product_tile(const region WHICH, idx r, idx depth, grid a, grid b, grid c, join how, grid to)
{
    const idx first = WHICH == AFTER ? r : 0;
    const real *ak = at(a, 0, first), *bk = at(b, first, 0);
    vec sum[SIDE][ACROSS];
    UNROLL for (int i = 0; i < SIDE; i++)
        UNROLL for (int j = 0; j < ACROSS; j++) sum[i][j] = (vec){0};
    if (WHICH == AFTER) add_products(1, WHICH, &ak, &bk, a, b, sum);
    for (idx k = WHICH == AFTER ? r + SIDE : 0; k < (WHICH == BEFORE ? r : depth); k += SIDE)
        add_products(0, WHICH, &ak, &bk, a, b, sum);
    if (WHICH == BEFORE) add_products(1, WHICH, &ak, &bk, a, b, sum);
    UNROLL for (int i = 0; i < SIDE; i++)
        UNROLL for (int j = 0; j < ACROSS; j++)
        {
            if (how == ADD) sum[i][j] = load(at(c, i, j)) + sum[i][j];
            if (how == SUBTRACT) sum[i][j] = load(at(c, i, j)) - sum[i][j];
            store(at(to, i, j), sum[i][j]);
        }
}

INLINE void product_of_region(const region WHICH, idx rows, idx columns, idx depth, grid a, grid b, grid c, join how,
                              grid to)
{
    for (idx r = 0; r < rows; r += SIDE)
        for (idx i = WHICH == UPPER ? r : 0; i < columns; i += ACROSS)
            product_tile(WHICH, r, depth, from(a, r, 0), from(b, 0, i), from(c, r, i), how, from(to, r, i));
}

/* to (rows x columns) <- a b, or c + a b, or c - a b: sums over k < depth. */
NOINLINE void product_onto(region which, idx rows, idx columns, idx depth, grid a, grid b, grid c, join how, grid to)
{
    if (which == ALL) product_of_region(ALL, rows, columns, depth, a, b, c, how, to);
    if (which == UPPER) product_of_region(UPPER, rows, columns, depth, a, b, c, how, to);
    if (which == BEFORE) product_of_region(BEFORE, rows, columns, depth, a, b, c, how, to);
    if (which == AFTER) product_of_region(AFTER, rows, columns, depth, a, b, c, how, to);
}

INLINE void product_in_lanes(region which, idx rows, idx columns, idx depth, grid a, grid b, grid c, join how)
{
    product_onto(which, rows, columns, depth, a, b, c, how, c);
}

/* ---- eliminations: those of eliminate.h ------------------------------------------------------ */
INLINE vec inverse_roots(vec x)
{
#if defined(KVQ_F32) && defined(KVQ_LEVEL_AVX512)
    const vec y = (vec)_mm512_rsqrt14_ps((__m512)x);
    return y + y * (splat(0.5f) - splat(0.5f) * x * y * y);
#else
    vec y;
    for (int i = 0; i < LANES; i++) y[i] = 1 / root(x[i]);
    return y;
#endif
}

/* U of a tile on the diagonal, with 1 / U_rr as u[r][r]. A pivot that is not above `least` is not regular. */
INLINE void factor_tile(grid x, const real *least, ivec *regular)
{
    vec a[SIDE][SIDE];
    UNROLL for (int r = 0; r < SIDE; r++)
        UNROLL for (int c = r; c < SIDE; c++) a[r][c] = load(at(x, r, c));
    UNROLL for (int r = 0; r < SIDE; r++)
    {
        *regular &= (ivec)(a[r][r] > load(least + r * LANES)) & (ivec)(a[r][r] < splat(REAL_INFINITY));
        const vec inverse = inverse_roots(a[r][r]);
        UNROLL for (int c = r + 1; c < SIDE; c++) a[r][c] *= inverse;
        UNROLL for (int s = r + 1; s < SIDE; s++)
            UNROLL for (int c = s; c < SIDE; c++) a[s][c] -= a[r][s] * a[r][c];
        a[r][r] = inverse;
    }
    UNROLL for (int r = 0; r < SIDE; r++)
        UNROLL for (int c = r; c < SIDE; c++) store(at(x, r, c), a[r][c]);
}

/* x <- U^-T x or U^-1 x, U a tile and x a row of tiles. */
INLINE void solve_tile(const int IS_DOWN, idx columns, grid tile, grid x)
{
    vec u[SIDE][SIDE];
    UNROLL for (int r = 0; r < SIDE; r++)
        UNROLL for (int c = r; c < SIDE; c++) u[r][c] = load(at(tile, r, c));
    for (idx i = 0; i < columns; i++) {
        vec row[SIDE];
        UNROLL for (int r = 0; r < SIDE; r++) row[r] = load(at(x, r, i));
        if (IS_DOWN)
            UNROLL for (int r = 0; r < SIDE; r++)
            {
                row[r] *= u[r][r];
                UNROLL for (int s = r + 1; s < SIDE; s++) row[s] -= u[r][s] * row[r];
            }
        else
            UNROLL for (int r = SIDE - 1; r >= 0; r--)
            {
                row[r] *= u[r][r];
                UNROLL for (int s = 0; s < r; s++) row[s] -= u[s][r] * row[r];
            }
        UNROLL for (int r = 0; r < SIDE; r++) store(at(x, r, i), row[r]);
    }
}

/* By halves: what the upper rows contribute to the lower ones is a product. */
INLINE idx half_of(idx n) { return tiles(n / 2); }

/* [H | X] <- [U | U^-T X], H = U^T U being the first n of `width` columns. Returns the lanes whose pivots are all above
 * their `least`. */
static ivec eliminate_in_lanes(idx n, idx width, grid h, const real *least)
{
    if (n == SIDE) {
        ivec regular = ~(ivec){0};
        factor_tile(h, least, &regular);
        solve_tile(1, width - SIDE, h, from(h, 0, SIDE));
        return regular;
    }
    const idx m = half_of(n);
    const grid right = from(h, 0, m), below = from(h, m, m);
    ivec regular = eliminate_in_lanes(m, width, h, least);
    product_in_lanes(UPPER, n - m, width - m, m, turned(right), right, below, SUBTRACT);
    regular &= eliminate_in_lanes(n - m, width - m, below, least + m * LANES);
    return regular;
}

/* x <- U^-T x, on and above the diagonal. */
static void substitute_down_upper(idx n, idx width, grid u, grid x)
{
    if (n == SIDE) {
        solve_tile(1, width, u, x);
        return;
    }
    const idx m = half_of(n);
    substitute_down_upper(m, width, u, x);
    product_in_lanes(UPPER, n - m, width - m, m, turned(from(u, 0, m)), from(x, 0, m), from(x, m, m), SUBTRACT);
    substitute_down_upper(n - m, width - m, from(u, m, m), from(x, m, m));
}

/* x <- U^-1 x */
static void substitute_up_in_lanes(idx n, idx width, grid u, grid x)
{
    if (n == SIDE) {
        solve_tile(0, width, u, x);
        return;
    }
    const idx m = half_of(n);
    substitute_up_in_lanes(n - m, width, from(u, m, m), from(x, m, 0));
    product_in_lanes(ALL, m, width, n - m, from(u, 0, m), from(x, m, 0), x, SUBTRACT);
    substitute_up_in_lanes(m, width, u, x);
}

#endif
