/* linear.c - the kernels of linear attention of one SIMD level and dtype.
 *
 * Attention is one sweep over the sequence, and so is each of its gradients, the parts exchanged:
 *
 *              x      y      z      i sees, if causal
 *     out      q      k      v      j <= i
 *     dq       dout   v      k      j <= i
 *     dv       k      q      dout   j >= i
 *     dk       v      dout   q      j >= i
 *
 * So there is nothing to derive twice, and nothing but the sweep to make fast: linear_sweep.h.
 */
#include "finite.h"
#include "linear.h"
#include "linear_sweep.h"
#include "threads.h"

/* ---- the four sweeps ------------------------------------------------------------------------- */
#define ENTRY(array, rows, columns) \
    ((array) ? (const real *)(array) + batch * (rows) * (columns) : NULL)
#define RESULT(array, rows, columns) ((array) ? (real *)(array) + batch * (rows) * (columns) : NULL)

INLINE sweep sweep_for_out(const linear_problem *P, idx batch)
{
    return (sweep){
        .sees = P->is_causal ? EARLIER : ALL,
        .x = ENTRY(P->q, P->Tq, P->d),
        .y = ENTRY(P->k, P->Tk, P->d),
        .z = ENTRY(P->v, P->Tk, P->dv),
        .nx = P->Tq, .ny = P->Tk, .inner = P->d, .width = P->dv,
        .factor = (real)P->scale,
        .start = ENTRY(P->initial, P->d, P->dv),
        .start_factor = (real)P->scale,
        .out = RESULT(P->out, P->Tq, P->dv),
        .end = P->is_causal ? NULL : RESULT(P->seen, P->d, P->dv),
    };
}

INLINE sweep sweep_for_dq(const linear_problem *P, idx batch)
{
    sweep w = {
        .sees = P->is_causal ? EARLIER : ALL,
        .x = ENTRY(P->dout, P->Tq, P->dv),
        .y = ENTRY(P->v, P->Tk, P->dv),
        .z = ENTRY(P->k, P->Tk, P->d),
        .nx = P->Tq, .ny = P->Tk, .inner = P->dv, .width = P->d,
        .factor = (real)P->scale,
        .start = ENTRY(P->initial, P->d, P->dv),
        .start_is_transposed = 1,
        .start_factor = (real)P->scale,
        .out = RESULT(P->dq, P->Tq, P->d),
    };
    if (!P->is_causal) { /* forward has left what every query sees */
        w.start = ENTRY(P->seen, P->d, P->dv);
        w.start_factor = 1;
        w.ny = 0;
    }
    return w;
}

INLINE sweep sweep_for_dv(const linear_problem *P, idx batch)
{
    return (sweep){
        .sees = P->is_causal ? LATER : ALL,
        .x = ENTRY(P->k, P->Tk, P->d),
        .y = ENTRY(P->q, P->Tq, P->d),
        .z = ENTRY(P->dout, P->Tq, P->dv),
        .nx = P->Tk, .ny = P->Tq, .inner = P->d, .width = P->dv,
        .factor = (real)P->scale,
        .start = ENTRY(P->dstate, P->d, P->dv),
        .start_factor = 1,
        .out = RESULT(P->dv_out, P->Tk, P->dv),
        .end = RESULT(P->dinitial, P->d, P->dv),
    };
}

INLINE sweep sweep_for_dk(const linear_problem *P, idx batch)
{
    return (sweep){
        .sees = P->is_causal ? LATER : ALL,
        .x = ENTRY(P->v, P->Tk, P->dv),
        .y = ENTRY(P->dout, P->Tq, P->dv),
        .z = ENTRY(P->q, P->Tq, P->d),
        .nx = P->Tk, .ny = P->Tq, .inner = P->dv, .width = P->d,
        .factor = (real)P->scale,
        .start = ENTRY(P->dstate, P->d, P->dv),
        .start_is_transposed = 1,
        .start_factor = 1,
        .out = RESULT(P->dk, P->Tk, P->d),
    };
}

/* ---- tasks ----------------------------------------------------------------------------------- */
static double forward_work(const linear_problem *P)
{
    const double inside = P->is_causal ? 0.5 * CHUNK * (double)P->Tq * (double)(P->d + P->dv) : 0;
    return (double)P->batch * ((double)(P->Tq + P->Tk) * (double)P->d * (double)P->dv + inside);
}

/* A batch entry is a task; where there are few, a task is some columns of one of its sweeps. The
 * shape alone decides, and columns are independent: no bit depends on the number of threads. */
enum { ENOUGH = 8 };

static int is_split(const linear_problem *P)
{
    return P->batch < ENOUGH && forward_work(P) >= 2 * KVQ_WORTH_WAKING;
}

static idx slices(const linear_problem *P, idx width)
{
    if (!is_split(P)) return 1;
    const idx wanted = (ENOUGH + P->batch - 1) / P->batch;
    const idx possible = vectors(width) / 2; /* two vectors or more: one alone is half as fast */
    return possible < 1 ? 1 : min_idx(wanted, possible);
}

typedef struct {
    sweep_scratch sweep;
    real *dstate; /* (d, dv): what the sweep for dv leaves to that for dk */
} linear_scratch;

INLINE size_t linear_layout(const linear_problem *P, void *base, linear_scratch *s)
{
    carver c = {(uintptr_t)base};
    carve_sweep(&c, P->d, P->dv, &s->sweep);
    s->dstate = carve(&c, P->d * P->dv);
    return c.next - (uintptr_t)base;
}

static size_t linear_workspace_bytes(const void *problem)
{
    linear_scratch unused;
    return linear_layout(problem, NULL, &unused);
}

static idx forward_tasks(const void *problem)
{
    const linear_problem *P = problem;
    return P->batch * slices(P, P->dv);
}

static void forward_run(const void *problem, void *workspace, idx task)
{
    const linear_problem *P = problem;
    const idx n = slices(P, P->dv);
    linear_scratch s;
    linear_layout(P, workspace, &s);
    const sweep out = sweep_for_out(P, task / n);
    run_sweep(&out, slice_at(P->dv, n, task % n), &s.sweep);
}

static idx backward_tasks(const void *problem)
{
    const linear_problem *P = problem;
    return P->batch * (is_split(P) ? 2 * slices(P, P->d) + slices(P, P->dv) : 1);
}

static void backward_run(const void *problem, void *workspace, idx task)
{
    const linear_problem *P = problem;
    const idx along_d = slices(P, P->d), along_dv = slices(P, P->dv);
    const idx each = backward_tasks(P) / P->batch, batch = task / each, part = task % each;
    linear_scratch s;
    linear_layout(P, workspace, &s);
    const sweep dq = sweep_for_dq(P, batch);
    sweep dv = sweep_for_dv(P, batch), dk = sweep_for_dk(P, batch);

    if (is_split(P)) {
        const idx n = part / along_d; /* of dq, then of dk, then of dv */
        if (n == 0) run_sweep(&dq, slice_at(P->d, along_d, part), &s.sweep);
        else if (n == 1) run_sweep(&dk, slice_at(P->d, along_d, part - along_d), &s.sweep);
        else run_sweep(&dv, slice_at(P->dv, along_dv, part - 2 * along_d), &s.sweep);
        return;
    }
    if (!P->is_causal) { /* dk sees the same state as dv, transposed */
        if (!dv.end) dv.end = s.dstate;
        dk.start = dv.end;
        dk.ny = 0;
    }
    run_sweep(&dq, slice_at(P->d, 1, 0), &s.sweep);
    run_sweep(&dv, slice_at(P->dv, 1, 0), &s.sweep);
    run_sweep(&dk, slice_at(P->d, 1, 0), &s.sweep);
}

/* ---- the two passes -------------------------------------------------------------------------- */
static int forward(const linear_problem *P, int num_threads)
{
    static const kvq_pass pass = {forward_tasks, linear_workspace_bytes, forward_run};
    return kvq_run(&pass, P, forward_work(P), num_threads);
}

static int backward(const linear_problem *P, int num_threads)
{
    static const kvq_pass pass = {backward_tasks, linear_workspace_bytes, backward_run};
    return kvq_run(&pass, P, (P->is_causal ? 3 : 2) * forward_work(P), num_threads);
}

extern const linear_table KVQ_TABLE(linear);
const linear_table KVQ_TABLE(linear) = {forward, backward, all_finite};
