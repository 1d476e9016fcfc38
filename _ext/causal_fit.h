/* causal_fit.h - out_t = q_t (K_t^T K_t + alpha I)^-1 K_t^T V_t: a regression for every prefix, forward.
 *
 * As in prefix.h, and the prediction is made at once. With H = U^T U and R = K^T V of the tokens
 * before the chunk, and K, V, Q the rows of the chunk:
 *
 *     P = K U^-1,  Z = U^-T R                 so K W = P Z is what the past predicts at the chunk's keys
 *     (I + P P^T)_t x_t = P_t (q_t U^-1)      weights of the chunk's keys
 *     out_t = (q_t U^-1) Z + x_t (V - P Z)    the past's prediction, corrected by what it got wrong
 *
 * where ( )_t keeps the first t + 1 rows and columns: the innovations form of recursive least squares.
 * Queries past the last key see all keys.
 */
#ifndef KVQ_CAUSAL_FIT_H
#define KVQ_CAUSAL_FIT_H

#include "fit.h"
#include "prefix.h"

/* ---- chunks ----------------------------------------------------------------------------------- */
/* Forward and backward together, the products within a chunk outweigh the elimination before it. */
INLINE idx later_chunk_size(const ridge_problem *P)
{
    return P->d > ROWS ? ROWS : min_idx(32, chunk_size(P));
}

INLINE idx chunk_start(const ridge_problem *P, idx chunk)
{
    return chunk == 0 ? 0 : chunk_size(P) + (chunk - 1) * later_chunk_size(P);
}

INLINE idx chunk_tokens(const ridge_problem *P, idx chunk)
{
    return min_idx(prefix_tokens(P), chunk_start(P, chunk + 1)) - chunk_start(P, chunk);
}

INLINE idx fit_chunks(const ridge_problem *P)
{
    const idx later = prefix_tokens(P) - chunk_size(P), size = later_chunk_size(P);
    return later <= 0 ? 1 : 1 + (later + size - 1) / size;
}

/* ---- what backward needs of a chunk of n tokens, w = padded(n) ----------------------------------- */
typedef struct {
    real *uz;    /* (d, padded(d) + padded(dv))  [U | Z]; [H | R], without alpha, where count says less than n */
    real *own;   /* (n, w)      I + P P^T, eliminated */
    real *x;     /* (n, w)      the weights: rows are keys, lanes are tokens */
    real *e;     /* (n, padded(dv)) V - P Z */
    real *count; /* tokens that these serve; the rest have an elimination of their own */
} causal_fit_factors;

INLINE idx causal_fit_numbers(const ridge_problem *P, idx tokens)
{
    return P->d * fit_stride(P) + tokens * (2 * padded(tokens) + padded(P->dv)) + LANES;
}

INLINE causal_fit_factors causal_fit_factors_at(const ridge_problem *P, real *first, idx chunk)
{
    const idx size = chunk == 0 ? chunk_size(P) : later_chunk_size(P);
    causal_fit_factors f;
    f.uz = first;
    if (chunk > 0)
        f.uz += causal_fit_numbers(P, chunk_size(P)) + (chunk - 1) * causal_fit_numbers(P, size);
    f.own = f.uz + P->d * fit_stride(P);
    f.x = f.own + size * padded(size);
    f.e = f.x + size * padded(size);
    f.count = f.e + size * padded(P->dv);
    return f;
}

static idx causal_fit_factors_count(const ridge_problem *P) /* at the end: all keys */
{
    return causal_fit_numbers(P, chunk_size(P)) +
           (fit_chunks(P) - 1) * causal_fit_numbers(P, later_chunk_size(P)) + P->d * fit_stride(P);
}

/* ---- forward --------------------------------------------------------------------------------- */
typedef struct {
    real *hr, *uz;  /* (d, padded(d) + padded(dv)): [H | R] and [U | Z] */
    real *pq;       /* (d, 2 w)      P^T and (Q U^-1)^T, a token to a lane */
    real *k, *v;    /* copies of ROWS rows */
    real *out;
    real *diagonal; /* (max(d, ROWS)) */
    real *factors;  /* of one chunk, where none are kept */
} causal_fit_scratch;

INLINE size_t causal_fit_layout(const ridge_problem *P, void *base, causal_fit_scratch *s)
{
    const idx d = P->d;
    carver c = {(uintptr_t)base};
    s->hr = carve(&c, d * fit_stride(P));
    s->uz = carve(&c, d * fit_stride(P));
    s->pq = carve(&c, d * 2 * lanes(P));
    s->k = carve(&c, copied_rows(ROWS, d));
    s->v = carve(&c, copied_rows(ROWS, P->dv));
    s->out = carve(&c, ROWS * padded(P->dv));
    s->diagonal = carve(&c, d > ROWS ? d : ROWS);
    s->factors = carve(&c, P->factors ? 0 : causal_fit_numbers(P, chunk_size(P)));
    return c.next - (uintptr_t)base;
}

static size_t causal_fit_workspace_bytes(const void *problem)
{
    causal_fit_scratch unused;
    return causal_fit_layout(problem, NULL, &unused);
}

INLINE void scale_rows(idx rows, idx columns, idx stride, real factor, real *x)
{
    for (idx r = 0; r < rows; r++)
        for (idx c = 0; c < columns; c += LANES)
            store(x + r * stride + c, load(x + r * stride + c) * factor);
}

/* [U | Z] from [H | R]; 0 where a pivot is noise. */
static int eliminate_past(const ridge_problem *P, real alpha, const real *hr, real *uz,
                          real *diagonal)
{
    const idx d = P->d, stride = fit_stride(P);
    memcpy(uz, hr, (size_t)(d * stride) * sizeof(real));
    add_to_diagonal(d, uz, stride, alpha, diagonal);
    return eliminate(d, stride / LANES, uz, stride, diagonal, pivot_noise(d)) == d;
}

/* pq <- [P^T | (Q U^-1)^T] for n keys and queries; the queries begin at lane padded(n). uz is NULL where H is
 * alpha I. */
INLINE void halve(const ridge_problem *P, idx n, const real *k, const real *q, real alpha,
                  const real *uz, real *pq, idx pq_stride)
{
    const idx d = P->d;
    transpose_padded(n, d, k, d, pq, pq_stride, 1);
    transpose_padded(n, d, q, d, pq + padded(n), pq_stride, 1); /* next to the keys: one substitution serves both */
    if (uz) substitute_down(d, uz, fit_stride(P), 2 * vectors(n), pq, pq_stride);
    else scale_rows(d, 2 * padded(n), pq_stride, 1 / root(alpha), pq);
}

/* One chunk of n keys and as many queries; *f->count of them are served, before a key of too much leverage.
 * uz: [U | Z], or NULL before the first key. */
static void causal_fit_chunk(const ridge_problem *P, idx n, const real *q, const real *k,
                             const real *v, real alpha, const real *uz, real *out,
                             const causal_fit_factors *f, causal_fit_scratch *s)
{
    const idx d = P->d, dv = P->dv, stride = fit_stride(P), dvp = padded(dv);
    const idx w = padded(n), both = 2 * w, longest = uz ? d : SHORT;
    const real *qt = s->pq + w;
    halve(P, n, k, q, alpha, uz, s->pq, both);

    upper_along_columns(w, n, d, longest, s->pq, both, s->pq, both, f->own);
    const idx served = eliminate_leverages(w, n, uz ? 0 : d, f->own, s->diagonal);
    *f->count = (real)served;
    upper_along_columns(w, served, d, longest, s->pq, both, qt, both, f->x);

    const real *rows_v = whole_vectors(served, dv, v, s->v);
    memcpy(f->e, rows_v, (size_t)(served * dvp) * sizeof(real));
    real *room = room_for_rows(dv, out, s->out);
    if (uz) {
        const real *z = uz + padded(d);
        product_along_columns(served, vectors(dv), d, s->pq, both, z, stride, f->e, dvp, SUBTRACT,
                              NULL);
        product_along_columns(served, vectors(dv), d, qt, both, z, stride, room, dvp, OVERWRITE,
                              NULL);
    }
    for (idx r = 0; r < served; r += SIDE_BY_SIDE * LANES)
        weights_of_prefixes(w, served, r, min_idx(SIDE_BY_SIDE, vectors(served - r)), f->own, f->x);
    for (idx r = 0; r < served; r += LANES) {
        const idx tokens = min_idx(LANES, served - r);
        product_along_columns(tokens, vectors(dv), r + tokens, f->x + r, w, f->e, dvp,
                              room + r * dvp, dvp, uz ? ADD : OVERWRITE, NULL);
    }
    put_rows(served, dv, room, out, 1);
}

/* [H | R] += K^T [K | V] */
INLINE void add_rows(const ridge_problem *P, idx n, const real *k, const real *v, real *copy_k,
                     real *copy_v, real *hr)
{
    const idx d = P->d, dv = P->dv, stride = fit_stride(P);
    const real *rows_k = whole_vectors(n, d, k, copy_k);
    const real *rows_v = whole_vectors(n, dv, v, copy_v);
    add_gram(n, d, rows_k, hr, stride, ADD);
    product_along_columns(d, vectors(dv), n, rows_k, padded(d), rows_v, padded(dv),
                          hr + padded(d), stride, ADD, NULL);
}

/* Tokens from..n-1 of a chunk, each with its own elimination; returns n, or the first whose regression is
 * singular. [H | R] then has the chunk in it. */
static idx causal_fit_one_by_one(const ridge_problem *P, idx from, idx n, const real *q,
                                 const real *k, const real *v, real alpha, real *out,
                                 causal_fit_scratch *s)
{
    const idx d = P->d, dv = P->dv, stride = fit_stride(P);
    add_rows(P, from, k, v, s->k, s->v, s->hr);
    for (idx t = from; t < n; t++) {
        add_rows(P, 1, k + t * d, v + t * dv, s->k, s->v, s->hr);
        if (!eliminate_past(P, alpha, s->hr, s->uz, s->diagonal)) return t;
        transpose_padded(1, d, q + t * d, d, s->pq, LANES, 1);
        substitute_down(d, s->uz, stride, 1, s->pq, LANES);
        product_along_columns(1, vectors(dv), d, s->pq, LANES, s->uz + padded(d), stride, s->out,
                              padded(dv), OVERWRITE, NULL);
        put_rows(1, dv, s->out, out + t * dv, 1);
    }
    return n;
}

static void causal_fit_run(const void *problem, void *workspace, idx entry)
{
    const ridge_problem *P = problem;
    const idx d = P->d, dv = P->dv, Tq = P->Tq, Tk = P->Tk, stride = fit_stride(P);
    const idx prefix = prefix_tokens(P), hr_bytes = d * stride * (idx)sizeof(real);
    const real *q = (const real *)P->q + entry * Tq * d;
    const real *k = (const real *)P->k + entry * Tk * d;
    const real *v = (const real *)P->v + entry * Tk * dv;
    const real alpha = (real)P->alpha[entry];
    real *out = (real *)P->result + entry * Tq * dv;
    causal_fit_scratch s;
    causal_fit_layout(P, workspace, &s);
    real *kept = P->factors ? (real *)P->factors + entry * causal_fit_factors_count(P) : NULL;

    if (P->gram) load_state(P, entry, s.hr, stride);
    else memset(s.hr, 0, (size_t)hr_bytes);
    for (idx chunk = 0; chunk < fit_chunks(P); chunk++) {
        const idx t = chunk_start(P, chunk), n = chunk_tokens(P, chunk);
        const int has_past = !is_scaled_identity(P, chunk);
        const real *qt = q + t * d, *kt = k + t * d, *vt = v + t * dv;
        real *out_t = out + t * dv;
        const causal_fit_factors f =
            causal_fit_factors_at(P, kept ? kept : s.factors, kept ? chunk : 0);
        real *uz = !has_past ? NULL : kept ? f.uz : s.uz;
        P->served[entry] = t;
        if (uz && !eliminate_past(P, alpha, s.hr, uz, s.diagonal)) return;
        causal_fit_chunk(P, n, qt, kt, vt, alpha, uz, out_t, &f, &s);
        idx served = (idx)*f.count;
        if (served < n && kept && has_past) memcpy(f.uz, s.hr, (size_t)hr_bytes); /* backward starts from here */
        if (served < n)
            served = causal_fit_one_by_one(P, served, n, qt, kt, vt, alpha, out_t, &s);
        else if (t + n < Tq) add_rows(P, n, kt, vt, s.k, s.v, s.hr);
        tell_of(P->not_finite, out_t, served * dv);
        P->served[entry] = t + served;
        if (served < n || t + n == Tq) return;
    }
    if (!eliminate_past(P, alpha, s.hr, s.uz, s.diagonal)) return; /* queries past the last key */
    if (kept) memcpy(causal_fit_factors_at(P, kept, fit_chunks(P)).uz, s.uz, (size_t)hr_bytes);
    real *w = s.uz + padded(d);
    substitute_up(d, s.uz, stride, vectors(dv), w, stride);
    for (idx t = prefix; t < Tq; t += ROWS) {
        const idx n = min_idx(ROWS, Tq - t);
        real *room = room_for_rows(dv, out + t * dv, s.out);
        product_along_rows(n, vectors(dv), d, q + t * d, d, w, stride, room, padded(dv), OVERWRITE);
        put_rows(n, dv, room, out + t * dv, 1);
        tell_of(P->not_finite, out + t * dv, n * dv);
    }
    P->served[entry] = Tq;
}

#endif
