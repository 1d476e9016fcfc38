# cython: language_level=3
"""The kernels of the layers around attention, forward and backward, of losses and of optimisers.

Like `quick` in tiled.pyx and linear.pyx these are whole calls: each looks at its arguments, makes room for the results
and calls C, and gives None for whatever is not plain: C-contiguous NumPy arrays of one dtype, float32 or float64, of
shapes that fit. num_threads() is asked only where threads may be worth it.
"""
cimport numpy as cnp
from arrays cimport check_memory, is_plain, kvq_build, table_of, use_shared_pool
from libc.stdint cimport int64_t, uint8_t
from plain cimport has_shape_of, like

import numpy as np

from kvq_ref._ext.buffers import SMALLEST as POOLED, empty as empty_block

cdef extern from *:
    """
    #include "levels.h"
    #include "layers.h"
    KVQ_DEFINE_BUILDS(layers, layers_table)
    """
    const kvq_build layers_builds[]

cdef extern from "threads.h" nogil:
    double KVQ_WORTH_A_THREAD

cdef extern from "layers.h" nogil:
    enum:
        KVQ_IDENTITY
        KVQ_RELU
        KVQ_GELU
        KVQ_MOST_PARTS

    ctypedef struct affine_problem:
        int activation
        Py_ssize_t rows, n, m
        const void *x
        const void *weight
        const void *bias
        void *slope
        void *y
        const void *dy
        void *dx
        void *dweight
        void *dbias

    ctypedef struct norm_problem:
        double eps
        Py_ssize_t rows, n
        const void *x
        const void *gain
        const void *shift
        void *stats
        void *y
        const void *dy
        void *dx
        void *dgain
        void *dshift

    ctypedef struct heads_problem:
        int is_merge
        Py_ssize_t batch, T, parts, heads, d
        void *packed
        void *part[3]

    ctypedef struct step_problem:
        Py_ssize_t count
        void *x
        const void *g
        double rate, keep
        double weight_decay, momentum
        void *velocity
        double beta1, beta2, eps, unbias
        void *mean
        void *square

    ctypedef struct layers_table:
        int (*affine_forward)(const affine_problem *, int num_threads) noexcept nogil
        int (*affine_backward)(const affine_problem *, int num_threads) noexcept nogil
        int (*norm_forward)(const norm_problem *, int num_threads) noexcept nogil
        int (*norm_backward)(const norm_problem *, int num_threads) noexcept nogil
        int (*move_heads)(const heads_problem *, int num_threads) noexcept nogil
        int (*sgd)(const step_problem *, int num_threads) noexcept nogil
        int (*adamw)(const step_problem *, int num_threads) noexcept nogil
        void (*activate)(int, Py_ssize_t, const void *, void *) noexcept nogil
        void (*activate_backward)(int, Py_ssize_t, const void *, const void *, void *) noexcept nogil
        double (*cross_entropy)(Py_ssize_t, Py_ssize_t, const void *, const int64_t *, const uint8_t *,
                                void *) noexcept nogil
        void (*turn)(Py_ssize_t, Py_ssize_t, Py_ssize_t, const void *, const void *, const void *,
                     void *) noexcept nogil
        void (*scatter)(Py_ssize_t, Py_ssize_t, Py_ssize_t, const int64_t *, const void *, void *) noexcept nogil

cnp.import_array()
use_shared_pool()

ACTIVATIONS = {"identity": KVQ_IDENTITY, "relu": KVQ_RELU, "gelu": KVQ_GELU}

cdef Py_ssize_t _pooled = POOLED
_poisons = False


# ---- what all of them ask ------------------------------------------------------------------------

def poison(bint is_on):
    """Whether room for results is filled with NaN first: for tests, so that what was not written shows."""
    global _poisons, _pooled
    _poisons = is_on
    _pooled = 0 if is_on else POOLED  # then all room comes from `empty`


def empty(tuple shape, dtype):
    room = empty_block(shape, dtype)
    if _poisons:
        room.fill(np.nan)
    return room


cdef inline const layers_table *kernels_for(cnp.ndarray x, simd) except NULL:
    return <const layers_table *> table_of(layers_builds, cnp.PyArray_TYPE(x), simd)


cdef inline Py_ssize_t last_axis(cnp.ndarray x) noexcept:
    """Its length; -1 where there is none."""
    cdef int ndim = cnp.PyArray_NDIM(x)
    return cnp.PyArray_DIMS(x)[ndim - 1] if ndim > 0 else -1


cdef inline Py_ssize_t row_count(cnp.ndarray x) noexcept:
    """How many rows x has: the product of all axes but the last."""
    cdef Py_ssize_t count = 1
    cdef int axis
    for axis in range(cnp.PyArray_NDIM(x) - 1):
        count *= cnp.PyArray_DIMS(x)[axis]
    return count


cdef inline bint is_vector(x, Py_ssize_t n, cnp.ndarray beside) noexcept:
    """Whether x is plain, of shape (n,) and of the dtype of `beside`."""
    return (is_plain(x) and cnp.PyArray_NDIM(<cnp.ndarray> x) == 1 and cnp.PyArray_DIMS(<cnp.ndarray> x)[0] == n
            and cnp.PyArray_TYPE(<cnp.ndarray> x) == cnp.PyArray_TYPE(beside))


cdef inline bint is_matrix(x, Py_ssize_t n, cnp.ndarray beside) noexcept:
    """Whether x is plain, of shape (n, anything) and of the dtype of `beside`."""
    return (is_plain(x) and cnp.PyArray_NDIM(<cnp.ndarray> x) == 2 and cnp.PyArray_DIMS(<cnp.ndarray> x)[0] == n
            and cnp.PyArray_TYPE(<cnp.ndarray> x) == cnp.PyArray_TYPE(beside))


cdef inline bint is_like(x, cnp.ndarray beside) noexcept:
    """Whether x is plain, with shape and dtype of `beside`."""
    return is_plain(x) and last_axis(beside) >= 0 and has_shape_of(<cnp.ndarray> x, beside, last_axis(beside))


cdef inline bint can_change(x, cnp.ndarray beside) noexcept:
    return is_like(x, beside) and cnp.PyArray_ISWRITEABLE(<cnp.ndarray> x)


cdef inline bint is_index(x) noexcept:
    """Whether x is an array of int64 in C order."""
    return (type(x) is cnp.ndarray and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> x)
            and cnp.PyArray_TYPE(<cnp.ndarray> x) == cnp.NPY_INT64)


cdef inline void *data(x) noexcept:
    return NULL if x is None else cnp.PyArray_DATA(<cnp.ndarray> x)


cdef inline int threads_for(double multiply_adds, num_threads) except -1:
    return num_threads() if multiply_adds >= 2 * KVQ_WORTH_A_THREAD else 1


# ---- affine maps ---------------------------------------------------------------------------------

def affine(x, weight, bias, int activation, num_threads, *, simd=None):
    """(y, slope): y = f(x W + b), slope = f'(x W + b); for the identity, slope is None."""
    cdef affine_problem p
    cdef const layers_table *kernels
    cdef int failed, threads
    if not is_plain(x) or not is_matrix(weight, last_axis(x), x):
        return None
    p.activation, p.rows, p.n, p.m = activation, row_count(x), last_axis(x), last_axis(weight)
    if bias is not None and not is_vector(bias, p.m, x):
        return None
    y = like(x, p.m, _pooled, empty)
    slope = None if activation == KVQ_IDENTITY else like(x, p.m, _pooled, empty)
    p.x, p.weight, p.bias, p.y, p.slope = data(x), data(weight), data(bias), data(y), data(slope)
    kernels = kernels_for(x, simd)
    threads = threads_for(<double> p.rows * p.n * p.m, num_threads)
    with nogil:
        failed = kernels.affine_forward(&p, threads)
    check_memory(failed)
    return y, slope


def affine_backward(dy, x, weight, bint has_bias, slope, num_threads, *, simd=None):
    """(dx, dweight, dbias). Where x has been through an activation, dx is already multiplied by its slope."""
    cdef affine_problem p
    cdef const layers_table *kernels
    cdef int failed, threads
    p.activation, p.rows, p.n, p.m = KVQ_IDENTITY, row_count(x), last_axis(x), last_axis(weight)
    if not is_plain(dy) or not has_shape_of(dy, x, p.m):
        return None
    if slope is not None and not is_like(slope, x):
        return None
    dx = like(x, p.n, _pooled, empty)
    dweight = like(weight, p.m, _pooled, empty)
    dbias = empty((p.m,), x.dtype) if has_bias else None
    p.x, p.weight, p.bias, p.slope, p.dy = data(x), data(weight), NULL, data(slope), data(dy)
    p.dx, p.dweight, p.dbias = data(dx), data(dweight), data(dbias)
    kernels = kernels_for(x, simd)
    threads = threads_for(2.0 * p.rows * p.n * p.m, num_threads)
    with nogil:
        failed = kernels.affine_backward(&p, threads)
    check_memory(failed)
    return dx, dweight, dbias


def activate(x, int activation, *, simd=None):
    """f(x)."""
    cdef const layers_table *kernels
    cdef Py_ssize_t count
    if not is_plain(x) or last_axis(x) < 0:
        return None
    y = like(x, last_axis(x), _pooled, empty)
    kernels = kernels_for(x, simd)
    count = cnp.PyArray_SIZE(x)
    with nogil:
        kernels.activate(activation, count, cnp.PyArray_DATA(<cnp.ndarray> x), cnp.PyArray_DATA(<cnp.ndarray> y))
    return y


def activate_backward(dy, x, int activation, *, simd=None):
    """dy f'(x)."""
    cdef const layers_table *kernels
    cdef Py_ssize_t count
    if not is_like(dy, x):
        return None
    dx = like(x, last_axis(x), _pooled, empty)
    kernels = kernels_for(x, simd)
    count = cnp.PyArray_SIZE(x)
    with nogil:
        kernels.activate_backward(activation, count, cnp.PyArray_DATA(<cnp.ndarray> dy),
                                  cnp.PyArray_DATA(<cnp.ndarray> x), cnp.PyArray_DATA(<cnp.ndarray> dx))
    return dx


# ---- layer norm ----------------------------------------------------------------------------------

def norm(x, gain, shift, double eps, num_threads, *, simd=None):
    """(y, stats): stats are for `norm_backward`."""
    cdef norm_problem p
    cdef const layers_table *kernels
    cdef int failed, threads
    if not is_plain(x) or last_axis(x) < 1:
        return None
    p.eps, p.rows, p.n = eps, row_count(x), last_axis(x)
    if not (is_vector(gain, p.n, x) and is_vector(shift, p.n, x)):
        return None
    y = like(x, p.n, _pooled, empty)
    stats = empty((p.rows, 2), x.dtype)
    p.x, p.gain, p.shift, p.y, p.stats = data(x), data(gain), data(shift), data(y), data(stats)
    kernels = kernels_for(x, simd)
    threads = threads_for(16.0 * p.rows * p.n, num_threads)
    with nogil:
        failed = kernels.norm_forward(&p, threads)
    check_memory(failed)
    return y, stats


def norm_backward(dy, x, gain, stats, num_threads, *, simd=None):
    """(dx, dgain, dshift)."""
    cdef norm_problem p
    cdef const layers_table *kernels
    cdef int failed, threads
    p.rows, p.n = row_count(x), last_axis(x)
    if not is_like(dy, x):
        return None
    dx = like(x, p.n, _pooled, empty)
    dgain, dshift = empty((p.n,), x.dtype), empty((p.n,), x.dtype)
    p.x, p.gain, p.stats, p.dy = data(x), data(gain), data(stats), data(dy)
    p.dx, p.dgain, p.dshift = data(dx), data(dgain), data(dshift)
    kernels = kernels_for(x, simd)
    threads = threads_for(32.0 * p.rows * p.n, num_threads)
    with nogil:
        failed = kernels.norm_backward(&p, threads)
    check_memory(failed)
    return dx, dgain, dshift


# ---- copies --------------------------------------------------------------------------------------

def split(packed, int parts, int heads, num_threads, *, simd=None):
    """(..., T, parts heads d) to (parts, ..., heads, T, d)."""
    cdef heads_problem p
    cdef const layers_table *kernels
    cdef int failed, threads, i
    if not is_plain(packed) or cnp.PyArray_NDIM(packed) < 2 or not 1 <= parts <= KVQ_MOST_PARTS or heads < 1:
        return None
    *leading, p.T, width = packed.shape
    if width % (parts * heads):
        return None
    p.is_merge, p.parts, p.heads, p.d = 0, parts, heads, width // (parts * heads)
    p.batch = row_count(packed) // p.T if p.T else 0
    apart = empty((parts, *leading, heads, p.T, p.d), packed.dtype)
    p.packed = data(packed)
    for i in range(parts):
        p.part[i] = <char *> cnp.PyArray_DATA(apart) + i * (cnp.PyArray_NBYTES(apart) // parts)
    kernels = kernels_for(packed, simd)
    threads = threads_for(16.0 * cnp.PyArray_SIZE(packed), num_threads)
    with nogil:
        failed = kernels.move_heads(&p, threads)
    check_memory(failed)
    return apart


def merge(tuple parts, num_threads, *, simd=None):
    """The inverse of `split`: of each part (..., heads, T, d) to (..., T, parts heads d)."""
    cdef heads_problem p
    cdef const layers_table *kernels
    cdef int failed, threads, i
    first = parts[0]
    if not is_plain(first) or cnp.PyArray_NDIM(first) < 3 or len(parts) > KVQ_MOST_PARTS:
        return None
    *leading, p.heads, p.T, p.d = first.shape
    p.is_merge, p.parts = 1, len(parts)
    for i in range(p.parts):
        if not is_like(parts[i], first):
            return None
        p.part[i] = data(parts[i])
    packed = empty((*leading, p.T, p.parts * p.heads * p.d), first.dtype)
    p.batch = row_count(packed) // p.T if p.T else 0
    p.packed = data(packed)
    kernels = kernels_for(first, simd)
    threads = threads_for(16.0 * cnp.PyArray_SIZE(packed), num_threads)
    with nogil:
        failed = kernels.move_heads(&p, threads)
    check_memory(failed)
    return packed


def turn(x, cos, sin, *, simd=None):
    """Rotary positions: the halves of each row t of x (..., T, d) turned by the angles of cos and sin (T, d/2)."""
    cdef const layers_table *kernels
    cdef Py_ssize_t batch, T, half
    if not is_plain(x) or cnp.PyArray_NDIM(x) < 2:
        return None
    T, half = cnp.PyArray_DIMS(x)[cnp.PyArray_NDIM(x) - 2], last_axis(x) // 2
    if last_axis(x) != 2 * half or not is_matrix(cos, T, x) or last_axis(cos) != half or not is_like(sin, cos):
        return None
    y = like(x, 2 * half, _pooled, empty)
    batch = row_count(x) // T if T else 0
    kernels = kernels_for(x, simd)
    with nogil:
        kernels.turn(batch, T, half, cnp.PyArray_DATA(<cnp.ndarray> x), cnp.PyArray_DATA(<cnp.ndarray> cos),
                     cnp.PyArray_DATA(<cnp.ndarray> sin), cnp.PyArray_DATA(<cnp.ndarray> y))
    return y


def scatter(dy, tokens, Py_ssize_t words, *, simd=None):
    """(words, n): the sums of the rows of dy (..., n) that have the same token."""
    cdef const layers_table *kernels
    cdef Py_ssize_t rows, n
    if not is_plain(dy) or not is_index(tokens) or last_axis(dy) < 0 or row_count(dy) != cnp.PyArray_SIZE(tokens):
        return None
    rows, n = row_count(dy), last_axis(dy)
    dtable = empty((words, n), dy.dtype)
    kernels = kernels_for(dy, simd)
    with nogil:
        kernels.scatter(rows, n, words, <const int64_t *> cnp.PyArray_DATA(<cnp.ndarray> tokens),
                        cnp.PyArray_DATA(<cnp.ndarray> dy), cnp.PyArray_DATA(<cnp.ndarray> dtable))
    return dtable


# ---- losses and optimisers -----------------------------------------------------------------------

def cross_entropy(logits, targets, counts, *, simd=None):
    """(loss, dlogits)."""
    cdef const layers_table *kernels
    cdef const uint8_t *which = NULL
    cdef Py_ssize_t rows, n
    cdef double loss
    if not is_plain(logits) or last_axis(logits) < 1 or not is_index(targets):
        return None
    rows, n = row_count(logits), last_axis(logits)
    if rows == 0 or cnp.PyArray_SIZE(targets) != rows:
        return None
    if counts is not None:
        if (type(counts) is not cnp.ndarray or not cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> counts)
                or cnp.PyArray_TYPE(<cnp.ndarray> counts) != cnp.NPY_BOOL or cnp.PyArray_SIZE(counts) != rows):
            return None
        which = <const uint8_t *> data(counts)
    dlogits = like(logits, n, _pooled, empty)
    kernels = kernels_for(logits, simd)
    with nogil:
        loss = kernels.cross_entropy(rows, n, cnp.PyArray_DATA(<cnp.ndarray> logits),
                                     <const int64_t *> cnp.PyArray_DATA(<cnp.ndarray> targets), which,
                                     cnp.PyArray_DATA(<cnp.ndarray> dlogits))
    return logits.dtype.type(loss), dlogits


def sgd(x, g, velocity, double rate, double weight_decay, double momentum, num_threads, *, simd=None):
    """One step: x and velocity, which is None without momentum, are changed. True if it was done."""
    cdef step_problem p
    cdef const layers_table *kernels
    cdef int failed, threads
    if not is_plain(x) or not can_change(x, x) or not is_like(g, x):
        return None
    if velocity is not None and not can_change(velocity, x):
        return None
    p.count, p.x, p.g, p.velocity = cnp.PyArray_SIZE(x), data(x), data(g), data(velocity)
    p.rate, p.weight_decay, p.momentum = rate, weight_decay, momentum
    kernels = kernels_for(x, simd)
    threads = threads_for(16.0 * p.count, num_threads)
    with nogil:
        failed = kernels.sgd(&p, threads)
    check_memory(failed)
    return True


def adamw(x, g, mean, square, double rate, double keep, double beta1, double beta2, double eps, double unbias,
          num_threads, *, simd=None):
    """One step: x = keep x - rate mean / (unbias sqrt(square) + eps), with mean and square brought up to date first."""
    cdef step_problem p
    cdef const layers_table *kernels
    cdef int failed, threads
    if not is_plain(x) or not can_change(x, x) or not is_like(g, x):
        return None
    if not can_change(mean, x) or not can_change(square, x):
        return None
    p.count, p.x, p.g, p.mean, p.square = cnp.PyArray_SIZE(x), data(x), data(g), data(mean), data(square)
    p.rate, p.keep, p.beta1, p.beta2, p.eps, p.unbias = rate, keep, beta1, beta2, eps, unbias
    kernels = kernels_for(x, simd)
    threads = threads_for(16.0 * p.count, num_threads)
    with nogil:
        failed = kernels.adamw(&p, threads)
    check_memory(failed)
    return True
