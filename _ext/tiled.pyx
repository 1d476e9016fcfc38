# cython: language_level=3
"""The tiled attention kernels: softmax and expressive attention, forward and backward.

This file checks arguments, releases the GIL and calls C. It allocates no array: the caller gives
every output, so the caller decides what memory is reused.
"""
import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE,
    PyBuffer_Release, PyObject_GetBuffer,
)

cdef extern from "tiled.h" nogil:
    ctypedef struct kvq_problem:
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
        void *stats
        const void *dout
        void *dq
        void *dk
        void *dv_out
        void *dbias

    ctypedef struct kvq_kernels:
        int (*all_finite)(const void *, size_t count) noexcept nogil

    enum:
        KVQ_SOFTMAX
        KVQ_EXPRESSIVE
        KVQ_STATS
        KVQ_F32_INDEX
        KVQ_F64_INDEX

    const char *kvq_level(int index) noexcept
    const kvq_kernels *kvq_find(const char *level, int dtype) noexcept
    int kvq_forward(const kvq_kernels *, const kvq_problem *, int num_threads) noexcept
    int kvq_backward(const kvq_kernels *, kvq_problem *, int num_threads) noexcept

# ---- levels --------------------------------------------------------------------------------------

# Chosen at first use, and the same ever after.
cdef str _level = None
cdef const kvq_kernels *_kernels[2]


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
    global _level
    if _level is None:
        levels = simd_levels()
        wanted = os.environ.get("KVQ_REF_SIMD") or levels[0]
        if wanted not in levels:
            raise ValueError(
                f"KVQ_REF_SIMD={wanted!r}: this build on this CPU can run {', '.join(levels)}"
            )
        name = wanted.encode()
        _kernels[KVQ_F32_INDEX] = kvq_find(name, KVQ_F32_INDEX)
        _kernels[KVQ_F64_INDEX] = kvq_find(name, KVQ_F64_INDEX)
        _level = wanted
    return _level


cdef const kvq_kernels *find_kernels(str simd, int dtype) except NULL:
    if simd is None:
        if _level is None:
            simd_level()
        return _kernels[dtype]
    cdef const kvq_kernels *kernels = kvq_find(simd.encode(), dtype)
    if kernels == NULL:
        raise ValueError(f"simd={simd!r}: must be one of {simd_levels()}")
    return kernels


# ---- arguments -----------------------------------------------------------------------------------

cdef int check_aligned(name, Py_buffer *view) except -1:
    if <size_t> view.buf % <size_t> view.itemsize:
        raise ValueError(f"{name} must be aligned to its itemsize")
    return 0


cdef class Arguments:
    """The buffers of one call, released when this object dies, and the problem they describe."""
    cdef Py_buffer views[12]
    cdef int held
    cdef int dtype
    cdef char dtype_code
    cdef kvq_problem problem

    def __cinit__(self):
        self.held = 0
        self.problem.mask = NULL
        self.problem.bias = NULL
        self.problem.stats = NULL
        self.problem.dbias = NULL

    def __dealloc__(self):
        for i in range(self.held):
            PyBuffer_Release(&self.views[i])

    cdef Py_buffer *take(self, name, array, int flags) except NULL:
        """Hold the buffer of a 3-D array."""
        cdef Py_buffer *view = &self.views[self.held]
        PyObject_GetBuffer(array, view, flags | PyBUF_FORMAT)
        self.held += 1
        if view.ndim != 3:
            raise ValueError(f"{name} must have 3 dimensions, got {view.ndim}")
        return view

    cdef int check_dtype(self, name, Py_buffer *view) except -1:
        check_aligned(name, view)
        if view.format[0] != self.dtype_code or view.format[1] != 0:
            raise ValueError(f"{name} must have the dtype of q ({chr(self.dtype_code)!r}), "
                             f"got {view.format.decode()!r}")
        return 0

    cdef int check_shape(self, name, Py_buffer *view, Py_ssize_t a, Py_ssize_t b,
                         Py_ssize_t c) except -1:
        if view.shape[0] != a or view.shape[1] != b or view.shape[2] != c:
            raise ValueError(f"{name} must have shape {(a, b, c)}, "
                             f"got {(view.shape[0], view.shape[1], view.shape[2])}")
        return 0

    cdef void *dense(self, name, array, bint is_written, Py_ssize_t a, Py_ssize_t b,
                     Py_ssize_t c) except? NULL:
        """The address of a C-contiguous array of q's dtype and this shape."""
        cdef int flags = PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if is_written else 0)
        cdef Py_buffer *view = self.take(name, array, flags)
        self.check_dtype(name, view)
        self.check_shape(name, view, a, b, c)
        return view.buf

    cdef Py_ssize_t stats_bytes(self) noexcept:
        """Two numbers per query: the largest exponent and N."""
        cdef Py_ssize_t real_bytes = 4 if self.dtype == KVQ_F32_INDEX else 8
        return self.problem.batch * self.problem.Tq * KVQ_STATS * real_bytes

    cdef int describe(self, score, q, k, v, mask, bias, bint is_causal, double scale) except -1:
        """Everything that forward and backward have in common."""
        cdef kvq_problem *p = &self.problem
        cdef Py_buffer *view
        cdef int axis
        if score == "softmax":
            p.score = KVQ_SOFTMAX
        elif score == "expressive":
            p.score = KVQ_EXPRESSIVE
        else:
            raise ValueError(f"score must be 'softmax' or 'expressive', got {score!r}")
        p.is_causal = is_causal
        p.scale = scale

        view = self.take("q", q, PyBUF_C_CONTIGUOUS)
        self.dtype_code = view.format[0]
        if view.format[1] != 0 or self.dtype_code not in (c"f", c"d"):
            raise ValueError(f"q must be float32 or float64, got {view.format.decode()!r}")
        check_aligned("q", view)
        self.dtype = KVQ_F32_INDEX if self.dtype_code == c"f" else KVQ_F64_INDEX
        p.q = view.buf
        p.batch, p.Tq, p.d = view.shape[0], view.shape[1], view.shape[2]

        view = self.take("k", k, PyBUF_C_CONTIGUOUS)
        self.check_dtype("k", view)
        p.Tk = view.shape[1]
        self.check_shape("k", view, p.batch, p.Tk, p.d)
        p.k = view.buf

        view = self.take("v", v, PyBUF_C_CONTIGUOUS)
        self.check_dtype("v", view)
        p.dv = view.shape[2]
        self.check_shape("v", view, p.batch, p.Tk, p.dv)
        p.v = view.buf

        if mask is not None:
            view = self.take("mask", mask, PyBUF_STRIDES)
            if view.itemsize != 1:
                raise ValueError(f"mask must be bool or uint8, got {view.format.decode()!r}")
            self.check_shape("mask", view, p.batch, p.Tq, p.Tk)
            p.mask = <const char *> view.buf
            for axis in range(3):
                p.mask_strides[axis] = view.strides[axis]
        if bias is not None:
            view = self.take("bias", bias, PyBUF_STRIDES)
            self.check_dtype("bias", view)
            self.check_shape("bias", view, p.batch, p.Tq, p.Tk)
            p.bias = <const char *> view.buf
            for axis in range(3):
                p.bias_strides[axis] = view.strides[axis]
                if view.strides[axis] % view.itemsize:
                    raise ValueError("bias must have strides that are multiples of its itemsize")
        return 0


cdef int check_threads(int num_threads) except -1:
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
    return 0


# ---- the functions -------------------------------------------------------------------------------

def forward(score, q, k, v, mask, bias, bint is_causal, double scale, out, int num_threads,
            *, str simd=None):
    """out_i = sum_j w_ij v_j / N_i, written to `out`. Returns what `backward` wants as `stats`.

    score is "softmax" (w = exp(scale q.k + bias)) or "expressive" (w = exp(bias) z^2 / (1 + z^2)).
    q (B, Tq, d), k (B, Tk, d), v (B, Tk, dv), out (B, Tq, dv): C-contiguous, float32 or float64.
    mask (bool or uint8, True = visible) and bias: None, or (B, Tq, Tk) with any strides.
    All values must be finite. A row without weight gives zeros.
    """
    cdef Arguments a = Arguments()
    cdef kvq_problem *p = &a.problem
    cdef const kvq_kernels *kernels
    cdef int failed
    check_threads(num_threads)
    a.describe(score, q, k, v, mask, bias, is_causal, scale)
    p.out = a.dense("out", out, True, p.batch, p.Tq, p.dv)
    stats = PyBytes_FromStringAndSize(NULL, a.stats_bytes())
    p.stats = PyBytes_AS_STRING(stats)
    kernels = find_kernels(simd, a.dtype)
    with nogil:
        failed = kvq_forward(kernels, p, num_threads)
    if failed:
        raise MemoryError("no memory for the kernel's scratch space")
    return stats


def backward(score, dout, q, k, v, out, bytes stats, mask, bias, bint is_causal, double scale,
             dq, dk, dv, dbias, int num_threads, *, str simd=None):
    """The gradients for `dout`, written to dq, dk, dv and, unless it is None, dbias (B, Tq, Tk).

    out and stats are what `forward` wrote and returned for the same arguments. A row without weight
    adds nothing to any gradient.
    """
    cdef Arguments a = Arguments()
    cdef kvq_problem *p = &a.problem
    cdef const kvq_kernels *kernels
    cdef int failed
    check_threads(num_threads)
    a.describe(score, q, k, v, mask, bias, is_causal, scale)
    p.dout = a.dense("dout", dout, False, p.batch, p.Tq, p.dv)
    p.out = a.dense("out", out, False, p.batch, p.Tq, p.dv)
    if len(stats) != a.stats_bytes():
        raise ValueError("stats must be what forward returned for the same arguments")
    p.stats = PyBytes_AS_STRING(stats)
    p.dq = a.dense("dq", dq, True, p.batch, p.Tq, p.d)
    p.dk = a.dense("dk", dk, True, p.batch, p.Tk, p.d)
    p.dv_out = a.dense("dv", dv, True, p.batch, p.Tk, p.dv)
    if dbias is not None:
        p.dbias = a.dense("dbias", dbias, True, p.batch, p.Tq, p.Tk)
    kernels = find_kernels(simd, a.dtype)
    with nogil:
        failed = kvq_backward(kernels, p, num_threads)
    if failed:
        raise MemoryError("no memory for the kernel's scratch space")


def all_finite(x, *, str simd=None):
    """Whether a C-contiguous float32 or float64 array holds neither NaN nor infinity."""
    cdef Py_buffer view
    cdef const kvq_kernels *kernels
    cdef int answer
    PyObject_GetBuffer(x, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
    try:
        if view.format[1] != 0 or view.format[0] not in (c"f", c"d"):
            raise ValueError(f"x must be float32 or float64, got {view.format.decode()!r}")
        check_aligned("x", &view)
        kernels = find_kernels(simd, KVQ_F32_INDEX if view.format[0] == c"f" else KVQ_F64_INDEX)
        with nogil:
            answer = kernels.all_finite(view.buf, <size_t> (view.len // view.itemsize))
    finally:
        PyBuffer_Release(&view)
    return answer != 0
