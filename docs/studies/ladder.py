"""Softmax and expressive attention on the complexity ladder: the runs behind the fourth tutorial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvq_ref.lab.results import Run, read_runs

JOBS = "2"
COMMON = "--steps 1500 --batch 32 --schedule cosine"
# Of some 600 starts or more: with fewer, a model can learn them by heart, and fails on those held out for that reason.
TAUS, NUMBERS = "--N 5 --set tau=4,6,8,12,16", "--tau 6 --set N=3,8,12"

# What the search found best for each form: most runs solved, then the best accuracy, then the fewest steps.
BEST = {
    ("softmax", "rotary"): "--rate 3e-3",
    ("expressive", "rotary"): "--rate 3e-3",
    ("softmax", "learned"): "--rate 1e-2",
    ("expressive", "learned"): "--rate 3e-3",
    ("softmax", "alibi"): "--rate 3e-2",
    ("expressive", "alibi"): "--rate 1e-2",
}
SETTINGS = ("form", "positions", "N", "tau", "tasks", "rate", "gain", "seed")
FORMS = ("softmax", "expressive")
MAP = {
    "heads-1": "--heads 1",
    "heads-4": "--heads 4",
    "layers-1": "--layers 1",
    "width-16": "--width 16",
    "norm-none": "--norm none",
    "norm-post": "--norm post",
    "gain-4": "--gain 4",
    "no-decay": "--weight-decay 0",
    "sgd": "--optimizer sgd --rate 0.1",
    "determined": "--loss determined",
}
SEVERAL = ("2:8 5:4", "2:8 5:4 3:6 4:5 7:4 2:12 3:8 5:6")


def studies(folder: Path) -> list[tuple[str, str]]:
    """Name and arguments of each sweep, in the order of their importance."""
    search = "--N 5 --tau 4 --set form=softmax,expressive --set positions=rotary,alibi,learned"
    found = [("search", f"nt {search} --set rate=1e-3,3e-3,1e-2,3e-2 --set gain=1,2 --seeds 100:101 {COMMON}")]
    for (form, positions), best in BEST.items():
        given = f"--form {form} --positions {positions} {best} {COMMON}"
        if positions == "alibi":  # beyond a delay of 8 neither form does better than chance
            found.append(("ladder", f"nt --N 5 --set tau=4,6,8 {given} --seeds 10"))
        else:
            found += [("ladder", f"nt {rungs} {given} --seeds 10") for rungs in (TAUS, NUMBERS)]
    # Where the forms change places, the search is made anew, with ten seeds, at each point.
    far = "--N 5 --set tau=16,24,32 --positions learned --set form=softmax,expressive --set rate=1e-3,3e-3,1e-2"
    found.append(("far", f"nt {far} --seeds 10 {COMMON}"))
    far = "--N 5 --tau 8 --positions alibi --set form=softmax,expressive --set rate=3e-3,1e-2,3e-2"
    found.append(("far", f"nt {far} --seeds 10 {COMMON}"))
    for tasks in SEVERAL:
        for form in FORMS:
            for positions in ("rotary", "learned"):
                given = f"--form {form} --positions {positions} {BEST[form, positions]} {COMMON}"
                found.append(("several", f"several --tasks '{tasks}' {given} --seeds 10"))
    for name, change in MAP.items():
        for form in FORMS:
            for positions in ("rotary", "learned"):
                given = f"--form {form} --positions {positions} {BEST[form, positions]} {COMMON} {change}"
                found.append((f"map/{name}", f"nt --N 5 --tau 12 {given} --seeds 3"))
    return found


def results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every run as a short row, by study, with the command that repeats it."""
    found = {}
    for name in dict.fromkeys(name for name, _ in studies(folder)):
        rows = [row(x) for x in read_runs([folder / name]).finished] if (folder / name / "cells").is_dir() else []
        found[name] = sorted(rows, key=lambda row: str(row["command"]))
    return found


def row(x: Run) -> dict[str, Any]:
    settings = {name: x.config.settings[name] for name in SETTINGS if name in x.config.settings}
    ends = {name: round(float(x.result[name]), 4) for name in ("accuracy", "best_accuracy")}
    ends |= {name: round(value, 4) for name, value in x.result.items() if name.startswith("accuracy N=")}
    return settings | {"solved": x.result["solved"], "steps": x.result["steps"], **ends, "command": x.config.command()}
