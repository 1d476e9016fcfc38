/* tile.h - how the (Tq x Tk) plane of scores is cut up, and what is prepared for a piece of it.
 *
 * The plane is held transposed: keys down the rows, queries across the SIMD lanes.
 *
 *     query tile   up to 3 vectors of queries (48 for float32 with AVX-512); the unit of forward
 *     segment      a query tile x up to KEYS keys; all arithmetic happens on one segment at a time
 *
 * Along the causal diagonal a segment is one vector of keys, and `v0` leading vectors of queries
 * that see none of its keys are left out. So a causal pass does little more than half the work.
 */
#ifndef KVQ_TILE_H
#define KVQ_TILE_H

#include "part.h"
#include "tiled.h"

#define TILE (BLOCK_COLUMNS * LANES) /* queries in a full tile; the row stride of tile buffers */
#define KEYS 64                      /* keys in a segment */

INLINE idx min_idx(idx a, idx b) { return a < b ? a : b; }
INLINE idx max_idx(idx a, idx b) { return a > b ? a : b; }
INLINE idx vectors(idx n) { return (n + LANES - 1) / LANES; }
INLINE idx padded(idx n) { return vectors(n) * LANES; }

/* ---- query tiles ----------------------------------------------------------------------------- */
typedef struct {
    idx start; /* first query */
    idx n;     /* queries */
    idx nv;    /* vectors: vectors(n) */
} query_tile;

INLINE idx tile_count(const tiled_problem *P)
{
    return (vectors(P->Tq) + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
}

/* Vectors are dealt out evenly, so 4 vectors become 2 + 2 and not 3 + 1. */
INLINE query_tile tile_at(const tiled_problem *P, idx t)
{
    const idx count = tile_count(P), all = vectors(P->Tq);
    query_tile tile = {0, P->Tq, all};
    if (count == 1) return tile; /* a division takes as long as some rows of a small head */
    const idx small = all / count, extra = all % count, first = t * small + min_idx(t, extra);
    tile.start = first * LANES;
    tile.nv = small + (t < extra);
    tile.n = min_idx(tile.nv * LANES, P->Tq - tile.start);
    KVQ_ASSERT(0 <= t && t < count && tile.n > 0 && tile.nv <= BLOCK_COLUMNS);
    return tile;
}

/* ---- segments -------------------------------------------------------------------------------- */
typedef struct {
    idx key, n;      /* first key, number of keys */
    idx v0;          /* the first vector of queries that sees any of them */
    int is_diagonal; /* crosses the causal diagonal: some pairs are invisible */
} segment;

INLINE segment before_first_segment(idx first_key)
{
    segment s = {first_key, 0, 0, 0};
    return s;
}

/* Step to the next segment of `tile` that starts before `end`; 0 when there is none left. */
INLINE int next_segment(const tiled_problem *P, const query_tile *tile, idx end, segment *s)
{
    s->key += s->n;
    if (P->is_causal) end = min_idx(end, tile->start + tile->n);
    if (s->key >= end) return 0;
    s->is_diagonal = P->is_causal && s->key >= tile->start;
    if (s->is_diagonal) {
        s->v0 = (s->key - tile->start) / LANES;
        end = min_idx(end, tile->start + (s->v0 + 1) * LANES);
    } else if (P->is_causal) {
        end = min_idx(end, tile->start);
    }
    s->n = min_idx(end - s->key, KEYS);
    KVQ_ASSERT(0 < s->n && s->key + s->n <= P->Tk && s->v0 < tile->nv);
    KVQ_ASSERT(!s->is_diagonal || s->key == tile->start + s->v0 * LANES);
    return 1;
}

/* ---- the exponents of a segment -------------------------------------------------------------- */
/* What, besides the score, decides a weight. Known per segment, constant inside it. */
typedef enum {
    PLAIN,    /* every pair is visible */
    DIAGONAL, /* the first vector of queries begins at the first key; a query sees no later key */
    MASKED,   /* e is 0 or -inf */
    BIASED    /* e is bias * log2(e) or -inf */
} exponent_kind;

INLINE exponent_kind kind_of(const tiled_problem *P, const segment *s)
{
    return P->bias ? BIASED : P->mask ? MASKED : s->is_diagonal ? DIAGONAL : PLAIN;
}

INLINE int has_exponents(exponent_kind kind) { return kind == MASKED || kind == BIASED; }

/* Key j of a diagonal segment is hidden from the first j lanes of its first vector. */
INLINE ivec from_lane(idx j)
{
    ivec lane;
    UNROLL for (int i = 0; i < LANES; i++) lane[i] = (bits)i;
    return (ivec)(lane >= (bits)j);
}

/* e[j][i] for the segment's keys j and its queries from vector v0 on. -inf says invisible. Padding
 * lanes get 0. A mask or bias may have any strides, so this is scalar code but for common cases. */
NOINLINE void fill_exponents(const tiled_problem *P, idx batch, const query_tile *tile,
                             const segment *s, real *e)
{
    const idx first = tile->start + s->v0 * LANES; /* first query */
    const idx n = tile->n - s->v0 * LANES, nv = tile->nv - s->v0;
    KVQ_ASSERT(n > 0 && first + n <= P->Tq);

    for (idx j = 0; j < s->n; j++)
        for (idx v = 0; v < nv; v++) store(e + j * TILE + v * LANES, (vec){0});

    if (P->bias) {
        const idx *stride = P->bias_strides;
        const char *bias = P->bias + batch * stride[0] + first * stride[1] + s->key * stride[2];
        if (stride[2] == (idx)sizeof(real) && stride[1] % (idx)sizeof(real) == 0) {
            transpose(n, s->n, (const real *)bias, stride[1] / (idx)sizeof(real), e, TILE, LOG2_E);
        } else {
            for (idx i = 0; i < n; i++)
                for (idx j = 0; j < s->n; j++)
                    e[j * TILE + i] =
                        LOG2_E * *(const real *)(bias + i * stride[1] + j * stride[2]);
        }
    }
    if (P->bias) /* finite it was and finite it stays: -inf means invisible, finfo.min does not */
        for (idx j = 0; j < s->n; j++)
            for (idx v = 0; v < nv; v++) {
                real *at = e + j * TILE + v * LANES;
                store(at, smallest(largest(load(at), splat(REAL_LOWEST)), splat(-REAL_LOWEST)));
            }
    if (P->mask) {
        const idx *stride = P->mask_strides;
        const char *mask = P->mask + batch * stride[0] + first * stride[1] + s->key * stride[2];
        if (stride[1] == 0) { /* a key mask: the same for every query */
            for (idx j = 0; j < s->n; j++)
                if (!mask[j * stride[2]])
                    for (idx v = 0; v < nv; v++)
                        store(e + j * TILE + v * LANES, splat(-REAL_INFINITY));
        } else {
            for (idx i = 0; i < n; i++)
                for (idx j = 0; j < s->n; j++)
                    e[j * TILE + i] = mask[i * stride[1] + j * stride[2]] ? e[j * TILE + i]
                                                                          : -REAL_INFINITY;
        }
    }
    if (s->is_diagonal)
        for (idx j = 0; j < s->n; j++)
            for (idx v = 0; v < nv; v++) {
                real *at = e + j * TILE + v * LANES;
                const ivec seen = from_lane(max_idx(0, s->key + j - (first + v * LANES)));
                store(at, where(seen, load(at), splat(-REAL_INFINITY)));
            }
}

/* ---- packing --------------------------------------------------------------------------------- */
/* packed[c][i] = factor * x[i][c] for the queries of one tile; padding lanes are 0. */
INLINE void pack_queries(const query_tile *tile, const real *x, idx columns, real *packed,
                         real factor)
{
    transpose_padded(tile->n, columns, x + tile->start * columns, columns, packed, TILE, factor);
}

/* ---- scratch memory -------------------------------------------------------------------------- */
/* A layout function names its buffers once, in order; run with base 0 it only measures. */
typedef struct {
    uintptr_t next;
} carver;

INLINE real *carve(carver *c, idx reals)
{
    real *here = (real *)c->next;
    c->next += ((uintptr_t)reals * sizeof(real) + 63) & ~(uintptr_t)63;
    return here;
}

#endif
