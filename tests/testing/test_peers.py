"""Implementations that are right, in four libraries, break no law: the kit does not cry wolf."""

from __future__ import annotations

import os

import numpy as np
import pytest

from kvq_ref.testing import verify
from testing.peers import PEERS, Peer

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
SEEDS = 20 if THOROUGH else 1

CASES = [
    pytest.param(peer, dtype, id=f"{peer.name}-{dtype}", marks=[pytest.mark.oracle] if peer.is_large else [])
    for peer in PEERS
    for dtype in peer.dtypes
]


@pytest.mark.parametrize(("peer", "dtype"), CASES)
@pytest.mark.filterwarnings("ignore")  # of other libraries
def test_no_law_is_broken(peer: Peer, dtype: str, rng: np.random.Generator) -> None:
    function, backward = peer.make()
    how = dict(peer.how) if backward is None else {**peer.how, "backward": backward}
    for _ in range(SEEDS):
        report = verify(
            function,
            peer.form,
            dtype=dtype,
            seed=int(rng.integers(2**32)),
            examples=peer.examples if THOROUGH else min(peer.examples, 10),
            strict=peer.strict,
            except_for=list(peer.except_for),
            **how,
        )
        assert not report.unusable
        assert [finding.law for finding in report.broken] == [], report.seed
        assert len(report.checked) > 20
