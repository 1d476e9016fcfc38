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

#include "causal_fit.h"

typedef struct {
    real *n, *both; /* (d, padded(d))   N, and N + N^T */
    real *a, *at;   /* (d, padded(dv)), (dv, padded(d))   A and A^T */
    real *hr, *uz;  /* [H | R] and [U | Z] */
    real *pq, *yu;  /* (d, 2 w)   P^T and (Q U^-1)^T; y^T and u^T: tokens in the lanes */
    real *gt;       /* (dv, w) dout^T */
    real *x, *z;    /* (ROWS, w) */
    real *y, *u;    /* (ROWS, padded(d))  rows */
    real *k, *v, *g; /* copies of ROWS rows; g: of dout */
    real *dk, *dv;  /* (ROWS, padded(d)), (ROWS, padded(dv)) */
    real *diagonal;
} causal_backward_scratch;

INLINE size_t causal_backward_layout(const ridge_problem *P, void *base, causal_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv, dp = padded(d), dvp = padded(dv), w = lanes(P), both = 2 * w;
    carver c = {(uintptr_t)base};
    s->n = carve(&c, d * dp);
    s->both = carve(&c, d * dp);
    s->a = carve(&c, d * dvp);
    s->at = carve(&c, dv * dp);
    s->hr = carve(&c, d * fit_stride(P));
    s->uz = carve(&c, d * fit_stride(P));
    s->pq = carve(&c, d * both);
    s->yu = carve(&c, d * both);
    s->gt = carve(&c, dv * w);
    s->x = carve(&c, ROWS * w);
    s->z = carve(&c, ROWS * w);
    s->y = carve(&c, ROWS * dp);
    s->u = carve(&c, ROWS * dp);
    s->k = carve(&c, copied_rows(ROWS, d));
    s->v = carve(&c, copied_rows(ROWS, dv));
    s->g = carve(&c, copied_rows(ROWS, dv));
    s->dk = carve(&c, ROWS * dp);
    s->dv = carve(&c, ROWS * dvp);
    s->diagonal = carve(&c, d > ROWS ? d : ROWS);
    return c.next - (uintptr_t)base;
}

static size_t causal_backward_workspace_bytes(const void *problem)
{
    causal_backward_scratch unused;
    return causal_backward_layout(problem, NULL, &unused);
}

/* Rows of y and u from the lanes of yu, where u begins at lane padded(n). */
INLINE void rows_from_lanes(const ridge_problem *P, idx from, idx n, causal_backward_scratch *s)
{
    const idx d = P->d, dp = padded(d), both = 2 * lanes(P);
    if (d % LANES) {
        memset(s->y + from * dp, 0, (size_t)(n * dp) * sizeof(real));
        memset(s->u + from * dp, 0, (size_t)(n * dp) * sizeof(real));
    }
    transpose(d, n, s->yu, both, s->y + from * dp, dp, 1);
    transpose(d, n, s->yu + padded(n), both, s->u + from * dp, dp, 1);
}

/* y, u and z of the first n tokens of a chunk. Returns their x. */
static const real *by_chunk(const ridge_problem *P, idx n, const real *q, const real *k,
                            real alpha, int has_past, const causal_fit_factors *f,
                            causal_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv, stride = fit_stride(P), w = lanes(P), both = 2 * w;
    real *yt = s->yu, *ut = s->yu + padded(n);
    halve(P, n, k, q, alpha, has_past, s->uz, s->pq);
    for (idx r = 0; r < d; r++) {
        memcpy(yt + r * both, s->pq + r * both + padded(n), (size_t)padded(n) * sizeof(real));
        if (!has_past) memset(ut + r * both, 0, (size_t)padded(n) * sizeof(real));
    }
    if (has_past)
        product_along_rows(d, vectors(n), dv, s->uz + padded(d), stride, s->gt, w, ut, both,
                           OVERWRITE);

    upper_along_rows(w, n, dv, dv, f->e, padded(dv), s->gt, s->z);
    for (idx r = 0; r < n; r += LANES) {
        const idx keys = min_idx(n, r + LANES);
        weights_of_prefixes(w, n, r, f->own, s->z);
        product_along_rows(d, 1, keys, s->pq, both, f->x + r, w, yt + r, both, SUBTRACT);
        product_along_rows(d, 1, keys, s->pq, both, s->z + r, w, ut + r, both, ADD);
    }
    if (has_past) substitute_up(d, s->uz, stride, 2 * vectors(n), s->yu, both);
    else scale_rows(d, 2 * padded(n), both, 1 / root(alpha), s->yu);
    rows_from_lanes(P, 0, n, s);
    return f->x;
}

/* y and u of n queries that share [U | Z]. */
static void by_regression(const ridge_problem *P, idx from, idx n, const real *q,
                          causal_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv, stride = fit_stride(P), w = lanes(P), both = 2 * w;
    transpose_padded(n, d, q, d, s->yu, both, 1);
    substitute_down(d, s->uz, stride, vectors(n), s->yu, both);
    product_along_rows(d, vectors(n), dv, s->uz + padded(d), stride, s->gt, w,
                       s->yu + padded(n), both, OVERWRITE);
    substitute_up(d, s->uz, stride, 2 * vectors(n), s->yu, both);
    rows_from_lanes(P, from, n, s);
}

/* Tokens from..n-1 of a chunk, each with its own elimination; then x and z of all, by their definition.
 * Returns x. */
static const real *one_by_one(const ridge_problem *P, idx from, idx n, const real *q, const real *k,
                              const real *v, const real *dout, real alpha, int has_past,
                              const causal_fit_factors *f, causal_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv, dp = padded(d), bytes = d * fit_stride(P) * (idx)sizeof(real);
    const idx w = lanes(P);
    if (has_past) memcpy(s->hr, f->hr, (size_t)bytes);
    else memset(s->hr, 0, (size_t)bytes);
    add_rows(P, from, k, v, s->k, s->v, s->hr);
    for (idx t = from; t < n; t++) {
        add_rows(P, 1, k + t * d, v + t * dv, s->k, s->v, s->hr);
        eliminate_past(P, alpha, s->hr, s->uz, s->diagonal);
        transpose_padded(1, dv, dout + t * dv, dv, s->gt, w, 1);
        by_regression(P, t, 1, q + t * d, s);
    }
    transpose_padded(n, dv, dout, dv, s->gt, w, 1);
    transpose_padded(n, d, s->y, dp, s->yu, w, 1);
    upper_along_rows(w, n, d, d, k, d, s->yu, s->x);
    upper_along_rows(w, n, dv, dv, v, dv, s->gt, s->z);
    transpose_padded(n, d, s->u, dp, s->yu, w, 1);
    for (idx r = 0; r < n; r += LANES) {
        product_along_rows(min_idx(LANES, n - r), vectors(n) - r / LANES, d, k + r * d, d, s->yu + r,
                           w, s->z + r * w + r, w, SUBTRACT);
        hide_later_keys(w, n, r, s->x);
        hide_later_keys(w, n, r, s->z);
    }
    return s->x;
}

/* What queries that see all of n keys give to dk and dv; leaves room for more in s->dk, s->dv. */
INLINE void gradients_from_later(const ridge_problem *P, idx n, const real *k, const real *v,
                                 causal_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv, dp = padded(d), dvp = padded(dv);
    product_along_rows(n, vectors(d), dv, v, dv, s->at, dp, s->dk, dp, OVERWRITE);
    product_along_rows(n, vectors(d), d, k, d, s->both, dp, s->dk, dp, SUBTRACT);
    product_along_rows(n, vectors(dv), d, k, d, s->a, dvp, s->dv, dvp, OVERWRITE);
}

/* N += sum u_t y_t^T and A += sum y_t dout_t^T, and what is made of them. */
static void add_tokens(const ridge_problem *P, idx n, const real *rows_g, causal_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv, dp = padded(d), dvp = padded(dv);
    product_along_columns(d, vectors(d), n, s->u, dp, s->y, dp, s->n, dp, ADD, NULL);
    product_along_columns(d, vectors(dv), n, s->y, dp, rows_g, dvp, s->a, dvp, ADD, NULL);
    add_transposed(d, s->n, s->both);
    transpose_padded(d, dv, s->a, dvp, s->at, dp, 1);
}

static void causal_backward_run(const void *problem, void *workspace, idx entry)
{
    const ridge_problem *P = problem;
    const idx d = P->d, dv = P->dv, Tq = P->Tq, Tk = P->Tk, prefix = prefix_tokens(P);
    const idx dp = padded(d), dvp = padded(dv), w = lanes(P);
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

    memset(s.n, 0, (size_t)(d * dp) * sizeof(real));
    memset(s.both, 0, (size_t)(d * dp) * sizeof(real));
    memset(s.a, 0, (size_t)(d * dvp) * sizeof(real));
    memset(s.at, 0, (size_t)(dv * dp) * sizeof(real));
    if (prefix < Tq) {
        const real *hr = causal_fit_factors_at(P, factors, chunks(P)).hr;
        eliminate_past(P, alpha, hr, s.uz, s.diagonal);
    }
    for (idx t = prefix; t < Tq; t += w) {
        const idx n = min_idx(w, Tq - t);
        transpose_padded(n, dv, dout + t * dv, dv, s.gt, w, 1);
        by_regression(P, 0, n, q + t * d, &s);
        put_rows(n, d, s.u, dq + t * d, 1);
        add_tokens(P, n, whole_vectors(n, dv, dout + t * dv, s.g), &s);
    }
    for (idx j = prefix; j < Tk; j += ROWS) { /* keys that only those queries see, or nobody */
        const idx n = min_idx(ROWS, Tk - j);
        gradients_from_later(P, n, k + j * d, v + j * dv, &s);
        put_rows(n, d, s.dk, dk + j * d, 1);
        put_rows(n, dv, s.dv, dv_out + j * dv, 1);
    }

    for (idx chunk = chunks(P) - 1; chunk >= 0; chunk--) {
        const idx t = chunk * chunk_size(P), n = min_idx(chunk_size(P), prefix - t);
        const int has_past = !is_scaled_identity(P, chunk);
        const causal_fit_factors f = causal_fit_factors_at(P, factors, chunk);
        const idx together = (idx)*f.count;
        const real *qt = q + t * d, *kt = k + t * d, *vt = v + t * dv, *gt = dout + t * dv, *x = f.x;
        if (has_past) eliminate_past(P, alpha, f.hr, s.uz, s.diagonal);
        transpose_padded(together, dv, gt, dv, s.gt, w, 1);
        if (together > 0) x = by_chunk(P, together, qt, kt, alpha, has_past, &f, &s);
        if (together < n) x = one_by_one(P, together, n, qt, kt, vt, gt, alpha, has_past, &f, &s);
        put_rows(n, d, s.u, dq + t * d, 1);

        gradients_from_later(P, n, kt, vt, &s);
        const real *rows_g = whole_vectors(n, dv, gt, s.g);
        for (idx r = 0; r < n; r += LANES) { /* tokens before r do not see these keys */
            const idx keys = min_idx(LANES, n - r), at = r * w + r;
            product_along_rows(keys, vectors(d), n - r, s.z + at, w, s.y + r * dp, dp,
                               s.dk + r * dp, dp, ADD);
            product_along_rows(keys, vectors(d), n - r, x + at, w, s.u + r * dp, dp,
                               s.dk + r * dp, dp, SUBTRACT);
            product_along_rows(keys, vectors(dv), n - r, x + at, w, rows_g + r * dvp, dvp,
                               s.dv + r * dvp, dvp, ADD);
        }
        put_rows(n, d, s.dk, dk + t * d, 1);
        put_rows(n, dv, s.dv, dv_out + t * dv, 1);
        add_tokens(P, n, rows_g, &s);
    }

    double trace = 0;
    for (idx r = 0; r < d; r++) trace += (double)s.n[r * dp + r];
    P->dalpha[entry] = -trace;
    if (P->dgram) {
        put_rows(d, d, s.both, (real *)P->dgram + entry * d * d, (real)-0.5);
        put_rows(d, dv, s.a, (real *)P->dmoment + entry * d * dv, 1);
    }
}

#endif
