/* bundle_fit.h - causal Intention of many short heads: causal_fit.h for LANES heads at a time, one in each lane.
 *
 * The chunk's equations are those of causal_fit.h. With them in one elimination,
 *
 *     [H + alpha I | R | K^T | Q^T]  ->  [U | Z | P^T | Q'^T]      Z = U^-T R,  P = K U^-1,  Q' = Q U^-1
 *     [I + P P^T | P Q'^T | V - P Z | P]  ->  [C | Y | F | G]      the same with C^T C = I + P P^T
 *
 * nothing has to be solved a second time, for the leading part of C is the factor of the leading part:
 *
 *     out_t = Q'_t Z + sum_{s <= t} Y[s][t] F_s
 *
 * The weights x_t = C_t^-1 Y_t are never wanted, not even backward, which alone needs G (bundle_fit_backward.h).
 * From a key of too much leverage on, a head is left to causal_fit.h.
 */
#ifndef KVQ_BUNDLE_FIT_H
#define KVQ_BUNDLE_FIT_H

#include "bundle.h"
#include "causal_fit.h"

INLINE idx bundles_of(idx batch) { return (batch + LANES - 1) / LANES; }
static idx bundles(const void *problem) { return bundles_of(((const ridge_problem *)problem)->batch); }

/* Even shares, so that no bundle is nearly empty. */
INLINE idx first_head(const ridge_problem *P, idx bundle) { return bundle * P->batch / bundles_of(P->batch); }

/* A lane each; those beyond the last head repeat it. */
INLINE vec alpha_of_heads(const ridge_problem *P, idx head, idx heads)
{
    vec alpha;
    for (idx h = 0; h < LANES; h++) alpha[h] = (real)P->alpha[head + min_idx(h, heads - 1)];
    return alpha;
}

/* The narrower heads are, the more a bundle gains on causal_fit.h, and the more lanes may be empty. With 16 lanes and
 * d = 8 it is 3 times as fast, with 16 twice, with 32 a little, where there is no past to fit into the cache too. */
static int is_bundled(const ridge_problem *P)
{
    const idx wider = max_idx(P->d, P->dv);
    return P->is_causal && !P->gram && P->Tq == P->Tk && wider <= 2 * LANES && (wider <= 24 || P->Tq <= 32) &&
           5 * P->batch >= bundles_of(P->batch) * (2 * wider + LANES);
}

/* ---- chunks ------------------------------------------------------------------------------------ */
/* Fewest multiply-adds, and least memory. The first has as many tokens as d: see prefix.h. */
INLINE idx first_of_bundle(const ridge_problem *P) { return min_idx(P->Tq, chunk_size(P)); }
INLINE idx later_of_bundle(const ridge_problem *P) { return min_idx(16, chunk_size(P)); }
INLINE idx bundle_chunks(const ridge_problem *P)
{
    return 1 + (P->Tq - first_of_bundle(P) + later_of_bundle(P) - 1) / later_of_bundle(P);
}
INLINE idx bundle_chunk_start(const ridge_problem *P, idx chunk)
{
    return chunk == 0 ? 0 : first_of_bundle(P) + (chunk - 1) * later_of_bundle(P);
}
INLINE idx bundle_chunk_tokens(const ridge_problem *P, idx chunk)
{
    return min_idx(P->Tq, bundle_chunk_start(P, chunk + 1)) - bundle_chunk_start(P, chunk);
}

/* ---- what backward needs ----------------------------------------------------------------------- */
/* Of a chunk of n tokens; n, d and dv in whole tiles. Before the first, H + alpha I is known: P and Q' are K and Q over
 * the root of alpha, and lie next to the rest. */
typedef struct {
    idx n, d, dv;
    grid u, z, pt, qt; /* d rows:  [H + alpha I | R | K^T | Q^T], eliminated */
    grid c, f, g, y;   /* n rows:  [I + P P^T | V - P Z | P | P Q'^T], eliminated */
} bundle_factors;

INLINE idx bundle_numbers(const ridge_problem *P, int has_past, idx tokens)
{
    const idx n = tiles(tokens), d = tiles(P->d), dv = tiles(P->dv), own = 2 * n + dv + d;
    return has_past ? d * row_of_grid(d + dv + 2 * n) + n * row_of_grid(own) : n * row_of_grid(own + d);
}

/* How many come before those of a chunk. */
INLINE idx bundle_numbers_before(const ridge_problem *P, idx chunk)
{
    if (chunk == 0) return 0;
    return bundle_numbers(P, 0, first_of_bundle(P)) + (chunk - 1) * bundle_numbers(P, 1, later_of_bundle(P));
}

/* `place` is where those of the chunk begin. */
INLINE bundle_factors bundle_factors_at(const ridge_problem *P, real *place, idx chunk)
{
    const int has_past = chunk > 0;
    const idx n = tiles(bundle_chunk_tokens(P, chunk)), d = tiles(P->d), dv = tiles(P->dv);
    const idx past = row_of_grid(d + dv + 2 * n), own = 2 * n + dv + d;
    bundle_factors f = {.n = n, .d = d, .dv = dv};
    f.c = (grid){place, row_of_grid(has_past ? own : own + d), 1};
    f.f = from(f.c, 0, n);
    f.g = from(f.f, 0, dv);
    f.y = from(f.g, 0, d);
    f.pt = turned(f.g);
    f.qt = turned(from(f.y, 0, n));
    if (has_past) {
        f.u = (grid){place + n * f.c.down * LANES, past, 1};
        f.z = from(f.u, 0, d);
        f.pt = from(f.z, 0, dv);
        f.qt = from(f.pt, 0, n);
    }
    return f;
}

/* All chunks of a bundle, and a vector that tells which heads are not in it. */
INLINE idx bundle_factors_count(const ridge_problem *P)
{
    return (bundle_numbers_before(P, bundle_chunks(P)) + 1) * LANES;
}

/* For each head: those of causal_fit.h come first, for heads that are left to it, and those of the bundles after. */
static idx bundled_factors_count(const ridge_problem *P)
{
    return causal_fit_factors_count(P) + (bundles_of(P->batch) * bundle_factors_count(P) + P->batch - 1) / P->batch;
}

INLINE real *factors_of_bundle(const ridge_problem *P, idx bundle)
{
    return (real *)P->factors + P->batch * causal_fit_factors_count(P) + bundle * bundle_factors_count(P);
}

/* ---- forward --------------------------------------------------------------------------------- */
typedef struct {
    grid out;         /* (n, dv) */
    real *least;      /* of pivots: (max(n, d)) */
    real *factors[2]; /* of two chunks in turns, where none are kept */
} bundle_scratch;

INLINE grid carve_grid(carver *c, idx rows, idx columns)
{
    return (grid){carve(c, rows * row_of_grid(columns) * LANES), row_of_grid(columns), 1};
}

INLINE size_t bundle_layout(const ridge_problem *P, void *base, bundle_scratch *s)
{
    const idx n = tiles(first_of_bundle(P)), d = tiles(P->d), dv = tiles(P->dv);
    const idx first = bundle_numbers(P, 0, first_of_bundle(P)), later = bundle_numbers(P, 1, later_of_bundle(P));
    const idx room = (bundle_chunks(P) > 1 ? max_idx(first, later) : first) * LANES;
    carver c = {(uintptr_t)base};
    s->out = carve_grid(&c, n, dv);
    s->least = carve(&c, max_idx(n, d) * LANES);
    for (int i = 0; i < 2; i++)
        s->factors[i] = carve(&c, P->factors ? 0 : room);
    return c.next - (uintptr_t)base;
}

INLINE void copy_in_lanes(idx rows, idx columns, grid x, vec factor, grid to)
{
    for (idx r = 0; r < rows; r++)
        for (idx c = 0; c < columns; c++) store(at(to, r, c), load(at(x, r, c)) * factor);
}

/* Adds 1 to each leverage. Returns how many tokens come before one that is above the limit. */
INLINE vec add_identity(idx n, real limit, grid c)
{
    vec served = splat((real)n);
    for (idx s = n - 1; s >= 0; s--) {
        const vec leverage = load(at(c, s, s));
        served = where((ivec)(leverage < splat(limit)), served, splat((real)s));
        store(at(c, s, s), 1 + leverage);
    }
    return served;
}

/* One chunk; returns how many of its tokens it serves. Those before one of too much leverage do not depend on it. */
static vec bundle_chunk(const ridge_problem *P, idx chunk, idx head, idx heads, vec alpha, const bundle_factors *f,
                         const bundle_factors *next, bundle_scratch *s)
{
    const idx n = f->n, d = f->d, dv = f->dv, d_heads = P->Tq * P->d, dv_heads = P->Tq * P->dv;
    const idx t = bundle_chunk_start(P, chunk), tokens = bundle_chunk_tokens(P, chunk);
    const rows_of_heads of_d = {heads, d_heads, tokens, P->d}, of_dv = {heads, dv_heads, tokens, P->dv};
    const int has_past = chunk > 0;
    const vec one = splat(1), root_of_h = has_past ? one : inverse_roots(alpha);
    ivec regular = ~(ivec){0};
    into_lanes(of_d, (const real *)P->k + head * d_heads + t * P->d, one, turned(f->pt));
    into_lanes(of_d, (const real *)P->q + head * d_heads + t * P->d, root_of_h, turned(f->qt));
    into_lanes(of_dv, (const real *)P->v + head * dv_heads + t * P->dv, one, f->f);

    if (chunk + 1 < bundle_chunks(P)) {
        product_onto(UPPER, d, d, n, f->pt, turned(f->pt), f->u, has_past ? ADD : OVERWRITE, next->u);
        product_onto(ALL, d, dv, n, f->pt, f->f, f->z, has_past ? ADD : OVERWRITE, next->z);
    }
    if (has_past) {
        for (idx r = 0; r < d; r++) {
            const vec pivot = load(at(f->u, r, r)) + alpha;
            store(at(f->u, r, r), pivot);
            store(s->least + r * LANES, pivot * pivot_noise(P->d));
        }
        regular = eliminate_in_lanes(d, d + dv + 2 * n, f->u, s->least);
    } else copy_in_lanes(n, d, f->g, root_of_h, f->g);

    product_in_lanes(UPPER, n, n, d, turned(f->pt), f->pt, f->c, OVERWRITE);
    product_in_lanes(UPPER, n, n, d, turned(f->pt), f->qt, f->y, OVERWRITE);
    if (has_past) product_in_lanes(ALL, n, dv, d, turned(f->pt), f->z, f->f, SUBTRACT);
    if (has_past && P->factors) copy_in_lanes(n, d, turned(f->pt), one, f->g);
    const vec served = add_identity(n, has_past || tokens > P->d ? LARGEST_LEVERAGE : LARGEST_OF_FIRST, f->c);
    memset(s->least, 0, (size_t)(n * LANES) * sizeof(real));
    eliminate_in_lanes(n, n + dv + (P->factors ? d : 0), f->c, s->least);
    substitute_down_upper(n, n, f->c, f->y);

    product_in_lanes(BEFORE, n, dv, n, turned(f->y), f->f, s->out, OVERWRITE);
    if (has_past) product_in_lanes(ALL, n, dv, d, turned(f->qt), f->z, s->out, ADD);
    out_of_lanes(of_dv, s->out, (real *)P->result + head * dv_heads + t * P->dv);
    return keep(regular, served);
}

/* What a head needs that is left to causal_fit.h: its workspace, and room for the rows that the bundle has served. */
INLINE real *rows_served(const ridge_problem *P, void *workspace)
{
    bundle_scratch unused;
    carver c = {(uintptr_t)workspace +
                (uintptr_t)max_idx((idx)bundle_layout(P, NULL, &unused), (idx)causal_fit_workspace_bytes(P))};
    return carve(&c, P->Tq * P->dv);
}

static size_t bundle_workspace_bytes(const void *problem)
{
    const ridge_problem *P = problem;
    return (size_t)((uintptr_t)rows_served(P, NULL) + (uintptr_t)(P->Tq * P->dv) * sizeof(real));
}

/* From the first token on that a bundle does not serve; those before it may not depend on it. */
static void leave_to_causal_fit(const ridge_problem *P, void *workspace, idx head, idx served)
{
    real *out = (real *)P->result + head * P->Tq * P->dv, *rows = rows_served(P, workspace);
    const size_t bytes = (size_t)(served * P->dv) * sizeof(real);
    memcpy(rows, out, bytes);
    causal_fit_run(P, workspace, head);
    memcpy(out, rows, bytes);
    if (P->served[head] < served) P->served[head] = served;
}

static void bundle_fit_run(const void *problem, void *workspace, idx bundle)
{
    const ridge_problem *P = problem;
    const idx head = first_head(P, bundle), heads = first_head(P, bundle + 1) - head;
    KVQ_ASSERT(0 < heads && heads <= LANES);
    bundle_scratch s;
    bundle_layout(P, workspace, &s);
    real *kept = P->factors ? factors_of_bundle(P, bundle) : NULL;
    const vec alpha = alpha_of_heads(P, head, heads);
    vec served = splat((real)P->Tq);

    bundle_factors f, next = bundle_factors_at(P, kept ? kept : s.factors[0], 0);
    for (idx chunk = 0; chunk < bundle_chunks(P); chunk++) {
        const idx after = chunk + 1;
        f = next;
        if (after < bundle_chunks(P)) {
            real *place = kept ? kept + bundle_numbers_before(P, after) * LANES : s.factors[after % 2];
            next = bundle_factors_at(P, place, after);
        }
        const vec here = bundle_chunk(P, chunk, head, heads, alpha, &f, &next, &s);
        const ivec ends = (ivec)(here < splat((real)bundle_chunk_tokens(P, chunk)));
        served = smallest(where(ends, here + splat((real)bundle_chunk_start(P, chunk)), served), served);
        if (largest_of_lanes(served) < (real)bundle_chunk_start(P, after)) break; /* no head is left */
    }
    if (kept) store(kept + bundle_factors_count(P) - LANES, served);
    for (idx h = 0; h < heads; h++)
        if (served[h] < (real)P->Tq) leave_to_causal_fit(P, workspace, head + h, (idx)served[h]);
        else {
            P->served[head + h] = P->Tq;
            tell_of(P->not_finite, (const real *)P->result + (head + h) * P->Tq * P->dv, P->Tq * P->dv);
        }
}

#endif
