/* fit.h - ridge regression from keys to values, evaluated at the queries.
 *
 *     forward     H = K^T K + alpha I = U^T U,   W = U^-1 U^-T K^T V,   out = Q W
 *     backward    dW = Q^T dout,   Z = H^-1 dW,   dq = dout W^T,   dalpha = -sum Z W
 *                 dv = K Z,   dk = V Z^T - K (W Z^T + Z W^T)
 *                 and of a state (gram, moment): -(W Z^T + Z W^T) / 2 and Z
 *
 * [H | K^T V] is one array of d rows: eliminating H leaves U^-T K^T V beside it.
 */
#ifndef KVQ_FIT_H
#define KVQ_FIT_H

#include "eliminate.h"
#include "finite.h"
#include "ridge.h"
#include "rows.h"

static idx entries(const void *problem) { return ((const ridge_problem *)problem)->batch; }

/* ---- H --------------------------------------------------------------------------------------- */
/* [H | R] as a state brings it along. */
INLINE void load_state(const ridge_problem *P, idx entry, real *hr, idx stride)
{
    const idx d = P->d, dv = P->dv;
    memset(hr, 0, (size_t)(d * stride) * sizeof(real));
    for (idx r = 0; r < d; r++) {
        memcpy(hr + r * stride, (const real *)P->gram + (entry * d + r) * d,
               (size_t)d * sizeof(real));
        if (P->moment)
            memcpy(hr + r * stride + padded(d), (const real *)P->moment + (entry * d + r) * dv,
                   (size_t)dv * sizeof(real));
    }
}

/* H (+)= K^T K on and above the diagonal, in whole vectors. k: rows of stride padded(d). */
INLINE void add_gram(idx n, idx d, const real *k, real *h, idx stride, join how)
{
    for (idx r = 0; r < d; r += LANES)
        product_along_columns(min_idx(LANES, d - r), vectors(d) - r / LANES, n, k + r, padded(d),
                              k + r, padded(d), h + r * stride + r, stride, how, NULL);
}

INLINE void add_to_diagonal(idx d, real *h, idx stride, real alpha, real *diagonal)
{
    for (idx r = 0; r < d; r++) diagonal[r] = h[r * stride + r] += alpha;
}

/* A pivot below this share of its diagonal entry is not to be trusted: as many digits are lost in it as
 * the share has zeros. float64 takes over from float32 while that still has three; nothing takes over from
 * float64 here, so it goes on down to the rounding of a sum of d products. */
INLINE real pivot_noise(idx d)
{
#if defined(KVQ_F64)
    return 4 * root((real)d) * 2.220446049250313e-16;
#else
    (void)d;
    return 1e-4f;
#endif
}

/* both = N + N^T */
INLINE void add_transposed(idx d, const real *n, real *both)
{
    transpose(d, d, n, padded(d), both, padded(d), 1);
    for (idx r = 0; r < d; r++)
        for (idx c = 0; c < padded(d); c += LANES) {
            real *at = both + r * padded(d) + c;
            store(at, load(at) + load(n + r * padded(d) + c));
        }
}

/* ---- forward --------------------------------------------------------------------------------- */
typedef struct {
    real *hr;          /* (d, padded(d) + padded(dv)): [H | K^T V], then [U | W] */
    real *k, *v, *out; /* copies of ROWS rows */
    real *diagonal;
} fit_scratch;

INLINE idx fit_stride(const ridge_problem *P) { return padded(P->d) + padded(P->dv); }

static idx fit_factors(const ridge_problem *P) { return P->d * fit_stride(P); }

INLINE size_t fit_layout(const ridge_problem *P, void *base, fit_scratch *s)
{
    carver c = {(uintptr_t)base};
    s->hr = carve(&c, P->factors ? 0 : fit_factors(P));
    s->k = carve(&c, copied_rows(ROWS, P->d));
    s->v = carve(&c, copied_rows(ROWS, P->dv));
    s->out = carve(&c, copied_rows(ROWS, P->dv));
    s->diagonal = carve(&c, P->d);
    return c.next - (uintptr_t)base;
}

static size_t fit_workspace_bytes(const void *problem)
{
    fit_scratch unused;
    return fit_layout(problem, NULL, &unused);
}

static void fit_run(const void *problem, void *workspace, idx entry)
{
    const ridge_problem *P = problem;
    const idx d = P->d, dv = P->dv, stride = fit_stride(P);
    const real *q = (const real *)P->q + entry * P->Tq * d;
    const real *k = (const real *)P->k + entry * P->Tk * d;
    const real *v = (const real *)P->v + entry * P->Tk * dv;
    real *out = (real *)P->result + entry * P->Tq * dv;
    fit_scratch s;
    fit_layout(P, workspace, &s);
    real *h = P->factors ? (real *)P->factors + entry * fit_factors(P) : s.hr;
    real *w = h + padded(d);

    if (P->gram) load_state(P, entry, h, stride);
    for (idx j = 0; j < P->Tk; j += ROWS) {
        const idx n = min_idx(ROWS, P->Tk - j);
        const join how = j == 0 && !P->gram ? OVERWRITE : ADD;
        const real *kj = whole_vectors(n, d, k + j * d, s.k);
        const real *vj = whole_vectors(n, dv, v + j * dv, s.v);
        add_gram(n, d, kj, h, stride, how);
        product_along_columns(d, vectors(dv), n, kj, padded(d), vj, padded(dv), w, stride, how,
                              NULL);
    }
    add_to_diagonal(d, h, stride, (real)P->alpha[entry], s.diagonal);
    const idx rank = eliminate(d, stride / LANES, h, stride, s.diagonal, pivot_noise(d));
    P->served[entry] = rank == d ? P->Tq : 0;
    if (rank < d) return;
    substitute_up(d, h, stride, vectors(dv), w, stride);

    for (idx i = 0; i < P->Tq; i += ROWS) {
        const idx n = min_idx(ROWS, P->Tq - i);
        real *room = room_for_rows(dv, out + i * dv, s.out);
        product_along_rows(n, vectors(dv), d, q + i * d, d, w, stride, room, padded(dv), OVERWRITE);
        put_rows(n, dv, room, out + i * dv, 1);
        tell_of(P->not_finite, out + i * dv, n * dv);
    }
}

/* ---- backward -------------------------------------------------------------------------------- */
typedef struct {
    real *z;       /* (d, padded(dv))  dW, then Z */
    real *wt, *zt; /* (dv, padded(d)) */
    real *m;       /* (d, padded(d))   W Z^T + Z W^T */
    real *rows_d, *rows_dv; /* copies of ROWS rows */
} fit_backward_scratch;

INLINE size_t fit_backward_layout(const ridge_problem *P, void *base, fit_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv;
    carver c = {(uintptr_t)base};
    s->z = carve(&c, d * padded(dv));
    s->wt = carve(&c, dv * padded(d));
    s->zt = carve(&c, dv * padded(d));
    s->m = carve(&c, d * padded(d));
    s->rows_d = carve(&c, copied_rows(ROWS, d));
    s->rows_dv = carve(&c, copied_rows(ROWS, dv));
    return c.next - (uintptr_t)base;
}

static size_t fit_backward_workspace_bytes(const void *problem)
{
    fit_backward_scratch unused;
    return fit_backward_layout(problem, NULL, &unused);
}

INLINE double dot_rows(idx rows, idx columns, const real *a, idx a_stride, const real *b,
                       idx b_stride)
{
    double total = 0;
    for (idx r = 0; r < rows; r++)
        for (idx c = 0; c < columns; c++)
            total += (double)a[r * a_stride + c] * (double)b[r * b_stride + c];
    return total;
}

static void fit_backward_run(const void *problem, void *workspace, idx entry)
{
    const ridge_problem *P = problem;
    const idx d = P->d, dv = P->dv, stride = fit_stride(P);
    const real *q = (const real *)P->q + entry * P->Tq * d;
    const real *k = (const real *)P->k + entry * P->Tk * d;
    const real *v = (const real *)P->v + entry * P->Tk * dv;
    const real *dout = (const real *)P->dresult + entry * P->Tq * dv;
    const real *u = (const real *)P->factors + entry * fit_factors(P), *w = u + padded(d);
    real *dq = (real *)P->dq + entry * P->Tq * d;
    real *dk = (real *)P->dk + entry * P->Tk * d;
    real *dv_out = (real *)P->dv_out + entry * P->Tk * dv;
    fit_backward_scratch s;
    fit_backward_layout(P, workspace, &s);
    if (P->served[entry] < P->Tq) return; /* what a wider type served, it differentiates */

    transpose_padded(d, dv, w, stride, s.wt, padded(d), 1);
    for (idx i = 0; i < P->Tq; i += ROWS) {
        const idx n = min_idx(ROWS, P->Tq - i);
        const real *g = whole_vectors(n, dv, dout + i * dv, s.rows_dv);
        product_along_columns(d, vectors(dv), n, q + i * d, d, g, padded(dv), s.z, padded(dv),
                              i == 0 ? OVERWRITE : ADD, NULL);
        real *room = room_for_rows(d, dq + i * d, s.rows_d);
        product_along_rows(n, vectors(d), dv, g, padded(dv), s.wt, padded(d), room, padded(d),
                           OVERWRITE);
        put_rows(n, d, room, dq + i * d, 1);
        tell_of(P->not_finite, dq + i * d, n * d);
    }
    substitute_down(d, u, stride, vectors(dv), s.z, padded(dv));
    substitute_up(d, u, stride, vectors(dv), s.z, padded(dv));
    P->dalpha[entry] = -dot_rows(d, dv, s.z, padded(dv), w, stride);

    transpose_padded(d, dv, s.z, padded(dv), s.zt, padded(d), 1);
    product_along_rows(d, vectors(d), dv, w, stride, s.zt, padded(d), s.m, padded(d), OVERWRITE);
    product_along_rows(d, vectors(d), dv, s.z, padded(dv), s.wt, padded(d), s.m, padded(d), ADD);
    for (idx j = 0; j < P->Tk; j += ROWS) {
        const idx n = min_idx(ROWS, P->Tk - j);
        real *room = room_for_rows(dv, dv_out + j * dv, s.rows_dv);
        product_along_rows(n, vectors(dv), d, k + j * d, d, s.z, padded(dv), room, padded(dv),
                           OVERWRITE);
        put_rows(n, dv, room, dv_out + j * dv, 1);
        tell_of(P->not_finite, dv_out + j * dv, n * dv);
        room = room_for_rows(d, dk + j * d, s.rows_d);
        product_along_rows(n, vectors(d), dv, v + j * dv, dv, s.zt, padded(d), room, padded(d),
                           OVERWRITE);
        product_along_rows(n, vectors(d), d, k + j * d, d, s.m, padded(d), room, padded(d),
                           SUBTRACT);
        put_rows(n, d, room, dk + j * d, 1);
        tell_of(P->not_finite, dk + j * d, n * d);
    }
    if (P->dgram) {
        put_rows(d, d, s.m, (real *)P->dgram + entry * d * d, (real)-0.5);
        put_rows(d, dv, s.z, (real *)P->dmoment + entry * d * dv, 1);
    }
}

#endif
