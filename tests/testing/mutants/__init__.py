"""Implementations that are wrong on purpose: what a kit that finds bugs has to find.

Each has one bug that somebody's kernel has had, in the words of its docstring; what it is to be
called when it is found stands beside it.
"""

from testing.mutants import expressive, gradients, least_squares, linear, machine, softmax
from testing.mutants.mutant import MUTANTS, Mutant

__all__ = ["MUTANTS", "Mutant", "expressive", "gradients", "least_squares", "linear", "machine", "softmax"]
