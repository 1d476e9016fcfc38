/* tiny.h - forward of heads that live in registers: d and dv are one vector, and so are the queries.
 *
 * The arithmetic of small.h, bit for bit, in an order that suits such heads:
 *
 *     meet      LANES registers hold Q^T; a few keys at a time are multiplied with it, and become weights
 *               before they leave theirs
 *     result    a register for each row of P V; under a causal mask row i meets keys 0 .. i only
 *
 * Each step waits for the one before: transposition, products, weights, their sum, a division, products. In a
 * head so small the waits are as long as the work. So a task is several heads, and the P V of one comes after
 * the weights of the next: a processor that looks some hundred instructions ahead fills the waits of the one
 * with the work of the other.
 *
 * Nor does a head look whether q, k, v are finite: its numbers tell. A q or k that is not makes z so (even 0
 * times it is NaN), and a v makes the last row of out so, which meets every key that is seen. A head in doubt
 * is done once more by small.h, which looks, tells, and lifts sums that are too small to be divided by. Its rows
 * that were right stay what they were, to the bit, so that a row does not depend on keys that it does not see.
 */
#ifndef KVQ_TINY_H
#define KVQ_TINY_H

#include "small.h"

enum { HEADS = 32 }; /* in a task */

/* Keys may be as many as small.h takes: more than LANES of them change nothing here. */
static int is_tiny(const tiled_problem *P)
{
    return is_small(P) && P->d == LANES && P->dv == LANES && 0 < P->Tq && P->Tq <= LANES && 0 < P->Tk && !P->mask &&
           !P->bias;
}

typedef struct {
    idx queries, keys;
    const real *q, *k, *v;
    real *out;
    real *p;      /* rows LANES apart. Of expressive attention, w; and then */
    real *factor; /* 1 / N, which is else NULL */
    real *z;      /* rows LANES apart, and 1 / N as small.h keeps it; NULL where nobody wants it */
} tiny_head;

/* p of a head is `unkept` where nobody wants it kept. `keys` are seen_keys(P), found once a task: GCC takes a
 * minimum in a vector register, where it would wait behind products, and addresses with it. */
INLINE tiny_head tiny_head_at(const tiled_problem *P, idx keys, idx batch, real *unkept)
{
    tiny_head h = {P->Tq, keys, P->q, P->k, P->v, P->out, unkept, NULL, NULL};
    h.q += batch * P->Tq * LANES;
    h.k += batch * P->Tk * LANES;
    h.v += batch * P->Tk * LANES;
    h.out += batch * P->Tq * LANES;
    if (P->kept) { /* as kept_plane and kept_reciprocals */
        real *kept = (real *)P->kept + batch * small_numbers(P);
        if (keeps_scores(P)) h.z = kept;
        else h.p = kept;
    }
    if (P->score == KVQ_EXPRESSIVE) h.factor = h.p + keys * LANES;
    KVQ_ASSERT(0 < keys && keys == seen_keys(P) && (!P->is_causal || keys <= P->Tq));
    return h;
}

/* ---- weights --------------------------------------------------------------------------------- */
/* Lanes beyond the last query hold a query of zeros. */
INLINE void transposed_queries(const tiny_head *h, real factor, vec qt[LANES])
{
    UNROLL for (int i = 0; i < LANES; i++)
    {
        if (i < h->queries) qt[i] = load(h->q + i * LANES) * factor;
        else qt[i] = (vec){0};
    }
    transpose_registers(qt);
}

/* from_lane(j), read from a table. */
INLINE ivec seen_by(idx j)
{
    static const bits edge[2 * LANES] = {[LANES ... 2 * LANES - 1] = ~(bits)0};
    return (ivec)load((const real *)edge + LANES - j);
}

/* Keys j to j + N - 1: their scores (softmax), or their weights (expressive). */
INLINE void meet(const int N, const int SCORE, const int IS_CAUSAL, const int SAVES, const vec qt[LANES], idx j,
                 const tiny_head *h, vec *peak, vec *sum, vec *doubt)
{
    vec z[BLOCK_ROWS];
    UNROLL for (int r = 0; r < N; r++) z[r] = (vec){0};
    UNROLL for (int c = 0; c < LANES; c++)
        UNROLL for (int r = 0; r < N; r++) z[r] += splat(h->k[(j + r) * LANES + c]) * qt[c];
    UNROLL for (int r = 0; r < N; r++)
    {
        real *p = h->p + (j + r) * LANES;
        *doubt += z[r];
        if (SCORE == KVQ_SOFTMAX) {
            if (IS_CAUSAL) z[r] = where(seen_by(j + r), z[r], splat(-REAL_INFINITY));
            *peak = largest(z[r], *peak);
            store(p, z[r]);
        } else {
            if (IS_CAUSAL) z[r] = keep(seen_by(j + r), z[r]);
            if (SAVES) store(h->z + (j + r) * LANES, z[r]);
            const vec w = expressive_weight(z[r]);
            *sum += w;
            store(p, w);
        }
    }
}

INLINE vec tiny_weights(const int SCORE, const int IS_CAUSAL, const int SAVES, real factor, const tiny_head *h)
{
    const idx keys = h->keys;
    vec qt[LANES], peak = splat(REAL_LOWEST), sum = {0}, doubt = {0};
    transposed_queries(h, factor, qt);
    idx j = 0;
#define MEET(N) meet(N, SCORE, IS_CAUSAL, SAVES, qt, j, h, &peak, &sum, &doubt)
    for (; j + BLOCK_ROWS <= keys; j += BLOCK_ROWS) MEET(BLOCK_ROWS);
#if BLOCK_ROWS > 4
    if (j + 4 <= keys) { MEET(4); j += 4; }
#endif
    if (j + 2 <= keys) { MEET(2); j += 2; }
    if (j < keys) MEET(1);
#undef MEET
    if (SCORE == KVQ_SOFTMAX)
        for (j = 0; j < keys; j++) {
            const vec w = exp2_of_nonpositive(load(h->p + j * LANES) - peak);
            store(h->p + j * LANES, w);
            sum += w;
        }
    const ivec has_weight = (ivec)(sum > (vec){0});
    const vec inverse = keep(has_weight, 1 / sum);
    if (SCORE == KVQ_SOFTMAX)
        for (j = 0; j < keys; j++) store(h->p + j * LANES, load(h->p + j * LANES) * inverse);
    else store(h->factor, inverse);
    if (SAVES) keep_reciprocal(h->z + keys * LANES, (reciprocal){splat(1), inverse});
    return doubt + keep(has_weight & (ivec)(sum < splat(REAL_TINY)), splat(REAL_INFINITY));
}

NOINLINE vec weigh_tiny(const tiled_problem *P, idx keys, idx batch, real *unkept)
{
    const tiny_head h = tiny_head_at(P, keys, batch, unkept);
    const real factor = (real)P->scale * z_units(P->score);
#define WEIGHTS(SCORE, SAVES) \
    return P->is_causal ? tiny_weights(SCORE, 1, SAVES, factor, &h) : tiny_weights(SCORE, 0, SAVES, factor, &h)
    if (P->score == KVQ_SOFTMAX) WEIGHTS(KVQ_SOFTMAX, 0);
    if (P->kept) WEIGHTS(KVQ_EXPRESSIVE, 1);
    WEIGHTS(KVQ_EXPRESSIVE, 0);
#undef WEIGHTS
}

/* ---- the result ------------------------------------------------------------------------------ */
/* Key j is added to rows `first` to N - 1. */
INLINE void add_key(const int N, int first, const tiny_head *h, idx j, vec sum[LANES])
{
    const vec vj = load(h->v + j * LANES);
    UNROLL for (int i = 0; i < N; i++)
        if (i >= first) sum[i] += splat(h->p[j * LANES + i]) * vj;
}

INLINE void tiny_result(const int N, const int IS_CAUSAL, const tiny_head *h)
{
    vec sum[LANES];
    UNROLL for (int i = 0; i < N; i++) sum[i] = (vec){0};
    UNROLL for (int j = 0; j < LANES; j++)
        if (j < h->keys) add_key(N, IS_CAUSAL ? j : 0, h, j, sum);
    for (idx j = LANES; j < h->keys; j++) add_key(N, 0, h, j, sum);
    if (h->factor)
        UNROLL for (int i = 0; i < N; i++) sum[i] *= splat(h->factor[i]);
    if (h->queries == N)
        UNROLL for (int i = 0; i < N; i++) store(h->out + i * LANES, sum[i]);
    else
        UNROLL for (int i = 0; i < N; i++)
            if (i < h->queries) store(h->out + i * LANES, sum[i]);
}

/* Tells whether the numbers of the head leave doubts about it. */
NOINLINE int finish_tiny(const tiled_problem *P, idx keys, idx batch, real *unkept, vec doubt)
{
    const tiny_head h = tiny_head_at(P, keys, batch, unkept);
    const int is_half = h.queries <= LANES / 2;
    if (P->is_causal && is_half) tiny_result(LANES / 2, 1, &h);
    else if (P->is_causal) tiny_result(LANES, 1, &h);
    else if (is_half) tiny_result(LANES / 2, 0, &h);
    else tiny_result(LANES, 0, &h);
    doubt += load(h.out + (h.queries - 1) * LANES);
    if (P->not_finite && h.keys < P->Tk) { /* no query sees the rest: they have no part in these numbers */
        const idx seen = h.keys * LANES, unseen = (P->Tk - h.keys) * LANES;
        doubt += doubt_about(h.k + seen, unseen) + doubt_about(h.v + seen, unseen);
    }
    return has_nan(doubt - doubt);
}

/* ---- a task ---------------------------------------------------------------------------------- */
static idx tiny_tasks(const void *problem) { return (((const tiled_problem *)problem)->batch + HEADS - 1) / HEADS; }

/* The weights of two heads that nobody wants kept, and 1 / N; then what small.h needs. */
INLINE size_t tiny_layout(const tiled_problem *P, void *base, real *p[2])
{
    carver c = {(uintptr_t)base};
    p[0] = carve(&c, (P->Tk + 1) * LANES);
    p[1] = carve(&c, (P->Tk + 1) * LANES);
    return c.next - (uintptr_t)base;
}

static size_t tiny_workspace_bytes(const void *problem)
{
    real *unused[2];
    return tiny_layout(problem, NULL, unused) + small_forward_workspace_bytes(problem);
}

static void tiny_forward_run(const void *problem, void *workspace, idx task)
{
    const tiled_problem *P = problem;
    const idx keys = seen_keys(P), first = task * HEADS, end = min_idx(first + HEADS, P->batch);
    real *p[2];
    void *rest = (char *)workspace + tiny_layout(P, workspace, p);
    vec doubt = weigh_tiny(P, keys, first, p[first % 2]);
    for (idx b = first; b < end; b++) {
        const vec next = b + 1 < end ? weigh_tiny(P, keys, b + 1, p[(b + 1) % 2]) : doubt;
        if (finish_tiny(P, keys, b, p[b % 2], doubt)) small_forward_run(P, rest, b);
        doubt = next;
    }
}

#endif
