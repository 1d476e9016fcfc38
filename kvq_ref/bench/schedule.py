"""One job: who disagrees, who is worth timing, and the rounds in which all take turns.

A variant is named "peer/name". Before anything is timed, the results of every
variant are compared with those of the reference. Of each other peer only what is not much slower
than its own best is timed more than once: the rest cannot be the best.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvq_ref.bench.jobs import Job
from kvq_ref.bench.processes import Answers, WorkerDiedError, WorkerError
from kvq_ref.bench.summary import DROP, Case, Round

BARS = {"float32": 1e-3, "float64": 1e-9}  # errors of other formulations are 100 times smaller, mistakes larger
SLOW = 3.0  # times the fastest of the same peer
MIN_ROUNDS = 3
REFERENCE = "ours/reference"  # the first to be asked; what the others must equal
REST = 0.03  # seconds in which threads of the one before go to sleep
WARM = 0.2  # seconds of a turn that are not timed: so long an idle second processor may take to come back


@dataclass
class Workers:
    """The processes that take turns.

    Attributes
    ----------
    peers : dict
        By name; "ours" comes first, and the others are compared with its reference.
    probe : Answers
    threads : int
    """

    peers: dict[str, Answers]
    probe: Answers
    threads: int = 1


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes
    ----------
    rounds : int
        That count, for each job.
    budget : float
        Seconds after which no further round of a job begins, but for the first three.
    window : float
        Seconds that a variant's turn takes, if one call is not longer.
    compiled : bool
        Whether torch.compile takes part.
    slow : float
        What takes so many times as long as the best of its peer in a first window is not timed again.
    """

    rounds: int = 9
    budget: float = 8.0
    window: float = 0.03
    compiled: bool = True
    slow: float = SLOW


def turns(names: list[str], number: int) -> list[str]:
    """The order of a round: every round begins with another.

    >>> turns(["a", "b", "c"], 4)
    ['b', 'c', 'a']
    """
    first = number % len(names)
    return names[first:] + names[:first]


def worth_timing(first: dict[str, float], slow: float = SLOW) -> list[str]:
    """Ours, and of every other peer what takes less than ``slow`` times as long as its best.

    >>> worth_timing({"ours/compiled": 1.0, "ours/reference": 50.0, "torch/a": 2.0, "torch/b": 5.0, "torch/c": 7.0})
    ['ours/compiled', 'ours/reference', 'torch/a', 'torch/b']
    """
    best: dict[str, float] = {}
    for name, seconds in first.items():
        peer = name.split("/")[0]
        best[peer] = min(seconds, best.get(peer, seconds))
    return [
        name
        for name, seconds in first.items()
        if name.startswith("ours/") or seconds <= slow * best[name.split("/")[0]]
    ]


@dataclass
class Measurement:
    """One job, from the first question to the last round."""

    job: Job
    workers: Workers
    effort: Effort
    folder: Path
    seed: int = 0
    say: Callable[[str], None] = field(default=lambda text: None)

    def run(self) -> Case:
        """Measure. What goes wrong in a worker is written down in the case, and the others go on."""
        case = Case(self.job)
        self._prepare(case)
        if self._is_worth_it(case.first):
            names = worth_timing(case.first, self.effort.slow)
            for name in set(case.first) - set(names):
                self._ask(case, name, "forget")
            self._rounds(case, names)
        return case

    # ---- Before the rounds ----

    def _prepare(self, case: Case) -> None:
        expected = str(self.folder / "expected.npz")
        fields = {**vars(self.job)}
        for peer, worker in list(self.workers.peers.items()):
            try:
                answer = worker.ask("prepare", job=fields, seed=self.seed, compiled=self.effort.compiled)
            except (WorkerError, WorkerDiedError) as error:
                case.failed[f"{peer}/all"] = self._reason(peer, error)
                continue
            case.left_out |= {f"{peer}/{name}": why for name, why in answer["left_out"].items()}
            for name in answer["variants"]:
                self.say(f"{peer}: {name}")
                full = f"{peer}/{name}"
                if full == REFERENCE and self._ask(case, full, "expect", path=expected) is None:
                    return  # nothing to compare the others with
                self._check(case, full, expected)
                if peer not in self.workers.peers:
                    break  # it died

    def _check(self, case: Case, name: str, expected: str) -> None:
        answer = {"errors": {}} if name == REFERENCE else self._ask(case, name, "check", path=expected)
        if answer is None:
            return
        case.errors[name] = answer["errors"]
        bar = BARS[self.job.dtype]
        wrong = {result: error for result, error in answer["errors"].items() if not error <= bar}
        if wrong:
            errors = ", ".join(f"{result} by {error:.1e}" for result, error in wrong.items())
            case.wrong[name] = f"differs from the reference in {errors} (at most {bar:g})"
        elif (seconds := self._window(case, name)) is not None:
            case.first[name] = seconds

    # ---- The rounds ----

    def _rounds(self, case: Case, names: list[str]) -> None:
        begin = time.perf_counter()
        for number in range(3 * self.effort.rounds):
            if number >= MIN_ROUNDS and time.perf_counter() - begin > self.effort.budget:
                break
            if sum(one.probe >= DROP * self._best(case) for one in case.rounds) >= self.effort.rounds:
                break
            # what is very long takes part in the first rounds only, or the others would have but few
            present = [x for x in names if number < MIN_ROUNDS or case.first[x] < self.effort.budget / 20]
            case.rounds.append(self._round(case, turns(present, number)))
            names = [name for name in names if name not in case.failed]
            if not self._is_worth_it(names):
                break

    def _is_worth_it(self, names: Iterable[str]) -> bool:
        """Without ours there is nothing to compare."""
        return any(name.startswith("ours/") for name in names)

    def _best(self, case: Case) -> float:
        return max(one.probe for one in case.rounds)

    def _round(self, case: Case, names: list[str]) -> Round:
        probes = [self._probe()]
        seconds: dict[str, float] = {}
        for name in names:
            if name not in case.failed and (taken := self._window(case, name)) is not None:
                seconds[name] = taken
            probes.append(self._probe())
        return Round(seconds, probes)

    def _probe(self) -> float:
        rate: float = self.workers.probe.ask("rate", dtype=self.job.dtype, warm=self._warm())["rate"]
        return rate

    def _warm(self) -> float:
        return WARM if self.workers.threads > 1 else 0.0

    def _window(self, case: Case, name: str) -> float | None:
        if self.workers.threads > 1:
            time.sleep(REST)
        answer = self._ask(case, name, "window", seconds=self.effort.window, warm=self._warm())
        return None if answer is None else answer["total"] / answer["calls"]

    # ---- Asking ----

    def _ask(self, case: Case, name: str, do: str, **content: Any) -> dict[str, Any] | None:
        peer, _, variant = name.partition("/")
        worker = self.workers.peers.get(peer)
        if worker is None:  # it died at another variant of this job
            case.failed.setdefault(name, "its process had ended")
            return None
        try:
            return worker.ask(do, variant=variant, **content)
        except (WorkerError, WorkerDiedError) as error:
            case.failed[name] = self._reason(peer, error)
            return None

    def _reason(self, peer: str, error: Exception) -> str:
        if isinstance(error, WorkerDiedError):
            del self.workers.peers[peer]  # whoever runs the next job starts another
            return f"its process died: {error}"
        return f"raised {error}"
