/* ridge.h - what the least-squares kernels and their caller agree on.
 *
 * Arrays are C-contiguous and of one dtype: q and q_star (batch, Tq, d), k (batch, Tk, d),
 * v (batch, Tk, dv), out and dout (batch, Tq, dv), gram (batch, d, d). alpha > 0, one for each batch
 * entry. All values must be finite. */
#ifndef KVQ_RIDGE_H
#define KVQ_RIDGE_H

#include <stddef.h>

typedef struct {
    int is_causal;
    ptrdiff_t batch, Tq, Tk, d, dv;
    const void *q, *k, *v;
    const double *alpha;
    const void *gram;   /* added to every K^T K: what a state brings along; NULL for none */
    const void *moment; /* fit only: (batch, d, dv), added to every K^T V; NULL if gram is */
    void *result;     /* out, or q_star; read by backward */
    void *factors;    /* (batch, factors(...)) numbers that backward needs; NULL if there is none to come */
    ptrdiff_t *served; /* (batch): queries whose regression was regular to working precision.
                          Those from there on are left unset: a wider type must serve them. */
    int *not_finite; /* fit only: set to 1 where out (backward: dq, dk, dv) holds NaN or infinity; NULL: nobody asks */
    /* backward only */
    const void *dresult;
    void *dq, *dk, *dv_out;
    double *dalpha; /* (batch) */
    void *dgram;    /* (batch, d, d), or NULL */
    void *dmoment;  /* (batch, d, dv), or NULL */
} ridge_problem;

/* What one (level, dtype) build of ridge.c exports. All but factors return 0, or -1 when scratch
 * memory could not be had. */
typedef struct {
    /* out = q (K^T K + alpha I)^-1 K^T V; causal: with the keys that each query sees */
    int (*fit)(const ridge_problem *, int num_threads);
    int (*fit_backward)(const ridge_problem *, int num_threads);
    /* q*_i = (gram + sum_{i sees j} k_j k_j^T + alpha I)^-1 q_i */
    int (*precondition)(const ridge_problem *, int num_threads);
    int (*precondition_backward)(const ridge_problem *, int num_threads);
    /* Numbers for each batch entry in `factors`. */
    ptrdiff_t (*fit_factors)(const ridge_problem *);
    ptrdiff_t (*precondition_factors)(const ridge_problem *);
} ridge_table;

#endif
