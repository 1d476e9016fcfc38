# cython: language_level=3
"""The tiled attention kernels: softmax and expressive attention, forward and backward.

`forward` and `backward` check arguments, release the GIL and call C; the caller gives every output, and so decides
what memory is used again. `quick` and `quick_backward` are whole public calls for the plain case, at the price of a
microsecond: they look at everything, and whatever is not plain they leave to the caller, who knows the words for it.
"""
import numpy as np

from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport isfinite, sqrt
from libc.string cimport memcpy
cimport numpy as cnp
from arrays cimport (
    check_memory, check_shape, check_threads, dense, is_plain, kvq_build, kvq_chosen_level, kvq_level, kvq_share_pool,
    real_type, table_of,
)
from plain cimport can_take_the_result, has_shape_of, like, measure, plain_sizes

from kvq_ref._ext.buffers import SMALLEST as POOLED, empty

cdef extern from *:
    """
    #include "levels.h"
    #include "tiled.h"
    KVQ_DEFINE_BUILDS(tiled, tiled_table)
    """
    const kvq_build tiled_builds[]

cdef extern from "threads.h" nogil:
    double KVQ_WORTH_A_THREAD
    int kvq_get_thread_limit() noexcept

cdef extern from "tiled.h" nogil:
    ctypedef struct tiled_problem:
        int score
        int is_causal
        double scale
        Py_ssize_t batch, Tq, Tk, d, dv
        const void *q
        const void *k
        const void *v
        const char *mask
        const char *bias
        Py_ssize_t mask_strides[3]
        Py_ssize_t bias_strides[3]
        void *out
        void *kept
        int *not_finite
        const void *dout
        void *dq
        void *dk
        void *dv_out
        void *dbias

    ctypedef struct tiled_table:
        int (*forward)(const tiled_problem *, int num_threads) noexcept nogil
        int (*backward)(tiled_problem *, int num_threads) noexcept nogil
        size_t (*kept_numbers)(const tiled_problem *) noexcept nogil
        int (*is_small)(const tiled_problem *) noexcept nogil
        int (*all_finite)(const void *, size_t count) noexcept nogil

    enum:
        KVQ_SOFTMAX
        KVQ_EXPRESSIVE

cnp.import_array()
pool = PyCapsule_New(kvq_share_pool(), "kvq_ref._ext.tiled.pool", NULL)  # of helpers, for all modules

SOFTMAX = KVQ_SOFTMAX
EXPRESSIVE = KVQ_EXPRESSIVE
cdef Py_ssize_t _pooled = POOLED


# ---- levels --------------------------------------------------------------------------------------

def simd_levels():
    """The levels that this build holds and this CPU can run, best first."""
    cdef int i = 0
    levels = []
    while kvq_level(i) != NULL:
        levels.append((<bytes> kvq_level(i)).decode())
        i += 1
    return tuple(levels)


def simd_level():
    """The level in use: the best one, or the one named by the environment variable KVQ_REF_SIMD.

    The variable is read once, at first use. A name that is unknown, or that this CPU or build
    cannot run, raises ValueError.
    """
    if kvq_chosen_level() == NULL:
        raise ValueError(f"KVQ_REF_SIMD: this build on this CPU can run {', '.join(simd_levels())}")
    return (<bytes> kvq_chosen_level()).decode()


def thread_limit():
    """How many threads threadpoolctl lets a call use; 0 where it has set no limit."""
    return kvq_get_thread_limit()


# ---- the functions -------------------------------------------------------------------------------

cdef int describe(tiled_problem *p, int score, q, k, v, mask, bias, bint is_causal, double scale) except -1:
    """Everything that forward and backward have in common. Returns the type number of the arrays."""
    cdef int axis, type_number = real_type("q", q)
    cdef cnp.npy_intp *shape
    if score != KVQ_SOFTMAX and score != KVQ_EXPRESSIVE:
        raise ValueError(f"score must be SOFTMAX or EXPRESSIVE, got {score}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        real_type(name, x)
        if cnp.PyArray_NDIM(x) != 3:
            raise ValueError(f"{name} must have 3 axes, got shape {x.shape}")
    p.score, p.is_causal, p.scale = score, is_causal, scale
    shape = cnp.PyArray_DIMS(q)
    p.batch, p.Tq, p.d = shape[0], shape[1], shape[2]
    p.Tk, p.dv = cnp.PyArray_DIMS(k)[1], cnp.PyArray_DIMS(v)[2]
    p.q = dense("q", q, type_number, False, p.batch, p.Tq, p.d)
    p.k = dense("k", k, type_number, False, p.batch, p.Tk, p.d)
    p.v = dense("v", v, type_number, False, p.batch, p.Tk, p.dv)
    p.mask = p.bias = NULL
    p.kept = p.dbias = NULL
    p.not_finite = NULL
    if mask is not None:
        if type(mask) is not cnp.ndarray or mask.dtype != np.bool_:
            raise ValueError("mask must be an array of bool")
        check_shape("mask", mask, p.batch, p.Tq, p.Tk)
        p.mask = <const char *> cnp.PyArray_DATA(mask)
        for axis in range(3):
            p.mask_strides[axis] = cnp.PyArray_STRIDES(mask)[axis]
    if bias is not None:
        if (type(bias) is not cnp.ndarray or cnp.PyArray_TYPE(bias) != type_number
                or not cnp.PyArray_ISBEHAVED_RO(bias)):
            raise ValueError("bias must be an aligned array of the dtype of q")
        check_shape("bias", bias, p.batch, p.Tq, p.Tk)
        p.bias = <const char *> cnp.PyArray_DATA(bias)
        for axis in range(3):
            p.bias_strides[axis] = cnp.PyArray_STRIDES(bias)[axis]
    return type_number


cdef object room_for_kept(const tiled_table *kernels, tiled_problem *p, int type_number):
    """An array for what forward keeps for backward: of each query its largest exponent and N, or all its weights."""
    cdef cnp.npy_intp numbers = <cnp.npy_intp> kernels.kept_numbers(p)
    if numbers * (4 if type_number == cnp.NPY_FLOAT else 8) < _pooled:
        return cnp.PyArray_EMPTY(1, &numbers, type_number, 0)
    return empty((numbers,), np.float32 if type_number == cnp.NPY_FLOAT else np.float64)


cdef void *kept_data(const tiled_table *kernels, tiled_problem *p, int type_number, cnp.ndarray kept) except? NULL:
    if (cnp.PyArray_TYPE(kept) != type_number or <size_t> cnp.PyArray_SIZE(kept) != kernels.kept_numbers(p)
            or not is_plain(kept)):
        raise ValueError("kept must be what forward returned for the same arguments")
    return cnp.PyArray_DATA(kept)


def forward(int score, q, k, v, mask, bias, bint is_causal, double scale, out, int num_threads, *, simd=None):
    """out_i = sum_j w_ij v_j / N_i, written to `out`. Returns what `backward` wants as `kept`.

    score is SOFTMAX (w = exp(scale q.k + bias)) or EXPRESSIVE (w = exp(bias) z^2 / (1 + z^2)).
    q (B, Tq, d), k (B, Tk, d), v (B, Tk, dv), out (B, Tq, dv): C-contiguous, float32 or float64.
    mask (bool, True = visible) and bias: None, or (B, Tq, Tk) with any strides.
    All values must be finite. A row without weight gives zeros.
    """
    cdef tiled_problem p
    cdef const tiled_table *kernels
    cdef int failed, type_number
    check_threads(num_threads)
    type_number = describe(&p, score, q, k, v, mask, bias, is_causal, scale)
    p.out = dense("out", out, type_number, True, p.batch, p.Tq, p.dv)
    kernels = <const tiled_table *> table_of(tiled_builds, type_number, simd)
    kept = room_for_kept(kernels, &p, type_number)
    p.kept = cnp.PyArray_DATA(kept)
    with nogil:
        failed = kernels.forward(&p, num_threads)
    check_memory(failed)
    return kept


def backward(int score, dout, q, k, v, out, cnp.ndarray kept, mask, bias, bint is_causal, double scale,
             dq, dk, dv, dbias, int num_threads, *, simd=None):
    """The gradients for `dout`, written to dq, dk, dv and, unless it is None, dbias (B, Tq, Tk).

    out and kept are what `forward` wrote and returned for the same arguments. A row without weight
    adds nothing to any gradient.
    """
    cdef tiled_problem p
    cdef const tiled_table *kernels
    cdef int failed, t
    check_threads(num_threads)
    t = describe(&p, score, q, k, v, mask, bias, is_causal, scale)
    p.dout = dense("dout", dout, t, False, p.batch, p.Tq, p.dv)
    p.out = dense("out", out, t, False, p.batch, p.Tq, p.dv)
    p.dq = dense("dq", dq, t, True, p.batch, p.Tq, p.d)
    p.dk = dense("dk", dk, t, True, p.batch, p.Tk, p.d)
    p.dv_out = dense("dv", dv, t, True, p.batch, p.Tk, p.dv)
    if dbias is not None:
        p.dbias = dense("dbias", dbias, t, True, p.batch, p.Tq, p.Tk)
    kernels = <const tiled_table *> table_of(tiled_builds, t, simd)
    p.kept = kept_data(kernels, &p, t, kept)
    with nogil:
        failed = kernels.backward(&p, num_threads)
    check_memory(failed)


def all_finite(x, *, simd=None):
    """Whether a C-contiguous float32 or float64 array holds neither NaN nor infinity."""
    cdef const tiled_table *kernels = <const tiled_table *> table_of(tiled_builds, real_type("x", x), simd)
    cdef const void *data = cnp.PyArray_DATA(x)
    cdef size_t size = <size_t> cnp.PyArray_SIZE(x)
    cdef int answer
    with nogil:
        answer = kernels.all_finite(data, size)
    return answer != 0


# ---- a whole plain call --------------------------------------------------------------------------

cdef int describe_plain(tiled_problem *p, int score, q, k, v, is_causal, scale) except -1:
    """As `describe` for arrays with any, but the same, leading axes; 0 where a call is not plain, else 1."""
    cdef plain_sizes sizes
    if not measure(q, k, v, &sizes) or (is_causal is not True and is_causal is not False):
        return 0
    p.batch, p.Tq, p.Tk, p.d, p.dv = sizes.batch, sizes.Tq, sizes.Tk, sizes.d, sizes.dv
    p.score, p.is_causal = score, is_causal is True
    if scale is None:
        p.scale = 1 / sqrt(<double> p.d) if score == KVQ_SOFTMAX else 1.0
    elif type(scale) is float and isfinite(<double> scale) and isfinite(<float> <double> scale):
        p.scale = scale
    else:
        return 0
    p.mask = p.bias = NULL
    p.kept = p.dbias = NULL
    p.not_finite = NULL
    p.q, p.k, p.v = cnp.PyArray_DATA(q), cnp.PyArray_DATA(k), cnp.PyArray_DATA(v)
    return 1


cdef int threads_for(double multiply_adds, num_threads) except -1:
    """Small problems stay in this thread: then nobody need be asked."""
    return num_threads() if multiply_adds >= 2 * KVQ_WORTH_A_THREAD else 1


def quick(int score, q, k, v, is_causal, scale, out, num_threads, bint saves):
    """The result, or (result, copy, kept) if it `saves` for `quick_backward`; None if the call is not plain.

    The result is written into `out`, unless that is None. The copy is the pullback's own, for the result is the
    caller's to write into; it is None where backward does not read it. num_threads() is asked only where threads are
    worth it.
    """
    cdef tiled_problem p
    cdef const tiled_table *kernels
    cdef int failed, threads, not_finite = 0
    cdef void *copied = NULL
    cdef size_t bytes_out
    if not describe_plain(&p, score, q, k, v, is_causal, scale):
        return None
    kernels = <const tiled_table *> table_of(tiled_builds, cnp.PyArray_TYPE(q), None)
    if out is None:
        out = like(q, p.dv, _pooled, empty)
    elif not can_take_the_result(out, q, k, v):
        return None
    threads = threads_for(<double> p.batch * p.Tq * p.Tk * (p.d + p.dv), num_threads)
    p.not_finite = &not_finite
    p.out = cnp.PyArray_DATA(out)
    bytes_out = <size_t> cnp.PyArray_NBYTES(out)
    copy = kept = None
    if saves:
        kept = room_for_kept(kernels, &p, cnp.PyArray_TYPE(q))
        p.kept = cnp.PyArray_DATA(kept)
        if not kernels.is_small(&p):
            copy = like(q, p.dv, _pooled, empty)
            copied = cnp.PyArray_DATA(copy)
    with nogil:
        failed = kernels.forward(&p, threads)
        if copied != NULL:
            memcpy(copied, p.out, bytes_out)
    check_memory(failed)
    if not_finite:
        return None
    return (out, copy, kept) if saves else out


def quick_backward(int score, dout, q, k, v, out, cnp.ndarray kept, is_causal, scale, num_threads):
    """(dq, dk, dv) after a `quick` that saved; None if dout is not plain. That the inputs are finite, `quick` has seen.

    out and kept are the copy and what was kept of `quick`.
    """
    cdef tiled_problem p
    cdef const tiled_table *kernels
    cdef int failed, threads, not_finite = 0
    if not (is_plain(dout) and describe_plain(&p, score, q, k, v, is_causal, scale)):
        return None
    if not has_shape_of(dout, q, p.dv):
        return None
    kernels = <const tiled_table *> table_of(tiled_builds, cnp.PyArray_TYPE(q), None)
    threads = threads_for(<double> p.batch * p.Tq * p.Tk * (3 * p.d + 2 * p.dv), num_threads)
    dq, dk = like(q, p.d, _pooled, empty), like(k, p.d, _pooled, empty)
    dv = like(v, p.dv, _pooled, empty)
    p.not_finite = &not_finite
    p.kept = kept_data(kernels, &p, cnp.PyArray_TYPE(q), kept)
    p.out = NULL if out is None else cnp.PyArray_DATA(out)
    p.dout = cnp.PyArray_DATA(dout)
    p.dq, p.dk, p.dv_out = cnp.PyArray_DATA(dq), cnp.PyArray_DATA(dk), cnp.PyArray_DATA(dv)
    with nogil:
        failed = kernels.backward(&p, threads)
    check_memory(failed)
    return None if not_finite else (dq, dk, dv)
