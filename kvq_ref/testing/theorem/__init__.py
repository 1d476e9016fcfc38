"""Least-squares attention strictly generalises linear attention, as mathematics that can be run.

    L       = Q K^T V                               linear attention
    I_alpha = Q (K^T K + alpha I)^-1 K^T V          Intention, attention by least squares

**Theorem.**

1. alpha I_alpha = L - Q G (G + alpha I)^-1 K^T V, where G = K^T K. So alpha I_alpha tends to L for large alpha,
   with an error of at most ``|Q| |K^T V| lambda_max / (lambda_max + alpha)``. So do its gradients, and row by row
   the causal form. Every layer of linear attention is copied by an Intention layer of as many parameters, as closely
   as one likes on all tokens up to a given length. For orthonormal keys (1 + alpha) I_alpha = L exactly.
2. L is the first step of gradient descent, from zero, on the problem that Intention solves. The further steps
   lead to Intention at a geometric rate.
3. The converse fails: linear attention has the degree 1 in the keys, whatever the projections; Intention at
   alpha = 0 has the degree -1.
4. As Intention stands to linear attention, so sigma-Intention to softmax attention, and expressive Intention
   to expressive attention: they have the limit, and are equal for orthonormal keys.

What 1 says is containment in the closure. At a finite alpha no single Intention is L for *all* keys, by 3.

=================  =====================================================================================
``statements``     the exact statements as data: ``for statement in EXACT``, and random instances of them
``exact``          each of them as a function with its proof, in rational arithmetic: sides that are ``==``
``exact_forms``    linear attention, Intention and gradient descent in rational arithmetic
``rational``       matrices of fractions, and how to solve with them
``limits``         bounds of (1) in floating point, for any implementation, forward and backward
``fit``            bounds of (2), and that Intention is the best fit
``strictness``     witnesses and properties of (3); what softmax attention cannot do
``scores``         bounds of (4)
``layers``         the Intention layer that copies a layer of linear attention
``bounds``         ``Bound(measured, allowed)``, and norms
=================  =====================================================================================

Functions on floats take the implementations as arguments, this package's being the default, and return
what was measured beside what is allowed in exact arithmetic; rounding is the caller's business.

The abstract of Garnelo & Czarnecki 2023 (arXiv 2305.10203) states that the least-squares solution is a strict
generalisation of linear attention, and a variation of it one of regular attention. Statements and proofs
here are this package's own.

>>> from random import Random
>>> from kvq_ref.testing import theorem
>>> for statement in theorem.EXACT:
...     sides = statement.check(**theorem.instance(statement, Random(1)))
...     assert theorem.equal(*sides), statement.name
"""

from kvq_ref.testing.theorem import exact, exact_forms, fit, layers, limits, rational, scores, strictness
from kvq_ref.testing.theorem.bounds import Bound
from kvq_ref.testing.theorem.rational import equal, matrix
from kvq_ref.testing.theorem.statements import EXACT, Statement, instance

__all__ = [
    "EXACT",
    "Bound",
    "Statement",
    "equal",
    "exact",
    "exact_forms",
    "fit",
    "instance",
    "layers",
    "limits",
    "matrix",
    "rational",
    "scores",
    "strictness",
]
