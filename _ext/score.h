/* score.h - the score forms: everything that distinguishes softmax from expressive attention.
 *
 * Both are   out_i = sum_j w_ij v_j / N_i,   N_i = sum_j w_ij,   with
 *     softmax      w = exp(z + bias - m_i)
 *     expressive   w = exp(bias - m_i) f(z),   f(z) = z^2 / (1 + z^2)
 * where m_i, the largest exponent seen so far ("peak"), keeps exp in range. Exponents are in units
 * of log2: log2(e) is folded into q for softmax (z_units), and into bias for both.
 *
 * A function here works on one vector of queries down a column of keys; nothing crosses lanes.
 * `kind` and the score are constants at every call. Invisible pairs (e = -inf) are chosen away with
 * a bit mask and never multiplied away: a hidden key may have made z or dP infinite.
 */
#ifndef KVQ_SCORE_H
#define KVQ_SCORE_H

#include "tile.h"

INLINE real z_units(int score) { return score == KVQ_SOFTMAX ? LOG2_E : (real)1; }

/* Which of a vector of queries see key j. The first of them sees the keys up to `diagonal`. */
INLINE ivec visible(exponent_kind kind, idx j, idx diagonal, const real *e)
{
    if (kind == DIAGONAL) return from_lane(max_idx(j - diagonal, 0));
    return (ivec)(load(e + j * TILE) >= splat(REAL_LOWEST));
}

/* f(z) and f'(z) = 2 z / (1 + z^2)^2 without overflow. Beyond the bound f is 1 and f' is 0 to the
 * last bit. The bound also absorbs NaN, which only an invisible pair can hold. */
INLINE vec bounded(vec z)
{
    return smallest(largest(z, splat(-REAL_HUGE_SCORE)), splat(REAL_HUGE_SCORE));
}

/* ---- forward: scores become weights, in place ------------------------------------------------ */
/* peak and sum are the running statistics of these queries. What was summed before under the old
 * peak must be multiplied by *rescale. Rows of z are `stride` apart. */
INLINE void softmax_weights(exponent_kind kind, idx keys, real *z, idx stride, idx diagonal, const real *e,
                            vec *peak, vec *sum, vec *rescale)
{
    vec top = *peak;
    for (idx j = 0; j < keys; j++) {
        vec zj = load(z + j * stride);
        if (kind == BIASED) zj += load(e + j * TILE);
        if (kind != PLAIN) {
            zj = where(visible(kind, j, diagonal, e), zj, splat(-REAL_INFINITY));
            store(z + j * stride, zj);
        }
        top = largest(zj, top);
    }
    vec total = {0};
    for (idx j = 0; j < keys; j++) {
        const vec w = exp2_of_nonpositive(load(z + j * stride) - top);
        store(z + j * stride, w);
        total += w;
    }
    *rescale = exp2_of_nonpositive(*peak - top);
    *sum = *sum * *rescale + total;
    *peak = top;
}

/* f(z). The bound of z also serves z^2: 1 + z^2 is finite, and f of an infinite z is 1. */
INLINE vec expressive_weight(vec z)
{
    const vec square = smallest(z * z, splat(REAL_HUGE_SCORE * REAL_HUGE_SCORE));
    return square * inverse_of(square + 1);
}

INLINE void expressive_weights(exponent_kind kind, idx keys, real *z, const real *e,
                               vec *peak, vec *sum, vec *rescale)
{
    vec top = *peak;
    if (kind == BIASED)
        for (idx j = 0; j < keys; j++) top = largest(load(e + j * TILE), top);
    vec total = {0};
    for (idx j = 0; j < keys; j++) {
        vec w = expressive_weight(load(z + j * TILE));
        if (kind == BIASED) w *= exp2_of_nonpositive(load(e + j * TILE) - top);
        if (kind != PLAIN) w = keep(visible(kind, j, 0, e), w);
        store(z + j * TILE, w);
        total += w;
    }
    *rescale = kind == BIASED ? exp2_of_nonpositive(*peak - top) : splat(1);
    *sum = *sum * *rescale + total;
    *peak = top;
}

/* ---- 1 / N ----------------------------------------------------------------------------------- */
/* x / N = (x * rescue) * inverse. Expressive weights can be so small that 1 / N would overflow;
 * such rows are lifted by 2^64 first. A row without weight has inverse 0, and so gives zeros. */
typedef struct {
    vec rescue, inverse;
} reciprocal;

INLINE reciprocal reciprocal_of(vec n)
{
    reciprocal r;
    r.rescue = where((ivec)(n < splat(REAL_TINY)), splat(REAL_RESCUE), splat(1));
    r.inverse = keep((ivec)(n > (vec){0}), 1 / (n * r.rescue));
    return r;
}

INLINE int needs_rescue(reciprocal n) { return any_above(n.rescue, 1); }

/* ---- backward: (z, dP) become (p, scale dz), in place ---------------------------------------- */
/* peak, n: the saved statistics. delta = dout . out. du, where asked for, receives p (dP - delta):
 * the gradient of the bias. */
INLINE void softmax_gradients(exponent_kind kind, idx keys, real *z, real *dp, const real *e,
                              real scale, vec peak, reciprocal n, vec delta, real *du)
{
    for (idx j = 0; j < keys; j++) {
        vec x = load(z + j * TILE), g = load(dp + j * TILE) - delta;
        if (kind == BIASED) x += load(e + j * TILE);
        if (kind != PLAIN) {
            const ivec seen = visible(kind, j, 0, e);
            x = where(seen, x, splat(-REAL_INFINITY));
            g = keep(seen, g);
        }
        const vec p = exp2_of_nonpositive(x - peak) * n.inverse; /* N >= 1: no rescue */
        store(z + j * TILE, p);
        store(dp + j * TILE, p * g * scale);
        if (du) store(du + j * TILE, p * g);
    }
}

INLINE void expressive_gradients(exponent_kind kind, idx keys, real *z, real *dp, const real *e,
                                 real scale, vec peak, reciprocal n, vec delta, real *du)
{
    for (idx j = 0; j < keys; j++) {
        vec zj = bounded(load(z + j * TILE));
        const vec r = inverse_of(zj * zj + 1);
        vec zr = zj * r * n.rescue, over_n = n.inverse;
        vec g = load(dp + j * TILE) - delta;
        if (kind == BIASED) over_n *= exp2_of_nonpositive(load(e + j * TILE) - peak);
        if (kind != PLAIN) {
            const ivec seen = visible(kind, j, 0, e);
            zj = keep(seen, zj); /* the sign of z would show in the sign of the zeros */
            zr = keep(seen, zr);
            g = keep(seen, g);
        }
        const vec p = zj * zr * over_n;
        store(z + j * TILE, p);
        store(dp + j * TILE, 2 * zr * (r * over_n) * g * scale);
        if (du) store(du + j * TILE, p * g);
    }
}

/* ---- the choice of form and kind, made once per segment -------------------------------------- */
#define FOR_EACH_KIND(CALL)                                                                    \
    switch (kind) {                                                                            \
    case PLAIN: CALL(PLAIN); break;                                                            \
    case DIAGONAL: CALL(DIAGONAL); break;                                                      \
    case MASKED: CALL(MASKED); break;                                                          \
    default: CALL(BIASED);                                                                     \
    }

/* The queries after the vector that the diagonal crosses see all its keys. */
INLINE exponent_kind after_the_first(exponent_kind kind) { return kind == DIAGONAL ? PLAIN : kind; }

/* Pointers are to vector v0 of their rows; nv vectors are processed. */
NOINLINE void weigh(int score, exponent_kind kind, idx keys, idx nv, real *z, const real *e,
                    real *peak, real *sum, real *rescale)
{
    for (idx at = 0; at < nv * LANES; at += LANES) {
        vec top = load(peak + at), total = load(sum + at), factor = {0};
#define SOFTMAX(KIND) softmax_weights(KIND, keys, z + at, TILE, 0, e + at, &top, &total, &factor)
#define EXPRESSIVE(KIND) expressive_weights(KIND, keys, z + at, e + at, &top, &total, &factor)
        if (score == KVQ_SOFTMAX) FOR_EACH_KIND(SOFTMAX)
        else FOR_EACH_KIND(EXPRESSIVE)
#undef SOFTMAX
#undef EXPRESSIVE
        kind = after_the_first(kind);
        store(peak + at, top);
        store(sum + at, total);
        store(rescale + at, factor);
    }
}

NOINLINE void differentiate(int score, exponent_kind kind, idx keys, idx nv, real *z, real *dp,
                            const real *e, real scale, const real *peak, const real *sum,
                            const real *delta, real *du)
{
    for (idx at = 0; at < nv * LANES; at += LANES) {
        const vec top = load(peak + at), d = load(delta + at);
        const reciprocal n = reciprocal_of(load(sum + at));
        real *u = du ? du + at : NULL;
#define SOFTMAX(KIND) softmax_gradients(KIND, keys, z + at, dp + at, e + at, scale, top, n, d, u)
#define EXPRESSIVE(KIND)                                                                       \
    expressive_gradients(KIND, keys, z + at, dp + at, e + at, scale, top, n, d, u)
        if (score == KVQ_SOFTMAX) FOR_EACH_KIND(SOFTMAX)
        else FOR_EACH_KIND(EXPRESSIVE)
#undef SOFTMAX
#undef EXPRESSIVE
        kind = after_the_first(kind);
    }
}

#endif
