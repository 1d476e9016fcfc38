"""Every task by name: which settings count for it, what makes it, and where its settings start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvq_ref.lab.scores import ACCURACY, Score
from kvq_ref.lab.tasks.digits import Digits
from kvq_ref.lab.tasks.episodes import EpisodeTask
from kvq_ref.lab.tasks.linear_regression import LinearRegression
from kvq_ref.lab.tasks.lookups import Lookup
from kvq_ref.lab.tasks.outliers import Outliers
from kvq_ref.lab.tasks.photographs import Photographs
from kvq_ref.lab.tasks.policies import CartPole, Fetch, MountainCar
from kvq_ref.lab.tasks.recall import Recall
from kvq_ref.lab.tasks.recurrences import copy, nt, products, sums
from kvq_ref.lab.tasks.registration import Registration
from kvq_ref.lab.tasks.several import Several
from kvq_ref.lab.tasks.sinusoid import Sinusoid
from kvq_ref.lab.tasks.task import SequenceTask

OF_SEQUENCES = ("positions", "gain", "loss")  # settings of models that read sequences, and of their training
OF_CONTEXTS = ("encoder", "values", "learn", "depth")  # and of those that read a context
STARTS: dict[str, Any] = {
    "width": 64,
    "layers": 1,
    "heads": 1,
    "norm": "none",
    "rate": 1e-3,
    "weight_decay": 0.0,
    "warm_up": 0,
    "steps": 4000,
    "target": 0.0,
    "evaluate_every": 100,
}
"""Where models that read a context start: one layer, plain Adam, and no target but the steps."""
QUICK: dict[str, Any] = {"form": ("softmax", "expressive", "linear", "intention"), "steps": 1000, "evaluate_every": 100}
"""What ``kvq-ref run all --quick`` makes of a task: some seconds a run. A tuple has values of which each has a run."""

OF_POLICIES: dict[str, Any] = {
    "K": 32,
    "noise": 0.2,
    "rate": 3e-3,
    "warm_up": 50,
    "schedule": "cosine",
    "steps": 2000,
    "target": 1.0,
    "evaluate_every": 200,
}
"""Where those of policies start."""


@dataclass(frozen=True)
class Entry:
    """A task.

    Attributes
    ----------
    settings : tuple of str
        The task's own: ``make`` takes them.
    make : callable
    model : tuple of str
        Settings of its kind of model.
    score : Score
        What its runs are judged by.
    starts : mapping
        Defaults that are not those of :class:`~kvq_ref.lab.config.Config`.
    quick : mapping
        Settings of a small version: values, and tuples of them of which each has a run.
    """

    settings: tuple[str, ...]
    make: Callable[..., SequenceTask | EpisodeTask]
    model: tuple[str, ...] = OF_SEQUENCES
    score: Score = ACCURACY
    starts: Mapping[str, Any] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=lambda: QUICK)


def _in_context(
    settings: tuple[str, ...], task: type[EpisodeTask], quick: Mapping[str, Any] = QUICK, **starts: Any
) -> Entry:
    return Entry(settings, task, OF_CONTEXTS, task.score, STARTS | starts, quick)


TASKS: dict[str, Entry] = {
    "nt": Entry(("N", "tau", "T"), nt),
    "sums": Entry(("N", "tau", "terms", "T"), sums, quick=QUICK | {"terms": 3}),  # two terms are nt
    "products": Entry(("N", "tau", "T"), products, quick=QUICK | {"N": 3}),
    "copy": Entry(("N", "tau", "T"), copy),
    "lookup": Entry(("N", "terms"), lambda N, terms: Lookup(N, depth=terms), quick=QUICK | {"N": 4, "terms": 1}),
    "several": Entry(("tasks", "T"), lambda tasks, T: Several(pairs(tasks), T)),
    "sinusoid": _in_context(("K", "K_least", "noise"), Sinusoid),
    "linear_regression": _in_context(
        ("K", "K_least", "d", "noise"), LinearRegression, K=16, noise=0.25, encoder="none"
    ),
    "digits": _in_context(("N", "K"), Digits, N=5, K=5, target=1.0),
    "photographs": _in_context(("N", "K"), Photographs, N=5, K=5, target=1.0),
    "recall": _in_context(("K", "d", "N", "noise"), Recall, K=16, d=16, N=16, target=1.0),
    "registration": _in_context(("K", "d", "noise", "outlier_share"), Registration, K=16, d=3, noise=0.05),
    "outliers": _in_context(
        ("K", "d", "noise"),
        Outliers,
        K=16,
        d=4,
        noise=0.1,
        values="encoded",
        layers=2,
        target=1.0,
        quick=QUICK | {"K": 8, "d": 2},  # larger sets take more steps
    ),
    "cartpole": _in_context(("K", "noise"), CartPole, **OF_POLICIES),
    "mountain_car": _in_context(("K", "noise"), MountainCar, **OF_POLICIES),
    "fetch": _in_context(("K", "noise"), Fetch, **OF_POLICIES | {"rate": 1e-2}),
}


def unused_by(task: str) -> set[str]:
    """Settings that some task uses, and this one does not.

    >>> "tau" in unused_by("sinusoid"), "K" in unused_by("nt"), "width" in unused_by("nt")
    (True, True, False)
    """
    used = {name: {*entry.settings, *entry.model} for name, entry in TASKS.items()}
    return set().union(*used.values()) - used[task]


def pairs(text: str) -> tuple[tuple[int, int], ...]:
    """Pairs N:tau, apart by spaces.

    >>> pairs("2:5 3:4")
    ((2, 5), (3, 4))
    """
    found = []
    for word in text.split():
        N, colon, tau = word.partition(":")
        if not (colon and N.isdecimal() and tau.isdecimal()):
            raise ValueError(f"tasks: expected pairs N:tau such as '2:5 3:4', got {word!r}")
        found.append((int(N), int(tau)))
    return tuple(found)
