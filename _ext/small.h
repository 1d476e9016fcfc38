/* small.h - queries that meet all their keys in one segment: the weights are kept for backward.
 *
 * With so few keys there is nothing to fold, and a row of weights is no longer than the rows of q and v. So
 * this is the plain algorithm, one query tile at a time:
 *
 *     forward    z = scale K Q^T,  p = w / N,  slope = (dw/dz) / N      kept: keys x queries
 *                out = P V
 *     backward   dP = V dout^T,  excess = dP - sum_j p_j dP_j,  dz = slope excess,  dbias = p excess
 *                dq = scale dz K,  dk = scale dz^T Q,  dv = P^T dout
 *
 * Softmax is its own slope. A pair without weight has p = slope = 0, so backward knows neither masks nor
 * forms; and it does not read out.
 */
#ifndef KVQ_SMALL_H
#define KVQ_SMALL_H

#include "forward.h"
#include "rows.h"

/* One segment: all keys, or what one vector of queries sees of them under a causal mask. */
static int is_small(const tiled_problem *P)
{
    return P->Tk <= KEYS && (!P->is_causal || P->Tq <= LANES);
}

INLINE idx seen_keys(const tiled_problem *P) { return P->is_causal ? min_idx(P->Tk, P->Tq) : P->Tk; }

INLINE int has_slope(const tiled_problem *P) { return P->score != KVQ_SOFTMAX; }

/* Numbers kept for a batch entry: p, then slope. */
INLINE idx small_numbers(const tiled_problem *P)
{
    return (has_slope(P) ? 2 : 1) * seen_keys(P) * padded(P->Tq);
}

/* The (keys, queries) arrays of one tile; rows are `stride` apart. */
typedef struct {
    real *p, *slope;
    idx stride;
} small_weights;

INLINE small_weights weights_at(const tiled_problem *P, idx batch, const query_tile *tile)
{
    small_weights w;
    w.p = (real *)P->kept + batch * small_numbers(P) + seen_keys(P) * tile->start;
    w.slope = has_slope(P) ? w.p + seen_keys(P) * padded(P->Tq) : w.p;
    w.stride = tile->nv * LANES;
    return w;
}

INLINE segment whole_segment(const tiled_problem *P)
{
    segment seg = {0, seen_keys(P), 0, P->is_causal};
    return seg;
}

/* ---- forward --------------------------------------------------------------------------------- */
typedef struct {
    real *qt;    /* (d, TILE)     the query tile, transposed, times scale */
    real *e;     /* (KEYS, TILE)  exponents from mask and bias */
    real *p;     /* (KEYS, TILE)  weights that nobody wants kept */
    real *ot;    /* (dv, TILE)    the result transposed, where its rows are no whole vectors */
} small_forward_scratch;

INLINE size_t small_forward_layout(const tiled_problem *P, void *base, small_forward_scratch *s)
{
    carver c = {(uintptr_t)base};
    s->qt = carve(&c, P->d * TILE);
    s->e = carve(&c, KEYS * TILE);
    s->p = carve(&c, KEYS * TILE);
    s->ot = carve(&c, P->dv % LANES ? P->dv * TILE : 0);
    return c.next - (uintptr_t)base;
}

static size_t small_forward_workspace_bytes(const void *problem)
{
    small_forward_scratch unused;
    return small_forward_layout(problem, NULL, &unused);
}

/* w becomes p, dw/dz becomes slope. A row without weight gets zeros. */
INLINE void divide_by_sum(idx keys, const small_weights *w, idx at, vec sum, int is_own_slope)
{
    const reciprocal n = reciprocal_of(sum);
    for (idx j = 0; j < keys; j++) {
        real *p = w->p + j * w->stride + at, *slope = w->slope + j * w->stride + at;
        store(p, load(p) * n.rescue * n.inverse);
        if (!is_own_slope) store(slope, load(slope) * n.rescue * n.inverse);
    }
}

NOINLINE void weigh_all(const tiled_problem *P, exponent_kind kind, idx keys, idx nv,
                        const small_weights *w, const real *e)
{
    for (idx at = 0; at < nv * LANES; at += LANES) {
        real peak[LANES], sum[LANES], unused[LANES];
        store(peak, splat(REAL_LOWEST));
        store(sum, (vec){0});
        real *slope = w->slope == w->p ? NULL : w->slope + at;
        weigh(P->score, kind, keys, 1, w->p + at, w->stride, e + at, peak, sum, unused, slope);
        divide_by_sum(keys, w, at, load(sum), slope == NULL);
    }
}

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
    const segment seg = whole_segment(P);
    const exponent_kind kind = kind_of(P, &seg);
    const small_weights unkept = {s.p, s.p, TILE};
    const small_weights w = P->kept ? weights_at(P, batch, &tile) : unkept;

    tell_whether_finite(P, tile.start == 0, &tile, q, k, v);
    pack_queries(&tile, q, d, s.qt, (real)P->scale * z_units(P->score));
    product_along_rows(seg.n, tile.nv, d, k, d, s.qt, TILE, w.p, w.stride, OVERWRITE);
    if (has_exponents(kind)) fill_exponents(P, batch, &tile, &seg, s.e);
    weigh_all(P, kind, seg.n, tile.nv, &w, s.e);
    if (dv % LANES == 0) { /* P V, or its transpose V^T P^T: whichever has whole vectors */
        product_along_columns(tile.n, vectors(dv), seg.n, w.p, w.stride, v, dv, out, dv, OVERWRITE, NULL);
    } else {
        product_along_columns(dv, tile.nv, seg.n, v, dv, w.p, w.stride, s.ot, TILE, OVERWRITE, NULL);
        transpose(dv, tile.n, s.ot, TILE, out, dv, 1);
    }
}

/* ---- backward -------------------------------------------------------------------------------- */
typedef struct {
    real *dout_t;        /* (dv, TILE)    dout of the query tile, transposed */
    real *dp, *du;       /* (KEYS, TILE)  dP, then scale dz; the gradient of the bias */
    real *q, *k, *dout;  /* copies with padded rows, where the originals will not do */
    real *dq, *dk, *dv;
} small_backward_scratch;

INLINE size_t small_backward_layout(const tiled_problem *P, void *base, small_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv;
    carver c = {(uintptr_t)base};
    s->dout_t = carve(&c, dv * TILE);
    s->dp = carve(&c, KEYS * TILE);
    s->du = carve(&c, P->dbias ? KEYS * TILE : 0);
    s->q = carve(&c, copied_rows(P->Tq, d));
    s->k = carve(&c, copied_rows(KEYS, d));
    s->dout = carve(&c, copied_rows(P->Tq, dv));
    s->dq = carve(&c, copied_rows(P->Tq, d));
    s->dk = carve(&c, copied_rows(KEYS, d));
    s->dv = carve(&c, copied_rows(KEYS, dv));
    return c.next - (uintptr_t)base;
}

static size_t small_backward_workspace_bytes(const void *problem)
{
    small_backward_scratch unused;
    return small_backward_layout(problem, NULL, &unused);
}

/* dP becomes scale dz, in place. What a pair without weight has in dP may be infinite: it is chosen away. */
NOINLINE void small_gradients(idx keys, idx nv, const small_weights *w, real scale, real *dp, real *du)
{
    for (idx at = 0; at < nv * LANES; at += LANES) {
        const real *p = w->p + at, *slope = w->slope + at;
        vec mean = {0}; /* sum_j p_j dP_j */
        for (idx j = 0; j < keys; j++) {
            const vec pj = load(p + j * w->stride);
            mean += keep((ivec)(pj != 0), pj * load(dp + j * TILE + at));
        }
        for (idx j = 0; j < keys; j++) {
            const vec pj = load(p + j * w->stride), sj = load(slope + j * w->stride);
            const vec excess = load(dp + j * TILE + at) - mean;
            store(dp + j * TILE + at, keep((ivec)(sj != 0), sj * excess * scale));
            if (du) store(du + j * TILE + at, keep((ivec)(pj != 0), pj * excess));
        }
    }
}

static idx small_backward_tasks(const void *problem) { return ((const tiled_problem *)problem)->batch; }

static void small_backward_run(const void *problem, void *workspace, idx batch)
{
    const tiled_problem *P = problem;
    const idx Tq = P->Tq, Tk = P->Tk, d = P->d, dv = P->dv, keys = seen_keys(P);
    const real *dout = (const real *)P->dout + batch * Tq * dv;
    const real *v = (const real *)P->v + batch * Tk * dv;
    real *dq = (real *)P->dq + batch * Tq * d, *dk = (real *)P->dk + batch * Tk * d;
    real *dv_out = (real *)P->dv_out + batch * Tk * dv;
    real *dbias = P->dbias ? (real *)P->dbias + batch * Tq * Tk : NULL;
    small_backward_scratch s;
    small_backward_layout(P, workspace, &s);
    if (P->not_finite) tell_if_doubtful(P->not_finite, doubt_about(dout, Tq * dv));

    const real *q_rows = whole_vectors(Tq, d, (const real *)P->q + batch * Tq * d, s.q);
    const real *k_rows = whole_vectors(keys, d, (const real *)P->k + batch * Tk * d, s.k);
    const real *dout_rows = whole_vectors(Tq, dv, dout, s.dout);
    real *dq_rows = room_for_rows(d, dq, s.dq), *dk_rows = room_for_rows(d, dk, s.dk);
    real *dv_rows = room_for_rows(dv, dv_out, s.dv);
    if (keys < Tk) { /* no query sees the rest */
        memset(dk, 0, (size_t)(Tk * d) * sizeof(real));
        memset(dv_out, 0, (size_t)(Tk * dv) * sizeof(real));
        if (dbias) memset(dbias, 0, (size_t)(Tq * Tk) * sizeof(real));
    }

    for (idx t = 0; t < tile_count(P); t++) {
        const query_tile tile = tile_at(P, t);
        const small_weights w = weights_at(P, batch, &tile);
        const join how = t == 0 ? OVERWRITE : ADD;
        pack_queries(&tile, dout, dv, s.dout_t, 1);
        product_along_rows(keys, tile.nv, dv, v, dv, s.dout_t, TILE, s.dp, TILE, OVERWRITE);
        small_gradients(keys, tile.nv, &w, (real)P->scale, s.dp, dbias ? s.du : NULL);
        product_along_rows(keys, vectors(dv), tile.n, w.p, w.stride, dout_rows + tile.start * padded(dv),
                           padded(dv), dv_rows, padded(dv), how);
        product_along_rows(keys, vectors(d), tile.n, s.dp, TILE, q_rows + tile.start * padded(d),
                           padded(d), dk_rows, padded(d), how);
        product_along_columns(tile.n, vectors(d), keys, s.dp, TILE, k_rows, padded(d),
                              dq_rows + tile.start * padded(d), padded(d), OVERWRITE, NULL);
        if (dbias) transpose(keys, tile.n, s.du, TILE, dbias + tile.start * Tk, Tk, 1);
    }
    put_rows(Tq, d, dq_rows, dq, 1);
    put_rows(keys, d, dk_rows, dk, 1);
    put_rows(keys, dv, dv_rows, dv_out, 1);
}

#endif
