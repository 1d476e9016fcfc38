"""What a person sees while runs are trained: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kvq_ref.lab.catalogue import TASKS
from kvq_ref.lab.cell import Outcome
from kvq_ref.lab.config import Config
from kvq_ref.lab.results import Run
from kvq_ref.lab.scores import SCORES, Score
from kvq_ref.lab.sweep_tables import short_table

EVERY = 10.0  # seconds between two lines
STEPS = "{desc} {n_fmt}/{total_fmt} steps |{bar}| {elapsed}, {rate_fmt}{postfix}"
CELLS = "{n_fmt}/{total_fmt} runs |{bar}| {elapsed}<{remaining}{postfix}"


class _Watch:
    """A bar on stderr, or lines."""

    def __init__(self, total: int, bar_format: str, unit: str, what: str = "") -> None:
        self.bar = tqdm(total=total, disable=None, leave=False, bar_format=bar_format, unit=unit, desc=what)
        self.said = time.monotonic()
        self.begun = self.said
        self.outcomes: list[Outcome] = []

    def say(self, text: str, now: bool = False) -> None:
        """A line, where there is no bar, and the last one is some time ago."""
        if self.bar.disable and (now or time.monotonic() - self.said > EVERY):
            print(text, file=sys.stderr, flush=True)
            self.said = time.monotonic()

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.state != "finished"]

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()


class One(_Watch):
    """Of a single run."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.steps, STEPS, "step", f"{config.task}, {config.form}")
        self.at = 0
        self.score = TASKS[config.task].score

    def step(self, step: int, row: dict[str, Any]) -> None:
        """After a step of training."""
        if self.at == 0:  # it may go on from a checkpoint
            self.bar.initial = self.bar.n = step - 1
        self.at = step
        if row and row["step"] == step:
            self.bar.set_postfix_str(_numbers(row, self.score), refresh=False)
            self.say(f"step {step}: {_numbers(row, self.score)}, {time.monotonic() - self.begun:.0f} s")
        self.bar.update()

    def ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def so_far(self) -> str:
        return f"at step {self.at}" if self.at else "before the first step"

    def summary(self, out: Path) -> str:
        """What came of it."""
        outcome = self.outcomes[0]
        if outcome.state == "failed":
            return failures([outcome])
        if outcome.state == "busy":
            return f"another process is training this run: {outcome.folder}"
        result = outcome.result
        not_solved = "not solved" if self.score.has_target(outcome.config.target) else "ended"
        how = "solved" if result["solved"] else "diverged" if result["diverged"] else not_solved
        before = "" if outcome.is_new else " (finished before; --restart trains it again)"
        cost = json.loads((outcome.folder / "cost.json").read_text(encoding="utf-8"))
        return (
            f"{how} after {result['steps']} steps{before}: {_numbers(result, self.score)} on held-out data\n"
            f"{_acting(result)}"
            f"time      {cost['seconds']:.1f} s, {cost['steps_per_second']:.0f} steps/s\n"
            f"results   {outcome.folder}\nrepeat    {outcome.config.command()}"
        )


class Many(_Watch):
    """Of a sweep."""

    def __init__(self, total: int) -> None:
        super().__init__(total, CELLS, "run")
        self.total = total

    def ended(self, outcome: Outcome) -> None:
        """After a run."""
        self.outcomes.append(outcome)
        failed = len(self.failed)
        if outcome.state == "failed":
            self.tell(f"failed: {outcome.config.command()}\n  {outcome.error}")
        if failed:
            self.bar.set_postfix_str(f"{failed} failed", refresh=False)
        self.bar.update()
        self.say(f"{self.so_far()}, {time.monotonic() - self.begun:.0f} s", now=len(self.outcomes) == self.total)

    def tell(self, text: str) -> None:
        """A line above the bar."""
        with tqdm.external_write_mode(file=sys.stderr):
            print(text, file=sys.stderr, flush=True)

    def so_far(self) -> str:
        failed = f", {len(self.failed)} failed" * bool(self.failed)
        return f"{len(self.outcomes) - len(self.failed)} of {self.total} runs finished{failed}"

    def summary(self, out: Path) -> str:
        """A table, what failed, and where it all is."""
        finished = [x for x in self.outcomes if x.state == "finished"]
        before = sum(not x.is_new for x in finished)
        lines = []
        if finished:
            runs = [Run(x.config, x.result) for x in finished]
            alike = [[run for run in runs if run.judged_by is score] for score in SCORES.values()]
            lines = [short_table(group).as_text() for group in alike if group]
        lines += [failures(self.failed)] if self.failed else []
        old = f" ({before} of them before)" * bool(before)
        lines += [f"{self.so_far()}{old}\nresults   {out / 'cells'}\nreport    kvq-ref report {out}"]
        return "\n\n".join(lines)


def _numbers(row: dict[str, Any], score: Score) -> str:
    loss, value = (math.nan if row[name] is None else row[name] for name in ("loss", score.name))
    return f"loss {loss:.3g}, {score.name} {score.as_word(value)}"


def _acting(result: dict[str, Any]) -> str:
    """What came of acting in an environment, if anything did."""
    if "return" not in result:
        return ""
    own, teacher, chance = (f"{result[f'{who}return']:.4g}" for who in ("", "teacher_", "random_"))
    goals = f"goal met {result['goal']:.2f}, the teacher's {result['teacher_goal']:.2f}"
    return f"acting    return {own}, the teacher's {teacher}, of random actions {chance}; {goals}\n"


def failures(outcomes: list[Outcome]) -> str:
    """What failed, and how to repeat it."""
    lines = []
    for outcome in outcomes:
        lines += [f"failed: {outcome.error}", f"  repeat it: {outcome.config.command()}"]
        lines += [f"  more: {outcome.folder / 'error.txt'}"]
    return "\n".join(lines)
