"""kvq_ref: the reference that people check attention against.

Readable NumPy forward and backward of each attention form, beside compiled
kernels that agree with them.

>>> import numpy as np
>>> import kvq_ref as kvq
>>> rng = np.random.default_rng(0)
>>> q, k, v = rng.standard_normal((3, 4, 2))
>>> kvq.softmax_attention(q, k, v, is_causal=True).shape
(4, 2)
"""

import os as _os
import warnings as _warnings
from pathlib import Path as _Path

from kvq_ref import kernels as _kernels
from kvq_ref import masks, partials
from kvq_ref.arrays import use_backend
from kvq_ref.attention import (
    delta_rule,
    expressive_attention,
    expressive_intention,
    gated_linear_attention,
    intention,
    linear_attention,
    local_linear_attention,
    mesa_attention,
    quadratic_attention,
    sigma_intention,
    sigmoid_attention,
    softmax_attention,
    taylor_attention,
    vjp,
)
from kvq_ref.config import show_config
from kvq_ref.dispatch import use_implementation
from kvq_ref.features import FeatureMap
from kvq_ref.forms.delta_rule import DeltaRuleState
from kvq_ref.forms.gated_linear import GatedLinearState
from kvq_ref.forms.intention import IntentionState
from kvq_ref.forms.linear import LinearState
from kvq_ref.forms.mesa import MesaState
from kvq_ref.heads import merge_heads, split_heads
from kvq_ref.threads import use_num_threads
from kvq_ref.types import Grads

__version__ = "0.1.0"

__all__ = [
    "DeltaRuleState",
    "FeatureMap",
    "GatedLinearState",
    "Grads",
    "IntentionState",
    "LinearState",
    "MesaState",
    "delta_rule",
    "expressive_attention",
    "expressive_intention",
    "gated_linear_attention",
    "intention",
    "linear_attention",
    "local_linear_attention",
    "masks",
    "merge_heads",
    "mesa_attention",
    "partials",
    "quadratic_attention",
    "show_config",
    "sigma_intention",
    "sigmoid_attention",
    "softmax_attention",
    "split_heads",
    "taylor_attention",
    "use_backend",
    "use_implementation",
    "use_num_threads",
    "vjp",
]

if _kernels.missing is not None:
    _remedy = "install a C compiler and run 'pip install .' in the source tree, then leave that folder"
    if _os.environ.get("KVQ_REF_REQUIRE_EXT") == "1":
        raise ImportError(
            f"KVQ_REF_REQUIRE_EXT=1, but the compiled kernels are missing ({_kernels.missing}); {_remedy}"
        )
    if (_Path(__file__).parents[1] / "pyproject.toml").exists():
        _warnings.warn(
            f"kvq_ref is imported from a source tree without its compiled kernels, so every form runs on its "
            f"NumPy reference; for the kernels, {_remedy}",
            stacklevel=2,
        )
