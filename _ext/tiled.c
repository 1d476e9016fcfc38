/* tiled.c - the fused attention kernels of one SIMD level and dtype.
 *
 * Compiled once per pair; what it exports is one table. Read the parts in this order: simd.h
 * (vectors, exp2), product.h (the micro-kernel), tile.h (how work is cut), score.h (softmax,
 * expressive), forward.h, backward.h. levels.c chooses a table, threads.c spreads the tasks.
 */
#include <stdlib.h>

#include "backward.h"
#include "finite.h"
#include "forward.h"
#include "threads.h"

/* ---- the two passes -------------------------------------------------------------------------- */
static double pairs(const tiled_problem *P)
{
    return (double)P->batch * (double)P->Tq * (double)P->Tk * (P->is_causal ? 0.5 : 1);
}

static int forward(const tiled_problem *P, int num_threads)
{
    static const kvq_pass pass = {forward_tasks, forward_workspace_bytes, forward_run};
    /* an exponential costs about as much as 16 multiply-adds */
    return kvq_run(&pass, P, pairs(P) * (double)(P->d + P->dv + 16), num_threads);
}

static int backward(tiled_problem *P, int num_threads)
{
    static const kvq_pass pass = {backward_tasks, backward_workspace_bytes, backward_run};
    P->splits = key_splits(P);
    const idx partials = P->splits - 1;
    P->dq_partials = NULL;
    if (partials > 0) {
        const size_t numbers = (size_t)(P->batch * partials * P->Tq * P->d);
        P->dq_partials = malloc(numbers * sizeof(real) + 1);
        if (!P->dq_partials) return -1;
    }
    const int failed =
        kvq_run(&pass, P, pairs(P) * (double)(3 * P->d + 2 * P->dv + 16), num_threads);
    if (!failed && partials > 0) sum_dq_partials(P);
    free(P->dq_partials);
    return failed;
}

extern const tiled_table KVQ_TABLE(tiled);
const tiled_table KVQ_TABLE(tiled) = {forward, backward, all_finite};
