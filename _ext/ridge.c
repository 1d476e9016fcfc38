/* ridge.c - least squares, one batch entry, or a bundle of them, a task: ridge regression and the preconditioner.
 *
 *     fit             out  = Q W,  W = (K^T K + alpha I)^-1 K^T V
 *     precondition    q*_t = H_t^-1 q_t,  H_t = gram + sum_{t sees j} k_j k_j^T + alpha I
 *
 * Compiled once per SIMD level and dtype. Read eliminate.h first (Cholesky), then fit.h: all queries
 * see the same keys. prefix.h tells how a regression for every prefix comes at the price of one
 * elimination for each chunk of tokens; causal_fit.h and precondition.h use that. recursive_fit.h is the faster half of
 * causal_fit.h, where H is well-conditioned; bundle_fit.h is causal_fit.h for many short heads at a time.
 */
#include "bundle_fit_backward.h"
#include "causal_fit_backward.h"
#include "fit.h"
#include "precondition_backward.h"
#include "threads.h"

/* In multiply-adds; in a causal elimination each token waits for the pivot of the one before, some 0.2 microseconds. */
enum { WAIT = 20000 };

static double work_of_fit(const ridge_problem *P)
{
    const double d = (double)P->d, dv = (double)P->dv;
    if (P->is_causal) return (double)P->batch * (double)P->Tq * (d * (5 * d + 3 * dv) + WAIT);
    return (double)P->batch * ((double)P->Tk * d * (d / 2 + dv) + (double)P->Tq * d * dv +
                               d * d * (d / 6 + dv));
}

static double work_of_precondition(const ridge_problem *P)
{
    const double d = (double)P->d;
    const double token = P->is_causal ? 6 * d * d + WAIT / 2 : 1.5 * d * d;
    return (double)P->batch * ((double)(P->Tq + P->Tk) * token + d * d * d / 6);
}

static int fit(const ridge_problem *P, int num_threads)
{
    static const kvq_pass shared = {entries, fit_workspace_bytes, fit_run};
    static const kvq_pass causal = {entries, causal_fit_workspace_bytes, causal_fit_run};
    static const kvq_pass bundled = {bundles, bundle_workspace_bytes, bundle_fit_run};
    return kvq_run(is_bundled(P) ? &bundled : P->is_causal ? &causal : &shared, P, work_of_fit(P), num_threads);
}

static int fit_backward(const ridge_problem *P, int num_threads)
{
    static const kvq_pass shared = {entries, fit_backward_workspace_bytes, fit_backward_run};
    static const kvq_pass causal = {entries, causal_backward_workspace_bytes, causal_backward_run};
    static const kvq_pass bundled = {bundles, bundle_backward_workspace_bytes, bundle_backward_run};
    return kvq_run(is_bundled(P) ? &bundled : P->is_causal ? &causal : &shared, P, 2 * work_of_fit(P), num_threads);
}

static int precondition(const ridge_problem *P, int num_threads)
{
    static const kvq_pass pass = {entries, precondition_workspace_bytes, precondition_run};
    return kvq_run(&pass, P, work_of_precondition(P), num_threads);
}

static int precondition_backward(const ridge_problem *P, int num_threads)
{
    static const kvq_pass pass = {entries, precondition_backward_workspace_bytes,
                                  precondition_backward_run};
    return kvq_run(&pass, P, 2 * work_of_precondition(P), num_threads);
}

static idx factors(const ridge_problem *P)
{
    if (!P->is_causal) return fit_factors(P);
    return is_bundled(P) ? bundled_factors_count(P) : causal_fit_factors_count(P);
}

extern const ridge_table KVQ_TABLE(ridge);
const ridge_table KVQ_TABLE(ridge) = {fit,
                                      fit_backward,
                                      precondition,
                                      precondition_backward,
                                      factors,
                                      precondition_factors};
