"""A table from the user's CSV file: what can be used is used, and what was left out is said."""

from __future__ import annotations

import csv
import difflib
import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvq_ref.lab.data import F64, Dataset

MISSING = {"", "na", "n/a", "nan", "null", "none", "?", "-"}
MIN_ROWS = 20
MAX_CLASSES = 50  # also the most distinct values that a text feature may have
MANY_VALUES = 10  # a numeric target with more distinct values than this is a quantity


class DataError(ValueError):
    """The file cannot be used; the message says why, and what would help."""


def read_csv(path: Path | str, target: str, *, task: str | None = None, max_rows: int = 2000, seed: int = 0) -> Dataset:
    r"""Read a CSV file whose first line names the columns.

    Numeric columns are features. A text column becomes one column of 0 and 1
    for each of its values, or is dropped if it has more than 50. Rows with a
    missing value (empty, NA, NaN, null, none, ? or -) are dropped. The notes of
    the result say what was done.

    Parameters
    ----------
    path : path
        The file; separated by commas, semicolons or tabs.
    target : str
        The column to predict.
    task : {"regression", "classification"}, optional
        By default regression if the target is numeric with more than 10
        distinct values, else classification.
    max_rows : int
        Of a longer file a random subset of so many rows is taken.
    seed : int
        Of that subset.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        If nothing can be predicted from this file.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "sizes.csv")
    ...     _ = path.write_text("width,colour,price\n" + "".join(f"{i},{'rb'[i % 2]},{3 * i}\n" for i in range(40)))
    ...     data = read_csv(path, "price")
    >>> data.task, data.features.shape
    ('regression', (40, 3))
    """
    names, rows, notes = _read(Path(path), max_rows, seed)
    if target not in names:
        near = difflib.get_close_matches(target.lower(), [n.lower() for n in names], n=1, cutoff=0.5)
        hint = next((f"; did you mean {n!r}?" for n in names if near and n.lower() == near[0]), ".")
        raise DataError(f"{path}: no column {target!r}{hint} The columns are: {_listed(names)}.")

    columns, dropped_rows = _drop_missing(names, rows, target)
    notes += dropped_rows
    n_rows = len(columns[target])
    if n_rows < MIN_ROWS:
        raise DataError(
            f"{path}: {n_rows} rows are too few, at least {MIN_ROWS} are needed. {' '.join(notes)}".rstrip()
        )

    y, task, said = _target(columns.pop(target), target, task)
    features, more = _features(columns)
    if features.shape[1] == 0:
        raise DataError(f"{path}: no column beside {target!r} can serve as a feature. {' '.join(more)}".rstrip())
    return Dataset(Path(path).stem, features, y, task, (said, *notes, *more))


def _read(path: Path, max_rows: int, seed: int) -> tuple[list[str], list[list[str]], list[str]]:
    """Names, rows (a uniform sample if there are many, in the order of the file), and what was left out."""
    notes: list[str] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            delimiter = max(",;\t", key=re.sub(r'"[^"]*"', "", first).count)
            names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
            if not any(names):
                raise DataError(f"{path}: the file is empty, its first line should name the columns.")
            if repeated := [name for name, times in Counter(names).items() if times > 1]:
                raise DataError(f"{path}: two columns share the name {repeated[0]!r}.")
            whole: list[tuple[int, list[str]]] = []
            ragged = 0
            sample, seen = random.Random(seed), 0
            for row in csv.reader(file, delimiter=delimiter):
                if len(row) != len(names):
                    ragged += bool(row)
                    continue
                seen += 1
                if len(whole) < max_rows:
                    whole.append((seen, row))
                elif (place := sample.randrange(seen)) < max_rows:
                    whole[place] = (seen, row)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV text ({error}).") from None
    if ragged:
        notes.append(f"Rows that do not have {len(names)} fields, and dropped: {ragged}.")
    if seen > max_rows:
        notes.append(f"{max_rows} of {seen} rows are used, drawn at random.")
    return names, [row for _, row in sorted(whole)], notes


def _drop_missing(names: list[str], rows: list[list[str]], target: str) -> tuple[dict[str, list[str]], list[str]]:
    """The columns, without those that have no value at all, and without the rows that then miss one."""
    columns = {name: [row[i].strip() for row in rows] for i, name in enumerate(names)}
    gaps = {name: [_is_missing(x) for x in column] for name, column in columns.items()}
    empty = [name for name, gap in gaps.items() if rows and all(gap) and name != target]
    kept = [name for name in names if name not in empty]
    complete = [not any(gaps[name][i] for name in kept) for i in range(len(rows))]
    notes = [f"Without any value, and dropped: {_listed(empty)}."] if empty else []
    if lost := complete.count(False):
        worst = max(kept, key=lambda name: sum(gaps[name]))
        notes.append(f"Rows with a missing value, and dropped: {lost} ({worst!r} lacks {sum(gaps[worst])}).")
    return {name: list(itertools.compress(columns[name], complete)) for name in kept}, notes


def _target(column: list[str], name: str, task: str | None) -> tuple[NDArray[np.generic], str, str]:
    numbers = _numbers(column)
    distinct = len(set(column) if numbers is None else set(numbers))
    kind = "text" if numbers is None else "numeric"
    asked = task is not None
    if task is None:
        task = "regression" if numbers is not None and distinct > MANY_VALUES else "classification"
    if distinct < 2:
        raise DataError(f"The target {name!r} is always {column[0]!r}: there is nothing to predict.")
    if task == "regression":
        if numbers is None:
            bad = next(x for x in column if _number(x) is None)
            raise DataError(f"The target {name!r} holds text ({bad!r}), regression needs numbers.")
        y: NDArray[np.generic] = np.array(numbers)
    else:
        if distinct > MAX_CLASSES:
            raise DataError(
                f"The target {name!r} has {distinct} distinct {kind} values, at most {MAX_CLASSES} make classes."
            )
        y = np.array(column if numbers is None else numbers)
    why = "as asked" if asked else f"the target is {kind} with {distinct} distinct values; --task overrides"
    return y, task, f"Taken as {task} ({why})."


def _features(columns: dict[str, list[str]]) -> tuple[F64, list[str]]:
    arrays: list[F64] = []
    encoded: list[str] = []
    constant: list[str] = []
    wordy: list[str] = []
    for name, column in columns.items():
        numbers = _numbers(column)
        levels = sorted(set(column))
        if len(levels) == 1:
            constant.append(name)
        elif numbers is not None:
            arrays.append(np.array(numbers)[:, None])
        elif len(levels) <= MAX_CLASSES:
            encoded.append(name)
            arrays.append((np.array(column)[:, None] == np.array(levels)).astype(np.float64))
        else:
            wordy.append(name)
    sorts = (
        ("Text, one column of 0 and 1 for each value", encoded),
        ("Always the same, and dropped", constant),
        (f"Text of more than {MAX_CLASSES} values, and dropped", wordy),
    )
    notes = [f"{what}: {_listed(which)}." for what, which in sorts if which]
    n_rows = len(next(iter(columns.values()), []))
    return np.hstack(arrays) if arrays else np.empty((n_rows, 0)), notes


def _is_missing(x: str) -> bool:
    return x.strip().lower() in MISSING or ((number := _number(x)) is not None and not math.isfinite(number))


def _number(x: str) -> float | None:
    try:
        return float(x)
    except ValueError:
        return None


def _numbers(column: Iterable[str]) -> list[float] | None:
    """The column as numbers, None if it holds text."""
    numbers = [_number(x) for x in column]
    return None if None in numbers else [x for x in numbers if x is not None]


def _listed(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
