/* small.h - queries that meet all their keys in one segment: what makes the weights is kept for backward.
 *
 * With so few keys there is nothing to fold, and a row of weights is no longer than the rows of q and v. So
 * this is the plain algorithm, one query tile at a time:
 *
 *     forward    z = scale K Q^T,  p = w / N,  out = P V                kept: keys x queries
 *     backward   dP = V dout^T,  excess = dP - sum_j p_j dP_j,  dz = slope excess,  dbias = p excess
 *                dq = scale dz K,  dk = scale dz^T Q,  dv = P^T dout
 *
 * with slope = (dw/dz) / N. Softmax keeps p, which is its own slope. Expressive attention keeps z, with 0 for a
 * pair that is not seen, and N: w and dw/dz of 0 are 0, and to make the two again is less than to fetch a second
 * array from beyond the caches. So backward knows no masks, and it does not read out.
 */
#ifndef KVQ_SMALL_H
#define KVQ_SMALL_H

#include "forward.h"
#include "rows.h"

INLINE int keeps_scores(const tiled_problem *P) { return P->score == KVQ_EXPRESSIVE; }

/* One segment: all keys, or what one vector of queries sees of them under a causal mask. (With a bias, z alone does
 * not make w.) */
static int is_small(const tiled_problem *P)
{
    return P->Tk <= KEYS && (!P->is_causal || P->Tq <= LANES) && !(keeps_scores(P) && P->bias);
}

INLINE idx seen_keys(const tiled_problem *P) { return P->is_causal ? min_idx(P->Tk, P->Tq) : P->Tk; }

/* Numbers kept for a batch entry: p, or z and N. */
INLINE idx small_numbers(const tiled_problem *P)
{
    return (seen_keys(P) + keeps_scores(P)) * padded(P->Tq);
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

INLINE real *kept_sums(const tiled_problem *P, idx batch, const query_tile *tile)
{
    return (real *)P->kept + batch * small_numbers(P) + seen_keys(P) * padded(P->Tq) + tile->start;
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
    real *p;     /* (KEYS, TILE)  weights that are not kept */
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

/* w becomes p. A row without weight gets zeros. */
INLINE void divide_by_sum(idx keys, real *w, idx stride, vec sum)
{
    const reciprocal n = reciprocal_of(sum);
    for (idx j = 0; j < keys; j++) store(w + j * stride, load(w + j * stride) * n.rescue * n.inverse);
}

/* z becomes p. */
NOINLINE void weigh_all(const tiled_problem *P, exponent_kind kind, idx keys, idx nv, plane z, const real *e)
{
    for (idx v = 0; v < nv; v++) {
        real peak[LANES], sum[LANES], unused[LANES];
        store(peak, splat(REAL_LOWEST));
        store(sum, (vec){0});
        weigh(P->score, kind, keys, 1, z.at + v * LANES, z.stride, e + v * LANES, peak, sum, unused);
        divide_by_sum(keys, z.at + v * LANES, z.stride, load(sum));
    }
}

/* z stays, but for 0 where it is not seen. */
INLINE void weigh_beside(exponent_kind kind, idx keys, idx nv, plane z, const real *e, plane p, real *sums)
{
    for (idx at = 0; at < nv * LANES; at += LANES) {
        vec sum = {0};
        for (idx j = 0; j < keys; j++) {
            vec zj = load(z.at + j * z.stride + at);
            if (kind != PLAIN) {
                zj = keep(visible(kind, j, e + at), zj);
                store(z.at + j * z.stride + at, zj);
            }
            const vec w = expressive_weight(zj);
            store(p.at + j * p.stride + at, w);
            sum += w;
        }
        store(sums + at, sum);
        divide_by_sum(keys, p.at + at, p.stride, sum);
    }
}

NOINLINE void weigh_and_keep(exponent_kind kind, idx keys, idx nv, plane z, const real *e, plane p, real *sums)
{
#define BESIDE(KIND) weigh_beside(KIND, keys, nv, z, e, p, sums)
    FOR_EACH_KIND(BESIDE)
#undef BESIDE
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
    const plane unkept = {s.p, TILE}, z = P->kept ? kept_plane(P, batch, &tile) : unkept;
    plane p = z;

    tell_whether_finite(P, tile.start == 0, &tile, q, k, v);
    pack_queries(&tile, q, d, s.qt, (real)P->scale * z_units(P->score));
    product_along_rows(seg.n, tile.nv, d, k, d, s.qt, TILE, z.at, z.stride, OVERWRITE);
    if (has_exponents(kind)) fill_exponents(P, batch, &tile, &seg, s.e);
    if (P->kept && keeps_scores(P)) {
        p = unkept;
        weigh_and_keep(kind, seg.n, tile.nv, z, s.e, p, kept_sums(P, batch, &tile));
    } else {
        weigh_all(P, kind, seg.n, tile.nv, z, s.e);
    }
    if (dv % LANES == 0) { /* P V, or its transpose V^T P^T: whichever has whole vectors */
        product_along_columns(tile.n, vectors(dv), seg.n, p.at, p.stride, v, dv, out, dv, OVERWRITE, NULL);
    } else {
        product_along_columns(dv, tile.nv, seg.n, v, dv, p.at, p.stride, s.ot, TILE, OVERWRITE, NULL);
        transpose(dv, tile.n, s.ot, TILE, out, dv, 1);
    }
}

/* ---- backward -------------------------------------------------------------------------------- */
typedef struct {
    real *dout_t;        /* (dv, TILE)    dout of the query tile, transposed */
    real *p, *slope;     /* (KEYS, TILE), (KEYS, LANES)  p and slope / 2, made of z where that was kept */
    real *dp, *du;       /* (KEYS, TILE)  dP, then scale dz; the gradient of the bias */
    real *q, *k, *dout;  /* copies with padded rows, where the originals will not do */
    real *dq, *dk, *dv;
} small_backward_scratch;

INLINE size_t small_backward_layout(const tiled_problem *P, void *base, small_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv;
    carver c = {(uintptr_t)base};
    s->dout_t = carve(&c, dv * TILE);
    s->p = carve(&c, keeps_scores(P) ? KEYS * TILE : 0);
    s->slope = carve(&c, keeps_scores(P) ? KEYS * LANES : 0);
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

/* sum_j p_j dP_j. What a pair without weight has in dP may be infinite: it is chosen away. */
INLINE vec mean_of(idx keys, const real *p, idx stride, const real *dp)
{
    vec mean = {0};
    for (idx j = 0; j < keys; j++) {
        const vec pj = load(p + j * stride);
        mean = add_seen(mean, pj, load(dp + j * TILE));
    }
    return mean;
}

/* The same, with p and slope / 2 made again of z. */
INLINE vec mean_again(idx keys, const real *z, idx stride, reciprocal n, const real *dp, real *p, real *slope)
{
    vec mean = {0};
    for (idx j = 0; j < keys; j++) {
        const vec zj = bounded(load(z + j * stride)), r = inverse_of(zj * zj + 1);
        const vec share = zj * r * n.rescue * n.inverse, pj = zj * share;
        mean = add_seen(mean, pj, load(dp + j * TILE));
        store(p + j * TILE, pj);
        store(slope + j * LANES, share * r);
    }
    return mean;
}

/* dP becomes scale dz, in place. */
INLINE void score_gradients(idx keys, const real *slope, idx stride, vec mean, real scale, real *dp, real *du)
{
    for (idx j = 0; j < keys; j++) {
        const vec sj = load(slope + j * stride), excess = load(dp + j * TILE) - mean;
        store(dp + j * TILE, times_seen(sj * scale, excess));
        if (du) store(du + j * TILE, times_seen(sj, excess)); /* only softmax comes with a bias */
    }
}

/* From what was kept, dP becomes scale dz. Returns p: as it was kept, or `made`. */
NOINLINE plane small_gradients(const tiled_problem *P, idx keys, idx nv, plane kept, const real *sums, real *dp,
                               real *du, real *made, real *slope)
{
    const real scale = (real)P->scale;
    for (idx at = 0; at < nv * LANES; at += LANES) {
        if (keeps_scores(P)) {
            const reciprocal n = reciprocal_of(load(sums + at));
            const vec mean = mean_again(keys, kept.at + at, kept.stride, n, dp + at, made + at, slope);
            score_gradients(keys, slope, LANES, mean, 2 * scale, dp + at, NULL);
        } else {
            const vec mean = mean_of(keys, kept.at + at, kept.stride, dp + at);
            score_gradients(keys, kept.at + at, kept.stride, mean, scale, dp + at, du ? du + at : NULL);
        }
    }
    const plane p = {made, TILE};
    return keeps_scores(P) ? p : kept;
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
    fetch_ahead((const real *)P->kept + batch * small_numbers(P), small_numbers(P), 0);
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
        const plane kept = kept_plane(P, batch, &tile);
        const join how = t == 0 ? OVERWRITE : ADD;
        pack_queries(&tile, dout, dv, s.dout_t, 1);
        product_along_rows(keys, tile.nv, dv, v, dv, s.dout_t, TILE, s.dp, TILE, OVERWRITE);
        const plane p = small_gradients(P, keys, tile.nv, kept, kept_sums(P, batch, &tile), s.dp,
                                        dbias ? s.du : NULL, s.p, s.slope);
        product_along_rows(keys, vectors(dv), tile.n, p.at, p.stride, dout_rows + tile.start * padded(dv),
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
