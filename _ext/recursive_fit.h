/* recursive_fit.h - the regressions of causal_fit.h, where no direction is known much better than another.
 *
 * Of the tokens before a step, H^-1 itself is kept, and the weights W = H^-1 R. With K, V, Q the rows of a step:
 *
 *     [J | K W] = K [H^-1 | W]                                     gains; what the past predicts at the keys
 *     [I + J K^T | J Q^T | J | K W - V]  ->  [C | B | X | -Y]      eliminated: C^T C = I + J K^T
 *
 *     out_t = q_t W + sum_{s <= t} B[s][t] Y_s
 *     y_t = q_t H^-1 - sum_{s <= t} B[s][t] X_s                    = H_t^-1 q_t, which backward wants
 *
 *     [H^-1 | W]  <-  [H^-1 | W] - X^T [X | -Y]
 *
 * The last is Woodbury's identity for H^-1, and for W the step of recursive least squares: a gain times what was not
 * foreseen. Leading parts of C, B, X, Y serve the leading tokens, as in prefix.h. H is never eliminated, and so a step
 * may be short: the products within it cost little.
 *
 * But all of H^-1 is off by a rounding of its largest entry: where one direction is known a thousand times better than
 * another, what is known of it is off by a thousand roundings. A Cholesky factor is not so: causal_fit.h serves the
 * tokens before and after a run of steps.
 */
#ifndef KVQ_RECURSIVE_FIT_H
#define KVQ_RECURSIVE_FIT_H

#include "fit.h"
#include "prefix.h"

#define STEP 16               /* tokens of a step */
#define LARGEST_CONDITION 256 /* of H, from its diagonal and that of H^-1: costs two digits at worst */

/* The tokens of a head that are served by steps. */
typedef struct {
    idx begin, end;
} token_run;

/* ---- what backward needs of a token ------------------------------------------------------------- */
/* One row for each: [C | B | X | -Y | y], the first two with the tokens of the step in the lanes. */
#define STEP_LANES padded(STEP)
INLINE idx step_row(const ridge_problem *P) { return 2 * STEP_LANES + 2 * padded(P->d) + padded(P->dv); }

/* ---- H^-1 ------------------------------------------------------------------------------------- */
typedef struct {
    real *m;        /* (d, padded(d) + padded(dv))  [H^-1 | W] */
    real *diagonal; /* (padded(d))  of H */
    real *kq;       /* (d, 2 STEP_LANES)  [K^T | Q^T], tokens in the lanes */
    real *v, *out;  /* copies of STEP rows */
    real *row;      /* (STEP, step_row) where they are not kept */
    real *pivots;   /* (STEP) */
} recursive_scratch;

INLINE void carve_recursive(const ridge_problem *P, carver *c, recursive_scratch *s)
{
    s->diagonal = carve(c, padded(P->d));
    s->kq = carve(c, P->d * 2 * STEP_LANES);
    s->v = carve(c, copied_rows(STEP, P->dv));
    s->out = carve(c, copied_rows(STEP, P->dv));
    s->row = carve(c, P->factors ? 0 : STEP * step_row(P));
    s->pivots = carve(c, STEP);
}

/* From the diagonals of H and H^-1. */
INLINE int is_well_conditioned(idx d, const real *h, const real *inverse, idx stride)
{
    real most = 0, least = 0;
    for (idx r = 0; r < d; r++) {
        if (h[r] > most) most = h[r];
        if (inverse[r * stride + r] > least) least = inverse[r * stride + r];
    }
    return most * least < LARGEST_CONDITION;
}

/* [H + alpha I | R | I] eliminated and solved is [U | W | H^-1]. Returns whether H is well-conditioned; if not, s->m,
 * where [H | R] may lie, is as it was. room: (d, 2 padded(d) + padded(dv)). */
static int invert_past(const ridge_problem *P, real alpha, const real *hr, real *room, recursive_scratch *s)
{
    const idx d = P->d, dp = padded(d), stride = fit_stride(P), wide = stride + dp;
    memset(s->diagonal, 0, (size_t)dp * sizeof(real));
    for (idx r = 0; r < d; r++) {
        memcpy(room + r * wide, hr + r * stride, (size_t)stride * sizeof(real));
        memset(room + r * wide + stride, 0, (size_t)dp * sizeof(real));
        room[r * wide + stride + r] = 1;
    }
    add_to_diagonal(d, room, wide, alpha, s->diagonal);
    if (eliminate(d, wide / LANES, room, wide, s->diagonal, pivot_noise(d)) < d) return 0;
    substitute_up(d, room, wide, stride / LANES, room + dp, wide);
    if (!is_well_conditioned(d, s->diagonal, room + stride, wide)) return 0;
    /* To the bit as symmetric as steps keep it: X^T X makes H^-1 smaller, but not what is not symmetric in it. */
    transpose(d, d, room + stride, wide, s->m, stride, 1);
    for (idx r = 0; r < d; r++) {
        memcpy(s->m + r * stride + r, room + r * wide + stride + r, (size_t)(dp - r) * sizeof(real));
        memcpy(s->m + r * stride + dp, room + r * wide + dp, (size_t)(stride - dp) * sizeof(real));
    }
    return 1;
}

/* ---- steps -------------------------------------------------------------------------------------- */
/* Returns how many of n tokens come before one of too much leverage; these are served. */
static idx recursive_step(const ridge_problem *P, idx n, const real *q, const real *k, const real *v, real *out,
                          real *row, recursive_scratch *s)
{
    const idx d = P->d, dv = P->dv, dp = padded(d), dvp = padded(dv), stride = fit_stride(P);
    const idx w = STEP_LANES, both = 2 * w, width = step_row(P);
    real *b = row + w, *x = b + w, *y = x + dp, *y_of_q = y + dvp;
    if (padded(n) < w) memset(s->kq, 0, (size_t)(d * both) * sizeof(real));
    transpose_padded(n, d, k, d, s->kq, both, 1);
    transpose_padded(n, d, q, d, s->kq + w, both, 1);

    product_along_rows(n, stride / LANES, d, k, d, s->m, stride, x, width, OVERWRITE);
    const real *rows_v = whole_vectors(n, dv, v, s->v);
    for (idx t = 0; t < n; t++)
        for (idx i = 0; i < dvp; i += LANES)
            store(y + t * width + i, load(y + t * width + i) - load(rows_v + t * dvp + i));
    product_along_rows(n, both / LANES, d, x, width, s->kq, both, row, width, OVERWRITE);

    idx served = n;
    for (idx t = n - 1; t >= 0; t--) {
        real *leverage = row + t * width + t;
        if (!(*leverage >= 0 && *leverage < LARGEST_LEVERAGE)) served = t; /* of huge keys it may be -inf */
        s->pivots[t] = *leverage += 1;
    }
    eliminate(served, (both + stride) / LANES, row, width, s->pivots, 0);
    for (idx r = 0; r < served; r += LANES) hide_later_keys(width, served, r, b);
    for (idx r = LANES; r < served; r++)
        for (idx i = 0; i < r / LANES * LANES; i += LANES) store(b + r * width + i, (vec){0});

    real *room = room_for_rows(dv, out, s->out);
    product_along_rows(served, vectors(dv), d, q, d, s->m + dp, stride, room, dvp, OVERWRITE);
    product_along_columns(served, vectors(dv), served, b, width, y, width, room, dvp, SUBTRACT, NULL);
    put_rows(served, dv, room, out, 1);
    if (P->factors) {
        product_along_rows(served, vectors(d), d, q, d, s->m, stride, y_of_q, width, OVERWRITE);
        product_along_columns(served, vectors(d), served, b, width, x, width, y_of_q, width, SUBTRACT, NULL);
    }
    return served;
}

/* What the next step has to know of n tokens. */
INLINE void learn_step(const ridge_problem *P, idx n, const real *k, const real *row, recursive_scratch *s)
{
    const idx d = P->d, width = step_row(P), stride = fit_stride(P);
    const real *x = row + 2 * STEP_LANES;
    product_along_columns(d, stride / LANES, n, x, width, x, width, s->m, stride, SUBTRACT, NULL);
    for (idx c = 0; c < d; c += LANES) {
        vec sum = load(s->diagonal + c);
        for (idx t = 0; t < n; t++) {
            const vec of_k = load_part(k + t * d + c, d - c, 0);
            sum += of_k * of_k;
        }
        store(s->diagonal + c, sum);
    }
}

#endif
