/* causal_fit.h - out_t = q_t (K_t^T K_t + alpha I)^-1 K_t^T V_t, a regression for every prefix, forward only.
 *
 * As precondition.h, but the prediction is made at once. With H = U^T U and R = K^T V of the tokens
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

#include "precondition.h"

#define BOTH (2 * WIDTH) /* keys of a chunk in the first WIDTH lanes, its queries in the others */

typedef struct {
    real *hr, *uz;  /* (d, padded(d) + padded(dv)): [H | R] and [U | Z] */
    real *pq;       /* (d, BOTH)      P^T and (Q U^-1)^T */
    real *own, *x;  /* (ROWS, WIDTH) */
    real *k;        /* copy of ROWS rows */
    real *e, *out;  /* (ROWS, padded(dv))  V - P Z, and a copy of the result */
    real *diagonal; /* (max(d, ROWS)) */
} causal_fit_scratch;

INLINE size_t causal_fit_layout(const ridge_problem *P, void *base, causal_fit_scratch *s)
{
    const idx d = P->d;
    carver c = {(uintptr_t)base};
    s->hr = carve(&c, d * fit_stride(P));
    s->uz = carve(&c, d * fit_stride(P));
    s->pq = carve(&c, d * BOTH);
    s->own = carve(&c, ROWS * WIDTH);
    s->x = carve(&c, ROWS * WIDTH);
    s->k = carve(&c, d % LANES ? ROWS * padded(d) : 0);
    s->e = carve(&c, ROWS * padded(P->dv));
    s->out = carve(&c, ROWS * padded(P->dv));
    s->diagonal = carve(&c, d > ROWS ? d : ROWS);
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
static int eliminate_past(const ridge_problem *P, real alpha, causal_fit_scratch *s)
{
    const idx d = P->d, stride = fit_stride(P);
    memcpy(s->uz, s->hr, (size_t)(d * stride) * sizeof(real));
    add_to_diagonal(d, s->uz, stride, alpha, s->diagonal);
    return eliminate(d, stride / LANES, s->uz, stride, s->diagonal, pivot_noise(d)) == d;
}

/* One chunk of n keys and as many queries; returns how many of them are served, before a key of too much
 * leverage. has_past: [U | Z] is there. */
static idx causal_fit_chunk(const ridge_problem *P, idx n, const real *q, const real *k,
                            const real *v, real alpha, int has_past, real *out,
                            causal_fit_scratch *s)
{
    const idx d = P->d, dv = P->dv, stride = fit_stride(P), dvp = padded(dv);
    const real *z = s->uz + padded(d);
    real *qt = s->pq + padded(n); /* next to the keys, so that one substitution serves both */
    turn(n, d, k, d, s->pq, BOTH);
    turn(n, d, q, d, qt, BOTH);
    if (has_past) substitute_down(d, s->uz, stride, 2 * vectors(n), s->pq, BOTH);
    else scale_rows(d, 2 * padded(n), BOTH, 1 / root(alpha), s->pq);

    upper_along_columns(n, d, s->pq, BOTH, s->pq, BOTH, s->own);
    const idx served = eliminate_leverages(n, s->own, s->diagonal);
    upper_along_columns(served, d, s->pq, BOTH, qt, BOTH, s->x);

    real *room = room_for_rows(dv, out, s->out);
    for (idx r = 0; r < served; r++)
        for (idx c = 0; c < dvp; c += LANES) {
            const idx left = dv - c;
            if (left >= LANES) store(s->e + r * dvp + c, load(v + r * dv + c));
            else for (idx i = 0; i < LANES; i++) s->e[r * dvp + c + i] = i < left ? v[r * dv + c + i] : 0;
        }
    if (has_past) {
        product_along_columns(served, vectors(dv), d, s->pq, BOTH, z, stride, s->e, dvp, SUBTRACT, NULL);
        product_along_columns(served, vectors(dv), d, qt, BOTH, z, stride, room, dvp, OVERWRITE, NULL);
    }
    for (idx r = 0; r < served; r += PAIR) {
        const idx tokens = min_idx(PAIR, served - r);
        weights_of_prefixes(served, r, s->own, s->x);
        product_along_columns(tokens, vectors(dv), r + tokens, s->x + r, WIDTH, s->e, dvp,
                              room + r * dvp, dvp, has_past ? ADD : OVERWRITE, NULL);
    }
    put_rows(served, dv, room, out, 1);
    return served;
}

INLINE void add_rows(const ridge_problem *P, idx n, const real *k, const real *v,
                     causal_fit_scratch *s)
{
    const idx d = P->d, dv = P->dv, stride = fit_stride(P);
    const real *rows_k = whole_vectors(n, d, k, s->k), *rows_v = whole_vectors(n, dv, v, s->e);
    add_gram(n, d, rows_k, s->hr, stride, ADD);
    product_along_columns(d, vectors(dv), n, rows_k, padded(d), rows_v, padded(dv),
                          s->hr + padded(d), stride, ADD, NULL);
}

/* Tokens from..n-1 of a chunk, each with its own elimination; returns n, or the first whose regression is
 * singular. [H | R] then has the chunk in it. */
static idx causal_fit_one_by_one(const ridge_problem *P, idx from, idx n, const real *q,
                                 const real *k, const real *v, real alpha, real *out,
                                 causal_fit_scratch *s)
{
    const idx d = P->d, dv = P->dv, stride = fit_stride(P);
    add_rows(P, from, k, v, s);
    for (idx t = from; t < n; t++) {
        add_rows(P, 1, k + t * d, v + t * dv, s);
        if (!eliminate_past(P, alpha, s)) return t;
        turn(1, d, q + t * d, d, s->pq, BOTH);
        substitute_down(d, s->uz, stride, 1, s->pq, BOTH);
        product_along_columns(1, vectors(dv), d, s->pq, BOTH, s->uz + padded(d), stride, s->out,
                              padded(dv), OVERWRITE, NULL);
        put_rows(1, dv, s->out, out + t * dv, 1);
    }
    return n;
}

static void causal_fit_run(const void *problem, void *workspace, idx entry)
{
    const ridge_problem *P = problem;
    const idx d = P->d, dv = P->dv, Tq = P->Tq, Tk = P->Tk, stride = fit_stride(P);
    const idx prefix = prefix_tokens(P);
    const real *q = (const real *)P->q + entry * Tq * d;
    const real *k = (const real *)P->k + entry * Tk * d;
    const real *v = (const real *)P->v + entry * Tk * dv;
    const real alpha = (real)P->alpha[entry];
    real *out = (real *)P->result + entry * Tq * dv;
    causal_fit_scratch s;
    causal_fit_layout(P, workspace, &s);

    if (P->gram) load_state(P, entry, s.hr, stride);
    else memset(s.hr, 0, (size_t)(d * stride) * sizeof(real));
    for (idx chunk = 0; chunk < chunks(P); chunk++) {
        const idx t = chunk * chunk_size(P), n = min_idx(chunk_size(P), prefix - t);
        const int has_past = !is_scaled_identity(P, chunk);
        P->served[entry] = t;
        if (has_past && !eliminate_past(P, alpha, &s)) return;
        const real *qt = q + t * d, *kt = k + t * d, *vt = v + t * dv;
        real *out_t = out + t * dv;
        idx served = causal_fit_chunk(P, n, qt, kt, vt, alpha, has_past, out_t, &s);
        if (served < n)
            served = causal_fit_one_by_one(P, served, n, qt, kt, vt, alpha, out_t, &s);
        else if (t + n < Tq) add_rows(P, n, kt, vt, &s);
        P->served[entry] = t + served;
        if (served < n || t + n == Tq) return;
    }
    if (!eliminate_past(P, alpha, &s)) return; /* queries past the last key */
    real *w = s.uz + padded(d);
    substitute_up(d, s.uz, stride, vectors(dv), w, stride);
    for (idx t = prefix; t < Tq; t += ROWS) {
        const idx n = min_idx(ROWS, Tq - t);
        real *room = room_for_rows(dv, out + t * dv, s.out);
        product_along_rows(n, vectors(dv), d, q + t * d, d, w, stride, room, padded(dv), OVERWRITE);
        put_rows(n, dv, room, out + t * dv, 1);
    }
    P->served[entry] = Tq;
}

#endif
