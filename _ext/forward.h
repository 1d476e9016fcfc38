/* forward.h - one task: the outputs of one query tile of one batch entry.
 *
 * The tile meets its keys segment by segment. Per query it carries (peak, N, numerator): the fold
 * that makes streaming decode, sharding and this loop the same computation.
 */
#ifndef KVQ_FORWARD_H
#define KVQ_FORWARD_H

#include "finite.h"
#include "product.h"
#include "score.h"

typedef struct {
    real *qt;      /* (d, TILE)     the query tile, transposed, times scale */
    real *z;       /* (KEYS, TILE)  scores, then weights */
    real *e;       /* (KEYS, TILE)  exponents from mask and bias */
    real *ot;      /* (dv, TILE)    numerators, transposed */
    real *peak, *sum, *rescale; /* (TILE) */
} forward_scratch;

INLINE size_t forward_layout(const tiled_problem *P, void *base, forward_scratch *s)
{
    carver c = {(uintptr_t)base};
    s->qt = carve(&c, P->d * TILE);
    s->z = carve(&c, KEYS * TILE);
    s->e = carve(&c, KEYS * TILE);
    s->ot = carve(&c, P->dv * TILE);
    s->peak = carve(&c, TILE);
    s->sum = carve(&c, TILE);
    s->rescale = carve(&c, TILE);
    return c.next - (uintptr_t)base;
}

static size_t forward_workspace_bytes(const void *problem)
{
    forward_scratch unused;
    return forward_layout(problem, NULL, &unused);
}

static idx forward_tasks(const void *problem)
{
    const tiled_problem *P = problem;
    return P->batch * tile_count(P);
}

static void forward_finish(const tiled_problem *P, idx batch, const query_tile *tile,
                           forward_scratch *s)
{
    real *out = (real *)P->out + (batch * P->Tq + tile->start) * P->dv;
    for (idx v = 0; v < tile->nv; v++) {
        const reciprocal n = reciprocal_of(load(s->sum + v * LANES));
        for (idx c = 0; c < P->dv; c++) {
            real *p = s->ot + c * TILE + v * LANES;
            store(p, load(p) * n.rescue * n.inverse);
        }
    }
    transpose(P->dv, tile->n, s->ot, TILE, out, P->dv, 1);
}

/* For backward: the peaks of a batch entry's queries, then their N. */
enum { STATISTICS = 2 };

INLINE void keep_statistics(const tiled_problem *P, idx batch, const query_tile *tile,
                            const forward_scratch *s)
{
    real *stats = (real *)P->kept + batch * P->Tq * STATISTICS + tile->start;
    memcpy(stats, s->peak, (size_t)tile->n * sizeof(real));
    memcpy(stats + P->Tq, s->sum, (size_t)tile->n * sizeof(real));
}

/* Whoever asks is told whether q, k, v are finite; keys and values once, by the first task of a batch entry: reading
 * them in order brings them to the cache for the products, which jump from row to row. */
INLINE void tell_whether_finite(const tiled_problem *P, int is_first_task, const query_tile *tile,
                                const real *q, const real *k, const real *v)
{
    if (!P->not_finite) return;
    vec doubt = doubt_about(q + tile->start * P->d, tile->n * P->d);
    if (is_first_task) doubt += doubt_about(k, P->Tk * P->d) + doubt_about(v, P->Tk * P->dv);
    tell_if_doubtful(P->not_finite, doubt);
}

static void forward_run(const void *problem, void *workspace, idx task)
{
    const tiled_problem *P = problem;
    const idx tiles = tile_count(P), batch = task / tiles;
    /* Later causal tiles see more keys: do them first, so that threads finish together. */
    const query_tile tile = tile_at(P, tiles - 1 - task % tiles);
    const real *q = (const real *)P->q + batch * P->Tq * P->d;
    const real *k = (const real *)P->k + batch * P->Tk * P->d;
    const real *v = (const real *)P->v + batch * P->Tk * P->dv;
    forward_scratch s;
    forward_layout(P, workspace, &s);

    tell_whether_finite(P, task % tiles == 0, &tile, q, k, v);
    pack_queries(&tile, q, P->d, s.qt, (real)P->scale * z_units(P->score));
    for (idx i = 0; i < tile.nv * LANES; i++) {
        s.peak[i] = REAL_LOWEST; /* finite, so that (-inf) - peak is -inf and not NaN */
        s.sum[i] = 0;
    }

    int is_first = 1;
    segment seg = before_first_segment(0);
    while (next_segment(P, &tile, P->Tk, &seg)) {
        const idx from = seg.v0 * LANES, nv = tile.nv - seg.v0;
        const exponent_kind kind = kind_of(P, &seg);

        product_along_rows(seg.n, nv, P->d, k + seg.key * P->d, P->d, s.qt + from, TILE,
                           s.z + from, TILE, OVERWRITE);
        if (has_exponents(kind)) fill_exponents(P, batch, &tile, &seg, s.e + from);
        weigh(P->score, kind, seg.n, nv, s.z + from, s.e + from, s.peak + from, s.sum + from, s.rescale + from);
        product_along_columns(P->dv, nv, seg.n, v + seg.key * P->dv, P->dv, s.z + from, TILE,
                              s.ot + from, TILE, is_first ? OVERWRITE : RESCALE, s.rescale + from);
        is_first = 0; /* the first segment of a tile always has v0 = 0 */
    }
    if (is_first) memset(s.ot, 0, (size_t)(P->dv * TILE) * sizeof(real)); /* Tk = 0 */
    forward_finish(P, batch, &tile, &s);
    if (P->kept) keep_statistics(P, batch, &tile, &s);
}

#endif
