/* causal_fit_backward.h - the gradients of a regression for every prefix.
 *
 * With y_t = H_t^-1 q_t, W_t = H_t^-1 R_t and u_t = W_t dout_t:
 *
 *     dq_t = u_t
 *     dk_s = sum_{t >= s} [ y_t z_t[s] - u_t x_t[s] ]      z_t[s] = (v_s - k_s W_t) . dout_t   residuals
 *     dv_s = sum_{t >= s} dout_t x_t[s]                    x_t[s] = k_s . y_t                  weights
 *     dalpha = -sum_t u_t . y_t
 *
 * Within a chunk x was kept, and z comes by the same small systems as x did: with E = V - P Z,
 *
 *     (I + P P^T)_t z_t = (E dout_t)_t
 *     y_t = U^-1 (U^-T q_t - P_t^T x_t),    u_t = U^-1 (Z dout_t + P_t^T z_t)
 *
 * Of later chunks N = sum u_t y_t^T and A = sum y_t dout_t^T are all that a key has to know:
 * A v_s - (N + N^T) k_s for dk_s and A^T k_s for dv_s. So chunks are taken from the last to the first.
 */
#ifndef KVQ_CAUSAL_FIT_BACKWARD_H
#define KVQ_CAUSAL_FIT_BACKWARD_H

#include "ahead.h"
#include "recursive_fit_backward.h"

/* Rows of y and u from the lanes of yu, where u begins at lane padded(n). */
INLINE void rows_from_lanes(const ridge_problem *P, idx n, const real *yu, idx stride, real *y, real *u)
{
    const idx d = P->d, dp = padded(d);
    if (d % LANES) {
        memset(y, 0, (size_t)(n * dp) * sizeof(real));
        memset(u, 0, (size_t)(n * dp) * sizeof(real));
    }
    transpose(d, n, yu, stride, y, dp, 1);
    transpose(d, n, yu + padded(n), stride, u, dp, 1);
}

/* y, u and z of the first n tokens of a chunk with w lanes. */
static void by_chunk(const ridge_problem *P, idx w, idx n, const real *q, const real *k, real alpha,
                     const real *uz, const causal_fit_factors *f, real *u, causal_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv, stride = 3 * w;
    const real *pt = s->pyu;
    real *yt = s->pyu + padded(n), *ut = yt + padded(n);
    halve(P, n, k, q, alpha, uz, s->pyu, stride);
    if (uz)
        product_along_rows(d, vectors(n), dv, uz + padded(d), fit_stride(P), s->gt, w, ut, stride, OVERWRITE);

    upper_along_rows(w, n, dv, dv, f->e, padded(dv), s->gt, s->z);
    for (idx r = 0; r < n; r += SIDE_BY_SIDE * LANES)
        weights_of_prefixes(w, n, r, min_idx(SIDE_BY_SIDE, vectors(n - r)), f->own, s->z);
    for (idx r = 0; r < n; r += LANES) {
        const idx keys = min_idx(n, r + LANES);
        product_along_rows(d, 1, keys, pt, stride, f->x + r, w, yt + r, stride, SUBTRACT);
        product_along_rows(d, 1, keys, pt, stride, s->z + r, w, ut + r, stride, uz ? ADD : OVERWRITE);
    }
    if (uz) substitute_up(d, uz, fit_stride(P), 2 * vectors(n), yt, stride);
    else scale_rows(d, 2 * padded(n), stride, 1 / root(alpha), yt);
    rows_from_lanes(P, n, yt, stride, s->y, u);
}

/* y and u of n queries that share [U | Z]. */
static void by_regression(const ridge_problem *P, idx n, const real *q, const real *uz, real *y, real *u,
                          causal_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv, w = padded(n), stride = 2 * w;
    real *yt = s->pyu, *ut = yt + w;
    transpose_padded(n, d, q, d, yt, stride, 1);
    substitute_down(d, uz, fit_stride(P), vectors(n), yt, stride);
    product_along_rows(d, vectors(n), dv, uz + padded(d), fit_stride(P), s->gt, w, ut, stride, OVERWRITE);
    substitute_up(d, uz, fit_stride(P), 2 * vectors(n), yt, stride);
    rows_from_lanes(P, n, yt, stride, y, u);
}

/* Tokens from..n-1 of a chunk, each with its own elimination; x and z of these by their definition, while those of
 * the tokens before them stay as the chunk has them: y, a small difference, has lost what they know.
 * hr: before the chunk, NULL for 0. Returns x. */
static const real *one_by_one(const ridge_problem *P, idx from, idx n, const real *q, const real *k,
                              const real *v, const real *dout, real alpha, const real *hr, const real *x_chunk,
                              real *u, causal_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv, dp = padded(d), bytes = d * fit_stride(P) * (idx)sizeof(real);
    const idx w = padded(n);
    memcpy(s->z_chunk, s->z, (size_t)(from * w) * sizeof(real));
    if (hr) memcpy(s->hr, hr, (size_t)bytes);
    else memset(s->hr, 0, (size_t)bytes);
    add_rows(P, from, k, v, s->k, s->v, s->hr);
    for (idx t = from; t < n; t++) {
        add_rows(P, 1, k + t * d, v + t * dv, s->k, s->v, s->hr);
        eliminate_past(P, alpha, s->hr, s->uz, s->diagonal);
        transpose_padded(1, dv, dout + t * dv, dv, s->gt, LANES, 1);
        by_regression(P, 1, q + t * d, s->uz, s->y + t * dp, u + t * dp, s);
    }
    real *rows_t = s->pyu; /* (d, w) */
    transpose_padded(n, dv, dout, dv, s->gt, w, 1);
    transpose_padded(n, d, s->y, dp, rows_t, w, 1);
    upper_along_rows(w, n, d, d, k, d, rows_t, s->x);
    upper_along_rows(w, n, dv, dv, v, dv, s->gt, s->z);
    transpose_padded(n, d, u, dp, rows_t, w, 1);
    for (idx r = 0; r < n; r += LANES) {
        product_along_rows(min_idx(LANES, n - r), vectors(n) - r / LANES, d, k + r * d, d, rows_t + r, w,
                           s->z + r * w + r, w, SUBTRACT);
        hide_later_keys(w, n, r, s->x);
        hide_later_keys(w, n, r, s->z);
    }
    for (idx key = 0; key < from; key++) {
        memcpy(s->x + key * w, x_chunk + key * w, (size_t)from * sizeof(real));
        memcpy(s->z + key * w, s->z_chunk + key * w, (size_t)from * sizeof(real));
    }
    return s->x;
}

/* What the chunk before this one will read and write. */
INLINE void fetch_chunk_before(const ridge_problem *P, idx chunk, const real *q, const real *k, const real *v,
                               const real *dout, real *factors, const real *dq, const real *dk,
                               const real *dv_out)
{
    const idx t = chunk_start(P, chunk - 1), n = chunk_tokens(P, chunk - 1), d = P->d, dv = P->dv;
    fetch_ahead(dout + t * dv, n * dv, 0);
    fetch_ahead(q + t * d, n * d, 0);
    fetch_ahead(k + t * d, n * d, 0);
    fetch_ahead(v + t * dv, n * dv, 0);
    fetch_ahead(factors + numbers_before_chunk(P, chunk - 1), causal_fit_numbers(P, chunk - 1), 0);
    fetch_ahead(dq + t * d, n * d, 1);
    fetch_ahead(dk + t * d, n * d, 1);
    fetch_ahead(dv_out + t * dv, n * dv, 1);
}

static void causal_backward_run(const void *problem, void *workspace, idx entry)
{
    const ridge_problem *P = problem;
    const idx d = P->d, dv = P->dv, Tq = P->Tq, Tk = P->Tk, prefix = prefix_tokens(P);
    const idx dp = padded(d), dvp = padded(dv);
    const real *q = (const real *)P->q + entry * Tq * d;
    const real *k = (const real *)P->k + entry * Tk * d;
    const real *v = (const real *)P->v + entry * Tk * dv;
    const real *dout = (const real *)P->dresult + entry * Tq * dv;
    const real alpha = (real)P->alpha[entry];
    real *dq = (real *)P->dq + entry * Tq * d;
    real *dk = (real *)P->dk + entry * Tk * d;
    real *dv_out = (real *)P->dv_out + entry * Tk * dv;
    real *factors = (real *)P->factors + entry * causal_fit_factors_count(P);
    causal_backward_scratch s;
    causal_backward_layout(P, workspace, &s);
    if (P->served[entry] < Tq) return; /* what a wider type served, it differentiates */

    const causal_fit_summary summary = causal_fit_summary_at(P, factors);
    const token_run run = *summary.run;
    directions_of_run(P, run, dout, factors, dq, &s);
    memset(s.n, 0, (size_t)(d * dp) * sizeof(real));
    memset(s.both, 0, (size_t)(d * dp) * sizeof(real));
    memset(s.a, 0, (size_t)(d * dvp) * sizeof(real));
    memset(s.at, 0, (size_t)(dv * dp) * sizeof(real));
    double trace = 0; /* sum of u.y */
    int has_later = prefix < Tq;
    for (idx t = prefix; t < Tq; t += chunk_size(P)) {
        const idx n = min_idx(chunk_size(P), Tq - t);
        real *u = room_for_rows(d, dq + t * d, s.u);
        transpose_padded(n, dv, dout + t * dv, dv, s.gt, padded(n), 1);
        by_regression(P, n, q + t * d, summary.uz, s.y, u, &s);
        put_rows(n, d, u, dq + t * d, 1);
        tell_of(P->not_finite, dq + t * d, n * d);
        add_tokens(P, n, s.y, dp, u, whole_vectors(n, dv, dout + t * dv, s.g), &s);
        trace += dot(n * dp, u, s.y);
    }
    for (idx j = prefix; j < Tk; j += ROWS) { /* keys that only those queries see, or nobody */
        const idx n = min_idx(ROWS, Tk - j);
        real *dk_rows = room_for_rows(d, dk + j * d, s.dk), *dv_rows = room_for_rows(dv, dv_out + j * dv, s.dv);
        gradients_from_later(P, OVERWRITE, n, k + j * d, v + j * dv, dk_rows, dv_rows, &s);
        put_rows(n, d, dk_rows, dk + j * d, 1);
        put_rows(n, dv, dv_rows, dv_out + j * dv, 1);
        tell_of(P->not_finite, dk + j * d, n * d);
        tell_of(P->not_finite, dv_out + j * dv, n * dv);
    }

    for (idx chunk = fit_chunks(P) - 1; chunk >= 0; chunk--) {
        const idx t = chunk_start(P, chunk), n = chunk_tokens(P, chunk), w = padded(n);
        if (run.begin <= t && t < run.end) {
            trace += gradients_of_run(P, chunk, has_later, k, v, dout, factors, dq, dk, dv_out, &s);
            has_later = 1;
            continue;
        }
        const causal_fit_factors f = causal_fit_factors_at(P, factors, chunk);
        const idx together = (idx)*f.count;
        const real *uz = is_scaled_identity(P, chunk) ? NULL : f.uz;
        const real *qt = q + t * d, *kt = k + t * d, *vt = v + t * dv, *gt = dout + t * dv, *x = f.x;
        real *u = room_for_rows(d, dq + t * d, s.u);
        real *dk_rows = room_for_rows(d, dk + t * d, s.dk), *dv_rows = room_for_rows(dv, dv_out + t * dv, s.dv);
        if (together < n && together > 0 && uz) {
            eliminate_past(P, alpha, f.uz, s.uz, s.diagonal);
            uz = s.uz;
        }
        if (chunk > 0) fetch_chunk_before(P, chunk, q, k, v, dout, factors, dq, dk, dv_out);
        transpose_padded(together, dv, gt, dv, s.gt, w, 1);
        if (together > 0) by_chunk(P, w, together, qt, kt, alpha, uz, &f, u, &s);
        if (together < n) x = one_by_one(P, together, n, qt, kt, vt, gt, alpha, uz ? f.uz : NULL, f.x, u, &s);

        if (has_later) gradients_from_later(P, OVERWRITE, n, kt, vt, dk_rows, dv_rows, &s);
        const real *rows_g = whole_vectors(n, dv, gt, s.g);
        gradients_from_chunk(P, has_later ? ADD : OVERWRITE, n, x, w, s.z, w, s.y, dp, u, rows_g, dk_rows, dv_rows);
        if (chunk > 0 || P->dgram) add_tokens(P, n, s.y, dp, u, rows_g, &s);
        has_later = 1;
        trace += dot(n * dp, u, s.y);
        put_rows(n, d, u, dq + t * d, 1);
        put_rows(n, d, dk_rows, dk + t * d, 1);
        put_rows(n, dv, dv_rows, dv_out + t * dv, 1);
        tell_of(P->not_finite, dq + t * d, n * d);
        tell_of(P->not_finite, dk + t * d, n * d);
        tell_of(P->not_finite, dv_out + t * dv, n * dv);
    }
    P->dalpha[entry] = -trace;
    if (P->dgram) {
        put_rows(d, d, s.both, (real *)P->dgram + entry * d * d, (real)-0.5);
        put_rows(d, dv, s.a, (real *)P->dmoment + entry * d * dv, 1);
    }
}

#endif
