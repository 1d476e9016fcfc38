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
 *
 * From the second chunk on, recursive_fit.h does the same faster, for as long as H is well-conditioned.
 */
#ifndef KVQ_CAUSAL_FIT_H
#define KVQ_CAUSAL_FIT_H

#include "ahead.h"
#include "recursive_fit.h"

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

INLINE idx chunk_of(const ridge_problem *P, idx t)
{
    return t < chunk_size(P) ? 0 : 1 + (t - chunk_size(P)) / later_chunk_size(P);
}

/* ---- what backward needs ------------------------------------------------------------------------- */
/* Of a chunk of n tokens, w = padded(n); where a run of steps has served it, what recursive_fit.h says, after uz: */
typedef struct {
    real *uz;    /* (d, padded(d) + padded(dv))  [U | Z]; [H | R], without alpha, where count says less than n */
    real *own;   /* (n, w)      I + P P^T, eliminated */
    real *x;     /* (n, w)      the weights: rows are keys, lanes are tokens */
    real *e;     /* (n, padded(dv)) V - P Z */
    real *count; /* tokens that these serve; the rest have an elimination of their own */
} causal_fit_factors;

INLINE idx causal_fit_numbers(const ridge_problem *P, idx chunk)
{
    const idx tokens = chunk == 0 ? chunk_size(P) : later_chunk_size(P);
    const idx of_token = max_idx(2 * padded(tokens) + padded(P->dv), step_row(P));
    return P->d * fit_stride(P) + tokens * of_token + LANES;
}

INLINE idx numbers_before_chunk(const ridge_problem *P, idx chunk)
{
    return chunk == 0 ? 0 : causal_fit_numbers(P, 0) + (chunk - 1) * causal_fit_numbers(P, 1);
}

INLINE causal_fit_factors causal_fit_factors_at(const ridge_problem *P, real *first, idx chunk)
{
    const idx size = chunk == 0 ? chunk_size(P) : later_chunk_size(P);
    causal_fit_factors f;
    f.uz = first + numbers_before_chunk(P, chunk);
    f.own = f.uz + P->d * fit_stride(P);
    f.x = f.own + size * padded(size);
    f.e = f.x + size * padded(size);
    f.count = f.uz + causal_fit_numbers(P, chunk) - LANES;
    return f;
}

/* The row of token t of that chunk, in a run. */
INLINE real *step_row_at(const ridge_problem *P, real *first, idx chunk, idx t)
{
    const idx tokens_before = t - chunk_start(P, chunk);
    return first + numbers_before_chunk(P, chunk) + P->d * fit_stride(P) + tokens_before * step_row(P);
}

/* After the chunks: of all keys, the weights that a run began with, and of which tokens there are rows. */
typedef struct {
    real *uz, *w; /* (d, padded(d) + padded(dv)), (d, padded(dv)) */
    token_run *run;
} causal_fit_summary;

INLINE causal_fit_summary causal_fit_summary_at(const ridge_problem *P, real *first)
{
    causal_fit_summary s;
    s.uz = first + numbers_before_chunk(P, fit_chunks(P));
    s.w = s.uz + P->d * fit_stride(P);
    s.run = (token_run *)(s.w + P->d * padded(P->dv));
    return s;
}

static idx causal_fit_factors_count(const ridge_problem *P)
{
    return numbers_before_chunk(P, fit_chunks(P)) + P->d * (fit_stride(P) + padded(P->dv)) + LANES;
}

/* ---- forward --------------------------------------------------------------------------------- */
typedef struct {
    real *hr, *uz;  /* (d, padded(d) + padded(dv)): [H | R] and [U | Z], the second with room for H^-1 */
    real *pq;       /* (d, 2 w)      P^T and (Q U^-1)^T, a token to a lane */
    real *k, *v;    /* copies of ROWS rows */
    real *out;
    real *diagonal; /* (max(d, ROWS)) */
    real *rows;     /* (chunk_size, dv) of out, which may not all be wanted */
    real *factors;  /* of one chunk, where none are kept */
    recursive_scratch steps;
} causal_fit_scratch;

INLINE size_t causal_fit_layout(const ridge_problem *P, void *base, causal_fit_scratch *s)
{
    const idx d = P->d;
    carver c = {(uintptr_t)base};
    s->hr = carve(&c, d * fit_stride(P));
    s->uz = carve(&c, d * (fit_stride(P) + padded(d)));
    s->pq = carve(&c, d * 2 * lanes(P));
    s->k = carve(&c, copied_rows(ROWS, d));
    s->v = carve(&c, copied_rows(ROWS, P->dv));
    s->out = carve(&c, ROWS * padded(P->dv));
    s->diagonal = carve(&c, d > ROWS ? d : ROWS);
    s->rows = carve(&c, chunk_size(P) * P->dv);
    s->factors = carve(&c, P->factors ? 0 : causal_fit_numbers(P, 0));
    s->steps.m = s->hr; /* a run needs no [H | R] */
    carve_recursive(P, &c, &s->steps);
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

/* ---- a head ------------------------------------------------------------------------------------ */
typedef struct {
    idx entry;
    real alpha;
    const real *q, *k, *v;
    real *out;
    real *kept; /* what backward needs, or NULL */
} causal_head;

INLINE causal_head causal_head_at(const ridge_problem *P, idx entry)
{
    const idx Tq = P->Tq, Tk = P->Tk, d = P->d, dv = P->dv;
    causal_head h = {.entry = entry, .alpha = (real)P->alpha[entry]};
    h.q = (const real *)P->q + entry * Tq * d;
    h.k = (const real *)P->k + entry * Tk * d;
    h.v = (const real *)P->v + entry * Tk * dv;
    h.out = (real *)P->result + entry * Tq * dv;
    h.kept = P->factors ? (real *)P->factors + entry * causal_fit_factors_count(P) : NULL;
    return h;
}

/* [H | R] of the first n tokens. */
static void sum_past(const ridge_problem *P, const causal_head *h, idx n, causal_fit_scratch *s)
{
    if (P->gram) load_state(P, h->entry, s->hr, fit_stride(P));
    else memset(s->hr, 0, (size_t)(P->d * fit_stride(P)) * sizeof(real));
    for (idx t = 0; t < n; t += ROWS)
        add_rows(P, min_idx(ROWS, n - t), h->k + t * P->d, h->v + t * P->dv, s->k, s->v, s->hr);
}

/* Serves tokens from t on for as long as H is well-conditioned, and returns the first that is not served. What the next
 * step will read is asked for in time. */
static idx run_of_steps(const ridge_problem *P, const causal_head *h, idx t, causal_fit_scratch *s)
{
    const idx d = P->d, dv = P->dv, prefix = prefix_tokens(P);
    recursive_scratch *steps = &s->steps;
    while (t < prefix) {
        const idx chunk = chunk_of(P, t), n = min_idx(STEP, prefix - t), next = min_idx(STEP, prefix - t - n);
        if (t == chunk_start(P, chunk) && !is_well_conditioned(d, steps->diagonal, steps->m, fit_stride(P))) break;
        const real *q = h->q + t * d, *k = h->k + t * d, *v = h->v + t * dv;
        real *out = h->out + t * dv, *row = h->kept ? step_row_at(P, h->kept, chunk, t) : steps->row;
        fetch_ahead(k + n * d, next * d, 0);
        fetch_ahead(q + n * d, next * d, 0);
        fetch_ahead(v + n * dv, next * dv, 0);
        const idx served = recursive_step(P, n, q, k, v, out, row, steps);
        tell_of(P->not_finite, out, served * dv);
        if (served == n && t + n < prefix) learn_step(P, n, k, row, steps);
        t += served;
        if (served < n) break;
    }
    return t;
}

/* A run that begins with a chunk, if the tokens before it have made H well-conditioned, and those after it are worth an
 * inversion. If they were not enough before, it is tried again at twice as many. Returns where the run ends. */
static idx run_from_chunk(const ridge_problem *P, const causal_head *h, idx chunk, idx *tried, causal_fit_scratch *s)
{
    const idx d = P->d, dvp = padded(P->dv), t = chunk_start(P, chunk);
    if (t < max_idx(d, 2 * *tried) || prefix_tokens(P) - t < 3 * d) return t;
    *tried = t;
    if (!invert_past(P, h->alpha, s->hr, s->uz, &s->steps)) return t;
    if (h->kept)
        for (idx r = 0; r < d; r++)
            memcpy(causal_fit_summary_at(P, h->kept).w + r * dvp, s->steps.m + r * fit_stride(P) + padded(d),
                   (size_t)dvp * sizeof(real));
    const idx end = run_of_steps(P, h, t, s);
    if (end == t) sum_past(P, h, t, s); /* H^-1 has taken the room of [H | R] */
    return end;
}

/* Returns how many tokens of the chunk are served. */
static idx serve_chunk(const ridge_problem *P, const causal_head *h, idx chunk, real *out, causal_fit_scratch *s)
{
    const idx d = P->d, dv = P->dv, t = chunk_start(P, chunk), n = chunk_tokens(P, chunk);
    const int has_past = !is_scaled_identity(P, chunk);
    const real *q = h->q + t * d, *k = h->k + t * d, *v = h->v + t * dv;
    const causal_fit_factors f = causal_fit_factors_at(P, h->kept ? h->kept : s->factors, h->kept ? chunk : 0);
    real *uz = !has_past ? NULL : h->kept ? f.uz : s->uz;
    if (uz && !eliminate_past(P, h->alpha, s->hr, uz, s->diagonal)) return 0;
    causal_fit_chunk(P, n, q, k, v, h->alpha, uz, out, &f, s);
    idx served = (idx)*f.count;
    if (served < n && h->kept && has_past) /* backward starts from here */
        memcpy(f.uz, s->hr, (size_t)(d * fit_stride(P)) * sizeof(real));
    if (served < n) served = causal_fit_one_by_one(P, served, n, q, k, v, h->alpha, out, s);
    else if (t + n < P->Tq) add_rows(P, n, k, v, s->k, s->v, s->hr);
    tell_of(P->not_finite, out, served * dv);
    return served;
}

/* What a run has not served that began with chunk `first` and ended before token `end`. The chunk in which that lies is
 * served again as a whole, but of its rows those of the run stay. Returns the first token that is not served. */
static idx serve_rest(const ridge_problem *P, const causal_head *h, idx first, idx end, causal_fit_scratch *s)
{
    const idx prefix = prefix_tokens(P), dv = P->dv;
    idx chunk = end < prefix ? chunk_of(P, end) : fit_chunks(P), t = min_idx(prefix, chunk_start(P, chunk));
    if (h->kept && chunk > first) *causal_fit_summary_at(P, h->kept).run = (token_run){chunk_start(P, first), t};
    if (t < P->Tq) sum_past(P, h, t, s);
    for (; t < prefix; t = chunk_start(P, ++chunk)) {
        const idx n = chunk_tokens(P, chunk), early = max_idx(end - t, 0);
        real *out = h->out + t * dv;
        const idx served = serve_chunk(P, h, chunk, early > 0 ? s->rows : out, s);
        if (early > 0 && served > early)
            memcpy(out + early * dv, s->rows + early * dv, (size_t)((served - early) * dv) * sizeof(real));
        if (served < n) return max_idx(end, t + served);
    }
    return prefix;
}

/* Queries past the last key see all of them. Returns whether they are served. */
static int serve_last(const ridge_problem *P, const causal_head *h, causal_fit_scratch *s)
{
    const idx d = P->d, dv = P->dv, stride = fit_stride(P);
    if (!eliminate_past(P, h->alpha, s->hr, s->uz, s->diagonal)) return 0;
    if (h->kept) memcpy(causal_fit_summary_at(P, h->kept).uz, s->uz, (size_t)(d * stride) * sizeof(real));
    real *w = s->uz + padded(d);
    substitute_up(d, s->uz, stride, vectors(dv), w, stride);
    for (idx t = prefix_tokens(P); t < P->Tq; t += ROWS) {
        const idx n = min_idx(ROWS, P->Tq - t);
        real *out = h->out + t * dv, *room = room_for_rows(dv, out, s->out);
        product_along_rows(n, vectors(dv), d, h->q + t * d, d, w, stride, room, padded(dv), OVERWRITE);
        put_rows(n, dv, room, out, 1);
        tell_of(P->not_finite, out, n * dv);
    }
    return 1;
}

static void causal_fit_run(const void *problem, void *workspace, idx entry)
{
    const ridge_problem *P = problem;
    const causal_head h = causal_head_at(P, entry);
    const idx prefix = prefix_tokens(P);
    causal_fit_scratch s;
    causal_fit_layout(P, workspace, &s);
    if (h.kept) *causal_fit_summary_at(P, h.kept).run = (token_run){0, 0};

    sum_past(P, &h, 0, &s);
    idx served = 0;
    for (idx chunk = 0, tried = 0; chunk < fit_chunks(P) && served == chunk_start(P, chunk); chunk++) {
        const idx end = run_from_chunk(P, &h, chunk, &tried, &s);
        if (end > served) {
            served = serve_rest(P, &h, chunk, end, &s);
            break;
        }
        served += serve_chunk(P, &h, chunk, h.out + served * P->dv, &s);
    }
    if (served == prefix && prefix < P->Tq && serve_last(P, &h, &s)) served = P->Tq;
    P->served[entry] = served;
}

#endif
