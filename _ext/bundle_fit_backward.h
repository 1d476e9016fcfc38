/* bundle_fit_backward.h - the gradients of bundle_fit.h: causal_fit_backward.h for a head in each lane.
 *
 * Residuals and weights stay in the coordinates of the elimination, z_t = C_t^-1 S_t and x_t = C_t^-1 Y_t with
 * S[s][t] = F_s . dout_t, and C^-1 is left to the sums that become gradients:
 *
 *     y_t = U^-1 (Q'_t - sum_{s <= t} Y[s][t] G_s)           dq_t = u_t = U^-1 (Z dout_t + sum_{s <= t} S[s][t] G_s)
 *     dk  = C^-1 [sum_{t >= s} S[s][t] y_t - Y[s][t] u_t]_s       dv = C^-1 [sum_{t >= s} Y[s][t] dout_t]_s
 *
 * and what later chunks add, N and A, as in causal_fit_backward.h. A head that the bundle has not served to its end
 * is left to that file.
 */
#ifndef KVQ_BUNDLE_FIT_BACKWARD_H
#define KVQ_BUNDLE_FIT_BACKWARD_H

#include "bundle_fit.h"
#include "causal_fit_backward.h"

typedef struct {
    grid n, both; /* (d, d)    N = sum u_t y_t^T of later tokens, and N + N^T */
    grid a;       /* (d, dv)   A = sum y_t dout_t^T */
    grid yt, ut;  /* (d, n)    side by side */
    grid s;       /* (n, n) */
    grid g;       /* (n, dv)   dout */
    grid dk, dv;  /* (n, d), (n, dv)  side by side */
    grid k, v;    /* (n, d), (n, dv) */
} bundle_backward_scratch;

INLINE size_t bundle_backward_layout(const ridge_problem *P, void *base, bundle_backward_scratch *s)
{
    const idx n = tiles(first_of_bundle(P)), d = tiles(P->d), dv = tiles(P->dv);
    carver c = {(uintptr_t)base};
    s->n = carve_grid(&c, d, d);
    s->both = carve_grid(&c, d, d);
    s->a = carve_grid(&c, d, dv);
    s->yt = carve_grid(&c, d, 2 * n);
    s->s = carve_grid(&c, n, n);
    s->g = carve_grid(&c, n, dv);
    s->dk = carve_grid(&c, n, d + dv);
    s->k = carve_grid(&c, n, d);
    s->v = carve_grid(&c, n, dv);
    s->ut = s->dv = (grid){NULL, 0, 0}; /* as many columns on as the chunk has tokens; d on */
    return c.next - (uintptr_t)base;
}

static size_t bundle_backward_workspace_bytes(const void *problem)
{
    bundle_backward_scratch unused;
    return (size_t)max_idx((idx)bundle_backward_layout(problem, NULL, &unused),
                           (idx)causal_backward_workspace_bytes(problem));
}

/* One chunk; the trace of u_t y_t^T is added up. */
static void bundle_chunk_backward(const ridge_problem *P, idx chunk, idx head, idx heads, vec alpha,
                                  const bundle_factors *f, bundle_backward_scratch *s, vec *trace)
{
    const idx n = f->n, d = f->d, dv = f->dv, d_heads = P->Tq * P->d, dv_heads = P->Tq * P->dv;
    const idx t = bundle_chunk_start(P, chunk), tokens = bundle_chunk_tokens(P, chunk);
    const idx here_d = head * d_heads + t * P->d, here_dv = head * dv_heads + t * P->dv;
    const rows_of_heads of_d = {heads, d_heads, tokens, P->d}, of_dv = {heads, dv_heads, tokens, P->dv};
    const int has_past = chunk > 0, has_later = chunk + 1 < bundle_chunks(P);
    s->ut = from(s->yt, 0, n);
    s->dv = from(s->dk, 0, d);
    into_lanes(of_dv, (const real *)P->dresult + here_dv, splat(1), s->g);

    product_in_lanes(UPPER, n, n, dv, f->f, turned(s->g), s->s, OVERWRITE);
    product_onto(BEFORE, n, d, n, turned(f->y), f->g, turned(f->qt), SUBTRACT, turned(s->yt));
    if (has_past) product_in_lanes(ALL, n, d, dv, s->g, turned(f->z), turned(s->ut), OVERWRITE);
    product_in_lanes(BEFORE, n, d, n, turned(s->s), f->g, turned(s->ut), has_past ? ADD : OVERWRITE);
    if (has_past) substitute_up_in_lanes(d, 2 * n, f->u, s->yt);
    else copy_in_lanes(d, 2 * n, s->yt, inverse_roots(alpha), s->yt);
    out_of_lanes(of_d, turned(s->ut), (real *)P->dq + here_d);

    product_in_lanes(AFTER, n, d, n, s->s, turned(s->yt), s->dk, OVERWRITE);
    product_in_lanes(AFTER, n, d, n, f->y, turned(s->ut), s->dk, SUBTRACT);
    product_in_lanes(AFTER, n, dv, n, f->y, s->g, s->dv, OVERWRITE);
    substitute_up_in_lanes(n, d + dv, f->c, s->dk);
    if (has_later) {
        into_lanes(of_d, (const real *)P->k + here_d, splat(1), s->k);
        into_lanes(of_dv, (const real *)P->v + here_dv, splat(1), s->v);
        product_in_lanes(ALL, n, d, dv, s->v, turned(s->a), s->dk, ADD);
        product_in_lanes(ALL, n, d, d, s->k, s->both, s->dk, SUBTRACT);
        product_in_lanes(ALL, n, dv, d, s->k, s->a, s->dv, ADD);
    }
    out_of_lanes(of_d, s->dk, (real *)P->dk + here_d);
    out_of_lanes(of_dv, s->dv, (real *)P->dv_out + here_dv);

    if (has_past) {
        product_in_lanes(ALL, d, d, n, s->ut, turned(s->yt), s->n, has_later ? ADD : OVERWRITE);
        product_in_lanes(ALL, d, dv, n, s->yt, s->g, s->a, has_later ? ADD : OVERWRITE);
        for (idx r = 0; r < d; r++)
            for (idx c = 0; c < d; c++) store(at(s->both, r, c), load(at(s->n, r, c)) + load(at(s->n, c, r)));
    }
    for (idx r = 0; r < d; r++) {
        vec sum[SIDE] = {{0}};
        for (idx c = 0; c < n; c += SIDE)
            UNROLL for (int i = 0; i < SIDE; i++) sum[i] += load(at(s->ut, r, c + i)) * load(at(s->yt, r, c + i));
        *trace += (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
}

static void bundle_backward_run(const void *problem, void *workspace, idx bundle)
{
    const ridge_problem *P = problem;
    const idx head = first_head(P, bundle), heads = first_head(P, bundle + 1) - head;
    bundle_backward_scratch s;
    bundle_backward_layout(P, workspace, &s);
    const vec alpha = alpha_of_heads(P, head, heads);
    vec trace = {0};
    real *factors = factors_of_bundle(P, bundle);
    const vec served = load(factors + bundle_factors_count(P) - LANES);
    const int none = largest_of_lanes(served) < (real)P->Tq;
    for (idx chunk = bundle_chunks(P) - 1; chunk >= 0 && !none; chunk--) {
        const bundle_factors f = bundle_factors_at(P, factors + bundle_numbers_before(P, chunk) * LANES, chunk);
        bundle_chunk_backward(P, chunk, head, heads, alpha, &f, &s, &trace);
    }
    for (idx h = head; h < head + heads; h++)
        if (served[h - head] == (real)P->Tq) {
            P->dalpha[h] = -(double)trace[h - head];
            tell_of(P->not_finite, (const real *)P->dq + h * P->Tq * P->d, P->Tq * P->d);
            tell_of(P->not_finite, (const real *)P->dk + h * P->Tq * P->d, P->Tq * P->d);
            tell_of(P->not_finite, (const real *)P->dv_out + h * P->Tq * P->dv, P->Tq * P->dv);
        } else causal_backward_run(P, workspace, h);
}

#endif
