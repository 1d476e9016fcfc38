"""Implementations that are wrong on purpose: what a kit that finds bugs has to find.

Each has one bug that somebody's kernel has had, in the words of its docstring; what it is to be
called when it is found stands beside it. ``python -m testing.mutants`` prints which laws each breaks.
"""

from collections.abc import Iterator

from kvq_ref.testing.run import Verdict, hold_to
from kvq_ref.testing.target import Target
from kvq_ref.testing.verify import select
from testing.mutants import expressive, gradients, least_squares, linear, lines, machine, recurrent, scores, softmax
from testing.mutants.mutant import MUTANTS, Mutant


def target_of(mutant: Mutant) -> Target:
    target = Target(mutant.forward, mutant.form, **mutant.options())
    target.probe()
    return target


def broken_laws(mutant: Mutant, target: Target, seed: int, simplest: bool = False) -> Iterator[Verdict]:
    """Verdicts of the laws that it breaks, beginning with the one that is known to notice it."""
    for law in sorted(select(mutant.form), key=lambda law: law.name != mutant.breaks):
        if mutant.strict or not law.strict:
            verdict = hold_to(law, target, examples=100, seed=seed, simplest=simplest)
            if verdict.status == "broken":
                yield verdict


__all__ = [
    "MUTANTS",
    "Mutant",
    "broken_laws",
    "expressive",
    "gradients",
    "least_squares",
    "linear",
    "lines",
    "machine",
    "recurrent",
    "scores",
    "softmax",
    "target_of",
]
