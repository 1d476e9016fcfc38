"""Files appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from kvq_ref.files import to_json, write_atomically


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomically(tmp_path / "a.json", "old")

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [x.name for x in tmp_path.iterdir()] == ["a.json"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    assert write_atomically(tmp_path / "a", b"1").stat().st_mode == plain.stat().st_mode


def test_json_takes_arrays_and_no_infinities() -> None:
    text = to_json({"a": np.array([1.0, np.nan]), "b": np.float64(2), "c": np.int64(3), "d": (True, "x", None)})
    assert json.loads(text) == {"a": [1.0, None], "b": 2.0, "c": 3, "d": [True, "x", None]}
