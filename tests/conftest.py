"""Fresh random inputs for every run: the seed is printed, and KVQ_REF_SEED repeats it."""

from __future__ import annotations

import os
import secrets
import zlib

import numpy as np
import pytest
from hypothesis import settings

# Fresh examples in CI too, where Hypothesis would repeat the same ones.
settings.register_profile("default", deadline=None, derandomize=False, max_examples=50)
settings.register_profile("thorough", deadline=None, derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Workers of a parallel run take the seed of the process that started them.
SEED = int(os.environ.setdefault("KVQ_REF_SEED", str(secrets.randbelow(2**32))))


def pytest_report_header() -> str:
    return f"random inputs: KVQ_REF_SEED={SEED}"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator of this run's seed and the test's name, so that a test's inputs do not depend on the others."""
    return np.random.default_rng([SEED, zlib.crc32(request.node.nodeid.encode())])
