/* norm.h - layer norm, row by row; a task is some rows, with sums of their own for the gradients of gain and shift. */
#ifndef KVQ_NORM_H
#define KVQ_NORM_H

#include <math.h>
#include <stdlib.h>

#include "layers.h"
#include "part.h"
#include "simd.h"
#include "threads.h"
#include "tile.h" /* min_idx() */

#define NORM_ROWS 64     /* of a task */
#define NORM_COST 16.0   /* what one number costs, in multiply-adds of a product */

INLINE void norm_row(const norm_problem *P, const real *x, real *stats, real *y)
{
    const idx n = P->n, whole = n - n % LANES;
    const real *gain = P->gain, *shift = P->shift;
    vec sums = {0};
    real sum = 0;
    for (idx i = 0; i < whole; i += LANES) sums += load(x + i);
    for (idx i = whole; i < n; i++) sum += x[i];
    const real mean = (sum_of_lanes(sums) + sum) / (real)n;

    sums = (vec){0}, sum = 0;
    for (idx i = 0; i < whole; i += LANES) sums += (load(x + i) - mean) * (load(x + i) - mean);
    for (idx i = whole; i < n; i++) sum += (x[i] - mean) * (x[i] - mean);
    const real variance = (sum_of_lanes(sums) + sum) / (real)n;
    const real inverse = 1 / (real)sqrt((double)(variance + (real)P->eps));

    for (idx i = 0; i < whole; i += LANES)
        store(y + i, load(gain + i) * ((load(x + i) - mean) * inverse) + load(shift + i));
    for (idx i = whole; i < n; i++) y[i] = gain[i] * ((x[i] - mean) * inverse) + shift[i];
    stats[0] = mean;
    stats[1] = inverse;
}

/* unit has mean 0 and variance 1 whatever x is: nothing of dx lies along (1, .., 1) or unit. */
INLINE void norm_row_backward(const norm_problem *P, const real *x, const real *stats, const real *dy, real *dx,
                              real *dgain, real *dshift)
{
    const idx n = P->n, whole = n - n % LANES;
    const real *gain = P->gain, mean = stats[0], inverse = stats[1];
    vec sums = {0}, products = {0};
    real sum = 0, product = 0;
    for (idx i = 0; i < whole; i += LANES) {
        const vec unit = (load(x + i) - mean) * inverse, d = load(dy + i), dunit = d * load(gain + i);
        sums += dunit;
        products += dunit * unit;
        store(dgain + i, load(dgain + i) + d * unit);
        store(dshift + i, load(dshift + i) + d);
    }
    for (idx i = whole; i < n; i++) {
        const real unit = (x[i] - mean) * inverse, dunit = dy[i] * gain[i];
        sum += dunit;
        product += dunit * unit;
        dgain[i] += dy[i] * unit;
        dshift[i] += dy[i];
    }
    const real level = (sum_of_lanes(sums) + sum) / (real)n, along = (sum_of_lanes(products) + product) / (real)n;
    for (idx i = 0; i < whole; i += LANES) {
        const vec unit = (load(x + i) - mean) * inverse, dunit = load(dy + i) * load(gain + i);
        store(dx + i, (dunit - level - unit * along) * inverse);
    }
    for (idx i = whole; i < n; i++) {
        const real unit = (x[i] - mean) * inverse;
        dx[i] = (dy[i] * gain[i] - level - unit * along) * inverse;
    }
}

/* ---- tasks ------------------------------------------------------------------------------------ */
typedef struct {
    const norm_problem *P;
    real *sums; /* (tasks, 2, n): of dgain and dshift */
} norm_job;

static idx norm_tasks(const void *job) { return (((const norm_job *)job)->P->rows + NORM_ROWS - 1) / NORM_ROWS; }

static size_t norm_workspace(const void *job)
{
    (void)job;
    return 0;
}

static void norm_forward_run(const void *job, void *workspace, idx task)
{
    (void)workspace;
    const norm_problem *P = ((const norm_job *)job)->P;
    const idx end = min_idx((task + 1) * NORM_ROWS, P->rows);
    for (idx r = task * NORM_ROWS; r < end; r++)
        norm_row(P, (const real *)P->x + r * P->n, (real *)P->stats + 2 * r, (real *)P->y + r * P->n);
}

static void norm_backward_run(const void *job, void *workspace, idx task)
{
    (void)workspace;
    const norm_job *j = job;
    const norm_problem *P = j->P;
    const idx end = min_idx((task + 1) * NORM_ROWS, P->rows);
    real *dgain = j->sums + 2 * task * P->n, *dshift = dgain + P->n;
    for (idx i = 0; i < 2 * P->n; i++) dgain[i] = 0;
    for (idx r = task * NORM_ROWS; r < end; r++)
        norm_row_backward(P, (const real *)P->x + r * P->n, (const real *)P->stats + 2 * r,
                          (const real *)P->dy + r * P->n, (real *)P->dx + r * P->n, dgain, dshift);
}

static double norm_work(const norm_problem *P) { return NORM_COST * (double)P->rows * (double)P->n; }

static int norm_forward(const norm_problem *P, int num_threads)
{
    static const kvq_pass pass = {norm_tasks, norm_workspace, norm_forward_run};
    const norm_job job = {P, NULL};
    return kvq_run(&pass, &job, norm_work(P), num_threads);
}

static int norm_backward(const norm_problem *P, int num_threads)
{
    static const kvq_pass pass = {norm_tasks, norm_workspace, norm_backward_run};
    norm_job job = {P, NULL};
    const idx n = P->n, tasks = norm_tasks(&job);
    real *dgain = P->dgain, *dshift = P->dshift;
    job.sums = malloc((size_t)(2 * tasks * n) * sizeof(real) + 1);
    if (!job.sums) return -1;
    const int failed = kvq_run(&pass, &job, 2 * norm_work(P), num_threads);
    for (idx i = 0; i < n; i++) dgain[i] = dshift[i] = 0;
    for (idx task = 0; task < tasks && !failed; task++)
        for (idx i = 0; i < n; i++) {
            dgain[i] += job.sums[2 * task * n + i];
            dshift[i] += job.sums[(2 * task + 1) * n + i];
        }
    free(job.sums);
    return failed;
}

#endif
