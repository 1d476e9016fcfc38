/* precondition.h - q*_t = H_t^-1 q_t, where H_t sums over the keys that token t sees.
 *
 * All queries see all keys: one elimination, and the queries are right-hand sides. Causal: prefix.h, and
 * where leverages are large one step of refinement, as softmax or a square will magnify what y lost:
 *
 *     y_t <- y_t + H_t^-1 (q_t - H_t y_t)
 */
#ifndef KVQ_PRECONDITION_H
#define KVQ_PRECONDITION_H

#include "fit.h"
#include "prefix.h"

#define STEEP 16 /* a leverage that calls for refinement */

/* ---- a chunk: what backward needs of it, and U ------------------------------------------------ */
typedef struct {
    real *h;     /* (d, padded(d))  the sum before the chunk, without alpha */
    real *mt;    /* (d, w)      (H + alpha I)^-1 K^T */
    real *own;   /* (chunk, w)  I + A, eliminated */
    real *count; /* tokens that these serve; the rest have an elimination of their own */
    real *steep; /* the first of them whose key has a leverage above STEEP */
    const real *u; /* (d, padded(d))  H + alpha I, eliminated; NULL where that is alpha I. Not kept. */
    real alpha;
    idx w; /* lanes(P) */
} chunk_factors;

INLINE idx chunk_numbers(const ridge_problem *P)
{
    return P->d * padded(P->d) + (P->d + chunk_size(P)) * lanes(P) + LANES;
}

static idx precondition_factors(const ridge_problem *P)
{
    return chunks(P) * chunk_numbers(P) + P->d * padded(P->d); /* at the end: H of all keys */
}

INLINE chunk_factors factors_at(const ridge_problem *P, idx entry, idx chunk, real *first)
{
    chunk_factors f;
    f.h = first + chunk * chunk_numbers(P);
    f.mt = f.h + P->d * padded(P->d);
    f.own = f.mt + P->d * lanes(P);
    f.count = f.own + chunk_size(P) * lanes(P);
    f.steep = f.count + 1;
    f.u = NULL;
    f.alpha = (real)P->alpha[entry];
    f.w = lanes(P);
    return f;
}

/* u = the elimination of h + alpha I; 0 where a pivot is noise. */
INLINE int eliminate_sum(idx d, const real *h, real alpha, real *u, real *diagonal)
{
    memcpy(u, h, (size_t)(d * padded(d)) * sizeof(real));
    add_to_diagonal(d, u, padded(d), alpha, diagonal);
    return eliminate(d, vectors(d), u, padded(d), diagonal, pivot_noise(d)) == d;
}

/* xt (d x tokens) <- H^-1 xt, with H as it was before the chunk */
INLINE void solve_tokens(idx n, idx d, const chunk_factors *f, real *xt)
{
    const idx w = f->w;
    if (f->u) {
        substitute_down(d, f->u, padded(d), vectors(n), xt, w);
        substitute_up(d, f->u, padded(d), vectors(n), xt, w);
        return;
    }
    for (idx r = 0; r < d; r++)
        for (idx t = 0; t < padded(n); t += LANES)
            store(xt + r * w + t, load(xt + r * w + t) / f->alpha);
}

/* Tokens from..n-1 of a chunk, each with its own elimination: y_t = H_t^-1 x_t, for rows x and y. h is the
 * sum before the chunk, and after it. Returns n, or the first token whose regression is singular. */
static idx solve_one_by_one(idx w, idx from, idx n, idx d, const real *k, real alpha, real *h, real *u,
                            real *diagonal, real *copy, real *xt, const real *x, real *y)
{
    add_gram(from, d, whole_vectors(from, d, k, copy), h, padded(d), ADD);
    for (idx t = from; t < n; t++) {
        add_gram(1, d, whole_vectors(1, d, k + t * d, copy), h, padded(d), ADD);
        if (!eliminate_sum(d, h, alpha, u, diagonal)) return t;
        transpose_padded(1, d, x + t * d, d, xt, w, 1);
        substitute_down(d, u, padded(d), 1, xt, w);
        substitute_up(d, u, padded(d), 1, xt, w);
        transpose(d, 1, xt, w, y + t * d, d, 1);
    }
    return n;
}

/* xt (d x tokens) <- H_t^-1 x_t for each token of a chunk; b: chunk x w scratch. */
INLINE void apply_inverses(idx n, idx d, const chunk_factors *f, real *xt, real *b)
{
    const idx w = f->w;
    upper_along_columns(w, n, d, SHORT, f->mt, w, xt, w, b);
    solve_tokens(n, d, f, xt);
    for (idx r = 0; r < n; r += SIDE_BY_SIDE * LANES) {
        const idx nv = min_idx(SIDE_BY_SIDE, vectors(n - r)), keys = min_idx(n, r + nv * LANES);
        weights_of_prefixes(w, n, r, nv, f->own, b);
        product_along_rows(d, nv, keys, f->mt, w, b + r, w, xt + r, w, SUBTRACT);
    }
}

/* rt (d x tokens) <- x_t - H_t y_t, for rows x and an yt (d x tokens). b: chunk x w scratch. */
static void residuals(idx n, idx d, const chunk_factors *f, const real *k, const real *x, const real *yt,
                      real *rt, real *b)
{
    const idx w = f->w, dp = padded(d);
    transpose_padded(n, d, x, d, rt, w, 1);
    for (idx c = 0; c < d; c++)
        for (idx t = 0; t < padded(n); t += LANES)
            store(rt + c * w + t, load(rt + c * w + t) - load(yt + c * w + t) * f->alpha);
    if (f->u) /* of H there is what lies on and above the diagonal */
        for (idx c = 0; c < d; c += LANES) {
            const idx rows = min_idx(LANES, d - c);
            product_along_rows(rows, vectors(n), d - c, f->h + c * dp + c, dp, yt + c * w, w, rt + c * w,
                               w, SUBTRACT);
            product_along_columns(rows, vectors(n), c, f->h + c, dp, yt, w, rt + c * w, w, SUBTRACT,
                                  NULL);
        }
    upper_along_rows(w, n, d, SHORT, k, d, yt, b);
    for (idx r = 0; r < n; r += LANES) {
        hide_later_keys(w, n, r, b);
        product_along_columns(d, 1, min_idx(n, r + LANES), k, d, b + r, w, rt + r, w, SUBTRACT, NULL);
    }
}

/* ---- forward --------------------------------------------------------------------------------- */
typedef struct {
    real *h, *u;    /* (d, padded(d)) */
    real *factors;  /* of one chunk, where none are kept */
    real *xt, *rt;  /* (d, w)     queries in the lanes, and what is left of them */
    real *b;        /* (ROWS, w) */
    real *k;        /* copy of ROWS rows */
    real *diagonal; /* (max(d, ROWS)) */
} precondition_scratch;

INLINE size_t precondition_layout(const ridge_problem *P, void *base, precondition_scratch *s)
{
    const idx d = P->d, w = lanes(P);
    carver c = {(uintptr_t)base};
    s->h = carve(&c, d * padded(d));
    s->u = carve(&c, d * padded(d));
    s->factors = carve(&c, P->factors ? 0 : chunk_numbers(P));
    s->xt = carve(&c, d * w);
    s->rt = carve(&c, d * w);
    s->b = carve(&c, ROWS * w);
    s->k = carve(&c, copied_rows(ROWS, d));
    s->diagonal = carve(&c, d > ROWS ? d : ROWS);
    return c.next - (uintptr_t)base;
}

static size_t precondition_workspace_bytes(const void *problem)
{
    precondition_scratch unused;
    return precondition_layout(problem, NULL, &unused);
}

/* The factors of a chunk of n tokens. */
static void factor_chunk(idx n, idx d, const real *k, chunk_factors *f, real *diagonal)
{
    const idx w = f->w;
    transpose_padded(n, d, k, d, f->mt, w, 1);
    solve_tokens(n, d, f, f->mt);
    upper_along_rows(w, n, d, SHORT, k, d, f->mt, f->own);
    const idx served = eliminate_leverages(w, n, 0, f->own, diagonal);
    *f->count = (real)served;
    idx steep = 0;
    while (steep < served && diagonal[steep] <= 1 + STEEP) steep++;
    *f->steep = (real)steep;
}

/* rows y_t <- H_t^-1 x_t for the first tokens of a chunk. yt, rt: d x w scratch, b: chunk x w. */
static void apply_to_rows(idx n, idx d, const chunk_factors *f, const real *k, const real *x, real *yt, real *rt,
                          real *b, real *y)
{
    const idx w = f->w, steep = (idx)*f->steep;
    transpose_padded(n, d, x, d, yt, w, 1);
    apply_inverses(n, d, f, yt, b);
    if (steep < n) {
        residuals(n, d, f, k, x, yt, rt, b);
        apply_inverses(n, d, f, rt, b);
        for (idx r = steep / LANES * LANES; r < n; r += LANES) /* tokens before keep every bit */
            for (idx c = 0; c < d; c++) {
                const vec more = keep(from_lane(steep > r ? steep - r : 0), load(rt + c * w + r));
                store(yt + c * w + r, load(yt + c * w + r) + more);
            }
    }
    transpose(d, n, yt, w, y, d, 1);
}

static void precondition_run(const void *problem, void *workspace, idx entry)
{
    const ridge_problem *P = problem;
    const idx d = P->d, Tq = P->Tq, Tk = P->Tk, prefix = prefix_tokens(P), h_size = d * padded(d);
    const idx w = lanes(P);
    const real *q = (const real *)P->q + entry * Tq * d;
    const real *k = (const real *)P->k + entry * Tk * d;
    const real alpha = (real)P->alpha[entry];
    real *q_star = (real *)P->result + entry * Tq * d;
    precondition_scratch s;
    precondition_layout(P, workspace, &s);
    real *kept = P->factors ? (real *)P->factors + entry * precondition_factors(P) : NULL;

    if (P->gram) load_state(P, entry, s.h, padded(d));
    else memset(s.h, 0, (size_t)h_size * sizeof(real));
    for (idx chunk = 0; chunk < chunks(P); chunk++) {
        const idx t = chunk * chunk_size(P), n = min_idx(chunk_size(P), prefix - t);
        chunk_factors f = factors_at(P, entry, kept ? chunk : 0, kept ? kept : s.factors);
        memcpy(f.h, s.h, (size_t)h_size * sizeof(real));
        if (!is_scaled_identity(P, chunk)) f.u = s.u;
        P->served[entry] = t;
        if (f.u && !eliminate_sum(d, s.h, alpha, s.u, s.diagonal)) return;
        factor_chunk(n, d, k + t * d, &f, s.diagonal);

        const idx together = (idx)*f.count;
        if (together > 0) apply_to_rows(together, d, &f, k + t * d, q + t * d, s.xt, s.rt, s.b, q_star + t * d);
        if (together == n) {
            add_gram(n, d, whole_vectors(n, d, k + t * d, s.k), s.h, padded(d), ADD);
            continue;
        }
        const idx served = solve_one_by_one(lanes(P), together, n, d, k + t * d, alpha, s.h, s.u, s.diagonal,
                                            s.k, s.xt, q + t * d, q_star + t * d);
        P->served[entry] = t + served;
        if (served < n) return;
    }
    P->served[entry] = prefix;
    if (prefix == Tq) return;

    for (idx j = prefix; j < Tk; j += ROWS) {
        const idx n = min_idx(ROWS, Tk - j);
        add_gram(n, d, whole_vectors(n, d, k + j * d, s.k), s.h, padded(d), ADD);
    }
    chunk_factors f = factors_at(P, entry, kept ? chunks(P) : 0, kept ? kept : s.factors);
    if (!eliminate_sum(d, s.h, alpha, f.h, s.diagonal)) return;
    f.u = f.h;
    for (idx t = prefix; t < Tq; t += w) {
        const idx n = min_idx(w, Tq - t);
        transpose_padded(n, d, q + t * d, d, s.xt, w, 1);
        solve_tokens(n, d, &f, s.xt);
        transpose(d, n, s.xt, w, q_star + t * d, d, 1);
    }
    P->served[entry] = Tq;
}

#endif
