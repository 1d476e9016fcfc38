/* recursive_fit_backward.h - the gradients of tokens that recursive_fit.h has served.
 *
 * In the order of the tokens, what backward needs besides y, which was kept, and what W was before each step:
 *
 *     u_t = W_t dout_t = W dout_t + sum_{s <= t} X_s (Y_s . dout_t)        = dq_t
 *     W   <-  W + X^T Y
 *
 * Then the sums of causal_fit_backward.h from the last step to the first, but for weights and residuals: within a step
 * these are C^-1 B and C^-1 (Y_s . dout_t), and C^-1 is better applied to the sums:
 *
 *     dk = C^-1 sum_{t >= s} [ (Y_s . dout_t) y_t - B[s][t] u_t ]  + what later steps add
 *     dv = C^-1 sum_{t >= s} B[s][t] dout_t                        + what later steps add
 */
#ifndef KVQ_RECURSIVE_FIT_BACKWARD_H
#define KVQ_RECURSIVE_FIT_BACKWARD_H

#include "ahead.h"
#include "causal_fit_gradients.h"

/* dq of the tokens of a run. What the next step will read and write is asked for in time. */
static void directions_of_run(const ridge_problem *P, token_run run, const real *dout, real *factors, real *dq,
                              const causal_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv, dp = padded(d), dvp = padded(dv), w = STEP_LANES, width = step_row(P);
    real *wt = s->at, *seen = s->z; /* W^T (dv, dp); -Y_s . dout_t where t sees s */
    transpose_padded(d, dv, causal_fit_summary_at(P, factors).w, dvp, wt, dp, 1);
    for (idx t = run.begin; t < run.end; t += STEP) {
        const idx n = min_idx(STEP, run.end - t), next = min_idx(STEP, run.end - t - n);
        const real *x = step_row_at(P, factors, chunk_of(P, t), t) + 2 * w, *minus_y = x + dp, *g = dout + t * dv;
        real *u = room_for_rows(d, dq + t * d, s->u);
        for (idx i = 0; i < next; i++)
            fetch_ahead(step_row_at(P, factors, chunk_of(P, t + n), t + n + i) + 2 * w, dp + dvp, 0);
        fetch_ahead(g + n * dv, next * dv, 0);
        fetch_ahead(dq + (t + n) * d, next * d, 1);

        transpose_padded(n, dv, g, dv, s->gt, w, 1);
        product_along_rows(n, vectors(d), dv, g, dv, wt, dp, u, dp, OVERWRITE);
        product_along_rows(n, vectors(n), dv, minus_y, width, s->gt, w, seen, w, OVERWRITE);
        for (idx r = 0; r < n; r += LANES) {
            hide_later_keys(w, n, r, seen);
            product_along_columns(min_idx(LANES, n - r), vectors(d), min_idx(n, r + LANES), seen + r, w, x, width,
                                  u + r * dp, dp, SUBTRACT, NULL);
        }
        product_along_columns(dv, vectors(d), n, minus_y, width, x, width, wt, dp, SUBTRACT, NULL);
        put_rows(n, d, u, dq + t * d, 1);
        tell_of(P->not_finite, dq + t * d, n * d);
    }
}

/* dk and dv of the tokens of a chunk in the run; returns the sum of u.y. */
static real gradients_of_run(const ridge_problem *P, idx chunk, int has_later, const real *k, const real *v,
                             const real *dout, real *factors, const real *dq, real *dk, real *dv_out,
                             const causal_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv, dp = padded(d), dvp = padded(dv), w = STEP_LANES, width = step_row(P);
    const idx from = chunk_start(P, chunk), tokens = chunk_tokens(P, chunk);
    real *seen = s->z, trace = 0; /* Y_s . dout_t where t sees s */
    for (idx t = from + (tokens - 1) / STEP * STEP; t >= from; t -= STEP) {
        const idx n = min_idx(STEP, from + tokens - t);
        const real *c = step_row_at(P, factors, chunk, t), *b = c + w, *minus_y = b + w + dp, *y = minus_y + dvp;
        const real *u = whole_vectors(n, d, dq + t * d, s->u), *rows_g = whole_vectors(n, dv, dout + t * dv, s->g);
        real *dk_rows = room_for_rows(d, dk + t * d, s->dk), *dv_rows = room_for_rows(dv, dv_out + t * dv, s->dv);
        /* What the step before will read and write is asked for here and there: at once, it would be in its own way. */
        const idx before = max_idx(t - STEP, 0), rows = t - before;

        for (idx i = 0; i < rows; i++) fetch_ahead(step_row_at(P, factors, chunk_of(P, before), before + i), width, 0);
        transpose_padded(n, dv, dout + t * dv, dv, s->gt, w, -1);
        product_along_rows(n, vectors(n), dv, minus_y, width, s->gt, w, seen, w, OVERWRITE);
        for (idx r = 0; r < n; r += LANES) hide_later_keys(w, n, r, seen);
        fetch_ahead(dq + before * d, rows * d, 0);
        gradients_from_chunk(P, OVERWRITE, n, b, width, seen, w, y, width, u, rows_g, dk_rows, dv_rows);
        fetch_ahead(dout + before * dv, rows * dv, 0);
        substitute_up(n, c, width, vectors(d), dk_rows, dp);
        substitute_up(n, c, width, vectors(dv), dv_rows, dvp);
        fetch_ahead(k + before * d, rows * d, 0);
        fetch_ahead(v + before * dv, rows * dv, 0);
        if (has_later) gradients_from_later(P, ADD, n, k + t * d, v + t * dv, dk_rows, dv_rows, s);
        fetch_ahead(dk + before * d, rows * d, 1);
        if (t > 0 || P->dgram) add_tokens(P, n, y, width, u, rows_g, s);
        fetch_ahead(dv_out + before * dv, rows * dv, 1);
        has_later = 1;
        for (idx r = 0; r < n; r++) trace += dot(dp, u + r * dp, y + r * width);
        put_rows(n, d, dk_rows, dk + t * d, 1);
        put_rows(n, dv, dv_rows, dv_out + t * dv, 1);
        tell_of(P->not_finite, dk + t * d, n * d);
        tell_of(P->not_finite, dv_out + t * dv, n * dv);
    }
    return trace;
}

#endif
