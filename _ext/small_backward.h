/* small_backward.h - backward of queries that meet all their keys in one segment: see small.h. */
#ifndef KVQ_SMALL_BACKWARD_H
#define KVQ_SMALL_BACKWARD_H

#include "rows.h"
#include "small.h"

enum {
    BACKWARD_STEPS = 6, /* of a tile, at which the next head is asked for */
    PAIR = 2            /* vectors of queries side by side: their sums do not wait for each other */
};

typedef struct {
    real *dout_t;        /* (dv, TILE)       dout of the query tile, transposed */
    real *p, *slope;     /* where z was kept: p, which takes the place of dout_t, and slope / 2 of PAIR vectors */
    real *dp, *du;       /* (KEYS, TILE)     dP, then scale dz; the gradient of the bias */
    real *q, *k, *dout;  /* copies with padded rows, where the originals will not do */
    real *dq, *dk, *dv;
} small_backward_scratch;

INLINE size_t small_backward_layout(const tiled_problem *P, void *base, small_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv;
    carver c = {(uintptr_t)base};
    s->dout_t = carve(&c, (keeps_scores(P) && dv < KEYS ? KEYS : dv) * TILE);
    s->p = s->dout_t;
    s->slope = carve(&c, keeps_scores(P) ? KEYS * PAIR * LANES : 0);
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

/* sum_j p_j dP_j, for N vectors of queries. What a pair without weight has in dP may be infinite: it is chosen away. */
INLINE void mean_of(const int N, idx keys, const real *p, idx stride, const real *dp, vec mean[])
{
    UNROLL for (int i = 0; i < N; i++) mean[i] = (vec){0};
    for (idx j = 0; j < keys; j++)
        UNROLL for (int i = 0; i < N; i++)
            mean[i] = add_seen(mean[i], load(p + j * stride + i * LANES), load(dp + j * TILE + i * LANES));
}

/* The same, with p and slope / 2 made again of z. */
INLINE void mean_again(const int N, const int IS_FAINT, idx keys, const real *z, idx stride, const reciprocal n[],
                       const real *dp, real *p, real *slope, vec mean[])
{
    UNROLL for (int i = 0; i < N; i++) mean[i] = (vec){0};
    for (idx j = 0; j < keys; j++)
        UNROLL for (int i = 0; i < N; i++)
        {
            const idx at = j * TILE + i * LANES;
            const vec zj = bounded(load(z + j * stride + i * LANES)), r = inverse_of(zj * zj + 1);
            const vec zr = IS_FAINT ? zj * r * n[i].rescue : zj * r, share = zr * n[i].inverse, pj = zj * share;
            mean[i] = add_seen(mean[i], pj, load(dp + at));
            store(p + at, pj);
            store(slope + (j * N + i) * LANES, share * r);
        }
}

/* dP becomes scale dz, in place. */
INLINE void score_gradients(const int N, idx keys, const real *slope, idx stride, const vec mean[], real scale,
                            real *dp, real *du)
{
    for (idx j = 0; j < keys; j++)
        UNROLL for (int i = 0; i < N; i++)
        {
            const idx at = j * TILE + i * LANES;
            const vec sj = load(slope + j * stride + i * LANES), excess = load(dp + at) - mean[i];
            store(dp + at, times_seen(sj * scale, excess));
            if (du) store(du + at, times_seen(sj, excess)); /* only softmax comes with a bias */
        }
}

INLINE void gradients_of(const int N, int score, real scale, idx keys, const real *kept, idx stride,
                         const real *reciprocals, real *dp, real *du, real *made, real *slope)
{
    vec mean[PAIR];
    if (score == KVQ_EXPRESSIVE) {
        reciprocal n[PAIR];
        int is_faint = 0;
        UNROLL for (int i = 0; i < N; i++) {
            n[i].rescue = load(reciprocals + 2 * i * LANES);
            n[i].inverse = load(reciprocals + (2 * i + 1) * LANES);
            is_faint |= needs_rescue(n[i]);
        }
        if (is_faint) mean_again(N, 1, keys, kept, stride, n, dp, made, slope, mean);
        else mean_again(N, 0, keys, kept, stride, n, dp, made, slope, mean);
        score_gradients(N, keys, slope, N * LANES, mean, 2 * scale, dp, NULL);
    } else {
        mean_of(N, keys, kept, stride, dp, mean);
        score_gradients(N, keys, kept, stride, mean, scale, dp, du);
    }
}

/* From what was kept, dP becomes scale dz. Returns p: as it was kept, or `made`. */
NOINLINE plane small_gradients(const tiled_problem *P, idx keys, idx nv, plane kept,
                               const real *reciprocals, real *dp, real *du, real *made, real *slope)
{
    const real scale = (real)P->scale;
    for (idx v = 0; v < nv; v += PAIR) {
        const idx at = v * LANES;
        real *u = du ? du + at : NULL;
#define GRADIENTS(N, SCORE) \
    gradients_of(N, SCORE, scale, keys, kept.at + at, kept.stride, reciprocals + 2 * at, dp + at, u, made + at, slope)
        if (P->score == KVQ_EXPRESSIVE && v + PAIR <= nv) GRADIENTS(PAIR, KVQ_EXPRESSIVE);
        else if (P->score == KVQ_EXPRESSIVE) GRADIENTS(1, KVQ_EXPRESSIVE);
        else if (v + PAIR <= nv) GRADIENTS(PAIR, KVQ_SOFTMAX);
        else GRADIENTS(1, KVQ_SOFTMAX);
#undef GRADIENTS
    }
    const plane p = {made, TILE};
    return keeps_scores(P) ? p : kept;
}

/* What backward reads. */
NOINLINE void fetch_all(const tiled_problem *P, ahead *next)
{
    const ahead all = *next;
    fetch_inputs(P, next);
    fetch_piece(&all, P->dout, P->Tq * P->dv);
    fetch_piece(&all, P->kept, small_numbers(P));
}

static idx small_backward_tasks(const void *problem) { return ((const tiled_problem *)problem)->batch; }

static void small_backward_run(const void *problem, void *workspace, idx batch)
{
    const tiled_problem *P = problem;
    const idx Tq = P->Tq, Tk = P->Tk, d = P->d, dv = P->dv, seen = seen_keys(P);
    const real *dout = (const real *)P->dout + batch * Tq * dv;
    const real *v = (const real *)P->v + batch * Tk * dv;
    real *dq = (real *)P->dq + batch * Tq * d, *dk = (real *)P->dk + batch * Tk * d;
    real *dv_out = (real *)P->dv_out + batch * Tk * dv;
    real *dbias = P->dbias ? (real *)P->dbias + batch * Tq * Tk : NULL;
    small_backward_scratch s;
    small_backward_layout(P, workspace, &s);
    const idx tiles = tile_count(P), numbers = small_numbers(P);
    ahead next = ahead_of(P, batch, max_idx(longest_input(P), numbers), BACKWARD_STEPS * tiles);
    if (batch == 0 || !next.piece) fetch_ahead((const real *)P->kept + batch * numbers, numbers, 0);
    if (P->not_finite) tell_if_doubtful(P->not_finite, doubt_about(dout, Tq * dv));

    const real *q_rows = whole_vectors(Tq, d, (const real *)P->q + batch * Tq * d, s.q);
    const real *k_rows = whole_vectors(seen, d, (const real *)P->k + batch * Tk * d, s.k);
    const real *dout_rows = whole_vectors(Tq, dv, dout, s.dout);
    real *dq_rows = room_for_rows(d, dq, s.dq), *dk_rows = room_for_rows(d, dk, s.dk);
    real *dv_rows = room_for_rows(dv, dv_out, s.dv);
    if (seen < Tk) { /* no query sees the rest */
        memset(dk, 0, (size_t)(Tk * d) * sizeof(real));
        memset(dv_out, 0, (size_t)(Tk * dv) * sizeof(real));
    }
    if (dbias && P->is_causal) memset(dbias, 0, (size_t)(Tq * Tk) * sizeof(real));

    for (idx t = tiles - 1; t >= 0; t--) { /* the last sees most keys */
        const query_tile tile = tile_at(P, t);
        const idx keys = whole_segment(P, &tile).n;
        const plane kept = kept_plane(P, batch, &tile);
        const join how = t == tiles - 1 ? OVERWRITE : ADD;
        if (next.piece) fetch_all(P, &next);
        pack_queries(&tile, dout, dv, s.dout_t, 1);
        if (next.piece) fetch_all(P, &next);
        product_along_rows(keys, tile.nv, dv, v, dv, s.dout_t, TILE, s.dp, TILE, OVERWRITE);
        if (next.piece) fetch_all(P, &next);
        const plane p = small_gradients(P, keys, tile.nv, kept, kept_reciprocals(P, batch, &tile), s.dp,
                                        dbias ? s.du : NULL, s.p, s.slope);
        if (next.piece) fetch_all(P, &next);
        product_along_rows(keys, vectors(dv), tile.n, p.at, p.stride, dout_rows + tile.start * padded(dv),
                           padded(dv), dv_rows, padded(dv), how);
        if (next.piece) fetch_all(P, &next);
        product_along_rows(keys, vectors(d), tile.n, s.dp, TILE, q_rows + tile.start * padded(d),
                           padded(d), dk_rows, padded(d), how);
        if (next.piece) fetch_all(P, &next);
        product_along_columns(tile.n, vectors(d), keys, s.dp, TILE, k_rows, padded(d),
                              dq_rows + tile.start * padded(d), padded(d), OVERWRITE, NULL);
        if (dbias) transpose(keys, tile.n, s.du, TILE, dbias + tile.start * Tk, Tk, 1);
    }
    put_rows(Tq, d, dq_rows, dq, 1);
    put_rows(seen, d, dk_rows, dk, 1);
    put_rows(seen, dv, dv_rows, dv_out, 1);
}

#endif
