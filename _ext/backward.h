/* backward.h - one task: some key blocks of one batch entry, against all its queries.
 *
 * Weights are recomputed from q, k and the saved (peak, N); nothing of size Tq x Tk is kept.
 *     p  = w / N          dP = dout V^T          delta_i = dout_i . out_i
 *     dz = p (dP - delta)  for softmax;    dz = f'(z) exp(bias - peak) (dP - delta) / N  expressive
 *     dv = P^T dout        dk = scale dz^T q     dq = scale dz k
 *
 * A task owns rows of dk and dv, and keeps them in cache while query tiles stream past. dq is a sum
 * over keys: the tasks of one batch entry each make a partial dq, added up in a fixed order when
 * all are done. How many there are depends on the shape alone, never on the number of threads: that is
 * why the result does not depend on it either.
 */
#ifndef KVQ_BACKWARD_H
#define KVQ_BACKWARD_H

#include "forward.h"
#include "rows.h"

typedef struct {
    /* all queries of the batch entry, packed once: tile t starts at t * (columns * TILE) */
    real *qt, *dot_; /* (d, TILE) q times scale, (dv, TILE) dout: transposed */
    real *peak, *sum, *delta; /* (TILE) */
    real *q, *dout, *dq; /* copies with padded rows, where the originals will not do */
    /* one segment */
    real *z, *dp, *e, *du; /* (KEYS, TILE) */
    /* one key block: copies as above */
    real *k, *dk, *dv;
} backward_scratch;

INLINE size_t backward_layout(const tiled_problem *P, void *base, backward_scratch *s)
{
    const idx queries = tile_count(P) * TILE, d = P->d, dv = P->dv;
    carver c = {(uintptr_t)base};
    s->z = carve(&c, KEYS * TILE);
    s->dp = carve(&c, KEYS * TILE);
    s->e = carve(&c, KEYS * TILE);
    s->du = carve(&c, P->dbias ? KEYS * TILE : 0);
    s->k = carve(&c, copied_rows(KEYS, d));
    s->dk = carve(&c, copied_rows(KEYS, d));
    s->dv = carve(&c, copied_rows(KEYS, dv));
    s->qt = carve(&c, queries * d);
    s->dot_ = carve(&c, queries * dv);
    s->peak = carve(&c, queries);
    s->sum = carve(&c, queries);
    s->delta = carve(&c, queries);
    s->q = carve(&c, copied_rows(P->Tq, d));
    s->dout = carve(&c, copied_rows(P->Tq, dv));
    s->dq = carve(&c, copied_rows(P->Tq, d));
    return c.next - (uintptr_t)base;
}

static size_t backward_workspace_bytes(const void *problem)
{
    backward_scratch unused;
    return backward_layout(problem, NULL, &unused);
}

INLINE idx key_blocks(const tiled_problem *P) { return (P->Tk + KEYS - 1) / KEYS; }

/* With few batch entries, split each so that there are about 8 tasks, as far as the scratch memory of
 * the parts of one entry stays below SCRATCH_BYTES. Shape decides, alone. */
#define SCRATCH_BYTES (44 << 20)

static idx key_splits(const tiled_problem *P)
{
    const idx wanted = P->batch >= 8 || P->batch == 0 ? 1 : (8 + P->batch - 1) / P->batch;
    const size_t partial = (size_t)(P->Tq * P->d) * sizeof(real);
    const idx affordable = (idx)(SCRATCH_BYTES / (backward_workspace_bytes(P) + partial));
    const idx splits = min_idx(min_idx(wanted, affordable), key_blocks(P));
    return splits < 1 ? 1 : splits;
}

static idx backward_tasks(const void *problem)
{
    const tiled_problem *P = problem;
    return P->batch * P->splits;
}

/* ---- preparation ----------------------------------------------------------------------------- */
/* delta_i = dout_i . out_i for the queries of a tile. Partial sums per lane of LANES rows are
 * transposed, so that their total needs no horizontal addition. */
static void fill_delta(const query_tile *tile, const real *dout, const real *out, idx dv,
                       real *delta)
{
    const idx whole = dv - dv % LANES;
    for (idx i0 = 0; i0 < tile->nv * LANES; i0 += LANES) {
        vec partial[LANES];
        for (idx i = 0; i < LANES; i++) {
            partial[i] = (vec){0};
            if (i0 + i >= tile->n) continue; /* padding lanes get delta = 0 */
            const real *a = dout + (tile->start + i0 + i) * dv;
            const real *b = out + (tile->start + i0 + i) * dv;
            for (idx c = 0; c < whole; c += LANES) partial[i] += load(a + c) * load(b + c);
            for (idx c = whole; c < dv; c++) partial[i][c - whole] += a[c] * b[c];
        }
        transpose_registers(partial);
        vec total = {0};
        for (idx i = 0; i < LANES; i++) total += partial[i];
        store(delta + i0, total);
    }
}

static void backward_prepare(const tiled_problem *P, idx batch, const real *q, const real *dout,
                             backward_scratch *s)
{
    const idx d = P->d, dv = P->dv, tiles = tile_count(P);
    const real *out = (const real *)P->out + batch * P->Tq * dv;
    const real *stats = (const real *)P->kept + batch * P->Tq * STATISTICS;
    for (idx t = 0; t < tiles; t++) {
        const query_tile tile = tile_at(P, t);
        pack_queries(&tile, q, d, s->qt + t * d * TILE, (real)P->scale * z_units(P->score));
        pack_queries(&tile, dout, dv, s->dot_ + t * dv * TILE, 1);
        fill_delta(&tile, dout, out, dv, s->delta + t * TILE);
        real *peak = s->peak + t * TILE, *sum = s->sum + t * TILE;
        store(peak + (tile.nv - 1) * LANES, (vec){0}); /* where there is padding, 1/N becomes 0: */
        store(sum + (tile.nv - 1) * LANES, (vec){0});  /* it adds nothing */
        memcpy(peak, stats + tile.start, (size_t)tile.n * sizeof(real));
        memcpy(sum, stats + P->Tq + tile.start, (size_t)tile.n * sizeof(real));
    }
}

/* ---- one query tile against one key block ---------------------------------------------------- */
typedef struct {
    const real *k, *v;    /* of the batch entry */
    const real *q, *dout; /* rows of stride padded(d), padded(dv) */
    real *dq;             /* likewise */
    real *dbias;          /* (Tq, Tk) of the batch entry, or NULL */
    idx batch, block_start, block_end;
    const real *block_k;  /* rows of stride padded(d) of the key block */
    real *dk, *dv;        /* of stride padded(d), padded(dv) */
} block_view;

static void backward_tile(const tiled_problem *P, const block_view *x, idx t, backward_scratch *s)
{
    const idx d = P->d, dv = P->dv;
    const query_tile tile = tile_at(P, t);
    segment seg = before_first_segment(x->block_start);
    while (next_segment(P, &tile, x->block_end, &seg)) {
        const idx from = seg.v0 * LANES, nv = tile.nv - seg.v0;
        const idx first = tile.start + from, queries = tile.n - from;
        const idx row = seg.key - x->block_start; /* in dk and dv */
        const exponent_kind kind = kind_of(P, &seg);
        /* The first contribution to a sum overwrites, so that nothing need be cleared. */
        const join to_dk = (P->is_causal ? seg.is_diagonal : t == 0) ? OVERWRITE : ADD;
        const join to_dq = seg.key == 0 ? OVERWRITE : ADD;
        real *z = s->z + from, *dp = s->dp + from, *e = s->e + from;
        real *du = x->dbias ? s->du + from : NULL;
        KVQ_ASSERT(row >= 0 && row + seg.n <= KEYS && queries > 0);

        product_along_rows(seg.n, nv, d, x->k + seg.key * d, d, s->qt + t * d * TILE + from, TILE, z,
                           TILE, OVERWRITE);
        product_along_rows(seg.n, nv, dv, x->v + seg.key * dv, dv, s->dot_ + t * dv * TILE + from, TILE, dp,
                           TILE, OVERWRITE);
        if (has_exponents(kind)) fill_exponents(P, x->batch, &tile, &seg, e);
        const idx at = t * TILE + from;
        differentiate(P->score, kind, seg.n, nv, z, dp, e, (real)P->scale, s->peak + at,
                      s->sum + at, s->delta + at, du);
        /* z now holds P^T, dp holds scale dz^T */
        product_along_rows(seg.n, vectors(dv), queries, z, TILE, x->dout + first * padded(dv),
                           padded(dv), x->dv + row * padded(dv), padded(dv), to_dk);
        product_along_rows(seg.n, vectors(d), queries, dp, TILE, x->q + first * padded(d),
                           padded(d), x->dk + row * padded(d), padded(d), to_dk);
        product_along_columns(queries, vectors(d), seg.n, dp, TILE, x->block_k + row * padded(d),
                              padded(d), x->dq + first * padded(d), padded(d), to_dq, NULL);
        if (du) transpose(seg.n, queries, du, TILE, x->dbias + first * P->Tk + seg.key, P->Tk, 1);
    }
}

/* ---- the task -------------------------------------------------------------------------------- */
static void clear_rows(idx first, idx end, idx columns, real *x)
{
    memset(x + first * columns, 0, (size_t)((end - first) * columns) * sizeof(real));
}

static void backward_run(const void *problem, void *workspace, idx task)
{
    const tiled_problem *P = problem;
    const idx splits = P->splits, batch = task / splits, split = task % splits;
    const idx Tq = P->Tq, Tk = P->Tk, d = P->d, dv = P->dv, tiles = tile_count(P);
    const real *q = (const real *)P->q + batch * Tq * d;
    const real *dout = (const real *)P->dout + batch * Tq * dv;
    backward_scratch s;
    backward_layout(P, workspace, &s);
    if (P->not_finite && split == 0) tell_if_doubtful(P->not_finite, doubt_about(dout, Tq * dv));
    backward_prepare(P, batch, q, dout, &s);

    block_view x;
    x.batch = batch;
    x.k = (const real *)P->k + batch * Tk * d;
    x.v = (const real *)P->v + batch * Tk * dv;
    x.q = whole_vectors(Tq, d, q, s.q);
    x.dout = whole_vectors(Tq, dv, dout, s.dout);
    x.dbias = P->dbias ? (real *)P->dbias + batch * Tq * Tk : NULL;

    /* Split 0 writes dq itself, the others a partial each: (batch, splits - 1, Tq, d). */
    real *dq = split == 0 ? (real *)P->dq + batch * Tq * d
                          : (real *)P->dq_partials + (batch * (splits - 1) + split - 1) * Tq * d;
    x.dq = room_for_rows(d, dq, s.dq);
    if (split > 0 || Tk == 0) clear_rows(0, Tq, padded(d), x.dq); /* else the first block writes all */

    /* Key blocks are dealt out in turn: under a causal mask early ones cost more than late ones. */
    for (idx block = split; block < key_blocks(P); block += splits) {
        x.block_start = block * KEYS;
        x.block_end = min_idx(x.block_start + KEYS, Tk);
        const idx keys = x.block_end - x.block_start;
        const idx seen = min_idx(keys, !P->is_causal  ? tiles * keys
                                       : Tq > x.block_start ? Tq - x.block_start
                                                            : 0);
        const idx first = batch * Tk + x.block_start;
        real *dk = (real *)P->dk + first * d, *dv_out = (real *)P->dv_out + first * dv;
        x.block_k = whole_vectors(keys, d, x.k + x.block_start * d, s.k);
        x.dk = room_for_rows(d, dk, s.dk);
        x.dv = room_for_rows(dv, dv_out, s.dv);
        clear_rows(seen, keys, padded(d), x.dk); /* of keys that no query sees */
        clear_rows(seen, keys, padded(dv), x.dv);
        if (x.dbias) /* segments that causality skips leave zeros behind */
            for (idx i = 0; i < Tq; i++)
                memset(x.dbias + i * Tk + x.block_start, 0, (size_t)keys * sizeof(real));

        for (idx t = 0; t < tiles; t++) backward_tile(P, &x, t, &s);

        put_rows(keys, d, x.dk, dk, 1);
        put_rows(keys, dv, x.dv, dv_out, 1);
    }
    put_rows(Tq, d, x.dq, dq, 1);
}

static void sum_dq_partials(const tiled_problem *P)
{
    const idx partials = P->splits - 1, size = P->Tq * P->d;
    for (idx batch = 0; batch < P->batch; batch++) {
        real *restrict dq = (real *)P->dq + batch * size;
        const real *restrict part = (const real *)P->dq_partials + batch * partials * size;
        for (idx p = 0; p < partials; p++, part += size)
            for (idx i = 0; i < size; i++) dq[i] += part[i];
    }
}

#endif
