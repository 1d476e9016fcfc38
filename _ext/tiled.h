/* tiled.h - what the tiled kernels and their caller agree on. */
#ifndef KVQ_TILED_H
#define KVQ_TILED_H

#include <stddef.h>

/* One attention problem, forward or backward. Arrays are C-contiguous and of one dtype:
 * q (batch, Tq, d), k (batch, Tk, d), v (batch, Tk, dv), out and dout (batch, Tq, dv).
 * mask (bytes, nonzero = visible) and bias have shape (batch, Tq, Tk) and any strides, in bytes;
 * a broadcast axis has stride 0. NULL means absent. */
typedef struct {
    int score; /* KVQ_SOFTMAX or KVQ_EXPRESSIVE */
    int is_causal;
    double scale;
    ptrdiff_t batch, Tq, Tk, d, dv;
    const void *q, *k, *v;
    const char *mask, *bias;
    ptrdiff_t mask_strides[3], bias_strides[3];
    void *out;       /* read by backward, but after a small forward */
    void *kept;      /* what forward keeps for backward: kept_numbers of them. NULL in a forward that is all */
    int *not_finite; /* set to 1 where q, k, v (backward: dout) hold NaN or infinity; NULL: they do not */
    /* backward only */
    const void *dout;
    void *dq, *dk, *dv_out;
    void *dbias;       /* (batch, Tq, Tk), or NULL */
    ptrdiff_t splits;  /* parts of a batch entry, and dq of all but the first: set by backward in tiled.c */
    void *dq_partials;
} tiled_problem;

enum { KVQ_SOFTMAX = 0, KVQ_EXPRESSIVE = 1 };

/* What one (level, dtype) build of tiled.c exports. */
typedef struct {
    /* Return 0, or -1 when scratch memory could not be had. */
    int (*forward)(const tiled_problem *, int num_threads);
    int (*backward)(tiled_problem *, int num_threads);
    size_t (*kept_numbers)(const tiled_problem *);
    int (*is_small)(const tiled_problem *); /* then what makes the weights is kept, and backward does not read out */
    int (*all_finite)(const void *, size_t count);
} tiled_table;

#endif
