"""Finding a target by its name, and the array library that it is written for."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

FRAMEWORK_OF = {"torch": "torch", "triton": "torch", "jax": "jax", "jaxlib": "jax", "cupy": "cupy"}


class TargetError(Exception):
    """The target cannot be found or imported; the message says why, in a line or two."""


def load(name: str) -> tuple[Any, ModuleType]:
    """The object of that name, and the module that it was found in.

    Parameters
    ----------
    name : str
        ``package.module:function`` or ``path/to/file.py:function``; dots after the colon are attributes.

    Raises
    ------
    TargetError

    Examples
    --------
    >>> load("kvq_ref.testing.load:load")[0].__name__
    'load'
    """
    place, colon, attributes = name.rpartition(":")
    if not (place and colon and attributes):
        raise TargetError(f"expected package.module:function or path/to/file.py:function, got {name!r}")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    found: Any = module
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            near = difflib.get_close_matches(attribute, dir(found), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            holder = place if found is module else f"{place}:{attributes.partition('.' + attribute)[0]}"
            raise TargetError(f"{holder} has no attribute {attribute!r}{hint}") from None
    if not callable(found):
        raise TargetError(f"{name} is not callable: it is of type {type(found).__name__}")
    return found, module


def framework_of(function: Any, module: ModuleType) -> str:
    """The array library of a function: the one that its module imports, and NumPy if it imports none that we know.

    Raises
    ------
    TargetError
        The module imports several.
    """
    inner = inspect.unwrap(function.func if isinstance(function, functools.partial) else function)
    home = sys.modules.get(getattr(inner, "__module__", None) or type(inner).__module__)
    found = set()
    for one in (module, home):
        if one is None:
            continue
        names = [one.__name__]
        for x in vars(one).values():
            names.append(x.__name__ if isinstance(x, ModuleType) else str(getattr(x, "__module__", "")))
        found |= {FRAMEWORK_OF[top] for top in (n.partition(".")[0] for n in names) if top in FRAMEWORK_OF}
    if len(found) > 1:
        raise TargetError(f"{module.__name__} imports {' and '.join(sorted(found))}: say which it is for (--framework)")
    return found.pop() if found else "numpy"


def place_of(error: BaseException) -> str:
    """Where in somebody's own code an exception was raised, as "file:line"; empty if no frame is theirs.

    Theirs is the innermost frame that is neither ours nor of an installed library, as an
    error that surfaces inside of NumPy is seldom NumPy's.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(error.filename)}:{error.lineno}"
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    return innermost(frames)


def innermost(frames: Sequence[tuple[str, int]]) -> str:
    """The innermost of (file, line), outermost first, that is of the target's own code, as "file:line"."""
    ours = str(Path(__file__).parent)
    frames = [(file, line) for file, line in frames if not file.startswith(("<frozen", ours))]
    libraries = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    own = [(file, line) for file, line in frames if not file.startswith(tuple(libraries))]
    chosen = own[-1:] or frames[:1]
    return "".join(f"{_shown(file)}:{line}" for file, line in chosen)


def described(error: BaseException) -> str:
    """Type, first line of the message, and where in the target's code, in one line."""
    lines = str(error).strip().splitlines()
    place = place_of(error)
    return f"{type(error).__name__}: {lines[0][:200] if lines else '(no message)'}" + (f" ({place})" if place else "")


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise TargetError(f"no module named {error.name!r}, in {os.getcwd()} or among what is installed") from None
        raise TargetError(f"importing {name} raised {described(error)}") from None
    except (Exception, SystemExit) as error:
        raise TargetError(f"importing {name} raised {described(error)}") from None


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TargetError(f"no such file: {path}")
    sys.path.insert(0, str(path.parent.resolve()))  # as Python does for a script: its neighbours can be imported
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_of_the_target"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise TargetError(f"importing {path} raised {described(error)}") from None
    return module


def _shown(file: str) -> str:
    """A path relative to the current folder where it is under it."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return file
