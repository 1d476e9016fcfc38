"""Print which laws each mutant breaks, and what the kit says of it: ``python -m testing.mutants [seed [name ...]]``."""

from __future__ import annotations

import sys
import textwrap
import warnings

from kvq_ref.testing.causes import likely_cause
from testing.mutants import MUTANTS, broken_laws, target_of


def main(seed: int, names: list[str]) -> None:
    warnings.simplefilter("ignore")
    for mutant in MUTANTS:
        if names and mutant.name not in names:
            continue
        target = target_of(mutant)
        verdicts = list(broken_laws(mutant, target, seed))
        causes = list(dict.fromkeys(likely_cause(target, verdict) for verdict in verdicts))
        print(f"{mutant.name} ({mutant.form}): {mutant.bug}")
        print(textwrap.indent(textwrap.fill(", ".join(v.law.name for v in verdicts) or "no law", 110), "    "))
        for cause in causes:
            print(textwrap.indent(textwrap.fill(cause, 108), "  > "))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0, sys.argv[2:])
