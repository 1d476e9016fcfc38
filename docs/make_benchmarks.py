"""Put the tables of ``kvq-ref bench --out DIR`` into docs/benchmarks.md: python docs/make_benchmarks.py DIR ...

A folder that ``kvq-ref bench train`` has written to gives the section on training steps, one of ``kvq-ref bench cost``
that on a token's cost, with the figure; if none of the folders has been written to by ``kvq-ref bench``, the other
tables stay as they are.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from kvq_ref.bench.cost import as_text as cost_text
from kvq_ref.bench.report import Results, as_text
from kvq_ref.bench.training_run import TrainingResults
from kvq_ref.bench.training_run import as_text as training_text

PAGE = Path(__file__).with_name("benchmarks.md")
TRAINING = (
    "<!-- measured training steps: written by docs/make_benchmarks.py -->\n",
    "<!-- end of training steps -->\n",
)
COST = (
    "<!-- measured costs: written by docs/make_benchmarks.py -->\n",
    "<!-- end of costs -->\n",
)
FIGURE = PAGE.parent / "figures" / "cost.png"
MARK = "<!-- measured: from here to the end is written by docs/make_benchmarks.py -->\n"


def page(folders: list[Path]) -> str:
    """The page, with a section for each run."""
    text = PAGE.read_text(encoding="utf-8")
    for folder in folders:
        if (folder / "train.json").exists():
            results = TrainingResults.from_fields(json.loads((folder / "train.json").read_text(encoding="utf-8")))
            text = between(TRAINING, training_text(results), text)
        if (folder / "cost.json").exists():
            costs = Results.from_fields(json.loads((folder / "cost.json").read_text(encoding="utf-8")))
            shutil.copy(folder / "cost.png", FIGURE)
            picture = f"![Microseconds a token against T, by form and job](figures/{FIGURE.name})"
            text = between(COST, f"{picture}\n\n{cost_text(costs)}", text)
    head, mark, measured = text.partition(MARK)
    sections = [section(folder) for folder in folders if (folder / "bench.json").exists()]
    return head + mark + ("".join(f"\n{part}" for part in sections) if sections else measured)


def between(marks: tuple[str, str], content: str, text: str) -> str:
    """The text with this between the marks."""
    before, begin, rest = text.partition(marks[0])
    return before + begin + f"\n{content}\n\n" + marks[1] + rest.partition(marks[1])[2]


def section(folder: Path) -> str:
    """One run of ``kvq-ref bench``."""
    results = Results.from_fields(json.loads((folder / "bench.json").read_text(encoding="utf-8")))
    threads = results.config["threads"]
    kinds = {"ratios": results.cases, "latency": results.latency, "memory": results.memory, "mixed": results.mixed}
    what = ", ".join(kind for kind, found in kinds.items() if found).capitalize()
    title = f"### {what}: {results.config['dtype']}, {threads} thread{'s' * (threads != '1')}"
    return f"{title}\n\n{as_text(results)}\n"


if __name__ == "__main__":
    PAGE.write_text(page([Path(x) for x in sys.argv[1:]]), encoding="utf-8")
