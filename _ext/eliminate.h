/* eliminate.h - H = U^T U for a symmetric positive definite H, and what U does to right-hand sides.
 *
 * H is d x d, rows of any stride, its columns in SIMD lanes; only the vectors on and above the
 * diagonal are read. U replaces it there, with 1 / U_rr in place of U_rr. Right-hand sides are columns:
 * x (d x nv vectors). Work goes by blocks of NB rows: what the rows above contribute is a product, by
 * the one micro-kernel; what is left within a block is done in registers.
 *
 * Row r of U, and of a solution by forward substitution, depends on rows 0..r of H alone, bit for bit.
 */
#ifndef KVQ_ELIMINATE_H
#define KVQ_ELIMINATE_H

#include "product.h"

#define NB BLOCK_ROWS

INLINE real root(real x)
{
#if defined(KVQ_F64)
    return __builtin_sqrt(x);
#else
    return __builtin_sqrtf(x);
#endif
}

/* 1 / sqrt(x). Where an instruction knows 14 bits of it, a step of Newton's doubles them, in half the time of a
 * root and a division. (x is no denormal, and finite: a pivot.) */
INLINE real inverse_root(real x)
{
#if defined(KVQ_F32) && defined(KVQ_LEVEL_AVX512)
    const __m128 v = _mm_set_ss(x);
    const real y = _mm_cvtss_f32(_mm_rsqrt14_ss(v, v));
    return y + y * (0.5f - 0.5f * x * y * y);
#else
    return 1 / root(x);
#endif
}

/* The block of U on the diagonal: u[r][c] for c > r, and 1 / U_rr as u[r][r]. Returns how many pivots
 * were good. Scalar: it is a chain of square roots and divisions. N is a constant for whole blocks, so that
 * the numbers that are still to be used live in registers. */
INLINE idx factor_diagonal(const int N, const real *h, idx stride, const real *diagonal, real noise,
                           real u[NB][NB])
{
    real a[NB][NB];
    UNROLL for (int r = 0; r < N; r++)
        UNROLL for (int c = r; c < N; c++) a[r][c] = h[r * stride + c];
    UNROLL for (int r = 0; r < N; r++)
    {
        if (!(a[r][r] > noise * diagonal[r]) || !(a[r][r] < REAL_INFINITY)) return r;
        const real inverse = inverse_root(a[r][r]);
        u[r][r] = inverse;
        UNROLL for (int c = r + 1; c < N; c++) a[r][c] *= inverse;
        UNROLL for (int c = r + 1; c < N; c++) u[r][c] = a[r][c];
        UNROLL for (int s = r + 1; s < N; s++)
            UNROLL for (int c = s; c < N; c++) a[s][c] -= a[r][s] * a[r][c];
    }
    return N;
}

/* One column vector of a block: x <- U_bb^-T x, or x <- U_bb^-1 x. */
INLINE void solve_down(const int N, const real u[NB][NB], real *x, idx stride)
{
    vec row[NB];
    UNROLL for (int r = 0; r < N; r++) row[r] = load(x + r * stride);
    UNROLL for (int r = 0; r < N; r++)
    {
        row[r] *= u[r][r];
        UNROLL for (int s = r + 1; s < N; s++) row[s] -= row[r] * u[r][s];
    }
    UNROLL for (int r = 0; r < N; r++) store(x + r * stride, row[r]);
}

INLINE void solve_up(const int N, const real u[NB][NB], real *x, idx stride)
{
    vec row[NB];
    UNROLL for (int r = 0; r < N; r++) row[r] = load(x + r * stride);
    UNROLL for (int r = N - 1; r >= 0; r--)
    {
        row[r] *= u[r][r];
        UNROLL for (int s = 0; s < r; s++) row[s] -= row[r] * u[s][r];
    }
    UNROLL for (int r = 0; r < N; r++) store(x + r * stride, row[r]);
}

/* N is a constant for whole blocks, so that `row` lives in registers; the last block is what it is. */
#define IN_BLOCK(SOLVE)                                                                        \
    if (n == NB)                                                                               \
        for (idx v = 0; v < nv; v++) SOLVE(NB, (const real(*)[NB])u, x + v * LANES, stride);   \
    else                                                                                       \
        for (idx v = 0; v < nv; v++) SOLVE((int)n, (const real(*)[NB])u, x + v * LANES, stride)

NOINLINE void solve_block_down(idx n, real u[NB][NB], idx nv, real *x, idx stride)
{
    IN_BLOCK(solve_down);
}

NOINLINE void solve_block_up(idx n, real u[NB][NB], idx nv, real *x, idx stride)
{
    IN_BLOCK(solve_up);
}
#undef IN_BLOCK

/* The first row whose pivot is noise, or d. `width` counts the vectors of a row; those beyond H are
 * right-hand sides, on which U^-T is left to work. `diagonal` holds H's diagonal as it was. */
NOINLINE idx eliminate(idx d, idx width, real *h, idx stride, const real *diagonal, real noise)
{
    real u[NB][NB];
    for (idx b = 0; b < d; b += NB) {
        const idx n = d - b < NB ? d - b : NB, v0 = b / LANES;
        real *rows = h + b * stride + v0 * LANES;
        if (b > 0)
            product_along_columns(n, width - v0, b, h + b, stride, h + v0 * LANES, stride, rows,
                                  stride, SUBTRACT, NULL);
        const real *block = h + b * stride + b;
        const idx good = n == NB ? factor_diagonal(NB, block, stride, diagonal + b, noise, u)
                                 : factor_diagonal((int)n, block, stride, diagonal + b, noise, u);
        solve_block_down(good, u, width - v0, rows, stride);
        for (idx r = 0; r < good; r++) h[(b + r) * stride + b + r] = u[r][r];
        if (good < n) return b + good;
    }
    return d;
}

INLINE void read_diagonal_block(idx n, const real *u, idx u_stride, real block_[NB][NB])
{
    for (idx r = 0; r < n; r++)
        for (idx c = r; c < n; c++) block_[r][c] = u[r * u_stride + c];
}

/* x <- U^-T x */
NOINLINE void substitute_down(idx d, const real *u, idx u_stride, idx nv, real *x, idx stride)
{
    real diagonal[NB][NB];
    for (idx b = 0; b < d; b += NB) {
        const idx n = d - b < NB ? d - b : NB;
        if (b > 0)
            product_along_columns(n, nv, b, u + b, u_stride, x, stride, x + b * stride, stride,
                                  SUBTRACT, NULL);
        read_diagonal_block(n, u + b * u_stride + b, u_stride, diagonal);
        solve_block_down(n, diagonal, nv, x + b * stride, stride);
    }
}

/* x <- U^-1 x */
NOINLINE void substitute_up(idx d, const real *u, idx u_stride, idx nv, real *x, idx stride)
{
    real diagonal[NB][NB];
    for (idx b = (d - 1) / NB * NB; b >= 0; b -= NB) {
        const idx n = d - b < NB ? d - b : NB, below = b + n;
        if (below < d)
            product_along_rows(n, nv, d - below, u + b * u_stride + below, u_stride,
                               x + below * stride, stride, x + b * stride, stride, SUBTRACT);
        read_diagonal_block(n, u + b * u_stride + b, u_stride, diagonal);
        solve_block_up(n, diagonal, nv, x + b * stride, stride);
    }
}

#endif
