/* heads.h - copies between packed features and heads, rotary positions, and the sums that undo looking up rows of a
 * table. */
#ifndef KVQ_HEADS_H
#define KVQ_HEADS_H

#include "layers.h"
#include "part.h"
#include "simd.h"
#include "threads.h"

#define COPY_COST 16.0 /* what one number costs, in multiply-adds of a product */

INLINE void copy_numbers(real *restrict to, const real *restrict from, idx n)
{
    idx i = 0;
    for (; i + LANES <= n; i += LANES) store(to + i, load(from + i));
    for (; i < n; i++) to[i] = from[i];
}

static idx heads_tasks(const void *problem) { return ((const heads_problem *)problem)->batch; }

static size_t heads_workspace(const void *problem)
{
    (void)problem;
    return 0;
}

static void heads_run(const void *problem, void *workspace, idx batch)
{
    (void)workspace;
    const heads_problem *P = problem;
    const idx d = P->d, width = P->heads * d;
    for (idx p = 0; p < P->parts; p++)
        for (idx h = 0; h < P->heads; h++) {
            real *part = (real *)P->part[p] + (batch * P->heads + h) * P->T * d;
            real *packed = (real *)P->packed + (batch * P->T * P->parts + p) * width + h * d;
            for (idx t = 0; t < P->T; t++, part += d, packed += P->parts * width)
                if (P->is_merge) copy_numbers(packed, part, d);
                else copy_numbers(part, packed, d);
        }
}

static int move_heads(const heads_problem *P, int num_threads)
{
    static const kvq_pass pass = {heads_tasks, heads_workspace, heads_run};
    const double numbers = (double)P->batch * (double)P->T * (double)(P->parts * P->heads * P->d);
    return kvq_run(&pass, P, COPY_COST * numbers, num_threads);
}

/* (left, right) turned by the angles of its row t of T: left cos - right sin, right cos + left sin. */
static void turn(idx batch, idx T, idx half, const void *from, const void *cosines, const void *sines, void *to)
{
    const real *x = from;
    real *y = to;
    for (idx b = 0; b < batch; b++)
        for (idx t = 0; t < T; t++, x += 2 * half, y += 2 * half) {
            const real *c = (const real *)cosines + t * half, *s = (const real *)sines + t * half;
            for (idx i = 0; i < half; i += LANES) {
                const idx n = half - i;
                const vec left = load_part(x + i, n, 0), right = load_part(x + half + i, n, 0);
                const vec cos = load_part(c + i, n, 0), sin = load_part(s + i, n, 0);
                store_part(y + i, left * cos - right * sin, n);
                store_part(y + half + i, right * cos + left * sin, n);
            }
        }
}

static void scatter(idx rows, idx n, idx words, const int64_t *tokens, const void *gradient, void *sums)
{
    const real *dy = gradient;
    real *dtable = sums;
    memset(dtable, 0, (size_t)(words * n) * sizeof(real));
    for (idx r = 0; r < rows; r++, dy += n) {
        if (tokens[r] < 0 || tokens[r] >= words) continue;
        real *restrict to = dtable + tokens[r] * n;
        for (idx i = 0; i < n; i++) to[i] += dy[i];
    }
}

#endif
