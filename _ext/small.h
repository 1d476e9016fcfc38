/* small.h - forward of queries that meet all their keys in one segment: what makes the weights is kept.
 *
 * With so few keys there is nothing to fold, and a row of weights is no longer than the rows of q and v. So
 * this is the plain algorithm, one query tile at a time:
 *
 *     forward    z = scale K Q^T,  p = w / N,  out = P V                kept: keys x queries
 *     backward   dP = V dout^T,  excess = dP - sum_j p_j dP_j,  dz = slope excess,  dbias = p excess
 *                dq = scale dz K,  dk = scale dz^T Q,  dv = P^T dout
 *
 * with slope = (dw/dz) / N. Softmax keeps p, which is its own slope. Expressive attention keeps z, with 0 for a
 * pair that is not seen, and 1 / N: w and dw/dz of 0 are 0, and to make the two again is less than to fetch a second
 * array from beyond the caches. So backward knows no masks, and it does not read out.
 */
#ifndef KVQ_SMALL_H
#define KVQ_SMALL_H

#include "ahead.h"
#include "forward.h"

/* Then 1 / N is left to the product with V, too. */
INLINE int keeps_scores(const tiled_problem *P) { return P->score == KVQ_EXPRESSIVE; }

/* (With a bias, z alone does not make w.) */
static int is_small(const tiled_problem *P) { return P->Tk <= KEYS && !(keeps_scores(P) && P->bias); }

INLINE idx seen_keys(const tiled_problem *P) { return P->is_causal ? min_idx(P->Tk, P->Tq) : P->Tk; }

/* Numbers kept for a batch entry: p, or z and 1 / N. */
INLINE idx small_numbers(const tiled_problem *P)
{
    return (seen_keys(P) + (keeps_scores(P) ? 2 : 0)) * padded(P->Tq);
}

/* A (keys, queries) array of one tile; rows are `stride` apart. */
typedef struct {
    real *at;
    idx stride;
} plane;

INLINE plane kept_plane(const tiled_problem *P, idx batch, const query_tile *tile)
{
    const plane kept = {(real *)P->kept + batch * small_numbers(P) + seen_keys(P) * tile->start, tile->nv * LANES};
    return kept;
}

/* 1 / N of the vectors of a tile: what rescues it and the inverse, one after the other. */
INLINE real *kept_reciprocals(const tiled_problem *P, idx batch, const query_tile *tile)
{
    return (real *)P->kept + batch * small_numbers(P) + seen_keys(P) * padded(P->Tq) + 2 * tile->start;
}

INLINE void keep_reciprocal(real *kept, reciprocal n)
{
    store(kept, n.rescue);
    store(kept + LANES, n.inverse);
}

/* What a tile sees. */
INLINE segment whole_segment(const tiled_problem *P, const query_tile *tile)
{
    segment seg = {0, P->is_causal ? min_idx(P->Tk, tile->start + tile->n) : P->Tk, 0, P->is_causal};
    return seg;
}

/* ---- forward --------------------------------------------------------------------------------- */
enum { FORWARD_STEPS = 4 }; /* of a tile, at which the next head is asked for */

typedef struct {
    real *qt;     /* (d, TILE)     the query tile, transposed, times scale */
    real *e;      /* (KEYS, TILE)  exponents from mask and bias */
    real *p;      /* (KEYS, TILE)  weights that are not kept */
    real *factor; /* (TILE)        1 / N of expressive attention */
    real *ot;     /* (dv, TILE)    the result transposed, where its rows are no whole vectors */
} small_forward_scratch;

INLINE size_t small_forward_layout(const tiled_problem *P, void *base, small_forward_scratch *s)
{
    carver c = {(uintptr_t)base};
    s->qt = carve(&c, P->d * TILE);
    s->e = carve(&c, KEYS * TILE);
    s->p = carve(&c, KEYS * TILE);
    s->factor = carve(&c, TILE);
    s->ot = carve(&c, P->dv % LANES ? P->dv * TILE : 0);
    return c.next - (uintptr_t)base;
}

static size_t small_forward_workspace_bytes(const void *problem)
{
    small_forward_scratch unused;
    return small_forward_layout(problem, NULL, &unused);
}

/* Of a tile's keys, what the vector of queries from `first` on sees; the rest has no weight. */
INLINE idx keys_before_the_end(exponent_kind kind, idx keys, idx first)
{
    return kind == DIAGONAL ? min_idx(keys, first + LANES) : keys;
}

INLINE void fill_with_zeros(idx from, idx to, real *x, idx stride)
{
    for (idx j = from; j < to; j++) store(x + j * stride, (vec){0});
}

/* Softmax: z becomes p. A row without weight gets zeros; any other has N >= 1. */
INLINE void softmax_shares(exponent_kind kind, idx keys, const query_tile *tile, plane z, const real *e)
{
    for (idx at = 0; at < tile->nv * LANES; at += LANES) {
        const idx first = tile->start + at, end = keys_before_the_end(kind, keys, first);
        real *p = z.at + at;
        vec peak = splat(REAL_LOWEST), sum = {0}, unused;
        softmax_weights(kind, end, p, z.stride, first, e + at, &peak, &sum, &unused);
        const vec inverse = keep((ivec)(sum > (vec){0}), 1 / sum);
        for (idx j = 0; j < end; j++) store(p + j * z.stride, load(p + j * z.stride) * inverse);
        fill_with_zeros(end, keys, p, z.stride);
    }
}

/* Expressive: z stays, but for 0 where it is not seen; w goes beside it or in its place. Their product with V is
 * divided by N: `factor`, for which weights of too small a sum are lifted. */
INLINE void expressive_beside(exponent_kind kind, idx keys, const query_tile *tile, plane z, const real *e, plane w,
                              real *kept, real *factor)
{
    for (idx at = 0; at < tile->nv * LANES; at += LANES) {
        const idx first = tile->start + at, end = keys_before_the_end(kind, keys, first);
        real *z_at = z.at + at, *w_at = w.at + at;
        vec sum = {0};
        for (idx j = 0; j < end; j++) {
            vec zj = load(z_at + j * z.stride);
            if (kind != PLAIN) {
                zj = keep(visible(kind, j, first, e + at), zj);
                store(z_at + j * z.stride, zj);
            }
            const vec wj = expressive_weight(zj);
            store(w_at + j * w.stride, wj);
            sum += wj;
        }
        fill_with_zeros(end, keys, z_at, z.stride);
        fill_with_zeros(end, keys, w_at, w.stride);
        const reciprocal n = reciprocal_of(sum);
        if (kept) keep_reciprocal(kept + 2 * at, n);
        store(factor + at, n.inverse);
        if (needs_rescue(n))
            for (idx j = 0; j < end; j++) store(w_at + j * w.stride, load(w_at + j * w.stride) * n.rescue);
    }
}

/* What was z becomes p in its place, or w in that of `w`. */
NOINLINE void weigh_all(int score, exponent_kind kind, idx keys, const query_tile *tile, plane z, const real *e,
                        plane w, real *kept, real *factor)
{
#define SOFTMAX(KIND) softmax_shares(KIND, keys, tile, z, e)
#define EXPRESSIVE(KIND) expressive_beside(KIND, keys, tile, z, e, w, kept, factor)
    if (score == KVQ_SOFTMAX) FOR_EACH_KIND(SOFTMAX)
    else FOR_EACH_KIND(EXPRESSIVE)
#undef SOFTMAX
#undef EXPRESSIVE
}

INLINE void multiply_columns(idx rows, idx nv, const real *factor, real *x)
{
    for (idx r = 0; r < rows; r++)
        for (idx at = 0; at < nv * LANES; at += LANES)
            store(x + r * TILE + at, load(x + r * TILE + at) * load(factor + at));
}

/* The arrays that are read. */
NOINLINE void fetch_inputs(const tiled_problem *P, ahead *next)
{
    fetch_piece(next, P->q, P->Tq * P->d);
    fetch_piece(next, P->k, P->Tk * P->d);
    fetch_piece(next, P->v, P->Tk * P->dv);
    next->from += next->piece;
}

INLINE idx longest_input(const tiled_problem *P) { return max_idx(P->Tq, P->Tk) * max_idx(P->d, P->dv); }

static void small_forward_run(const void *problem, void *workspace, idx task)
{
    const tiled_problem *P = problem;
    const idx tiles = tile_count(P), batch = tiles == 1 ? task : task / tiles;
    const query_tile tile = tile_at(P, task - batch * tiles);
    const idx d = P->d, dv = P->dv;
    const real *q = (const real *)P->q + batch * P->Tq * d;
    const real *k = (const real *)P->k + batch * P->Tk * d;
    const real *v = (const real *)P->v + batch * P->Tk * dv;
    real *out = (real *)P->out + (batch * P->Tq + tile.start) * dv;
    small_forward_scratch s;
    small_forward_layout(P, workspace, &s);
    const segment seg = whole_segment(P, &tile);
    const exponent_kind kind = kind_of(P, &seg);
    const plane unkept = {s.p, TILE}, z = P->kept ? kept_plane(P, batch, &tile) : unkept;
    const plane p = keeps_scores(P) ? unkept : z; /* what V is multiplied with */
    ahead next = ahead_of(P, batch, longest_input(P), FORWARD_STEPS * tiles);
    next.from = FORWARD_STEPS * (task - batch * tiles) * next.piece;

    tell_whether_finite(P, tile.start == 0, &tile, q, k, v);
    if (next.piece) fetch_inputs(P, &next);
    pack_queries(&tile, q, d, s.qt, (real)P->scale * z_units(P->score));
    if (next.piece) fetch_inputs(P, &next);
    product_along_rows(seg.n, tile.nv, d, k, d, s.qt, TILE, z.at, z.stride, OVERWRITE);
    if (has_exponents(kind)) fill_exponents(P, batch, &tile, &seg, s.e);
    if (next.piece) fetch_inputs(P, &next);
    weigh_all(P->score, kind, seg.n, &tile, z, s.e, p, P->kept ? kept_reciprocals(P, batch, &tile) : NULL, s.factor);
    if (next.piece) fetch_inputs(P, &next);
    if (dv % LANES == 0) { /* P V, or its transpose V^T P^T: whichever has whole vectors */
        product_along_columns(tile.n, vectors(dv), seg.n, p.at, p.stride, v, dv, out, dv,
                              keeps_scores(P) ? FACTOR : OVERWRITE, s.factor);
    } else {
        product_along_columns(dv, tile.nv, seg.n, v, dv, p.at, p.stride, s.ot, TILE, OVERWRITE, NULL);
        if (keeps_scores(P)) multiply_columns(dv, tile.nv, s.factor, s.ot);
        transpose(dv, tile.n, s.ot, TILE, out, dv, 1);
    }
}

#endif
