# cython: language_level=3
"""What the whole public calls on plain arrays ask and do alike, whatever the kernel."""
cimport numpy as cnp
from arrays cimport is_plain
from libc.stdint cimport uintptr_t


cdef struct plain_sizes:
    Py_ssize_t batch, Tq, Tk, d, dv


cdef inline bint measure(q, k, v, plain_sizes *p) noexcept:
    """Whether q, k, v are plain, of one dtype, with the same leading axes and nothing empty; and their sizes."""
    cdef int ndim, axis
    cdef cnp.npy_intp *qs
    cdef cnp.npy_intp *ks
    cdef cnp.npy_intp *vs
    if not (is_plain(q) and is_plain(k) and is_plain(v)):
        return False
    ndim = cnp.PyArray_NDIM(q)
    if (ndim < 2 or cnp.PyArray_NDIM(k) != ndim or cnp.PyArray_NDIM(v) != ndim
            or cnp.PyArray_TYPE(k) != cnp.PyArray_TYPE(q) or cnp.PyArray_TYPE(v) != cnp.PyArray_TYPE(q)):
        return False
    qs, ks, vs = cnp.PyArray_DIMS(q), cnp.PyArray_DIMS(k), cnp.PyArray_DIMS(v)
    p.batch = 1
    for axis in range(ndim - 2):
        if qs[axis] != ks[axis] or qs[axis] != vs[axis]:
            return False
        p.batch *= qs[axis]
    p.Tq, p.d, p.Tk, p.dv = qs[ndim - 2], qs[ndim - 1], ks[ndim - 2], vs[ndim - 1]
    return ks[ndim - 1] == p.d and vs[ndim - 2] == p.Tk and p.batch and p.Tq and p.d and p.Tk and p.dv


cdef inline bint has_shape_of(cnp.ndarray x, cnp.ndarray like, Py_ssize_t columns) noexcept:
    """Whether x has like's dtype and shape, but for the number of columns."""
    cdef int axis, ndim = cnp.PyArray_NDIM(like)
    if cnp.PyArray_NDIM(x) != ndim or cnp.PyArray_TYPE(x) != cnp.PyArray_TYPE(like):
        return False
    for axis in range(ndim - 1):
        if cnp.PyArray_DIMS(x)[axis] != cnp.PyArray_DIMS(like)[axis]:
            return False
    return cnp.PyArray_DIMS(x)[ndim - 1] == columns


cdef inline bint overlap(cnp.ndarray x, cnp.ndarray y) noexcept:
    """Whether two arrays in C order have memory in common."""
    cdef uintptr_t a = <uintptr_t> cnp.PyArray_DATA(x), b = <uintptr_t> cnp.PyArray_DATA(y)
    return a < b + <uintptr_t> cnp.PyArray_NBYTES(y) and b < a + <uintptr_t> cnp.PyArray_NBYTES(x)


cdef inline bint can_take_the_result(out, q, k, v) noexcept:
    """Whether the result can be written straight into `out`, an array of the caller's."""
    return (
        is_plain(out)
        and cnp.PyArray_ISWRITEABLE(<cnp.ndarray> out)
        and has_shape_of(out, q, cnp.PyArray_DIMS(v)[cnp.PyArray_NDIM(v) - 1])
        and not (overlap(out, q) or overlap(out, k) or overlap(out, v))
    )


cdef inline object like(cnp.ndarray x, Py_ssize_t columns, Py_ssize_t pooled, empty):
    """An array to be filled: x's shape and dtype, but for the columns. From `pooled` bytes on, empty(shape, dtype)."""
    cdef cnp.npy_intp shape[32]
    cdef int ndim = cnp.PyArray_NDIM(x), axis
    cdef Py_ssize_t size = cnp.PyArray_ITEMSIZE(x)
    if ndim > 32:
        return empty((*(<object> x).shape[:-1], columns), x.dtype)
    for axis in range(ndim - 1):
        shape[axis] = cnp.PyArray_DIMS(x)[axis]
        size *= shape[axis]
    shape[ndim - 1] = columns
    if size * columns < pooled:
        return cnp.PyArray_EMPTY(ndim, shape, cnp.PyArray_TYPE(x), 0)
    return empty((*(<object> x).shape[:-1], columns), x.dtype)
