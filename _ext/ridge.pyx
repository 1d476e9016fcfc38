# cython: language_level=3
"""Least squares, batched: ridge regression and the preconditioner, forward and backward.

This file checks arguments, releases the GIL and calls C; the caller gives every array that is written. All values
must be finite and every alpha positive. Where a float32 (or float64) regression is singular to working precision,
`served` says from which query on, and the caller turns to a wider type.
"""
cimport numpy as cnp
from arrays cimport check_memory, check_threads, dense, kvq_build, real_type, table_of

import numpy as np

from kvq_ref._ext.buffers import empty

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
        void *result
        void *factors
        Py_ssize_t *served
        const void *dresult
        void *dq
        void *dk
        void *dv_out
        double *dalpha
        void *dgram

    ctypedef struct ridge_table:
        int (*fit)(const ridge_problem *, int num_threads) noexcept nogil
        int (*fit_backward)(const ridge_problem *, int num_threads) noexcept nogil
        int (*precondition)(const ridge_problem *, int num_threads) noexcept nogil
        int (*precondition_backward)(const ridge_problem *, int num_threads) noexcept nogil
        Py_ssize_t (*fit_factors)(const ridge_problem *) noexcept nogil
        Py_ssize_t (*precondition_factors)(const ridge_problem *) noexcept nogil

cnp.import_array()


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
    p.gram = p.factors = p.dgram = NULL
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


def fit(q, k, v, alpha, bint is_causal, out, int num_threads, *, bint saves=True, simd=None):
    """out = q (k^T k + alpha I)^-1 k^T v. Returns (served, factors); factors is None unless it `saves`.

    Causal: each query has the regression of the keys that it sees; there is no backward to save for.

    q (B, Tq, d), k (B, Tk, d), v (B, Tk, dv), out (B, Tq, dv): C-contiguous, float32 or float64; alpha (B,) float64.
    served (B,): how many queries, from the first, had a regression that is regular to working precision; out is not
    written for the rest.
    """
    if is_causal and saves:
        raise ValueError("saves must be False where is_causal is True")
    cdef ridge_problem p
    cdef const ridge_table *kernels
    cdef int failed, t
    check_threads(num_threads)
    t = describe(&p, q, k, alpha)
    describe_values(&p, t, v)
    p.is_causal = is_causal
    p.result = dense("out", out, t, True, p.batch, p.Tq, p.dv)
    kernels = <const ridge_table *> table_of(ridge_builds, t, simd)
    served, factors = np.empty(p.batch, np.intp), None
    p.served = <Py_ssize_t *> of_entries("served", served, cnp.NPY_INTP, p.batch)
    if saves:
        factors = empty((p.batch, kernels.fit_factors(&p)), q.dtype)
        p.factors = cnp.PyArray_DATA(factors)
    with nogil:
        failed = kernels.fit(&p, num_threads)
    check_memory(failed)
    return served, factors


def fit_backward(dout, q, k, v, alpha, served, factors, dq, dk, dv, int num_threads, *, simd=None):
    """The gradients for `dout`, written to dq, dk, dv; returns dalpha (B,). Nothing where `served` is below Tq."""
    cdef ridge_problem p
    cdef const ridge_table *kernels
    cdef int failed, t
    check_threads(num_threads)
    t = describe(&p, q, k, alpha)
    describe_values(&p, t, v)
    kernels = <const ridge_table *> table_of(ridge_builds, t, simd)
    p.served = <Py_ssize_t *> of_entries("served", served, cnp.NPY_INTP, p.batch)
    p.factors = address_of_factors(factors, q, p.batch, kernels.fit_factors(&p))
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

def precondition(q, k, alpha, gram, bint is_causal, q_star, int num_threads, *, bint saves=True, simd=None):
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
    served, factors = np.empty(p.batch, np.intp), None
    p.served = <Py_ssize_t *> of_entries("served", served, cnp.NPY_INTP, p.batch)
    if saves:
        factors = empty((p.batch, kernels.precondition_factors(&p)), q.dtype)
        p.factors = cnp.PyArray_DATA(factors)
    with nogil:
        failed = kernels.precondition(&p, num_threads)
    check_memory(failed)
    return served, factors


def precondition_backward(dq_star, q, k, alpha, bint is_causal, q_star, served, factors, dq, dk, dgram,
                          int num_threads, *, simd=None):
    """The gradients for `dq_star`, written to dq, dk and, unless it is None, dgram (B, d, d); returns dalpha (B,)."""
    cdef ridge_problem p
    cdef const ridge_table *kernels
    cdef int failed, t
    check_threads(num_threads)
    t = describe(&p, q, k, alpha)
    p.is_causal = is_causal
    p.dv = 0
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
