/* prefix.h - a regression for every prefix of the keys, a chunk of tokens at a time.
 *
 * H_t = H + sum of k_j k_j^T over the keys j <= t of the chunk, H being that of the tokens before it.
 * With K the rows of the chunk, Woodbury's identity says
 *
 *     H_t^-1 q = H^-1 (q - K_t^T x),    (I + A)_t x = (K H^-1 q)_t,    A = K H^-1 K^T
 *
 * where ( )_t keeps the first t + 1 rows and columns. All these small systems are served by one
 * elimination I + A = U^T U, for the leading part of a Cholesky factor is the factor of the leading
 * part: forward substitution for all t at once, then zeros below row t, then back substitution.
 * That is recursive least squares, a chunk at a time. As H is a fresh sum and a fresh elimination
 * in every chunk, nothing drifts.
 *
 * x is also K_t H_t^-1 q: the weights that token t gives to the keys of its chunk.
 *
 * What a key adds to the knowledge of H is its leverage, k.H^-1 k. If that is large, as it is for the
 * first keys and a small alpha, then H_t^-1 q is a small difference of large terms: as many digits are
 * lost as the leverage has. From such a key to the end of its chunk each token has an elimination of
 * its own. Not so for the first d keys of all, where H = alpha I and it is x that is wanted: there an
 * elimination for each token loses as much, and what is lost of y = H_t^-1 q, x does not see.
 *
 * Token t does not depend, bit for bit, on any later one.
 */
#ifndef KVQ_PREFIX_H
#define KVQ_PREFIX_H

#include "eliminate.h"
#include "ridge.h"
#include "rows.h"

#define LARGEST_LEVERAGE 150 /* costs two digits at worst */
#define LARGEST_OF_FIRST ((real)2e-3 / REAL_EPSILON) /* leaves three digits to the 1 in I + A */

/* ---- how tokens are cut ---------------------------------------------------------------------- */
/* Tokens with a regression of their own; the queries after them see all keys. */
INLINE idx prefix_tokens(const ridge_problem *P)
{
    return P->is_causal ? min_idx(P->Tq, P->Tk) : 0;
}

/* An elimination of d^3 / 6 for a chunk, and of chunk^3 / 6: equal sizes cost least. And no chunk begins with fewer
 * than d keys in H, but the first: directions that H has not seen have the largest leverages. */
INLINE idx chunk_size(const ridge_problem *P)
{
    return P->d >= ROWS ? ROWS : P->d <= 16 ? 16 : (P->d + 15) / 16 * 16;
}

/* The row stride of arrays with tokens in the lanes: as many as are looked at at a time. */
INLINE idx lanes(const ridge_problem *P) { return P->is_causal ? padded(chunk_size(P)) : ROWS; }

INLINE idx chunks(const ridge_problem *P)
{
    return (prefix_tokens(P) + chunk_size(P) - 1) / chunk_size(P);
}

/* Before the first chunk H is alpha I, and needs no elimination. */
INLINE int is_scaled_identity(const ridge_problem *P, idx chunk) { return chunk == 0 && !P->gram; }

/* ---- triangles: rows are keys s, lanes are tokens t, and t sees s if s <= t ------------------- */
/* c[s][t] = a_s . b_t for s <= t (and the rest of each vector), as a sum of sums of `longest` products.
 * Systems made of c magnify its rounding, most of all before the first chunk, where leverages are largest. */
#define SHORT 8

INLINE void upper_along_rows(idx w, idx n, idx depth, idx longest, const real *a, idx a_stride,
                             const real *bt, real *c)
{
    for (idx r = 0; r < n; r += LANES)
        for (idx k = 0; k < depth; k += longest)
            product_along_rows(min_idx(LANES, n - r), vectors(n) - r / LANES, min_idx(longest, depth - k),
                               a + r * a_stride + k, a_stride, bt + k * w + r, w, c + r * w + r, w,
                               k ? ADD : OVERWRITE);
}

INLINE void upper_along_columns(idx w, idx n, idx depth, idx longest, const real *at, idx a_stride,
                                const real *bt, idx b_stride, real *c)
{
    for (idx r = 0; r < n; r += LANES)
        for (idx k = 0; k < depth; k += longest)
            product_along_columns(min_idx(LANES, n - r), vectors(n) - r / LANES, min_idx(longest, depth - k),
                                  at + k * a_stride + r, a_stride, bt + k * b_stride + r, b_stride,
                                  c + r * w + r, w, k ? ADD : OVERWRITE, NULL);
}

/* Zero what token t does not see, in the vector of tokens that begins at r. */
INLINE void hide_later_keys(idx w, idx n, idx r, real *c)
{
    ivec lane;
    for (int i = 0; i < LANES; i++) lane[i] = (bits)i;
    for (idx s = r; s < min_idx(r + LANES, n); s++)
        store(c + s * w + r, keep((ivec)(lane >= (bits)(s - r)), load(c + s * w + r)));
}

/* So many vectors of tokens at a time: what one waits for, the other uses. */
#define SIDE_BY_SIDE 2

/* b[s][t] <- x_t[s] with (I + A)_t x_t = b_t, for the nv vectors of tokens that begin at r. Keys beyond them
 * have no part in it. What b holds of keys that a token does not see is overwritten by 0. */
INLINE void weights_of_prefixes(idx w, idx n, idx r, idx nv, const real *own, real *b)
{
    const idx keys = min_idx(n, r + nv * LANES);
    substitute_down(keys, own, w, nv, b + r, w);
    for (idx v = 0; v < nv; v++) {
        const idx first = r + v * LANES;
        hide_later_keys(w, n, first, b);
        for (idx s = first + LANES; s < keys; s++) store(b + s * w + first, (vec){0});
    }
    substitute_up(keys, own, w, nv, b + r, w);
}

/* A <- the elimination of I + A; returns how many tokens come before one of too much leverage. Each of the `first`
 * ones may have much, but then none after these is served. */
INLINE idx eliminate_leverages(idx w, idx n, idx first, real *a, real *diagonal)
{
    for (idx s = 0; s < n; s++) {
        const real leverage = a[s * w + s];
        if (!(leverage < (s < first ? LARGEST_OF_FIRST : LARGEST_LEVERAGE))) n = s;
        else {
            if (leverage >= LARGEST_LEVERAGE) n = min_idx(n, first);
            diagonal[s] = a[s * w + s] = 1 + leverage;
        }
    }
    return eliminate(n, vectors(n), a, w, diagonal, 0);
}

#endif
