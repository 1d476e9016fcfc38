"""What a mutant is: an implementation with one real bug, and the words in which the kit should name it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import kvq_ref as kvq
from kvq_ref.dispatch import form_name

Function = Callable[..., Any]


@dataclass(frozen=True)
class Mutant:
    """A wrong implementation.

    Attributes
    ----------
    name : str
    bug : str
        What is wrong with it, in a line.
    form : str
        What it claims to be.
    forward, backward : callable
        As a target takes them; without a backward it is verified without gradients.
    cause : tuple of str
        Words that the likely cause of every law that it breaks holds, where one is named at all;
        empty where no pattern is known, and then none may be named but the law's own hint.
    strict : bool
        Whether it breaks only what this package promises and many sound kernels do not.
    breaks : str
        A law that notices it; others may too.
    how : mapping
        How to call it: dtype, layout, ...
    """

    name: str
    bug: str
    form: str
    forward: Function
    backward: Function | None = None
    cause: tuple[str, ...] = ()
    strict: bool = False
    breaks: str = "definition"
    how: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """What ``verify`` is told of it."""
        return {**self.how, "backward": self.backward, "gradient": self.backward is not None}


MUTANTS: list[Mutant] = []


def mutant(
    form: str, *cause: str, strict: bool = False, breaks: str = "definition", **how: Any
) -> Callable[[Function], Function]:
    """A forward pass with a bug, which its docstring names."""

    def add(function: Function) -> Function:
        _add(function, form=form, forward=function, cause=cause, strict=strict, breaks=breaks, how=how)
        return function

    return add


def wrong_gradient(form: str, *cause: str, breaks: str = "gradients", **how: Any) -> Callable[[Function], Function]:
    """A backward pass with a bug, behind a forward pass that is right."""

    def add(function: Function) -> Function:
        forward = getattr(kvq, form_name(form))
        _add(function, form=form, forward=forward, backward=function, cause=cause, breaks=breaks, how=how)
        return function

    return add


def _add(function: Function, form: str, **fields: Any) -> None:
    assert function.__name__ not in {x.name for x in MUTANTS}, function.__name__
    bug = inspect.cleandoc(function.__doc__ or "").replace("\n", " ")
    MUTANTS.append(Mutant(name=function.__name__, bug=bug, form=form_name(form), **fields))
