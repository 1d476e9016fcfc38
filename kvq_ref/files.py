"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes | str) -> Path:
    """Write ``content`` beside ``path``, then move it there in one step.

    Whoever reads ``path`` finds the old file or the new one, never a part of
    one; if writing fails, the old one stays and nothing is left behind.

    Parameters
    ----------
    path : Path
        Where to; an existing file is replaced.
    content : bytes or str
        Text is encoded as UTF-8.

    Returns
    -------
    Path
        ``path``

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder, "a.txt"), "whole").read_text()
    'whole'
    """
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return path


def to_json(results: Any, indent: int | None = 1) -> str:
    """JSON as the standard has it: a number that is not finite becomes null. Without an indent, on one line.

    Examples
    --------
    >>> print(to_json({"error": float("inf"), "bars": (1e-12,)}))
    {
     "error": null,
     "bars": [
      1e-12
     ]
    }
    """
    return json.dumps(_plain(results), indent=indent, allow_nan=False, ensure_ascii=False)


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {str(key): _plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    if hasattr(x, "tolist"):  # an array or a NumPy scalar
        return _plain(x.tolist())
    if isinstance(x, float) and not math.isfinite(x):
        return None
    return x


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
