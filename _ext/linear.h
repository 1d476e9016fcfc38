/* linear.h - what the kernels of linear attention and their caller agree on. */
#ifndef KVQ_LINEAR_H
#define KVQ_LINEAR_H

#include <stddef.h>

/* One problem, forward or backward. Arrays are C-contiguous and of one dtype:
 * q (batch, Tq, d), k (batch, Tk, d), v (batch, Tk, dv), out and dout (batch, Tq, dv), and the
 * states initial, seen, dstate and dinitial (batch, d, dv). NULL means absent: a zero state, or one
 * that nobody wants. */
typedef struct {
    int is_causal;
    double scale;
    ptrdiff_t batch, Tq, Tk, d, dv;
    const void *q, *k, *v, *initial;
    void *out;
    void *seen; /* not causal: scale (initial + K^T V), what every query sees; read by backward */
    /* backward only */
    const void *dout, *dstate; /* dstate: the gradient of initial + K^T V, the final state */
    void *dq, *dk, *dv_out, *dinitial;
} linear_problem;

/* What one (level, dtype) build of linear.c exports. */
typedef struct {
    /* Return 0, or -1 when scratch memory could not be had. */
    int (*forward)(const linear_problem *, int num_threads);
    int (*backward)(const linear_problem *, int num_threads);
    int (*all_finite)(const void *, size_t count);
} linear_table;

#endif
