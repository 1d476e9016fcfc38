# cython: language_level=3
"""What the Python faces of the kernels ask of an array. Inline: a check costs a nanosecond or two."""
cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_Import


cdef extern from "levels.h" nogil:
    ctypedef struct kvq_build:
        const char *level
    enum:
        KVQ_F32_INDEX
        KVQ_F64_INDEX
    const char *kvq_level(int index) noexcept
    const char *kvq_chosen_level() noexcept
    const void *kvq_find(const kvq_build *, const char *level, int dtype) noexcept


cdef inline const void *table_of(const kvq_build *builds, int type_number, simd) except NULL:
    """The kernels of the level in use, or of the one named by `simd`, for an array's type number."""
    cdef int dtype = KVQ_F32_INDEX if type_number == cnp.NPY_FLOAT else KVQ_F64_INDEX
    cdef const char *level = kvq_chosen_level()
    cdef const void *table
    if simd is not None:
        name = simd.encode()
        level = name
    elif level == NULL:
        raise ValueError("KVQ_REF_SIMD: names a level that this build on this CPU cannot run")
    table = kvq_find(builds, level, dtype)
    if table == NULL:
        raise ValueError(f"simd={simd!r}: this build on this CPU cannot run it")
    return table


cdef inline bint is_plain(x) noexcept:
    """Whether the kernels can read x as it lies in memory: float32 or float64, aligned, C order, native."""
    return (
        type(x) is cnp.ndarray
        and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> x)
        and (cnp.PyArray_TYPE(<cnp.ndarray> x) == cnp.NPY_FLOAT
             or cnp.PyArray_TYPE(<cnp.ndarray> x) == cnp.NPY_DOUBLE)
    )


cdef inline int real_type(str name, x) except -1:
    """The type number of a plain array."""
    if not is_plain(x):
        raise ValueError(f"{name} must be a C-contiguous, aligned array of float32 or float64")
    return cnp.PyArray_TYPE(<cnp.ndarray> x)


cdef inline int check_shape(str name, cnp.ndarray x, Py_ssize_t a, Py_ssize_t b, Py_ssize_t c) except -1:
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(x)
    if cnp.PyArray_NDIM(x) != 3 or shape[0] != a or shape[1] != b or shape[2] != c:
        raise ValueError(f"{name} must have shape {(a, b, c)}, got {(<object> x).shape}")
    return 0


cdef inline void *dense(str name, x, int type_number, bint is_written, Py_ssize_t a, Py_ssize_t b,
                        Py_ssize_t c) except? NULL:
    """The address of a plain array of this type and shape."""
    if real_type(name, x) != type_number:
        raise ValueError(f"{name} must have the dtype of q, got {x.dtype}")
    if is_written and not cnp.PyArray_ISWRITEABLE(<cnp.ndarray> x):
        raise ValueError(f"{name} must be writeable")
    check_shape(name, <cnp.ndarray> x, a, b, c)
    return cnp.PyArray_DATA(<cnp.ndarray> x)


cdef inline int check_threads(int num_threads) except -1:
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
    return 0


cdef inline int check_memory(int failed) except -1:
    if failed:
        raise MemoryError("no memory for the kernel's scratch space")
    return 0


cdef extern from "pool.h" nogil:
    void *kvq_share_pool() noexcept
    void kvq_use_pool(void *) noexcept

cdef inline int use_shared_pool() except -1:
    """One pool of helpers for all modules: that of tiled.pyx."""
    kvq_use_pool(PyCapsule_Import("kvq_ref._ext.tiled.pool", 0))
    return 0
