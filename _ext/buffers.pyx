# cython: language_level=3
"""Memory for results, used again.

The system hands out fresh memory page by page, each at the price of a fault; at a few megabytes that costs more
than the arithmetic that fills it. So when a large result dies, its memory is kept for the next one of that size:
at most `limit()` bytes in all, the longest unused given back first. KVQ_REF_BUFFER_MB sets the limit, 0 turns it off.

The stock is guarded by the GIL: nothing between reading and writing it runs Python code. So a forked child, too,
finds it whole.
"""
import os

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdlib cimport free

import numpy as np

cdef extern from *:
    """
    #include <stdlib.h>
    enum { KEPT_AT_MOST = 256 }; /* blocks; the limit in bytes is what counts */
    static void *page_aligned(size_t bytes)
    {
        void *memory;
        return posix_memalign(&memory, 4096, bytes) ? NULL : memory;
    }
    """
    enum:
        KEPT_AT_MOST
    void *page_aligned(size_t bytes) nogil


SMALLEST = 1 << 15  # bytes; below that malloc keeps its own stock
cdef size_t _smallest = SMALLEST
cdef size_t GRAIN = 1 << 16

ctypedef struct Kept:
    void *memory
    size_t bytes

cdef Kept _kept[KEPT_AT_MOST]  # the oldest first
cdef int _count = 0
cdef size_t _total = 0
cdef size_t _limit = 64 << 20


cdef void forget(int place) noexcept:
    """Close the gap at a place of the list."""
    global _count, _total
    cdef int i
    _total -= _kept[place].bytes
    _count -= 1
    for i in range(place, _count):
        _kept[i] = _kept[i + 1]


cdef void shrink(size_t total) noexcept:
    """Give back the oldest, until no more than so many bytes are kept."""
    while _total > total:
        free(_kept[0].memory)
        forget(0)


@cython.final
cdef class Block:
    """Some bytes, which are kept for the next user when the last array on them is gone."""
    cdef void *memory
    cdef size_t bytes

    def __cinit__(self, size_t wanted):
        cdef int i
        self.bytes = (wanted + GRAIN - 1) // GRAIN * GRAIN
        for i in range(_count - 1, -1, -1):  # the latest is the warmest
            if _kept[i].bytes == self.bytes:
                self.memory = _kept[i].memory
                forget(i)
                return
        self.memory = page_aligned(self.bytes)
        if self.memory == NULL:  # what is kept may be what is missing
            shrink(0)
            self.memory = page_aligned(self.bytes)
        if self.memory == NULL:
            raise MemoryError(f"no memory for a result of {wanted} bytes")

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.memory, <Py_ssize_t> self.bytes, 0, flags)

    def __dealloc__(self):
        global _count, _total
        if self.memory == NULL:
            return
        if self.bytes > _limit:
            free(self.memory)
            return
        shrink(_limit - self.bytes)
        if _count == KEPT_AT_MOST:
            shrink(_total - 1)
        _kept[_count].memory = self.memory
        _kept[_count].bytes = self.bytes
        _count += 1
        _total += self.bytes


def empty(tuple shape, dtype):
    """numpy.empty, but a large array's memory may be that of one which has died."""
    dtype = np.dtype(dtype)
    cdef size_t bytes = dtype.itemsize
    cdef Py_ssize_t n
    if bytes == 0 or dtype.hasobject:
        return np.empty(shape, dtype)
    for n in shape:
        if n <= 0 or <size_t> n > _limit // bytes:  # so that the product cannot overflow
            return np.empty(shape, dtype)
        bytes *= <size_t> n
    if bytes < _smallest:
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, buffer=Block(bytes))


def limit():
    """Bytes that may be kept."""
    return _limit


def kept():
    """Bytes that are kept now."""
    return _total


def set_limit(size_t bytes):
    """Keep at most so many bytes, from now on."""
    global _limit
    _limit = bytes
    shrink(bytes)


def _limit_from_environment():
    wanted = os.environ.get("KVQ_REF_BUFFER_MB", "")
    if wanted:
        if not (wanted.isascii() and wanted.isdigit()):
            raise ValueError(f"KVQ_REF_BUFFER_MB: expected a whole number of megabytes, got {wanted!r}")
        set_limit(min(int(wanted), 1 << 40) << 20)


_limit_from_environment()
