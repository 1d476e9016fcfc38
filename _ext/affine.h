/* affine.h - y = x W + b with what follows it, and the three gradients.
 *
 *     y  = f(x W + b)          row by row of x: a task is a tile of rows
 *     dx = (dy W^T) slope      the same, with another matrix and another last step
 *     dW = x^T dy,  db = sum of the rows of dy
 *                              a task is a piece of dW, and the sum over the rows stays whole in it
 *
 * A strip of the product, up to 3 vectors wide, is made in a scratch tile; what follows (bias, activation, slope)
 * happens while it is in the cache, and the result is written once. Which thread does a task changes no sum.
 *
 * What a product reads many times lies packed, row behind row: W (or W^T) once for all, and for dW pieces of x and dy
 * where their rows are so far apart, by a large power of two, that they would drive each other out of the cache.
 */
#ifndef KVQ_AFFINE_H
#define KVQ_AFFINE_H

#include <stdlib.h>

#include "activation.h"
#include "layers.h"
#include "part.h"
#include "product.h"
#include "threads.h"
#include "tile.h" /* vectors(), padded(), carve() */

#define AFFINE_ROWS 64                /* of a tile */
#define STRIP (BLOCK_COLUMNS * LANES) /* columns of a strip, and its row stride in scratch memory */
#define WEIGHT_ROWS 64                /* of the piece of dW that is one task */
#define DEPTH 128                     /* terms that are summed among themselves first; less, and a strip fits the L1 */
#define WEIGHT_DEPTH 64               /* the same for dW */
#define FAR 1024                      /* bytes: rows a multiple of that apart share too few places in the cache */

/* A problem, and the matrix from the right in strips: W forward, W^T backward. */
typedef struct {
    const affine_problem *P;
    const real *right;
} affine_job;

/* Vectors of the strip that begins where so many are left; 4 are 2 + 2, for one alone is half as fast. */
INLINE idx strip_vectors(idx left) { return left == 4 ? 2 : min_idx(left, BLOCK_COLUMNS); }

/* ---- rows of y and of dx ---------------------------------------------------------------------- */
/* out = last step of (left right), `first` row on. */
typedef struct {
    int activation, is_backward;
    idx all_rows, depth, width;
    const real *left, *bias;
    real *slope, *out;
} rows_job;

INLINE rows_job rows_of_y(const affine_problem *P)
{
    return (rows_job){P->activation, 0, P->rows, P->n, P->m, P->x, P->bias, P->slope, P->y};
}

INLINE rows_job rows_of_dx(const affine_problem *P)
{
    return (rows_job){KVQ_IDENTITY, 1, P->rows, P->m, P->n, P->dy, NULL, P->slope, P->dx};
}

INLINE void last_step(int activation, const rows_job *w, idx first, idx rows, idx column, idx nv, const real *tile)
{
    vec bias[BLOCK_COLUMNS];
    for (idx i = 0; i < nv; i++) {
        const idx c = column + i * LANES;
        bias[i] = w->bias ? load_part(w->bias + c, w->width - c, 0) : (vec){0};
    }
    for (idx r = 0; r < rows; r++)
        for (idx i = 0; i < nv; i++) {
            const idx c = column + i * LANES, at = (first + r) * w->width + c, n = w->width - c;
            vec x = load(tile + r * STRIP + i * LANES);
            if (w->is_backward) {
                if (w->slope) x *= load_part(w->slope + at, n, 0);
            } else {
                const curve f = curve_at(activation, x + bias[i]);
                if (activation != KVQ_IDENTITY) store_part(w->slope + at, f.slope, n);
                x = f.y;
            }
            store_part(w->out + at, x, n);
        }
}

NOINLINE void run_rows(const rows_job *w, const real *right, idx first, real *tile)
{
    const idx rows = min_idx(AFFINE_ROWS, w->all_rows - first), depth = w->depth;
    for (idx column = 0; column < w->width;) {
        const idx nv = strip_vectors(vectors(w->width - column)), stride = nv * LANES;
        if (depth == 0) memset(tile, 0, AFFINE_ROWS * STRIP * sizeof(real));
        for (idx k = 0; k < depth; k += DEPTH)
            product_along_rows(rows, nv, min_idx(DEPTH, depth - k), w->left + first * depth + k, depth,
                               right + column * depth + k * stride, stride, tile, STRIP, k ? ADD : OVERWRITE);
        if (w->activation == KVQ_GELU) last_step(KVQ_GELU, w, first, rows, column, nv, tile);
        else if (w->activation == KVQ_RELU) last_step(KVQ_RELU, w, first, rows, column, nv, tile);
        else last_step(KVQ_IDENTITY, w, first, rows, column, nv, tile);
        column += stride;
    }
}

/* ---- a piece of dW, and of db ----------------------------------------------------------------- */
typedef struct {
    real *x, *dy; /* WEIGHT_DEPTH rows of a piece of x and of a strip of dy */
    real *sums;   /* the piece of dW */
} weight_scratch;

INLINE void carve_weights(carver *c, weight_scratch *s)
{
    s->x = carve(c, WEIGHT_DEPTH * WEIGHT_ROWS);
    s->dy = carve(c, WEIGHT_DEPTH * STRIP);
    s->sums = carve(c, WEIGHT_ROWS * STRIP);
}

INLINE int is_far(idx stride) { return stride * (idx)sizeof(real) % FAR == 0; }

/* to[k][i] = from[k][i], with zeros up to a whole vector. */
INLINE void pack(idx rows, idx columns, const real *from, idx stride, real *to, idx to_stride)
{
    for (idx k = 0; k < rows; k++)
        for (idx i = 0; i < columns; i += LANES)
            store(to + k * to_stride + i, load_part(from + k * stride + i, columns - i, 0));
}

NOINLINE void run_weights(const affine_problem *P, idx row, idx column, idx nv, weight_scratch *s)
{
    const idx rows = min_idx(WEIGHT_ROWS, P->n - row), width = min_idx(nv * LANES, P->m - column);
    const int has_bias = P->dbias && row == 0;
    const int packs_x = is_far(P->n) && rows % LANES == 0, packs_dy = is_far(P->m) || width < nv * LANES;
    vec sums[BLOCK_COLUMNS] = {{0}};

    if (P->rows == 0) memset(s->sums, 0, WEIGHT_ROWS * STRIP * sizeof(real));
    for (idx t = 0; t < P->rows; t += WEIGHT_DEPTH) {
        const idx depth = min_idx(WEIGHT_DEPTH, P->rows - t);
        const real *x = (const real *)P->x + t * P->n + row, *dy = (const real *)P->dy + t * P->m + column;
        idx x_stride = P->n, dy_stride = P->m;
        if (packs_x) {
            pack(depth, rows, x, P->n, s->x, WEIGHT_ROWS);
            x = s->x, x_stride = WEIGHT_ROWS;
        }
        if (packs_dy) {
            pack(depth, width, dy, P->m, s->dy, STRIP);
            dy = s->dy, dy_stride = STRIP;
        }
        product_along_columns(rows, nv, depth, x, x_stride, dy, dy_stride, s->sums, STRIP, t ? ADD : OVERWRITE, NULL);
        if (has_bias)
            for (idx i = 0; i < nv; i++) {
                vec sum = {0};
                for (idx k = 0; k < depth; k++) sum += load(dy + k * dy_stride + i * LANES);
                sums[i] += sum;
            }
    }
    for (idx i = 0; i < nv; i++) {
        const idx c = column + i * LANES, n = P->m - c;
        for (idx r = 0; r < rows; r++)
            store_part((real *)P->dweight + (row + r) * P->m + c, load(s->sums + r * STRIP + i * LANES), n);
        if (has_bias) store_part((real *)P->dbias + c, sums[i], n);
    }
}

/* ---- tasks ------------------------------------------------------------------------------------ */
static idx row_tiles(const affine_problem *P) { return (P->rows + AFFINE_ROWS - 1) / AFFINE_ROWS; }

static idx weight_groups(const affine_problem *P) { return (P->n + WEIGHT_ROWS - 1) / WEIGHT_ROWS; }

static idx strips(idx width)
{
    idx n = 0;
    for (idx left = vectors(width); left > 0; left -= strip_vectors(left)) n++;
    return n;
}

static size_t affine_workspace(const void *job)
{
    (void)job;
    carver c = {0};
    weight_scratch unused;
    carve_weights(&c, &unused);
    const size_t weights = c.next, tile = (size_t)AFFINE_ROWS * STRIP * sizeof(real);
    return weights > tile ? weights : tile;
}

static idx affine_forward_tasks(const void *job) { return row_tiles(((const affine_job *)job)->P); }

static void affine_forward_run(const void *job, void *workspace, idx task)
{
    const affine_job *j = job;
    const rows_job w = rows_of_y(j->P);
    run_rows(&w, j->right, task * AFFINE_ROWS, workspace);
}

static idx affine_backward_tasks(const void *job)
{
    const affine_problem *P = ((const affine_job *)job)->P;
    return row_tiles(P) + weight_groups(P) * strips(P->m);
}

static void affine_backward_run(const void *job, void *workspace, idx task)
{
    const affine_job *j = job;
    const affine_problem *P = j->P;
    if (task < row_tiles(P)) {
        const rows_job w = rows_of_dx(P);
        run_rows(&w, j->right, task * AFFINE_ROWS, workspace);
        return;
    }
    task -= row_tiles(P);
    idx column = 0;
    for (idx strip = task / weight_groups(P); strip > 0; strip--)
        column += strip_vectors(vectors(P->m - column)) * LANES;
    carver c = {(uintptr_t)workspace};
    weight_scratch s;
    carve_weights(&c, &s);
    run_weights(P, task % weight_groups(P) * WEIGHT_ROWS, column, strip_vectors(vectors(P->m - column)), &s);
}

/* ---- the two passes --------------------------------------------------------------------------- */
static double affine_work(const affine_problem *P) { return (double)P->rows * (double)P->n * (double)P->m; }

/* W in strips, or W^T; NULL if there is no memory for it. To be freed. */
static real *in_strips(const affine_problem *P, int is_transposed)
{
    const idx depth = is_transposed ? P->m : P->n, width = is_transposed ? P->n : P->m;
    const real *weight = P->weight;
    void *strips = NULL;
    if (posix_memalign(&strips, 64, (size_t)(depth * padded(width)) * sizeof(real) + 64)) return NULL;
    for (idx column = 0; column < width;) {
        const idx stride = strip_vectors(vectors(width - column)) * LANES, n = min_idx(stride, width - column);
        real *to = (real *)strips + column * depth;
        if (is_transposed) {
            if (n < stride)
                for (idx k = 0; k < depth; k++) store(to + (k + 1) * stride - LANES, (vec){0});
            transpose(n, depth, weight + column * depth, depth, to, stride, 1);
        } else {
            pack(depth, n, weight + column, width, to, stride);
        }
        column += stride;
    }
    return strips;
}

static int affine_forward(const affine_problem *P, int num_threads)
{
    static const kvq_pass pass = {affine_forward_tasks, affine_workspace, affine_forward_run};
    real *right = in_strips(P, 0);
    if (!right) return -1;
    const affine_job job = {P, right};
    const int failed = kvq_run(&pass, &job, affine_work(P), num_threads);
    free(right);
    return failed;
}

static int affine_backward(const affine_problem *P, int num_threads)
{
    static const kvq_pass pass = {affine_backward_tasks, affine_workspace, affine_backward_run};
    real *right = in_strips(P, 1);
    if (!right) return -1;
    const affine_job job = {P, right};
    const int failed = kvq_run(&pass, &job, 2 * affine_work(P), num_threads);
    free(right);
    return failed;
}

#endif
