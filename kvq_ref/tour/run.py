"""Taking the tour: the steps one by one under a progress bar, then the report."""

from __future__ import annotations

import importlib.util
import secrets
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from kvq_ref.config import config
from kvq_ref.files import to_json, write_atomically
from kvq_ref.lab.check import Check
from kvq_ref.tour.findings import Findings, Options, TourError, as_dict
from kvq_ref.tour.steps import steps

EXTRAS = ("matplotlib", "sklearn")
_BAR = "{desc:<12} {percentage:3.0f}% |{bar}| {elapsed}"


def take_tour(options: Options, say: Callable[[str], None] = print) -> Findings:
    """Take the tour and write the report.

    Parameters
    ----------
    options : Options
    say : callable
        Is given the text for the terminal, piece by piece.

    Returns
    -------
    Findings
        ``failures`` names the checks that did not hold.

    Raises
    ------
    TourError
        If something is missing, or the data or the folder cannot be used.
    """
    _require_extras()
    from tqdm import tqdm

    from kvq_ref.tour import story

    start = time.perf_counter()
    seed = secrets.randbits(32) if options.seed is None else options.seed
    findings = Findings(seed=seed, quick=options.quick, config=config())
    todo = steps(options, seed)
    _make_folder(options.out)
    say(f"kvq_ref tour, seed {seed}{' (quick)' if options.quick else ''}")

    with tqdm(total=sum(length for _, length, _ in todo), disable=None, leave=False, bar_format=_BAR) as bar:
        for name, _, step in todo:
            bar.set_description(name)
            try:
                step(findings, bar)
            except TourError:
                raise
            except Exception as error:
                traceback.print_exc()
                note = f"raised {type(error).__name__}: {error}"
                findings.crashes.append(Check(f"{name}: the step ran to its end", 1.0, 0.0, note))
            else:
                with tqdm.external_write_mode(file=sys.stdout):
                    say(story.as_text(findings, name))
        bar.set_description("report")
        findings.seconds = time.perf_counter() - start
        report = _write(findings, options.out)
    say(f"\nreport   {report}\nverdict  {story.verdict(findings)}")
    return findings


def _require_extras() -> None:
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join("scikit-learn" if name == "sklearn" else name for name in missing)
        raise TourError(f'The tour needs {names}: pip install "kvq_ref[tour]"')


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TourError(f"--out {folder}: cannot be made a folder ({error.strerror}).") from None


def _write(findings: Findings, folder: Path) -> Path:
    """Figures, numbers and page; each file appears whole or not at all, the page last."""
    from kvq_ref.tour import story

    pictures = story.figures(findings)
    try:
        for name, picture in pictures.items():
            write_atomically(folder / f"{name}.png", picture["light"])
        write_atomically(folder / "tour.json", to_json(as_dict(findings)))
        return write_atomically(folder / "tour.html", story.as_html(findings, pictures))
    except OSError as error:
        raise TourError(f"--out {folder}: cannot be written to ({error.strerror}).") from None
