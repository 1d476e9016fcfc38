"""What is probably wrong, where the pattern of a broken law is known."""

from __future__ import annotations

from kvq_ref.testing.run import Verdict
from kvq_ref.testing.target import Target


def likely_cause(target: Target, verdict: Verdict) -> str:
    """In words; empty where no pattern fits."""
    return verdict.law.hint
