"""The tables of a sweep."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from kvq_ref.lab.config import Config
from kvq_ref.lab.results import axes_of, grouped
from kvq_ref.lab.table import Table


def summary_table(configs: Sequence[Config], results: Sequence[dict[str, Any]]) -> Table:
    """A row for each point of the grid, over its seeds.

    Examples
    --------
    >>> results = [{"solved": True, "steps": 100, "accuracy": 1.0}, {"solved": False, "steps": 500, "accuracy": 0.5}]
    >>> print(summary_table([Config(tau=2), Config(tau=3)], results).as_text())
    tau  runs  solved  median steps  mean accuracy
    ---  ----  ------  ------------  -------------
    2       1       1           100         1.0000
    3       1       0             -         0.5000
    """
    names = axes_of(configs)
    rows = []
    for point, found in grouped(zip(configs, results, strict=True), names).items():
        # a run that does not solve its task takes longer than any that does
        steps = statistics.median_high(x["steps"] if x["solved"] else float("inf") for x in found)
        counts = (str(len(found)), str(sum(x["solved"] for x in found)))
        mean = statistics.mean(x["accuracy"] for x in found)
        rows.append((*map(as_word, point), *counts, "-" if steps == float("inf") else f"{steps:g}", f"{mean:.4f}"))
    return Table((*names, "runs", "solved", "median steps", "mean accuracy"), rows, text_columns=len(names))


def as_word(value: Any) -> str:
    """A setting's value.

    >>> as_word(0.002), as_word(None)
    ('0.002', '-')
    """
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
