"""Which rounds count, and what they say: medians, and ratios as the median of each round's ratio."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from kvq_ref.bench.jobs import Job, flops

DROP = 0.75  # of the best probe; below it the machine was busy with something else
FEWEST = 3


@dataclass(frozen=True)
class Round:
    """One turn of everybody: seconds of a call by variant, and the rates of the probes between the turns."""

    seconds: dict[str, float]
    probes: list[float]

    @property
    def probe(self) -> float:
        """The slowest: one slow spell spoils a round."""
        return min(self.probes)


@dataclass
class Case:
    """All that was measured of one job.

    Attributes
    ----------
    job : Job
    rounds : list of Round
    first : dict
        Seconds of a call in the first window, of every variant that agrees with the reference.
    errors : dict
        By variant, the largest relative error of each result against the reference.
    left_out, wrong, failed : dict
        Why a variant was not tried, disagrees, or raised or died.
    """

    job: Job
    rounds: list[Round] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """The way back."""
        rounds = [Round(**x) for x in fields["rounds"]]
        return cls(**{**fields, "job": Job.from_fields(fields["job"]), "rounds": rounds})


@dataclass(frozen=True)
class Summary:
    """What the rounds that count say about a case.

    Attributes
    ----------
    job : Job
    ours : str
        The variant that stands for ours: the kernel, or the reference where there is none.
    median : dict
        Seconds of a call, by variant.
    best : dict
        By peer, its fastest variant.
    ratio : dict
        By peer, its fastest variant's time over ours; "reference" is a peer here.
    rate : float or None
        Operations a second of ours.
    share : float or None
        The same, over the rate of the probes.
    rounds, dropped : int
        Good ones, and those in which the machine was busy.
    noisy : bool
        Whether so few were good that the least bad had to stand in.
    """

    job: Job
    ours: str
    median: dict[str, float]
    best: dict[str, str]
    ratio: dict[str, float]
    rate: float | None
    share: float | None
    rounds: int
    dropped: int
    noisy: bool


def best_probe(cases: Iterable[Case], dtype: str) -> float:
    """The rate of the machine in the best round of a run: the median of its probes, which no single one decides."""
    rates = [statistics.median(one.probes) for case in cases if case.job.dtype == dtype for one in case.rounds]
    return max(rates, default=0.0)


def kept(rounds: list[Round], best: float) -> tuple[list[Round], bool]:
    """The rounds that count, and whether they are the least bad ones only.

    Examples
    --------
    >>> rounds = [Round({}, [rate]) for rate in (10.0, 9.0, 7.0, 8.0)]
    >>> good, noisy = kept(rounds, 10.0)
    >>> [one.probe for one in good], noisy
    ([10.0, 9.0, 8.0], False)
    >>> good, noisy = kept(rounds, 20.0)
    >>> [one.probe for one in good], noisy
    ([10.0, 9.0, 8.0], True)
    """
    good = [one for one in rounds if one.probe >= DROP * best]
    if len(good) >= min(FEWEST, len(rounds)):
        return good, False
    return sorted(rounds, key=lambda one: -one.probe)[:FEWEST], True


def summarise(case: Case, best: float) -> Summary | None:
    """Medians and ratios of a case; None if ours was not timed.

    Parameters
    ----------
    case : Case
    best : float
        From :func:`best_probe`, of the whole run.
    """
    rounds, noisy = kept(case.rounds, best)
    times: dict[str, list[float]] = {}
    for one in rounds:
        for name, seconds in one.seconds.items():
            times.setdefault(name, []).append(seconds)
    median = {name: statistics.median(x) for name, x in times.items()}
    ours = next((name for name in ("ours/compiled", "ours/reference") if name in median), None)
    if ours is None:
        return None
    fastest: dict[str, str] = {}
    for name in sorted(median, key=lambda name: median[name]):
        peer = name.removeprefix("ours/").split("/")[0]
        if name != ours:
            fastest.setdefault(peer, name)
    ratios = {
        peer: [x.seconds[name] / x.seconds[ours] for x in rounds if {name, ours} <= set(x.seconds)]
        for peer, name in fastest.items()
    }
    operations = flops(case.job)
    return Summary(
        case.job,
        ours,
        median,
        fastest,
        {peer: statistics.median(x) for peer, x in ratios.items() if x},
        None if operations is None else operations / median[ours],
        None
        if operations is None
        else statistics.median(
            [operations / x.seconds[ours] / statistics.median(x.probes) for x in rounds if ours in x.seconds]
        ),
        0 if noisy else len(rounds),
        len(case.rounds) - (0 if noisy else len(rounds)),
        noisy,
    )
