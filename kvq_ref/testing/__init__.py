"""Ways to check an implementation: brute-force oracles and numerical derivatives.

They share no code with the forms and reach them through the public API alone.
"""

from kvq_ref.testing.gradients import check_vjp, numerical_vjp
from kvq_ref.testing.oracles import ORACLES

__all__ = ["ORACLES", "check_vjp", "numerical_vjp"]
