# cython: language_level=3
"""Least squares, batched: ridge regression and the preconditioner, forward and backward.

This file checks arguments, releases the GIL and calls C; the caller gives every array that is written. All values
must be finite and every alpha positive. Where a float32 (or float64) regression is singular to working precision,
`served` says from which query on, and the caller turns to a wider type.
"""
from libc.math cimport isfinite
cimport numpy as cnp
from arrays cimport check_memory, check_threads, dense, is_plain, kvq_build, real_type, table_of, use_shared_pool
from plain cimport can_take_the_result, has_shape_of, like, measure, plain_sizes

import numpy as np

from kvq_ref._ext.buffers import SMALLEST as POOLED, empty

cdef extern from *:
    """
    #include "levels.h"
    #include "ridge.h"
    KVQ_DEFINE_BUILDS(ridge, ridge_table)
    """
    const kvq_build ridge_builds[]

cdef extern from "ridge.h" nogil:
    ctypedef struct ridge_problem:
        int is_causal
        Py_ssize_t batch, Tq, Tk, d, dv
        const void *q
        const void *k
        const void *v
        const double *alpha
        const void *gram
        const void *moment
        void *result
        void *factors
        Py_ssize_t *served
        int *not_finite
        const void *dresult
        void *dq
        void *dk
        void *dv_out
        double *dalpha
        void *dgram
        void *dmoment

    ctypedef struct ridge_table:
        int (*fit)(const ridge_problem *, int num_threads) noexcept nogil
        int (*fit_backward)(const ridge_problem *, int num_threads) noexcept nogil
        int (*precondition)(const ridge_problem *, int num_threads) noexcept nogil
        int (*precondition_backward)(const ridge_problem *, int num_threads) noexcept nogil
        Py_ssize_t (*fit_factors)(const ridge_problem *) noexcept nogil
        Py_ssize_t (*precondition_factors)(const ridge_problem *) noexcept nogil

cdef extern from "threads.h" nogil:
    double KVQ_WORTH_A_THREAD

cnp.import_array()
use_shared_pool()

cdef Py_ssize_t _pooled = POOLED


cdef int describe(ridge_problem *p, q, k, alpha) except -1:
    """What all four functions have in common. Returns the type number of the arrays."""
    cdef int t = real_type("q", q)
    real_type("k", k)
    if q.ndim != 3 or k.ndim != 3:
        raise ValueError(f"q and k must have 3 axes, got shapes {q.shape} and {k.shape}")
    p.batch, p.Tq, p.d = q.shape
    p.Tk = k.shape[1]
    if min(p.Tq, p.Tk, p.d) < 1:
        raise ValueError(f"q and k must not be empty, got shapes {q.shape} and {k.shape}")
    p.q = dense("q", q, t, False, p.batch, p.Tq, p.d)
    p.k = dense("k", k, t, False, p.batch, p.Tk, p.d)
    p.alpha = <const double *> of_entries("alpha", alpha, cnp.NPY_DOUBLE, p.batch)
    p.gram = p.moment = NULL
    p.factors = p.dgram = p.dmoment = NULL
    p.not_finite = NULL
    p.is_causal = False
    return t


cdef void *of_entries(str name, x, int type_number, Py_ssize_t batch) except? NULL:
    """The address of an array with one number for each batch entry."""
    if (type(x) is not cnp.ndarray or cnp.PyArray_TYPE(x) != type_number or not cnp.PyArray_ISCARRAY_RO(x)
            or x.shape != (batch,)):
        raise ValueError(f"{name} must be a C-contiguous array of shape {(batch,)}, float64, or intp for served")
    return cnp.PyArray_DATA(x)


cdef void *address_of_factors(factors, q, Py_ssize_t batch, Py_ssize_t each) except? NULL:
    if factors.dtype != q.dtype or factors.shape != (batch, each) or not factors.flags.c_contiguous:
        raise ValueError("factors must be what the forward function returned for the same arguments")
    return cnp.PyArray_DATA(factors)


# ---- ridge regression from keys to values, evaluated at the queries ---------------------------------

cdef int describe_values(ridge_problem *p, int t, v) except -1:
    real_type("v", v)
    if v.ndim != 3 or v.shape[2] < 1:
        raise ValueError(f"v must have 3 axes and not be empty, got shape {v.shape}")
    p.dv = v.shape[2]
    p.v = dense("v", v, t, False, p.batch, p.Tk, p.dv)
    return 0


cdef tuple room_for_what_is_saved(ridge_problem *p, Py_ssize_t numbers, dtype):
    """(served, factors), arrays that a forward fills."""
    served, factors = np.empty(p.batch, np.intp), empty((p.batch, numbers), dtype)
    p.served = <Py_ssize_t *> cnp.PyArray_DATA(served)
    p.factors = cnp.PyArray_DATA(factors)
    return served, factors


def fit(q, k, v, alpha, state, bint is_causal, out, int num_threads, *, simd=None):
    """out = q (gram + k^T k + alpha I)^-1 (moment + k^T v).

    Returns (served, factors), for `fit_backward`.
    Causal: each query has the regression of the keys that it sees.

    q (B, Tq, d), k (B, Tk, d), v (B, Tk, dv), out (B, Tq, dv): C-contiguous, float32 or float64; alpha (B,) float64.
    state: (gram (B, d, d), moment (B, d, dv)), or None for zeros.
    served (B,): how many queries, from the first, had a regression that is regular to working precision; out is not
    written for the rest.
    """
    cdef ridge_problem p
    cdef const ridge_table *kernels
    cdef int failed, t
    check_threads(num_threads)
    t = describe(&p, q, k, alpha)
    describe_values(&p, t, v)
    p.is_causal = is_causal
    if state is not None:
        p.gram = dense("gram", state[0], t, False, p.batch, p.d, p.d)
        p.moment = dense("moment", state[1], t, False, p.batch, p.d, p.dv)
    p.result = dense("out", out, t, True, p.batch, p.Tq, p.dv)
    kernels = <const ridge_table *> table_of(ridge_builds, t, simd)
    saved = room_for_what_is_saved(&p, kernels.fit_factors(&p), q.dtype)
    with nogil:
        failed = kernels.fit(&p, num_threads)
    check_memory(failed)
    return saved


def fit_backward(dout, q, k, v, alpha, state, bint is_causal, served, factors, dq, dk, dv, dstate,
                 int num_threads, *, simd=None):
    """The gradients for `dout`, written to dq, dk, dv and, unless state is None, dstate (dgram, dmoment).

    Returns dalpha (B,). Gradients of entries whose `served` is below Tq are not set: what they hold means nothing.
    """
    cdef ridge_problem p
    cdef const ridge_table *kernels
    cdef int failed, t
    check_threads(num_threads)
    t = describe(&p, q, k, alpha)
    describe_values(&p, t, v)
    p.is_causal = is_causal
    if state is not None:
        p.gram = dense("gram", state[0], t, False, p.batch, p.d, p.d)
    kernels = <const ridge_table *> table_of(ridge_builds, t, simd)
    p.served = <Py_ssize_t *> of_entries("served", served, cnp.NPY_INTP, p.batch)
    p.factors = address_of_factors(factors, q, p.batch, kernels.fit_factors(&p))
    if state is not None:
        p.dgram = dense("dgram", dstate[0], t, True, p.batch, p.d, p.d)
        p.dmoment = dense("dmoment", dstate[1], t, True, p.batch, p.d, p.dv)
    p.dresult = dense("dout", dout, t, False, p.batch, p.Tq, p.dv)
    p.dq = dense("dq", dq, t, True, p.batch, p.Tq, p.d)
    p.dk = dense("dk", dk, t, True, p.batch, p.Tk, p.d)
    p.dv_out = dense("dv", dv, t, True, p.batch, p.Tk, p.dv)
    dalpha = np.zeros(p.batch)
    p.dalpha = <double *> of_entries("dalpha", dalpha, cnp.NPY_DOUBLE, p.batch)
    with nogil:
        failed = kernels.fit_backward(&p, num_threads)
    check_memory(failed)
    return dalpha


# ---- the preconditioner -----------------------------------------------------------------------------

def precondition(q, k, alpha, gram, bint is_causal, q_star, int num_threads, *, simd=None):
    """q*_i = (gram + sum_{i sees j} k_j k_j^T + alpha I)^-1 q_i. Returns (served, factors), as `fit` does.

    gram (B, d, d) or None. served (B,): how many queries, from the first, were served; the rest are not written.
    """
    cdef ridge_problem p
    cdef const ridge_table *kernels
    cdef int failed, t
    check_threads(num_threads)
    t = describe(&p, q, k, alpha)
    p.is_causal = is_causal
    p.dv = 0
    if gram is not None:
        p.gram = dense("gram", gram, t, False, p.batch, p.d, p.d)
    p.result = dense("q_star", q_star, t, True, p.batch, p.Tq, p.d)
    kernels = <const ridge_table *> table_of(ridge_builds, t, simd)
    saved = room_for_what_is_saved(&p, kernels.precondition_factors(&p), q.dtype)
    with nogil:
        failed = kernels.precondition(&p, num_threads)
    check_memory(failed)
    return saved


def precondition_backward(dq_star, q, k, alpha, gram, bint is_causal, q_star, served, factors, dq, dk, dgram,
                          int num_threads, *, simd=None):
    """The gradients for `dq_star`, written to dq, dk and, unless it is None, dgram (B, d, d); returns dalpha (B,)."""
    cdef ridge_problem p
    cdef const ridge_table *kernels
    cdef int failed, t
    check_threads(num_threads)
    t = describe(&p, q, k, alpha)
    p.is_causal = is_causal
    p.dv = 0
    if gram is not None:
        p.gram = dense("gram", gram, t, False, p.batch, p.d, p.d)
    kernels = <const ridge_table *> table_of(ridge_builds, t, simd)
    p.served = <Py_ssize_t *> of_entries("served", served, cnp.NPY_INTP, p.batch)
    p.factors = address_of_factors(factors, q, p.batch, kernels.precondition_factors(&p))
    p.result = dense("q_star", q_star, t, False, p.batch, p.Tq, p.d)
    p.dresult = dense("dq_star", dq_star, t, False, p.batch, p.Tq, p.d)
    p.dq = dense("dq", dq, t, True, p.batch, p.Tq, p.d)
    p.dk = dense("dk", dk, t, True, p.batch, p.Tk, p.d)
    if dgram is not None:
        p.dgram = dense("dgram", dgram, t, True, p.batch, p.d, p.d)
    dalpha = np.zeros(p.batch)
    p.dalpha = <double *> of_entries("dalpha", dalpha, cnp.NPY_DOUBLE, p.batch)
    with nogil:
        failed = kernels.precondition_backward(&p, num_threads)
    check_memory(failed)
    return dalpha


# ---- a whole plain call: Intention --------------------------------------------------------------------

cdef const ridge_table *describe_plain(ridge_problem *p, q, k, v, alpha, is_causal) except? NULL:
    """The kernels for a plain call, and the call itself; NULL if it is not plain. alpha is left to the caller."""
    cdef plain_sizes sizes
    if not measure(q, k, v, &sizes) or (is_causal is not True and is_causal is not False):
        return NULL
    if type(alpha) is not float and type(alpha) is not int:
        return NULL
    if not (0 < alpha < 1e30 and <float> <double> alpha > 0):  # as float32 holds it, in any case
        return NULL
    p.batch, p.Tq, p.Tk, p.d, p.dv = sizes.batch, sizes.Tq, sizes.Tk, sizes.d, sizes.dv
    p.is_causal = is_causal is True
    p.q, p.k, p.v = cnp.PyArray_DATA(q), cnp.PyArray_DATA(k), cnp.PyArray_DATA(v)
    p.gram = p.moment = NULL
    p.factors = p.dgram = p.dmoment = NULL
    return <const ridge_table *> table_of(ridge_builds, cnp.PyArray_TYPE(q), None)


cdef int threads_for(ridge_problem *p, double passes, num_threads) except -1:
    """Small problems stay in this thread: then nobody need be asked."""
    cdef double each = 8 if p.is_causal else 2
    cdef double work = passes * p.batch * ((p.Tq + p.Tk) * p.d * each * (p.d + p.dv) + p.d * p.d * (p.d + p.dv))
    return num_threads() if work >= 2 * KVQ_WORTH_A_THREAD else 1


cdef bint all_served(ridge_problem *p) noexcept nogil:
    cdef Py_ssize_t entry
    for entry in range(p.batch):
        if p.served[entry] < p.Tq:
            return False
    return True


def quick(q, k, v, alpha, is_causal, out, num_threads, bint saves):
    """The result, or (result, saved) if it `saves` for `quick_backward`; None if the call is not plain.

    Not plain are also what is not finite, which shows in the result, and what a wider type must serve. The result is
    written into `out`, unless that is None.
    """
    cdef ridge_problem p
    cdef const ridge_table *kernels = describe_plain(&p, q, k, v, alpha, is_causal)
    cdef int failed, threads, not_finite = 0
    cdef bint is_regular
    if kernels == NULL:
        return None
    if out is None:
        out = like(q, p.dv, _pooled, empty)
    elif not can_take_the_result(out, q, k, v):
        return None
    alphas, served, factors = np.full(p.batch, alpha, np.float64), np.empty(p.batch, np.intp), None
    p.alpha = <const double *> cnp.PyArray_DATA(alphas)
    p.served = <Py_ssize_t *> cnp.PyArray_DATA(served)
    p.result = cnp.PyArray_DATA(out)
    p.not_finite = &not_finite
    if saves:
        factors = empty((p.batch, kernels.fit_factors(&p)), q.dtype)
        p.factors = cnp.PyArray_DATA(factors)
    threads = threads_for(&p, 1, num_threads)
    with nogil:
        failed = kernels.fit(&p, threads)
        is_regular = all_served(&p) and not not_finite
    check_memory(failed)
    if not is_regular:
        return None
    return (out, (alphas, served, factors)) if saves else out


def quick_backward(dout, q, k, v, is_causal, saved, num_threads):
    """(dq, dk, dv, dalpha) after a `quick` that saved; None if dout, or what has become of the inputs, is not plain.

    dalpha is the sum over the batch, as alpha was one number.
    """
    cdef ridge_problem p
    cdef const ridge_table *kernels = describe_plain(&p, q, k, v, 1.0, is_causal)
    cdef int failed, threads, not_finite = 0
    if kernels == NULL or not is_plain(dout) or not has_shape_of(dout, q, p.dv):
        return None
    alphas, served, factors = saved
    dalpha = np.zeros(p.batch)
    dq, dk, dv = like(q, p.d, _pooled, empty), like(k, p.d, _pooled, empty), like(v, p.dv, _pooled, empty)
    p.alpha = <const double *> of_entries("alpha", alphas, cnp.NPY_DOUBLE, p.batch)
    p.served = <Py_ssize_t *> of_entries("served", served, cnp.NPY_INTP, p.batch)
    p.factors = address_of_factors(factors, q, p.batch, kernels.fit_factors(&p))
    p.dresult = cnp.PyArray_DATA(dout)
    p.dq, p.dk, p.dv_out = cnp.PyArray_DATA(dq), cnp.PyArray_DATA(dk), cnp.PyArray_DATA(dv)
    p.dalpha = <double *> cnp.PyArray_DATA(dalpha)
    p.not_finite = &not_finite
    threads = threads_for(&p, 2, num_threads)
    with nogil:
        failed = kernels.fit_backward(&p, threads)
    check_memory(failed)
    total = dalpha.sum()
    return (dq, dk, dv, total) if not not_finite and isfinite(<double> total) else None
