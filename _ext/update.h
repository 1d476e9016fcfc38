/* update.h - a step of an optimiser over the flat array of parameters, in one go: each number is read once.
 *
 * Plain loops; the compiler makes vectors of them. */
#ifndef KVQ_UPDATE_H
#define KVQ_UPDATE_H

#include <math.h>

#include "layers.h"
#include "simd.h"
#include "threads.h"
#include "tile.h" /* min_idx() */

#define STEP_NUMBERS 8192 /* of a task */
#define STEP_COST 16.0    /* what one number costs, in multiply-adds of a product */

#if defined(KVQ_F64)
#define REAL_SQRT sqrt
#else
#define REAL_SQRT sqrtf
#endif

static idx step_tasks(const void *problem)
{
    return (((const step_problem *)problem)->count + STEP_NUMBERS - 1) / STEP_NUMBERS;
}

static size_t step_workspace(const void *problem)
{
    (void)problem;
    return 0;
}

static void sgd_run(const void *problem, void *workspace, idx task)
{
    (void)workspace;
    const step_problem *P = problem;
    const idx first = task * STEP_NUMBERS, n = min_idx(STEP_NUMBERS, P->count - first);
    const real rate = (real)P->rate, decay = (real)P->weight_decay, momentum = (real)P->momentum;
    const int decays = decay != 0; /* 0 times infinity is NaN */
    real *restrict x = (real *)P->x + first;
    const real *restrict g = (const real *)P->g + first;
    if (!P->velocity) {
        for (idx i = 0; i < n; i++) x[i] -= rate * (decays ? g[i] + decay * x[i] : g[i]);
        return;
    }
    real *restrict velocity = (real *)P->velocity + first;
    for (idx i = 0; i < n; i++) {
        velocity[i] = momentum * velocity[i] + (decays ? g[i] + decay * x[i] : g[i]);
        x[i] -= rate * velocity[i];
    }
}

static void adamw_run(const void *problem, void *workspace, idx task)
{
    (void)workspace;
    const step_problem *P = problem;
    const idx first = task * STEP_NUMBERS, n = min_idx(STEP_NUMBERS, P->count - first);
    const real rate = (real)P->rate, keep = (real)P->keep, eps = (real)P->eps, unbias = (real)P->unbias;
    const real new1 = (real)(1 - P->beta1), new2 = (real)(1 - P->beta2);
    real *restrict x = (real *)P->x + first;
    const real *restrict g = (const real *)P->g + first;
    real *restrict mean = (real *)P->mean + first, *restrict square = (real *)P->square + first;
    for (idx i = 0; i < n; i++) {
        mean[i] += new1 * (g[i] - mean[i]);
        square[i] += new2 * (g[i] * g[i] - square[i]);
        x[i] = keep * x[i] - rate * (mean[i] / (REAL_SQRT(square[i]) * unbias + eps));
    }
}

static int sgd(const step_problem *P, int num_threads)
{
    static const kvq_pass pass = {step_tasks, step_workspace, sgd_run};
    return kvq_run(&pass, P, STEP_COST * (double)P->count, num_threads);
}

static int adamw(const step_problem *P, int num_threads)
{
    static const kvq_pass pass = {step_tasks, step_workspace, adamw_run};
    return kvq_run(&pass, P, STEP_COST * (double)P->count, num_threads);
}

#endif
