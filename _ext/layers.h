/* layers.h - what the kernels of the layers around attention and their caller agree on.
 *
 * All arrays are C-contiguous and of one dtype; leading axes are one axis, "rows". NULL means absent. Functions that
 * may use threads return 0, or -1 when scratch memory could not be had. */
#ifndef KVQ_LAYERS_H
#define KVQ_LAYERS_H

#include <stddef.h>
#include <stdint.h>

enum { KVQ_IDENTITY = 0, KVQ_RELU = 1, KVQ_GELU = 2 };

/* y = f(x W + b). Forward also writes the slope f'(x W + b). If x has itself been through an activation, x = f(before),
 * backward gives dbefore = dx * slope in the place of dx. */
typedef struct {
    int activation;
    ptrdiff_t rows, n, m;
    const void *x, *weight, *bias; /* (rows, n), (n, m), (m) */
    void *slope; /* forward (rows, m), backward (rows, n); NULL for the identity */
    void *y;                       /* (rows, m) */
    const void *dy;
    void *dx, *dweight, *dbias;
} affine_problem;

/* y = gain (x - mean) inverse + shift, with inverse = 1 / sqrt(variance + eps), row by row. */
typedef struct {
    double eps;
    ptrdiff_t rows, n;
    const void *x, *gain, *shift; /* (rows, n), (n), (n) */
    void *stats;                  /* (rows, 2): mean and inverse; read by backward */
    void *y;
    const void *dy;
    void *dx, *dgain, *dshift;
} norm_problem;

/* A packed (batch, T, parts, heads, d) and its parts, each (batch, heads, T, d). */
enum { KVQ_MOST_PARTS = 3 };
typedef struct {
    int is_merge; /* from the parts to the packed array, or the other way */
    ptrdiff_t batch, T, parts, heads, d;
    void *packed;
    void *part[KVQ_MOST_PARTS];
} heads_problem;

/* A step of an optimiser; the names are those of optimizers.py. momentum, mean and square hold its state. */
typedef struct {
    ptrdiff_t count;
    void *x;
    const void *g;
    double rate, keep; /* x becomes keep x - rate direction */
    /* SGD */
    double weight_decay, momentum;
    void *velocity; /* NULL without momentum */
    /* AdamW */
    double beta1, beta2, eps, unbias; /* the root of the mean square is multiplied by unbias */
    void *mean, *square;
} step_problem;

/* What one (level, dtype) build of layers.c exports. */
typedef struct {
    int (*affine_forward)(const affine_problem *, int num_threads);
    int (*affine_backward)(const affine_problem *, int num_threads);
    int (*norm_forward)(const norm_problem *, int num_threads);
    int (*norm_backward)(const norm_problem *, int num_threads);
    int (*move_heads)(const heads_problem *, int num_threads);
    int (*sgd)(const step_problem *, int num_threads);
    int (*adamw)(const step_problem *, int num_threads);
    /* y = f(x); dx = dy f'(x) */
    void (*activate)(int activation, ptrdiff_t count, const void *x, void *y);
    void (*activate_backward)(int activation, ptrdiff_t count, const void *dy, const void *x, void *dx);
    /* The mean of -log softmax(z)[target] over the rows that count (all if counts is NULL), and its gradient. */
    double (*cross_entropy)(ptrdiff_t rows, ptrdiff_t n, const void *z, const int64_t *targets, const uint8_t *counts,
                            void *dz);
    /* Rotary positions: x and y (batch, T, 2 half), cos and sin (T, half). */
    void (*turn)(ptrdiff_t batch, ptrdiff_t T, ptrdiff_t half, const void *x, const void *cos, const void *sin,
                 void *y);
    /* dtable (words, n) = the sums of the rows of dy that have the same token. */
    void (*scatter)(ptrdiff_t rows, ptrdiff_t n, ptrdiff_t words, const int64_t *tokens, const void *dy, void *dtable);
} layers_table;

#endif
