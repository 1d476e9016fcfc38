"""The report of a sweep: tables, figures and every number, as one page, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import kvq_ref
from kvq_ref.files import to_json, write_atomically
from kvq_ref.lab import report as html
from kvq_ref.lab import sweep_figures as figures
from kvq_ref.lab import sweep_tables as tables
from kvq_ref.lab.analysis import Comparison, Summary, compare, summarise
from kvq_ref.lab.picture import Picture
from kvq_ref.lab.results import Run, Runs, have_target, varying
from kvq_ref.lab.scores import Score
from kvq_ref.lab.table import Table
from kvq_ref.lab.yardsticks import Standing, has_yardsticks, is_installed, standings

FEW = 12
SCORED = {
    "accuracy": "accuracy: of the tokens that are determined, on held-out sequences, or of the queries of held-out "
    "episodes",
    "error": "error: the mean square of what the answers to held-out queries are off by",
}
READING = "{scored}, at the end of the run; the mean over seeds with Student's 95 % interval."
ABOUT_TARGETS = (
    " solved: the share of seeds whose run reached its target, with Wilson's 95 % interval. median steps: to the "
    "target; a run that did not reach it is taken to need more steps than any that did, so the median is 'not reached' "
    "where half of the runs or more did not reach it."
)
YARDSTICKS = (
    "On the same held-out episodes, seed by seed; means with Student's 95 % interval. What a yardstick leaves open was "
    "chosen on other episodes. Further columns, where there are some, are kinds of held-out episodes; of those that "
    "training does not draw from, none is part of the score. ms a step: of training, evaluations included; "
    "the median over the seeds, on a computer as busy as it happened to be."
)
ACTING_TITLE = "Acting in the environment"
ACTING = (
    "At the end of a run its model acts in the real environment: 100 episodes, or as many as are held out if these are "
    "fewer, each in the place of a held-out teacher whom it knows by one context. Yardsticks, the teachers themselves "
    "and random actions have the same starts. return: the environment's own; goal: how well the teacher's goal is met, "
    "0 to 1 (cartpole: the share of all 500 steps with the pole up and the cart near the teacher's place; "
    "mountain_car: of the episodes that end on top; fetch: of those in which the right thing is fetched); gap: by how "
    "much the return of an episode is off the teacher's. Means with Student's 95 % interval over seeds."
)
COMPARING = (
    "Every row is a point of the grid at which all settings that both have to share are the same, and compares the "
    "runs of equal seeds in pairs. {Name}: the mean difference, first less second, with Student's 95 % interval; p: "
    "Wilcoxon's signed-rank test, and Holm's adjustment for all rows of the table; +/=/-: seeds for which the first is "
    "{better}, {equal}, {worse}. Steps: +/=/-: seeds for which the first needs fewer steps to the "
    "target, as many, more (not to reach it is slowest; neither reaches it: as many), and p of the sign test; ratio: "
    "geometric mean of the second's steps over the first's, over the seeds for which both reach the target. "
    "By {name} the first is ahead (or behind) where the 95 % interval of the difference has no zero in it; by steps, "
    "where the sign test has p < 0.05; equal where all pairs are; else it is open. Neither word is adjusted for the "
    "number of rows: by chance alone, one row in twenty may be called ahead or behind."
)


@dataclass(frozen=True)
class Findings:
    """What a report tells.

    Attributes
    ----------
    runs : sequence of Run
        Those that it is about.
    found : Runs
        All that was found.
    compare : str or None
        The setting whose values are compared.
    by : sequence of str
        Settings on the x axes.
    notes : sequence of str
        What was picked, and how.
    """

    runs: Sequence[Run]
    found: Runs
    compare: str | None
    by: Sequence[str]
    notes: Sequence[str] = ()
    summaries: list[Summary] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    standings: list[Standing] = field(default_factory=list)

    @property
    def judged_by(self) -> Score:
        """The one score of all the runs."""
        return self.runs[0].judged_by

    @property
    def has_target(self) -> bool:
        """Whether there is something to say of reaching it."""
        return have_target(self.runs)

    @property
    def reading(self) -> str:
        """How to read the table of points."""
        return READING.format(scored=SCORED[self.judged_by.name]) + ABOUT_TARGETS * self.has_target

    @property
    def comparing(self) -> str:
        """How to read the tables of pairs."""
        return COMPARING.format(Name=self.judged_by.name.capitalize(), **vars(self.judged_by))

    @property
    def common(self) -> dict[str, Any]:
        """Settings that all runs have in common."""
        settings, names = self.runs[0].config.settings, varying(run.config for run in self.runs)
        return {name: value for name, value in settings.items() if name != "seed" and name not in names}


def analyse(
    runs: Sequence[Run], found: Runs, compared: str | None, by: Sequence[str], notes: Sequence[str] = ()
) -> Findings:
    """Everything that a report tells, but the figures.

    Parameters
    ----------
    runs : sequence of Run
        At least one.
    found : Runs
    compared : str or None
    by : sequence of str
    notes : sequence of str

    Returns
    -------
    Findings

    Raises
    ------
    ValueError
        If some runs are judged by accuracy, and some by their error.
    """
    if len({run.judged_by.name for run in runs}) > 1:
        tasks = sorted({f"{run.config.task} by {run.judged_by.name}" for run in runs})
        raise ValueError(f"these runs are not judged alike ({', '.join(tasks)}); pick some with --where task=...")
    comparisons = compare(runs, compared) if compared else []
    if any(has_yardsticks(run.config) for run in runs) and not is_installed():
        notes = [*notes, 'Yardsticks are left out: they need scikit-learn, pip install "kvq_ref[tour]".']
    elif without := sorted({x.config.task for x in runs if has_yardsticks(x.config) and not is_installed(x.config)}):
        lack = 'they need its environment, pip install "kvq_ref[control]"'
        notes = [*notes, f"Yardsticks of {', '.join(without)} are left out: {lack}."]
    return Findings(runs, found, compared, by, notes, summarise(runs), comparisons, standings(runs))


def write_report(findings: Findings, out: Path) -> Path:
    """Write the figures, report.json, report.md and, last, report.html; each appears whole or not at all.

    Parameters
    ----------
    findings : Findings
    out : Path
        A folder, made if need be.

    Returns
    -------
    Path
        Of the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures = draw(findings)
    for name, (picture, _) in pictures.items():
        write_atomically(out / f"{name}.png", picture["light"])
    write_atomically(out / "report.json", to_json(as_dict(findings)))
    write_atomically(out / "report.md", as_markdown(findings, list(pictures)))
    return write_atomically(out / "report.html", as_html(findings, pictures))


def draw(findings: Findings) -> dict[str, tuple[Picture, str]]:
    """All figures, with their captions, by name."""
    found = {}
    runs, compared = findings.runs, findings.compare
    for by in findings.by:
        count = len(figures.panels_of(runs, [by], compared))
        cut = f" The first {figures.MOST_PANELS} of {count} panels." if count > figures.MOST_PANELS else ""
        for measure, words in figures.measures(runs).items():
            picture = figures.against(runs, by, compared, measure)
            found[f"{measure}-{by}"] = (
                picture,
                f"{words[0].upper()}{words[1:]}, against {by}. {DOTS.get(measure, MEANS)}{cut}",
            )
    if len(figures.panels_of(runs, [], compared)) <= figures.MOST_PANELS:
        caption = "Learning: a line for each run; it ends with a dot where the target is reached."
        found["learning"] = (figures.learning_curves(runs, compared), caption)
    return found


MEANS = (
    "Means with 95 % intervals; a dot for each run; yardsticks, where there are some, in grey. Points at one place are "
    "drawn beside each other."
)
DOTS = {
    "solved": "With Wilson's 95 % intervals.",
    "steps": "Medians, where they are reached; a dot for each run that reached it; dotted, the most steps of a run.",
}


# ---- The same, three times -------------------------------------------------------------


def as_dict(findings: Findings) -> dict[str, Any]:
    """Every number. What is infinite or not a number is null: steps that were not reached, an interval of one value."""
    found = findings.found
    by = f"by_{findings.judged_by.name}"

    def plain(x: Summary | Comparison | Standing) -> dict[str, Any]:
        """With the score under its name."""
        fields = asdict(x)
        fields.pop("judged_by")
        if not fields.get("acting", True):
            fields.pop("acting")
        return {findings.judged_by.name if name == "score" else name: value for name, value in fields.items()}

    return {
        "kvq_ref": kvq_ref.__version__,
        "compare": findings.compare,
        "notes": list(findings.notes),
        "settings in common": findings.common,
        "standings": [plain(x) for x in findings.standings],
        "points": [plain(x) for x in findings.summaries],
        "comparisons": [plain(x) | {by: x.by_score, "by_speed": x.by_speed} for x in findings.comparisons],
        "runs": [{"settings": run.config.settings, "result": run.result} for run in findings.runs],
        "unfinished": [path.name for path in found.unfinished],
        "failed": {path.name: why for path, why in found.failed.items()},
        "broken": {path.name: why for path, why in found.broken.items()},
    }


def as_markdown(findings: Findings, pictures: Sequence[str] = ()) -> str:
    """The tables as text."""
    parts = ["# Runs", verdict(findings), *findings.notes, *missing(findings.found)]
    parts += [f"In common: {tables.as_words(findings.common)}."]
    if findings.standings:
        table = tables.standing_table(findings.standings)
        parts += ["## Forms and yardsticks", YARDSTICKS, table.as_markdown()]
    if any(x.acting for x in findings.standings):
        parts += [f"## {ACTING_TITLE}", ACTING, tables.acting_table(findings.standings).as_markdown()]
    points = tables.summary_table(findings.summaries, findings.has_target)
    parts += ["## Points", findings.reading, points.as_markdown()]
    for title, table in _comparisons(findings):
        parts += [f"## {title}", table.as_markdown()]
    parts += [findings.comparing] if findings.comparisons else []
    parts += [f"![{name}]({name}.png)" for name in pictures]
    parts += ["## Commands", "One run of each point:", "\n".join(f"    {x.command}" for x in findings.summaries)]
    return "\n\n".join(parts) + "\n"


def as_html(findings: Findings, pictures: dict[str, tuple[Picture, str]]) -> str:
    """One page that needs no network."""
    found = findings.found
    introduction = "".join(html.paragraph(text) for text in (*findings.notes, *missing(found)))
    introduction += html.paragraph(f"In common: {tables.as_words(findings.common)}.", "soft")
    sections = []
    if findings.standings:
        beside = html.table(tables.standing_table(findings.standings))
        sections.append(html.section("Forms and yardsticks", beside, html.paragraph(YARDSTICKS, "soft")))
    if any(x.acting for x in findings.standings):
        acting = html.table(tables.acting_table(findings.standings))
        sections.append(html.section(ACTING_TITLE, acting, html.paragraph(ACTING, "soft")))
    for title, table in _comparisons(findings):
        sections.append(html.section(title, html.table(table)))
    if findings.comparisons:
        sections.append(html.details("How to read these tables", html.paragraph(findings.comparing, "soft")))
    for by in (*findings.by, "learning"):
        of_section = [name for name in pictures if name.endswith(f"-{by}") or name == by]
        shown = [html.figure(pictures[name][0], name, pictures[name][1]) for name in of_section]
        if shown:
            sections.append(html.section("Learning" if by == "learning" else f"Against {by}", *shown))
    points = html.table(tables.summary_table(findings.summaries, findings.has_target))
    sections.append(html.section("Every point", html.paragraph(findings.reading, "soft"), points))
    commands = Table(("settings", "one run"), [(tables.as_words(x.settings), x.command) for x in findings.summaries], 2)
    sections.append(html.section("Commands", html.details("One run of each point", html.table(commands))))
    return html.page("Runs", verdict(findings), not (found.failed or found.broken), introduction, sections)


def _comparisons(findings: Findings) -> list[tuple[str, Table]]:
    """Titles and tables: what it comes to, then each pair."""
    if not findings.comparisons:
        return []
    found = [(f"Compared by {findings.compare}", tables.verdict_table(findings.comparisons, findings.has_target))]
    for (first, second), group in tables.pairs(findings.comparisons).items():
        title = f"{tables.as_word(first)} against {tables.as_word(second)}"
        found += [(f"{title}: {findings.judged_by.name}", tables.score_table(group))]
        found += [(f"{title}: steps", tables.speed_table(group))] if findings.has_target else []
    return found


def verdict(findings: Findings) -> str:
    """One line on top."""
    runs = findings.runs
    solved = sum(run.result["solved"] for run in runs)
    seeds = len({run.config.seed for run in runs})
    failed = len(findings.found.failed) + len(findings.found.broken)
    about_target = f": {solved} reached the target" if findings.has_target else ""
    return (
        f"{_count(len(runs), 'run')} at {_count(len(findings.summaries), 'point')} of the grid, "
        f"{_count(seeds, 'seed')}{about_target}" + (f"; {failed} failed" if failed else "") + "."
    )


def missing(found: Runs) -> list[str]:
    """Cells that the report is not about, by name; report.json has all the names."""
    lines = []
    if found.unfinished:
        names = ", ".join(path.name for path in found.unfinished[:FEW])
        names += f" and {len(found.unfinished) - FEW} more" if len(found.unfinished) > FEW else ""
        lines.append(f"Not finished, and left out: {_count(len(found.unfinished), 'run')} ({names}).")
    for words, cells in (("Failed", found.failed), ("Cannot be read", found.broken)):
        lines += [f"{words}: {path.name}: {why}" for path, why in cells.items()]
    return lines


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
