"""Which runs a sweep has: every combination of the values that are given."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvq_ref.lab.config import FIELDS, Config, check_setting, parse


def values(name: str, text: str) -> list[Any]:
    """Values of a setting: apart by commas, and whole numbers also as ranges, both ends included.

    Parameters
    ----------
    name : str
        The setting.
    text : str
        Such as ``"softmax,expressive"``, ``"2,5"``, ``"2:12"`` or, with a step, ``"2:12:2"``.

    Returns
    -------
    list

    Raises
    ------
    ValueError
        If there is no such setting, or a value is none of its kind.

    Examples
    --------
    >>> values("tau", "2:4,8:12:2"), values("form", "softmax,expressive")
    ([2, 3, 4, 8, 10, 12], ['softmax', 'expressive'])
    """
    check_setting(name)
    found: list[Any] = []
    for word in text.split(","):
        if FIELDS[name] is int and ":" in word:
            found += _range(name, word)
        else:
            found.append(parse(name, word.strip()))
    return found


def _range(name: str, text: str) -> list[int]:
    ends = [int(parse(name, part)) for part in text.split(":")]
    if len(ends) > 3 or ends[1] < ends[0] or (len(ends) == 3 and ends[2] < 1):
        raise ValueError(f"{name}: expected FIRST:LAST or FIRST:LAST:STEP, as in 2:12 or 2:12:2, got {text!r}")
    return list(range(ends[0], ends[1] + 1, ends[2] if len(ends) == 3 else 1))


def axis(text: str) -> tuple[str, list[Any]]:
    """One axis of a grid.

    Raises
    ------
    ValueError
        If it is no NAME=VALUES.

    Examples
    --------
    >>> axis("tau=2:4")
    ('tau', [2, 3, 4])
    """
    name, equals, given = text.partition("=")
    if not (equals and given):
        raise ValueError(f"expected NAME=VALUES, as in tau=2:12, got {text!r}")
    return name.strip().replace("-", "_"), values(name.strip().replace("-", "_"), given)


def seeds(text: str) -> list[int]:
    """Seeds: a count from 0 on, or a range with both ends.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> seeds("3"), seeds("3:5")
    ([0, 1, 2], [3, 4, 5])
    """
    if ":" in text or "," in text:
        return values("seed", text)
    count = int(parse("seed", text))
    if count < 1:
        raise ValueError(f"seeds: expected at least 1, got {count}")
    return list(range(count))


def read_settings(path: Path) -> dict[str, Any]:
    """Settings from a TOML file.

    Raises
    ------
    OSError
    ValueError
        If it is no TOML, or names what is no setting.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        for name in found:
            check_setting(name)
    except ValueError as error:  # also what is no TOML, or no UTF-8
        raise ValueError(f"{path}: {error}") from None
    return found


def grid(fixed: Mapping[str, Any], axes: Iterable[tuple[str, Sequence[Any]]]) -> list[Config]:
    """Every combination, the last axis fastest; runs that come out the same are one run.

    Parameters
    ----------
    fixed : mapping
        Settings that all runs share.
    axes : iterable of (name, values)

    Returns
    -------
    list of Config

    Raises
    ------
    TypeError, ValueError
        For the first combination that cannot be, with the nearest that can, or a name that comes twice.

    Examples
    --------
    >>> [(c.form, c.seed) for c in grid({"tau": 3}, [("form", ["softmax", "linear"]), ("seed", [0, 1])])]
    [('softmax', 0), ('softmax', 1), ('linear', 0), ('linear', 1)]
    >>> len(grid({"optimizer": "adamw"}, [("momentum", [0.5, 0.9])]))  # AdamW has no momentum
    1
    """
    axes = list(axes)
    names = [name for name, _ in axes]
    for name in names:
        if name in fixed or names.count(name) > 1:
            raise ValueError(f"{name}: it is given twice")
    found: dict[str, Config] = {}
    for combination in itertools.product(*(given for _, given in axes)):
        point = dict(zip(names, combination, strict=True))
        try:
            config = Config.of({**fixed, **point})
        except (TypeError, ValueError) as error:
            where = ", ".join(f"{name}={value}" for name, value in point.items() if name != "seed")
            raise type(error)(f"{error}" + (f" (at {where})" if where else "")) from None
        found.setdefault(config.name, config)
    return list(found.values())
