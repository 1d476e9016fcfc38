/* linear_sweep.h - one sweep over a sequence: all that linear attention is made of.
 *
 *     out_i = x_i S_i        S_i = start + factor * sum of y_j z_j^T over the j that i sees
 *
 * i sees every j, or the earlier ones (j <= i), or the later ones (j >= i). S is a matrix of
 * inner x width numbers, however long the sequence is; it stays in cache, and nothing grows like
 * T x T.
 *
 * If every j is seen, S comes first, chunk by chunk of the sequence, and then the rows of out. If
 * not, the sweep goes along the sequence by chunks: what came before a chunk is in S, and what is
 * inside it is a small attention of its own,
 *
 *     out = X S + W Z        W = the visible half of factor * X Y^T
 *     S  += factor * Y^T Z
 *
 * Every sum over the sequence is a sum of chunks' sums, and a long one a sum of such sums, so that
 * rounding errors grow slowly. Row i is computed alike whatever the rows are that it does not see:
 * their weights are chosen away.
 */
#ifndef KVQ_LINEAR_SWEEP_H
#define KVQ_LINEAR_SWEEP_H

#include "product.h"
#include "tile.h" /* vectors(), padded(), carve() */

#define CHUNK 64 /* rows of a chunk, at most */
#define SPAN 32  /* chunks whose sums are added up among themselves, before what came earlier */
#define GROUP (LANES > BLOCK_ROWS ? LANES : BLOCK_ROWS) /* rows of x that meet a chunk at once */

typedef enum { ALL, EARLIER, LATER } sight;

typedef struct {
    sight sees;
    const real *x, *y, *z; /* (nx, inner), (ny, inner), (ny, width) */
    idx nx, ny, inner, width;
    real factor;
    const real *start; /* (inner, width), times start_factor; NULL for zero */
    int start_is_transposed; /* it is stored as (width, inner) */
    real start_factor;
    real *out; /* (nx, width) */
    real *end; /* (inner, width): start + factor Y^T Z; or NULL */
} sweep;

/* A sweep may be about some columns of z, out and S only: they are independent. */
typedef struct {
    idx first, n, nv; /* nv = vectors(n) */
} columns;

/* The columns of slice number i of `slices`; vectors are dealt out evenly. */
INLINE columns slice_at(idx width, idx slices, idx i)
{
    const idx small = vectors(width) / slices, extra = vectors(width) % slices;
    columns c;
    c.first = (i * small + min_idx(i, extra)) * LANES;
    c.nv = small + (i < extra);
    c.n = min_idx(c.nv * LANES, width - c.first);
    KVQ_ASSERT(0 <= i && i < slices && c.n >= 0 && c.first + c.n <= width);
    return c;
}

/* ---- scratch memory -------------------------------------------------------------------------- */
typedef struct {
    real *state;   /* (inner, S_STRIDE) */
    real *sum;     /* likewise: Y^T Z of a span, where it must not go straight to the state */
    real *before;  /* likewise: the state before that span */
    real *yt;      /* (inner, CHUNK) a chunk of factor * y, transposed */
    real *w;       /* (GROUP, CHUNK) */
    real *z, *out; /* (CHUNK, S_STRIDE) copies with padded rows */
} sweep_scratch;

#define S_STRIDE(c) ((c)->nv * LANES)

/* Room for any sweep between rows of a and rows of b numbers. */
INLINE void carve_sweep(carver *c, idx a, idx b, sweep_scratch *s)
{
    const idx most = a > b ? a : b;
    const idx state = a * padded(b) > b * padded(a) ? a * padded(b) : b * padded(a);
    const idx copy = a % LANES || b % LANES ? CHUNK * padded(most) : 0;
    s->state = carve(c, state);
    s->sum = carve(c, state);
    s->before = carve(c, state);
    s->yt = carve(c, CHUNK * most);
    s->w = carve(c, GROUP * CHUNK);
    s->z = carve(c, copy);
    s->out = carve(c, copy);
}

/* ---- rows that can be read and written by whole vectors -------------------------------------- */
typedef struct {
    real *at;
    idx stride;
} rows_view;

/* Rows of z from `first` on: as they lie in memory, or if their last vector would reach beyond the
 * row, a copy. */
INLINE rows_view rows_of_z(const sweep *w, const columns *c, idx first, idx n, sweep_scratch *s)
{
    const real *z = w->z + first * w->width + c->first;
    if (w->width % LANES == 0) return (rows_view){(real *)z, w->width};
    const idx stride = S_STRIDE(c);
    for (idx r = 0; r < n; r++) {
        memcpy(s->z + r * stride, z + r * w->width, (size_t)c->n * sizeof(real));
        for (idx i = c->n; i < stride; i++) s->z[r * stride + i] = 0;
    }
    return (rows_view){s->z, stride};
}

/* Where rows of out are computed; finish_out() brings them to their place. */
INLINE rows_view rows_of_out(const sweep *w, const columns *c, idx first, sweep_scratch *s)
{
    if (w->width % LANES == 0) return (rows_view){w->out + first * w->width + c->first, w->width};
    return (rows_view){s->out, S_STRIDE(c)};
}

INLINE void finish_out(const sweep *w, const columns *c, idx first, idx n, rows_view out)
{
    real *to = w->out + first * w->width + c->first;
    if (out.at == to) return;
    for (idx r = 0; r < n; r++)
        memcpy(to + r * w->width, out.at + r * out.stride, (size_t)c->n * sizeof(real));
}

/* ---- the state ------------------------------------------------------------------------------- */
static void load_start(const sweep *w, const columns *c, real *state)
{
    const idx stride = S_STRIDE(c);
    if (c->n < stride || !w->start)
        memset(state, 0, (size_t)(w->inner * stride) * sizeof(real));
    if (!w->start) return;
    if (w->start_is_transposed)
        transpose(c->n, w->inner, w->start + c->first * w->inner, w->inner, state, stride,
                  w->start_factor);
    else
        for (idx r = 0; r < w->inner; r++)
            for (idx i = 0; i < c->n; i++)
                state[r * stride + i] = w->start_factor * w->start[r * w->width + c->first + i];
}

static void store_end(const sweep *w, const columns *c, const real *state)
{
    for (idx r = 0; r < w->inner; r++)
        memcpy(w->end + r * w->width + c->first, state + r * S_STRIDE(c),
               (size_t)c->n * sizeof(real));
}

/* ---- every j is seen ------------------------------------------------------------------------- */
static void sweep_all(const sweep *w, const columns *c, sweep_scratch *s)
{
    const idx stride = S_STRIDE(c), size = w->inner * stride;
    /* the state may be nothing but one span's sum */
    const int is_sum = !w->start && w->factor == 1 && 0 < w->ny && w->ny <= SPAN * CHUNK;
    real *sum = is_sum ? s->state : s->sum;
    if (!is_sum) load_start(w, c, s->state);
    for (idx j = 0; j < w->ny; j += CHUNK) {
        const idx n = min_idx(CHUNK, w->ny - j), in_span = j / CHUNK % SPAN;
        const rows_view z = rows_of_z(w, c, j, n, s);
        product_along_columns(w->inner, c->nv, n, w->y + j * w->inner, w->inner, z.at, z.stride,
                              sum, stride, in_span == 0 ? OVERWRITE : ADD, NULL);
        if (!is_sum && (in_span == SPAN - 1 || j + n == w->ny))
            for (idx i = 0; i < size; i++) s->state[i] += w->factor * sum[i];
    }
    if (w->end) store_end(w, c, s->state);

    for (idx i = 0; i < w->nx; i += CHUNK) {
        const idx n = min_idx(CHUNK, w->nx - i);
        const rows_view out = rows_of_out(w, c, i, s);
        product_along_rows(n, c->nv, w->inner, w->x + i * w->inner, w->inner, s->state, stride,
                           out.at, out.stride, OVERWRITE);
        finish_out(w, c, i, n, out);
    }
}

/* ---- some are hidden ------------------------------------------------------------------------- */
/* Choose away what row i of a group must not see of the rows of y that have its numbers. */
static void hide(sight sees, idx rows, real *w)
{
    ivec lane;
    for (int i = 0; i < LANES; i++) lane[i] = (bits)i;
    for (idx i = 0; i < rows; i++)
        for (idx v = 0; v < GROUP / LANES; v++) {
            real *at = w + i * CHUNK + v * LANES;
            const ivec j = lane + (bits)(v * LANES);
            const ivec seen = sees == EARLIER ? (ivec)(j <= (bits)i) : (ivec)(j >= (bits)i);
            store(at, keep(seen, load(at)));
        }
}

/* out (+)= W Z inside a chunk of nx rows of x and ny of y; s->yt holds factor * Y^T. */
static void attend_inside(const sweep *w, const columns *c, idx nx, idx ny, const real *x,
                          rows_view z, rows_view out, join how, sweep_scratch *s)
{
    for (idx i = 0; i < nx; i += GROUP) {
        const idx rows = min_idx(GROUP, nx - i);
        /* what any row of the group sees */
        const idx from = w->sees == EARLIER ? 0 : i;
        const idx to = w->sees == EARLIER ? min_idx(i + GROUP, ny) : ny;
        const idx n = to > from ? to - from : 0;
        KVQ_ASSERT(from % LANES == 0 && (n == 0 || from + padded(n) <= CHUNK));
        product_along_rows(rows, vectors(n), w->inner, x + i * w->inner, w->inner, s->yt + from,
                           CHUNK, s->w, CHUNK, OVERWRITE);
        hide(w->sees, i < ny ? rows : 0, s->w + (i - from));
        for (idx r = 0; r < rows; r += BLOCK_ROWS) { /* what any row of these sees */
            const idx skipped = w->sees == EARLIER ? 0 : min_idx(r, n);
            const idx met = w->sees == EARLIER ? min_idx(i + r + BLOCK_ROWS, ny) : n - skipped;
            product_along_rows(min_idx(BLOCK_ROWS, rows - r), c->nv, met, s->w + r * CHUNK + skipped, CHUNK,
                               z.at + (from + skipped) * z.stride, z.stride, out.at + (i + r) * out.stride, out.stride,
                               how);
        }
    }
}

INLINE void pack_y(const sweep *w, idx first, idx n, real *yt)
{
    if (n % LANES)
        for (idx r = 0; r < w->inner; r++) store(yt + r * CHUNK + (n - n % LANES), (vec){0});
    transpose(n, w->inner, w->y + first * w->inner, w->inner, yt, CHUNK, w->factor);
}

/* What is inside a chunk costs chunk / 2 * (inner + width) a row, the state 2 * inner * width
 * whatever the chunk: so small ones are better, unless a single one does without a state. */
INLINE idx chunk_rows(idx length) { return length <= CHUNK ? CHUNK : CHUNK / 2; }

INLINE idx rows_in_chunk(idx end, idx first, idx chunk)
{
    return end < first ? 0 : min_idx(end - first, chunk);
}

/* S += factor Y^T Z of a chunk, which is number `count` of those that S takes in. The first span
 * goes straight to S; a later one has a sum of its own, and S is that and what was before. */
static void take_in(const sweep *w, const columns *c, idx ny, rows_view z, idx count,
                    sweep_scratch *s)
{
    const idx stride = S_STRIDE(c), size = w->inner * stride;
    if (count < SPAN) {
        product_along_rows(w->inner, c->nv, ny, s->yt, CHUNK, z.at, z.stride, s->state, stride,
                           w->start || count > 0 ? ADD : OVERWRITE);
        return;
    }
    const int is_first = count % SPAN == 0;
    if (is_first) memcpy(s->before, s->state, (size_t)size * sizeof(real));
    product_along_rows(w->inner, c->nv, ny, s->yt, CHUNK, z.at, z.stride, s->sum, stride,
                       is_first ? OVERWRITE : ADD);
    for (idx i = 0; i < size; i++) s->state[i] = s->before[i] + s->sum[i];
}

static void sweep_causal(const sweep *w, const columns *c, sweep_scratch *s)
{
    const idx stride = S_STRIDE(c);
    const int ends_early = w->sees == EARLIER && !w->end; /* with the last x */
    const idx length = w->nx > w->ny || ends_early ? w->nx : w->ny;
    const idx chunk = chunk_rows(length), chunks = (length + chunk - 1) / chunk;
    idx taken = 0; /* chunks that the state has taken in */
    if (w->start) load_start(w, c, s->state);

    for (idx step = 0; step < chunks; step++) {
        const idx first = (w->sees == EARLIER ? step : chunks - 1 - step) * chunk;
        const idx nx = rows_in_chunk(w->nx, first, chunk), ny = rows_in_chunk(w->ny, first, chunk);
        const int has_state = w->start || taken > 0;
        const rows_view z = rows_of_z(w, c, first, ny, s);
        pack_y(w, first, ny, s->yt);
        if (nx > 0) {
            const real *x = w->x + first * w->inner;
            const rows_view out = rows_of_out(w, c, first, s);
            if (has_state)
                product_along_rows(nx, c->nv, w->inner, x, w->inner, s->state, stride, out.at,
                                   out.stride, OVERWRITE);
            attend_inside(w, c, nx, ny, x, z, out, has_state ? ADD : OVERWRITE, s);
            finish_out(w, c, first, nx, out);
        }
        if (ny > 0 && (step + 1 < chunks || w->end)) take_in(w, c, ny, z, taken++, s);
    }
    if (w->end) {
        if (taken == 0) load_start(w, c, s->state); /* an empty sequence */
        store_end(w, c, s->state);
    }
}

INLINE void run_sweep(const sweep *w, columns c, sweep_scratch *s)
{
    if (w->sees == ALL) sweep_all(w, &c, s);
    else sweep_causal(w, &c, s);
}

#endif
