"""What this installation has, for a bug report."""

from __future__ import annotations

import importlib.metadata
import platform

from kvq_ref import kernels
from kvq_ref.arrays import current_backend

LIBRARIES = ("numpy", "scipy", "array-api-compat", "cupy", "torch", "jax")


def config() -> dict[str, str]:
    """Versions, kernels and switches, as :func:`show_config` prints them."""
    try:
        version = importlib.metadata.version("kvq_ref")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed (running from a source tree)"
    found = {"kvq_ref": version, "python": platform.python_version(), "platform": platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    if kernels.missing is None:
        found["compiled kernels"] = f"yes, SIMD level {kernels.simd_level()}, {kernels.num_threads()} threads"
    else:
        found["compiled kernels"] = f"no ({kernels.missing}): every form runs on its NumPy reference"
    found["memory for results"] = kernels.buffer_policy()
    found["backend"] = current_backend()
    return found


def show_config() -> None:
    """Print the versions of kvq_ref and its libraries, and whether the compiled kernels are there.

    Examples
    --------
    >>> import kvq_ref as kvq
    >>> kvq.show_config()  # doctest: +ELLIPSIS
    kvq_ref           ...
    """
    rows = config()
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
