/* causal_fit_gradients.h - what causal_fit_backward.h and recursive_fit_backward.h share: scratch memory, and the sums
 * over the tokens that see a key. */
#ifndef KVQ_CAUSAL_FIT_GRADIENTS_H
#define KVQ_CAUSAL_FIT_GRADIENTS_H

#include "causal_fit.h"

typedef struct {
    real *n, *both; /* (d, padded(d))   N, and N + N^T */
    real *a, *at;   /* (d, padded(dv)), (dv, padded(d))   A and A^T */
    real *hr, *uz;  /* [H | R] and [U | Z] */
    real *pyu;      /* (d, 3 w)   P^T, y^T and u^T: tokens in the lanes */
    real *gt;       /* (dv, w) dout^T */
    real *x, *z;    /* (ROWS, w) */
    real *z_chunk;  /* (ROWS, w)  z of those served by chunk, where some are not */
    real *y;        /* (ROWS, padded(d))  rows of y */
    real *k, *v, *g; /* copies of ROWS rows; g: of dout */
    real *u, *dk, *dv; /* ROWS rows that do not fit their place: dq = u, dk, dv */
    real *diagonal;
} causal_backward_scratch;

INLINE size_t causal_backward_layout(const ridge_problem *P, void *base, causal_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv, dp = padded(d), dvp = padded(dv), w = lanes(P);
    carver c = {(uintptr_t)base};
    s->n = carve(&c, d * dp);
    s->both = carve(&c, d * dp);
    s->a = carve(&c, d * dvp);
    s->at = carve(&c, dv * dp);
    s->hr = carve(&c, d * fit_stride(P));
    s->uz = carve(&c, d * fit_stride(P));
    s->pyu = carve(&c, d * 3 * w);
    s->gt = carve(&c, dv * w);
    s->x = carve(&c, ROWS * w);
    s->z = carve(&c, ROWS * w);
    s->z_chunk = carve(&c, ROWS * w);
    s->y = carve(&c, ROWS * dp);
    s->k = carve(&c, copied_rows(ROWS, d));
    s->v = carve(&c, copied_rows(ROWS, dv));
    s->g = carve(&c, copied_rows(ROWS, dv));
    s->u = carve(&c, copied_rows(ROWS, d));
    s->dk = carve(&c, copied_rows(ROWS, d));
    s->dv = carve(&c, copied_rows(ROWS, dv));
    s->diagonal = carve(&c, d > ROWS ? d : ROWS);
    return c.next - (uintptr_t)base;
}

static size_t causal_backward_workspace_bytes(const void *problem)
{
    causal_backward_scratch unused;
    return causal_backward_layout(problem, NULL, &unused);
}

/* What queries that see all of n keys give to rows of dk and dv. */
INLINE void gradients_from_later(const ridge_problem *P, join how, idx n, const real *k, const real *v, real *dk,
                                 real *dv_out, const causal_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv, dp = padded(d), dvp = padded(dv);
    product_along_rows(n, vectors(d), dv, v, dv, s->at, dp, dk, dp, how);
    product_along_rows(n, vectors(d), d, k, d, s->both, dp, dk, dp, SUBTRACT);
    product_along_rows(n, vectors(dv), d, k, d, s->a, dvp, dv_out, dvp, how);
}

/* What n tokens of a chunk give to rows of dk and dv of that chunk. */
INLINE void gradients_from_chunk(const ridge_problem *P, join how, idx n, const real *x, idx x_stride, const real *z,
                                 idx z_stride, const real *y, idx y_stride, const real *u, const real *rows_g, real *dk,
                                 real *dv_out)
{
    const idx d = P->d, dv = P->dv, dp = padded(d), dvp = padded(dv);
    for (idx r = 0; r < n; r += LANES) { /* tokens before r do not see these keys */
        const idx keys = min_idx(LANES, n - r);
        const real *xr = x + r * x_stride + r, *zr = z + r * z_stride + r;
        product_along_rows(keys, vectors(d), n - r, zr, z_stride, y + r * y_stride, y_stride, dk + r * dp, dp, how);
        product_along_rows(keys, vectors(d), n - r, xr, x_stride, u + r * dp, dp, dk + r * dp, dp, SUBTRACT);
        product_along_rows(keys, vectors(dv), n - r, xr, x_stride, rows_g + r * dvp, dvp, dv_out + r * dvp, dvp, how);
    }
}

/* N += sum u_t y_t^T and A += sum y_t dout_t^T, and what is made of them. */
static void add_tokens(const ridge_problem *P, idx n, const real *y, idx y_stride, const real *u, const real *rows_g,
                       const causal_backward_scratch *s)
{
    const idx d = P->d, dv = P->dv, dp = padded(d), dvp = padded(dv);
    product_along_columns(d, vectors(d), n, u, dp, y, y_stride, s->n, dp, ADD, NULL);
    product_along_columns(d, vectors(dv), n, y, y_stride, rows_g, dvp, s->a, dvp, ADD, NULL);
    add_transposed(d, s->n, s->both);
    transpose_padded(d, dv, s->a, dvp, s->at, dp, 1);
}

/* a . b, of whole vectors. */
INLINE real dot(idx n, const real *a, const real *b)
{
    vec sum[2] = {{0}, {0}};
    for (idx i = 0; i < n; i += LANES) sum[i / LANES % 2] += load(a + i) * load(b + i);
    return sum_of_lanes(sum[0] + sum[1]);
}

#endif
