"""Laws of attention, as data: anyone's kernel can be held to them.

Each is a :class:`Law`: a statement, a formula, the forms that obey it, and a check
that compares numbers within a computed tolerance.
"""

from kvq_ref.testing.laws.definition import DEFINITION
from kvq_ref.testing.laws.law import Comparison, Law

LAWS: tuple[Law, ...] = DEFINITION

__all__ = ["LAWS", "Comparison", "Law"]
