/* precondition_backward.h - the gradients of q*_t = H_t^-1 q_t.
 *
 * With y_t = q*_t and u_t = H_t^-1 dy_t, found in just the same way as y_t was:
 *
 *     dq = u,   dk_j = -sum_{t sees j} (u_t (y_t.k_j) + y_t (u_t.k_j)),   dalpha = -sum_t u_t.y_t
 *
 * Chunks are taken from the last to the first; N = sum_t u_t y_t^T of the later ones goes along.
 */
#ifndef KVQ_PRECONDITION_BACKWARD_H
#define KVQ_PRECONDITION_BACKWARD_H

#include "precondition.h"

/* ---- backward -------------------------------------------------------------------------------- */
typedef struct {
    real *n, *both; /* (d, padded(d))  N = sum u y^T, and N + N^T */
    real *h, *factor; /* (d, padded(d))  the sum before a chunk, and its elimination */
    real *diagonal; /* (d) */
    real *ut, *yt;  /* (d, w) */
    real *uk, *yk;  /* (ROWS, w)   u_t . k_s and y_t . k_s */
    real *u, *y;    /* copies of ROWS rows */
    real *dk;       /* (ROWS, padded(d)) */
} precondition_backward_scratch;

INLINE size_t precondition_backward_layout(const ridge_problem *P, void *base,
                                           precondition_backward_scratch *s)
{
    const idx d = P->d, w = lanes(P);
    carver c = {(uintptr_t)base};
    s->n = carve(&c, d * padded(d));
    s->both = carve(&c, d * padded(d));
    s->h = carve(&c, d * padded(d));
    s->factor = carve(&c, d * padded(d));
    s->diagonal = carve(&c, d);
    s->ut = carve(&c, d * w);
    s->yt = carve(&c, d * w);
    s->uk = carve(&c, ROWS * w);
    s->yk = carve(&c, ROWS * w);
    s->u = carve(&c, copied_rows(ROWS, d));
    s->y = carve(&c, copied_rows(ROWS, d));
    s->dk = carve(&c, ROWS * padded(d));
    return c.next - (uintptr_t)base;
}

static size_t precondition_backward_workspace_bytes(const void *problem)
{
    precondition_backward_scratch unused;
    return precondition_backward_layout(problem, NULL, &unused);
}

/* N += sum_t u_t y_t^T */
INLINE void add_outer(idx n, idx d, const real *u, const real *y,
                      precondition_backward_scratch *s)
{
    const real *rows_u = whole_vectors(n, d, u, s->u), *rows_y = whole_vectors(n, d, y, s->y);
    product_along_columns(d, vectors(d), n, rows_u, padded(d), rows_y, padded(d), s->n, padded(d),
                          ADD, NULL);
}

/* xk[s][t] = k_s . x_t where t sees s, else 0; xt is left holding x^T. By the definition and from x itself:
 * in dk these products nearly cancel the gradient of the scores, and then the error of x must be in both. */
INLINE void seen_products(idx n, idx d, idx w, const real *k, const real *x, real *xt, real *xk)
{
    transpose_padded(n, d, x, d, xt, w, 1);
    upper_along_rows(w, n, d, d, k, d, xt, xk);
    for (idx r = 0; r < n; r += LANES) hide_later_keys(w, n, r, xk);
}

static void precondition_backward_run(const void *problem, void *workspace, idx entry)
{
    const ridge_problem *P = problem;
    const idx d = P->d, Tq = P->Tq, Tk = P->Tk, prefix = prefix_tokens(P), dp = padded(d);
    const idx w = lanes(P);
    const real *k = (const real *)P->k + entry * Tk * d;
    const real *y = (const real *)P->result + entry * Tq * d;
    const real *dy = (const real *)P->dresult + entry * Tq * d;
    real *u = (real *)P->dq + entry * Tq * d;
    real *dk = (real *)P->dk + entry * Tk * d;
    real *factors = (real *)P->factors + entry * precondition_factors(P);
    precondition_backward_scratch s;
    precondition_backward_layout(P, workspace, &s);
    if (P->served[entry] < P->Tq) return; /* what a wider type served, it differentiates */

    memset(s.n, 0, (size_t)(d * dp) * sizeof(real));
    chunk_factors all = factors_at(P, entry, chunks(P), factors);
    all.u = all.h;
    for (idx t = prefix; t < Tq; t += w) {
        const idx n = min_idx(w, Tq - t);
        transpose_padded(n, d, dy + t * d, d, s.ut, w, 1);
        solve_tokens(n, d, &all, s.ut);
        transpose(d, n, s.ut, w, u + t * d, d, 1);
        add_outer(n, d, u + t * d, y + t * d, &s);
    }
    add_transposed(d, s.n, s.both);
    for (idx j = prefix; j < Tk; j += ROWS) { /* keys that only those queries see, or nobody */
        const idx n = min_idx(ROWS, Tk - j);
        product_along_rows(n, vectors(d), d, k + j * d, d, s.both, dp, s.dk, dp, OVERWRITE);
        put_rows(n, d, s.dk, dk + j * d, -1);
    }

    for (idx chunk = chunks(P) - 1; chunk >= 0; chunk--) {
        const idx t = chunk * chunk_size(P), n = min_idx(chunk_size(P), prefix - t);
        chunk_factors f = factors_at(P, entry, chunk, factors);
        const idx together = (idx)*f.count;
        if (!is_scaled_identity(P, chunk)) {
            eliminate_sum(d, f.h, f.alpha, s.factor, s.diagonal);
            f.u = s.factor;
        }
        if (together > 0)
            apply_to_rows(together, d, &f, k + t * d, dy + t * d, s.ut, s.yt, s.uk, u + t * d);
        if (together < n) {
            memcpy(s.h, f.h, (size_t)(d * dp) * sizeof(real));
            solve_one_by_one(lanes(P), together, n, d, k + t * d, f.alpha, s.h, s.factor, s.diagonal, s.u, s.ut,
                             dy + t * d, u + t * d);
        }
        seen_products(n, d, w, k + t * d, u + t * d, s.ut, s.uk);
        seen_products(n, d, w, k + t * d, y + t * d, s.yt, s.yk);

        add_transposed(d, s.n, s.both);
        product_along_rows(n, vectors(d), d, k + t * d, d, s.both, dp, s.dk, dp, OVERWRITE);
        const real *rows_u = whole_vectors(n, d, u + t * d, s.u);
        const real *rows_y = whole_vectors(n, d, y + t * d, s.y);
        for (idx r = 0; r < n; r += LANES) { /* tokens before r do not see these keys */
            const idx keys = min_idx(LANES, n - r);
            product_along_rows(keys, vectors(d), n - r, s.yk + r * w + r, w,
                               rows_u + r * dp, dp, s.dk + r * dp, dp, ADD);
            product_along_rows(keys, vectors(d), n - r, s.uk + r * w + r, w,
                               rows_y + r * dp, dp, s.dk + r * dp, dp, ADD);
        }
        put_rows(n, d, s.dk, dk + t * d, -1);
        product_along_columns(d, vectors(d), n, rows_u, dp, rows_y, dp, s.n, dp, ADD, NULL);
    }

    double trace = 0;
    for (idx r = 0; r < d; r++) trace += (double)s.n[r * dp + r];
    P->dalpha[entry] = -trace;
    if (P->dgram) {
        add_transposed(d, s.n, s.both);
        put_rows(d, d, s.both, (real *)P->dgram + entry * d * d, (real)-0.5);
    }
}

#endif
