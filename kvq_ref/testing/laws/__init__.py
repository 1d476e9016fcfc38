"""Laws of attention, as data: anyone's kernel can be held to them.

Each is a :class:`Law`: a statement, a formula, the forms that obey it, and a check
that compares numbers within a computed tolerance.
"""

from kvq_ref.testing.laws.causality import CAUSALITY
from kvq_ref.testing.laws.definition import DEFINITION
from kvq_ref.testing.laws.law import Comparison, Law
from kvq_ref.testing.laws.least_squares import FITS
from kvq_ref.testing.laws.limits import LIMITS
from kvq_ref.testing.laws.lines import LINE_FITS
from kvq_ref.testing.laws.masks import MASKS
from kvq_ref.testing.laws.pieces import PIECES
from kvq_ref.testing.laws.recurrent import RECURRENT
from kvq_ref.testing.laws.scales import SCALES
from kvq_ref.testing.laws.scores import SCORES
from kvq_ref.testing.laws.symmetry import SYMMETRY
from kvq_ref.testing.laws.weights import WEIGHTS

LAWS: tuple[Law, ...] = (
    *DEFINITION,
    *SYMMETRY,
    *WEIGHTS,
    *MASKS,
    *CAUSALITY,
    *SCALES,
    *PIECES,
    *FITS,
    *LIMITS,
    *SCORES,
    *LINE_FITS,
    *RECURRENT,
)

__all__ = ["LAWS", "Comparison", "Law"]
