"""The attention forms, one file each: equation, cost, source, forward, backward.

Each file is a lesson that can be read on its own. They use masks.py and
solve.py, and know nothing of compiled kernels or of who calls them.
"""
