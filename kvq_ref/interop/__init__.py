"""The forms inside models of other libraries, on the compiled kernels and with the backward written by hand.

:mod:`kvq_ref.interop.torch` has them for PyTorch, :mod:`kvq_ref.interop.jax` for JAX: the same names and
keywords as in kvq_ref itself. Neither library is imported before its module is.
"""
