"""Reading the user's table: what is used, what is said, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvq_ref.lab.csv_file import DataError, read_csv


def write(folder: Path, header: str, rows: list[str], name: str = "my.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_regression_or_classification(tmp_path: Path) -> None:
    path = write(tmp_path, "x,y,few,word", [f"{i},{i * i / 7},{i % 3},{'ab'[i % 2]}" for i in range(30)])
    assert read_csv(path, "y").task == "regression"
    assert read_csv(path, "few").task == "classification"
    assert read_csv(path, "word").task == "classification"
    assert read_csv(path, "few", task="regression").task == "regression"
    assert "as asked" in read_csv(path, "few", task="regression").notes[0]


def test_values_are_read_as_they_stand(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b,y", [f"{i},{-i / 3!r},{i * 2}" for i in range(25)])
    data = read_csv(path, "y")
    np.testing.assert_array_equal(data.features, [[i, -i / 3] for i in range(25)])
    np.testing.assert_array_equal(data.target, [2 * i for i in range(25)])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_quotes_and_a_byte_order_mark(delimiter: str, tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    rows = [delimiter.join(["x", '"y, in m"'])] + [delimiter.join([str(i)] * 2) for i in range(25)]
    path.write_text("\r\n".join(rows), encoding="utf-8-sig")
    assert read_csv(path, "y, in m").features.shape == (25, 1)


def test_text_features_become_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "colour,name,x,y", [f"{'rgb'[i % 3]},n{i},{i},{i}" for i in range(60)])
    data = read_csv(path, "y")
    assert data.features.shape == (60, 4)
    np.testing.assert_array_equal(data.features[:3, :3], [[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    notes = " ".join(data.notes)
    assert "for each value: colour." in notes
    assert "and dropped: name." in notes


def test_missing_values_are_counted(tmp_path: Path) -> None:
    rows = [f"{i},{i},,1" for i in range(30)] + ["NA,1,,1", "3,,,1", "inf,3,,1", "1,2,3", "4,4,,1"]
    data = read_csv(write(tmp_path, "x,y,empty,same", rows), "y")
    assert data.features.shape == (31, 1)
    notes = " ".join(data.notes)
    assert "missing value, and dropped: 3 ('x' lacks 2)" in notes
    assert "do not have 4 fields, and dropped: 1" in notes
    assert "Without any value, and dropped: empty." in notes
    assert "Always the same, and dropped: same." in notes


def test_a_long_file_gives_a_random_subset(tmp_path: Path) -> None:
    path = write(tmp_path, "x,y", [f"{i},{i}" for i in range(5000)])
    data = read_csv(path, "y", max_rows=300, seed=1)
    assert len(data.target) == 300
    assert "300 of 5000 rows are used, drawn at random." in data.notes
    assert np.all(np.diff(np.asarray(data.target, np.float64)) > 0)
    assert abs(float(np.mean(np.asarray(data.target, np.float64))) - 2500) < 500
    assert not np.array_equal(data.target, read_csv(path, "y", max_rows=300, seed=2).target)


@pytest.mark.parametrize(
    ("header", "rows", "target", "task", "words"),
    [
        ("Height,y", ["1,2"] * 30, "hieght", None, "did you mean 'Height'?"),
        ("x,y", ["1,2"] * 30, "zzz", None, "The columns are: x, y"),
        ("x,y", ["1,2"] * 5, "y", None, "5 rows are too few"),
        ("x,y", [], "y", None, "0 rows are too few"),
        ("x,y", ["1,"] * 30, "y", None, "too few"),
        ("x,y", ["1,2"] * 30, "y", None, "nothing to predict"),
        ("x,y", [f"1,{i}" for i in range(30)], "y", None, "no column beside 'y'"),
        ("y", [f"{i}" for i in range(30)], "y", None, "no column beside 'y'"),
        ("x,y", [f"{i},n{i}" for i in range(60)], "y", None, "60 distinct text values"),
        ("x,y", [f"{i},{'ab'[i % 2]}" for i in range(30)], "y", "regression", "holds text ('a')"),
        ("x,x,y", ["1,2,3"] * 30, "y", None, "share the name 'x'"),
        ("", [], "y", None, "empty"),
    ],
)
def test_helpful_refusals(
    header: str, rows: list[str], target: str, task: str | None, words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as refusal:
        read_csv(write(tmp_path, header, rows), target, task=task)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_is_no_text_file(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    path.write_bytes(b"\xff\xfe\x00\x01" * 50)
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_csv(path, "y")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_csv(tmp_path, "y")
