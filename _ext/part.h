/* part.h - vectors of which only the first n lanes are there: transposition of any matrix, sums across lanes. */
#ifndef KVQ_PART_H
#define KVQ_PART_H

#include "simd.h"

/* The lanes that are not there: on loading they are `rest`, on storing nobody's. */
#if defined(KVQ_LEVEL_AVX512) && defined(KVQ_F32)
INLINE vec load_lanes(const real *p, idx n, real rest)
{
    return (vec)_mm512_mask_loadu_ps((__m512)splat(rest), (__mmask16)((1u << n) - 1), p);
}
INLINE void store_lanes(real *p, vec x, idx n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x); }
#elif defined(KVQ_LEVEL_AVX512)
INLINE vec load_lanes(const real *p, idx n, real rest)
{
    return (vec)_mm512_mask_loadu_pd((__m512d)splat(rest), (__mmask8)((1u << n) - 1), p);
}
INLINE void store_lanes(real *p, vec x, idx n) { _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)x); }
#else
INLINE vec load_lanes(const real *p, idx n, real rest)
{
    vec x = splat(rest);
    memcpy(&x, p, (size_t)n * sizeof(real));
    return x;
}
INLINE void store_lanes(real *p, vec x, idx n) { memcpy(p, &x, (size_t)n * sizeof(real)); }
#endif

/* n may be more than a vector has: then all lanes are there. */
INLINE vec load_part(const real *p, idx n, real rest) { return n >= LANES ? load(p) : load_lanes(p, n, rest); }

INLINE void store_part(real *p, vec x, idx n)
{
    if (n >= LANES) store(p, x);
    else store_lanes(p, x, n);
}

/* ---- transposition --------------------------------------------------------------------------- */
/* One piece of at most LANES x LANES numbers. With PADS, lanes of rows that are not there are set to 0. */
INLINE void transpose_piece(const int IS_WHOLE, const int PADS, idx rows, idx columns, const real *from,
                            idx from_stride, real *to, idx to_stride, real factor)
{
    vec x[LANES];
    UNROLL for (int i = 0; i < LANES; i++)
    {
        if (IS_WHOLE) x[i] = load(from + i * from_stride) * factor;
        else if (i < rows) x[i] = load_part(from + i * from_stride, columns, 0) * factor;
        else x[i] = (vec){0};
    }
    transpose_registers(x);
    UNROLL for (int i = 0; i < LANES; i++)
    {
        if (IS_WHOLE) store(to + i * to_stride, x[i]);
        else if (i < columns) store_part(to + i * to_stride, x[i], PADS ? LANES : rows);
    }
}

INLINE void transpose_pieces(const int PADS, idx rows, idx columns, const real *from, idx from_stride,
                             real *to, idx to_stride, real factor)
{
    for (idx r = 0; r < rows; r += LANES)
        for (idx c = 0; c < columns; c += LANES) {
            const real *a = from + r * from_stride + c;
            real *b = to + c * to_stride + r;
            if (r + LANES <= rows && c + LANES <= columns)
                transpose_piece(1, PADS, LANES, LANES, a, from_stride, b, to_stride, factor);
            else transpose_piece(0, PADS, rows - r, columns - c, a, from_stride, b, to_stride, factor);
        }
}

/* to[c][r] = factor * from[r][c] for a rows x columns matrix. */
NOINLINE void transpose(idx rows, idx columns, const real *restrict from, idx from_stride,
                        real *restrict to, idx to_stride, real factor)
{
    transpose_pieces(0, rows, columns, from, from_stride, to, to_stride, factor);
}

/* The same, and the rest of the last vector of each row of `to` is 0. */
NOINLINE void transpose_padded(idx rows, idx columns, const real *restrict from, idx from_stride,
                               real *restrict to, idx to_stride, real factor)
{
    transpose_pieces(1, rows, columns, from, from_stride, to, to_stride, factor);
}

/* ---- sums across lanes ----------------------------------------------------------------------- */
/* Blocks of 128 bits are joined with blocks, then lanes inside a block: every lane ends up with the result. */
#if VECTOR_BYTES > 16
#define ACROSS_BLOCKS(x, JOIN) \
    UNROLL for (int n = 1; n < BLOCKS; n *= 2) x = JOIN(even_blocks(x, x), odd_blocks(x, x))
#else
#define ACROSS_BLOCKS(x, JOIN)
#endif
#define ACROSS_LANES(x, JOIN)   \
    ACROSS_BLOCKS(x, JOIN);     \
    UNROLL for (int n = 1; n < BLOCK; n *= 2) x = JOIN(zip_low(x, x), zip_high(x, x))
#define PLUS(a, b) ((a) + (b))

INLINE real sum_of_lanes(vec x)
{
    ACROSS_LANES(x, PLUS);
    return x[0];
}

INLINE real largest_of_lanes(vec x)
{
    ACROSS_LANES(x, largest);
    return x[0];
}

#if defined(KVQ_LEVEL_AVX512) && defined(KVQ_F32)
INLINE int has_nan(vec x) { return _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q) != 0; }
INLINE int any_above(vec x, real bound)
{
    return _mm512_cmp_ps_mask((__m512)x, (__m512)splat(bound), _CMP_GT_OQ) != 0;
}
#elif defined(KVQ_LEVEL_AVX512)
INLINE int has_nan(vec x) { return _mm512_cmp_pd_mask((__m512d)x, (__m512d)x, _CMP_UNORD_Q) != 0; }
INLINE int any_above(vec x, real bound)
{
    return _mm512_cmp_pd_mask((__m512d)x, (__m512d)splat(bound), _CMP_GT_OQ) != 0;
}
#else
INLINE int has_nan(vec x) { return sum_of_lanes(keep((ivec)(x != x), x)) != 0; } /* NaN != 0 */
INLINE int any_above(vec x, real bound) { return largest_of_lanes(x) > bound; }
#endif

#endif
