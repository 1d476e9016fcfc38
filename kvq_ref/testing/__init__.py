"""The verification kit: hold your own attention to the laws that this package obeys.

- :func:`verify` gives a report on any function, :func:`suite` a class of pytest tests;
- ``laws`` are the laws as data, ``theorem`` the mathematics of the house as executable proofs;
- ``ORACLES`` are the forms as plain loops, :func:`check_vjp` compares a backward pass with differences.
"""

from kvq_ref.testing import theorem
from kvq_ref.testing.gradients import check_vjp, numerical_vjp
from kvq_ref.testing.laws import LAWS, Law
from kvq_ref.testing.oracles import ORACLES
from kvq_ref.testing.report import Report
from kvq_ref.testing.target import Target
from kvq_ref.testing.verify import suite, verify

__all__ = ["LAWS", "ORACLES", "Law", "Report", "Target", "check_vjp", "numerical_vjp", "suite", "theorem", "verify"]
