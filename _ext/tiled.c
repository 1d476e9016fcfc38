/* tiled.c - the fused attention kernels of one SIMD level and dtype.
 *
 * Compiled once per pair; what it exports is one table. Read the parts in this order: simd.h
 * (vectors, exp2), product.h (the micro-kernel), tile.h (how work is cut), score.h (softmax,
 * expressive), forward.h, backward.h, small.h, small_backward.h, tiny.h. levels.c chooses a table, threads.c
 * spreads the tasks.
 */
#include <stdlib.h>

#include "backward.h"
#include "small_backward.h"
#include "threads.h"
#include "tiny.h"

/* ---- the two passes -------------------------------------------------------------------------- */
static double pairs(const tiled_problem *P)
{
    return (double)P->batch * (double)P->Tq * (double)P->Tk * (P->is_causal ? 0.5 : 1);
}

static int forward(const tiled_problem *P, int num_threads)
{
    static const kvq_pass tiled = {forward_tasks, forward_workspace_bytes, forward_run};
    static const kvq_pass small = {forward_tasks, small_forward_workspace_bytes, small_forward_run};
    static const kvq_pass tiny = {tiny_tasks, tiny_workspace_bytes, tiny_forward_run};
    /* an exponential costs about as much as 16 multiply-adds */
    const double work = pairs(P) * (double)(P->d + P->dv + 16);
    return kvq_run(is_tiny(P) ? &tiny : is_small(P) ? &small : &tiled, P, work, num_threads);
}

static int backward(tiled_problem *P, int num_threads)
{
    static const kvq_pass tiled = {backward_tasks, backward_workspace_bytes, backward_run};
    static const kvq_pass small = {small_backward_tasks, small_backward_workspace_bytes, small_backward_run};
    const double work = pairs(P) * (double)(3 * P->d + 2 * P->dv + 16);
    if (is_small(P)) return kvq_run(&small, P, work, num_threads);
    P->splits = key_splits(P);
    const idx partials = P->splits - 1;
    P->dq_partials = NULL;
    if (partials > 0) {
        const size_t numbers = (size_t)(P->batch * partials * P->Tq * P->d);
        P->dq_partials = malloc(numbers * sizeof(real) + 1);
        if (!P->dq_partials) return -1;
    }
    const int failed = kvq_run(&tiled, P, work, num_threads);
    if (!failed && partials > 0) sum_dq_partials(P);
    free(P->dq_partials);
    return failed;
}

static size_t kept_numbers(const tiled_problem *P)
{
    return (size_t)(P->batch * (is_small(P) ? small_numbers(P) : STATISTICS * P->Tq));
}

extern const tiled_table KVQ_TABLE(tiled);
const tiled_table KVQ_TABLE(tiled) = {forward, backward, kept_numbers, is_small, all_finite};
