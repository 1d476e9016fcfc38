"""Put the tables of ``kvq-ref bench --out DIR`` into docs/benchmarks.md: python docs/make_benchmarks.py DIR ..."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kvq_ref.bench.report import Results, as_text

PAGE = Path(__file__).with_name("benchmarks.md")
MARK = "<!-- measured: from here to the end is written by docs/make_benchmarks.py -->\n"


def page(folders: list[Path]) -> str:
    """The page, with a section for each run."""
    head, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    parts = []
    for folder in folders:
        results = Results.from_fields(json.loads((folder / "bench.json").read_text(encoding="utf-8")))
        threads = results.config["threads"]
        kinds = {"ratios": results.cases, "latency": results.latency, "memory": results.memory, "mixed": results.mixed}
        what = ", ".join(kind for kind, found in kinds.items() if found).capitalize()
        title = f"### {what}: {results.config['dtype']}, {threads} thread{'s' * (threads != '1')}"
        parts.append(f"{title}\n\n{as_text(results)}\n")
    return head + mark + "".join(f"\n{part}" for part in parts)


if __name__ == "__main__":
    PAGE.write_text(page([Path(x) for x in sys.argv[1:]]), encoding="utf-8")
