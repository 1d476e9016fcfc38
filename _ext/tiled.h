/* tiled.h - what the kernels and their caller agree on. Plain C, no SIMD: compiled once. */
#ifndef KVQ_TILED_H
#define KVQ_TILED_H

#include <stddef.h>
#include <stdint.h>

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
    void *out;   /* read by backward */
    void *stats; /* (batch, Tq, KVQ_STATS): largest exponent in units of log2, and N. May be NULL */
    /* backward only */
    const void *dout;
    void *dq, *dk, *dv_out;
    void *dbias;       /* (batch, Tq, Tk), or NULL */
    void *dq_partials; /* set by kvq_backward: see there */
} kvq_problem;

enum { KVQ_SOFTMAX = 0, KVQ_EXPRESSIVE = 1 };
enum { KVQ_STATS = 2 };
enum { KVQ_F32_INDEX = 0, KVQ_F64_INDEX = 1 };

/* A pass is a number of independent tasks. Which thread runs a task never changes its result. */
typedef struct {
    ptrdiff_t (*tasks)(const kvq_problem *);
    size_t (*workspace_bytes)(const kvq_problem *); /* scratch of one thread */
    void (*run)(const kvq_problem *, void *workspace, ptrdiff_t task);
} kvq_pass;

/* What one (level, dtype) build of tiled.c exports. */
typedef struct {
    kvq_pass forward, backward;
    ptrdiff_t (*key_splits)(const kvq_problem *); /* backward tasks per batch entry */
    void (*sum_dq_partials)(const kvq_problem *);
    int (*all_finite)(const void *, size_t count);
    size_t real_bytes;
} kvq_kernels;

/* ---- run.c ----------------------------------------------------------------------------------- */

/* The levels in this build that this CPU can run, best first: index 0, 1, ... until NULL. */
const char *kvq_level(int index);
/* The kernels of a level by name, NULL if unknown or unusable here. dtype: KVQ_F32_INDEX... */
const kvq_kernels *kvq_find(const char *level, int dtype);

/* Return 0, or -1 when scratch memory could not be had. */
int kvq_forward(const kvq_kernels *, const kvq_problem *, int num_threads);
int kvq_backward(const kvq_kernels *, kvq_problem *, int num_threads);

/* ---- assertions ------------------------------------------------------------------------------ */
/* -Dbounds_check=true turns these on. They guard index arithmetic and cost a few percent. */
#ifdef KVQ_BOUNDS_CHECK
#include <stdio.h>
#include <stdlib.h>
#define KVQ_ASSERT(condition)                                                                  \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);            \
            abort();                                                                           \
        }                                                                                      \
    } while (0)
#else
#define KVQ_ASSERT(condition) ((void)0)
#endif

#endif
