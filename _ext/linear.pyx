# cython: language_level=3
"""The kernels of linear attention, forward and backward.

As in tiled.pyx: `forward` and `backward` check arguments, release the GIL and call C; `quick` and `quick_backward`
are whole public calls for the plain case, and give None for whatever is not plain.

Whether all was finite they ask of the results. NaN or infinity in a factor is in every sum of products that it enters,
so it cannot hide; and a result is one array to look at, where the arguments are three.
"""
from libc.math cimport isfinite
cimport numpy as cnp
from arrays cimport check_memory, check_threads, dense, is_plain, kvq_build, real_type, table_of, use_shared_pool
from plain cimport can_take_the_result, has_shape_of, like, measure, plain_sizes

from kvq_ref._ext.buffers import SMALLEST as POOLED, empty

cdef extern from *:
    """
    #include "levels.h"
    #include "linear.h"
    KVQ_DEFINE_BUILDS(linear, linear_table)
    """
    const kvq_build linear_builds[]

cdef extern from "threads.h" nogil:
    double KVQ_WORTH_A_THREAD

cdef extern from "linear.h" nogil:
    ctypedef struct linear_problem:
        int is_causal
        double scale
        Py_ssize_t batch, Tq, Tk, d, dv
        const void *q
        const void *k
        const void *v
        const void *initial
        void *out
        void *seen
        const void *dout
        const void *dstate
        void *dq
        void *dk
        void *dv_out
        void *dinitial

    ctypedef struct linear_table:
        int (*forward)(const linear_problem *, int num_threads) noexcept nogil
        int (*backward)(const linear_problem *, int num_threads) noexcept nogil
        int (*all_finite)(const void *, size_t count) noexcept nogil

cnp.import_array()
use_shared_pool()

cdef Py_ssize_t _pooled = POOLED


# ---- the functions -------------------------------------------------------------------------------

cdef int describe(linear_problem *p, q, k, v, initial, seen, bint is_causal, double scale) except -1:
    """Everything that forward and backward have in common. Returns the type number of the arrays."""
    cdef int type_number = real_type("q", q)
    cdef cnp.npy_intp *shape
    for name, x in (("q", q), ("k", k), ("v", v)):
        real_type(name, x)
        if cnp.PyArray_NDIM(x) != 3:
            raise ValueError(f"{name} must have 3 axes, got shape {x.shape}")
    shape = cnp.PyArray_DIMS(q)
    p.is_causal, p.scale = is_causal, scale
    p.batch, p.Tq, p.d = shape[0], shape[1], shape[2]
    p.Tk, p.dv = cnp.PyArray_DIMS(k)[1], cnp.PyArray_DIMS(v)[2]
    p.q = dense("q", q, type_number, False, p.batch, p.Tq, p.d)
    p.k = dense("k", k, type_number, False, p.batch, p.Tk, p.d)
    p.v = dense("v", v, type_number, False, p.batch, p.Tk, p.dv)
    p.initial = state_of(p, "initial", initial, type_number, False)
    p.seen = state_of(p, "seen", seen, type_number, True)
    if is_causal and seen is not None:
        raise ValueError("seen must be None where queries see different keys")
    return type_number


cdef void *state_of(linear_problem *p, str name, x, int type_number, bint is_written) except? NULL:
    return NULL if x is None else dense(name, x, type_number, is_written, p.batch, p.d, p.dv)


def forward(q, k, v, initial, bint is_causal, double scale, out, seen, int num_threads, *, simd=None):
    """out_i = scale q_i (initial + sum_j k_j v_j^T) over the j that i sees, written to `out`.

    q (B, Tq, d), k (B, Tk, d), v (B, Tk, dv), out (B, Tq, dv): C-contiguous, float32 or float64.
    initial: None, or (B, d, dv). seen: None, or if not causal (B, d, dv), to which scale (initial + K^T V) is written:
    `backward` wants it then.
    """
    cdef linear_problem p
    cdef const linear_table *kernels
    cdef int failed, t
    check_threads(num_threads)
    t = describe(&p, q, k, v, initial, seen, is_causal, scale)
    p.out = dense("out", out, t, True, p.batch, p.Tq, p.dv)
    kernels = <const linear_table *> table_of(linear_builds, t, simd)
    with nogil:
        failed = kernels.forward(&p, num_threads)
    check_memory(failed)


def backward(dout, q, k, v, initial, seen, bint is_causal, double scale, dstate, dq, dk, dv, dinitial,
             int num_threads, *, simd=None):
    """The gradients for `dout`, and for the gradient `dstate` of initial + K^T V, unless that is None.

    Written to dq, dk, dv and, unless it is None, dinitial. `seen` is what `forward` wrote, None if causal.
    """
    cdef linear_problem p
    cdef const linear_table *kernels
    cdef int failed, t
    check_threads(num_threads)
    t = describe(&p, q, k, v, initial, seen, is_causal, scale)
    if not is_causal and seen is None:
        raise ValueError("seen must be what forward wrote for the same arguments")
    p.dout = dense("dout", dout, t, False, p.batch, p.Tq, p.dv)
    p.dstate = state_of(&p, "dstate", dstate, t, False)
    p.dq = dense("dq", dq, t, True, p.batch, p.Tq, p.d)
    p.dk = dense("dk", dk, t, True, p.batch, p.Tk, p.d)
    p.dv_out = dense("dv", dv, t, True, p.batch, p.Tk, p.dv)
    p.dinitial = state_of(&p, "dinitial", dinitial, t, True)
    kernels = <const linear_table *> table_of(linear_builds, t, simd)
    with nogil:
        failed = kernels.backward(&p, num_threads)
    check_memory(failed)


# ---- a whole plain call --------------------------------------------------------------------------

cdef const linear_table *describe_plain(linear_problem *p, q, k, v, is_causal, scale) except? NULL:
    """The kernels for a call with any, but the same, leading axes; NULL where it is not plain."""
    cdef plain_sizes sizes
    if not measure(q, k, v, &sizes) or (is_causal is not True and is_causal is not False):
        return NULL
    if scale is None:
        p.scale = 1.0
    elif type(scale) is float and isfinite(<double> scale) and isfinite(<float> <double> scale):
        p.scale = scale
    else:
        return NULL
    p.is_causal = is_causal is True
    p.batch, p.Tq, p.Tk, p.d, p.dv = sizes.batch, sizes.Tq, sizes.Tk, sizes.d, sizes.dv
    p.q, p.k, p.v = cnp.PyArray_DATA(q), cnp.PyArray_DATA(k), cnp.PyArray_DATA(v)
    p.initial = p.dstate = NULL
    p.seen = p.dinitial = NULL
    return <const linear_table *> table_of(linear_builds, cnp.PyArray_TYPE(q), None)


cdef int threads_for(linear_problem *p, double sweeps, num_threads) except -1:
    """Small problems stay in this thread: then nobody need be asked. A chunk of a causal sweep costs twice at most."""
    cdef double work = sweeps * p.batch * (p.Tq + p.Tk) * (p.d * p.dv + (64.0 * (p.d + p.dv) if p.is_causal else 0))
    return num_threads() if work >= 2 * KVQ_WORTH_A_THREAD else 1


def quick(q, k, v, is_causal, scale, out, num_threads, bint saves):
    """The result, or (result, seen) if it `saves` for `quick_backward`; None if the call is not plain.

    The result is written into `out`, unless that is None; the gradients do not ask what it was.
    num_threads() is asked only where threads may be worth it.
    """
    cdef linear_problem p
    cdef const linear_table *kernels = describe_plain(&p, q, k, v, is_causal, scale)
    cdef int failed, threads
    cdef bint finite
    if kernels == NULL:
        return None
    if out is None:
        out = like(q, p.dv, _pooled, empty)
    elif not can_take_the_result(out, q, k, v):
        return None
    p.out = cnp.PyArray_DATA(out)
    seen = None
    if saves and not p.is_causal:
        seen = empty((p.batch, p.d, p.dv), q.dtype)
        p.seen = cnp.PyArray_DATA(seen)
    threads = threads_for(&p, 1, num_threads)
    with nogil:
        failed = kernels.forward(&p, threads)
        finite = kernels.all_finite(p.out, <size_t> (p.batch * p.Tq * p.dv))
    check_memory(failed)
    if not finite:
        return None
    return (out, seen) if saves else out


def quick_backward(dout, q, k, v, seen, is_causal, scale, num_threads):
    """(dq, dk, dv) after a `quick` that saved; None if dout, or what has become of the inputs, is not plain."""
    cdef linear_problem p
    cdef const linear_table *kernels = describe_plain(&p, q, k, v, is_causal, scale)
    cdef int failed, threads
    cdef bint finite
    if kernels == NULL or not is_plain(dout) or not has_shape_of(dout, q, p.dv):
        return None
    p.dout = cnp.PyArray_DATA(dout)
    p.seen = state_of(&p, "seen", seen, cnp.PyArray_TYPE(q), False)
    if not p.is_causal and p.seen == NULL:
        raise ValueError("seen must be what quick gave for the same arguments")
    dq = like(q, p.d, _pooled, empty)
    dk = like(k, p.d, _pooled, empty)
    dv = like(v, p.dv, _pooled, empty)
    p.dq, p.dk, p.dv_out = cnp.PyArray_DATA(dq), cnp.PyArray_DATA(dk), cnp.PyArray_DATA(dv)
    threads = threads_for(&p, 3, num_threads)
    with nogil:
        failed = kernels.backward(&p, threads)
        finite = (kernels.all_finite(p.dq, <size_t> (p.batch * p.Tq * p.d))
                  and kernels.all_finite(p.dk, <size_t> (p.batch * p.Tk * p.d))
                  and kernels.all_finite(p.dv_out, <size_t> (p.batch * p.Tk * p.dv)))
    check_memory(failed)
    return (dq, dk, dv) if finite else None
