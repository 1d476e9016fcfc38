"""Every example in the package's documentation runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest

import kvq_ref as kvq
from kvq_ref import arrays, dispatch, features, heads, masks, testing
from kvq_ref.dispatch import FORMS

# What an installation without the extras, without a GPU or without the kernels may lack.
OPTIONAL = (
    *("cupy", "cupyx", "jax", "kvq_ref._ext", "torch"),
    *("joblib", "matplotlib", "safetensors", "sklearn", "threadpoolctl", "tomli_w", "tqdm"),
    *("dask", "distributed"),
)


def module_names() -> list[str]:
    found = pkgutil.walk_packages(kvq.__path__, "kvq_ref.", onerror=lambda name: None)
    return ["kvq_ref", *sorted(m.name for m in found if "._ext" not in m.name and not m.name.endswith("__main__"))]


def load(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in {x.split(".")[0] for x in OPTIONAL if not x.startswith("kvq_ref")}:
            raise
        pytest.skip(f"{name} needs {missing}")


def test_the_walk_finds_the_package() -> None:
    """A test per module is worth nothing if there are no modules."""
    names = module_names()
    assert {"kvq_ref.attention", "kvq_ref.forms.intention", "kvq_ref.testing.oracles", "kvq_ref.solvers"} <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", module_names())
def test_examples(name: str) -> None:
    """All examples of the module."""
    failed, _ = doctest.testmod(load(name), raise_on_error=False, report=True)
    assert failed == 0


PUBLIC = {
    **{name: getattr(kvq, name) for name in (*FORMS, "vjp", "show_config")},
    **{f"masks.{name}": getattr(masks, name) for name in ("causal", "window", "lengths", "alibi")},
    **{f"heads.{name}": getattr(heads, name) for name in ("split_heads", "merge_heads")},
    **{f"testing.{name}": getattr(testing, name) for name in testing.__all__ if callable(getattr(testing, name))},
    "use_backend": arrays.use_backend,
    "use_implementation": dispatch.use_implementation,
    "FeatureMap": features.FeatureMap,
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_function_has_an_example(name: str) -> None:
    """Whoever reads help() on it sees it at work: an example that shows a result."""
    docstring = PUBLIC[name].__doc__ or ""
    examples = doctest.DocTestParser().get_examples(docstring)
    assert any(example.want for example in examples)


@pytest.mark.parametrize("name", [*FORMS, "vjp"])
def test_public_function_is_documented(name: str) -> None:
    """Parameters, returns, errors, cost and an example, in that order, and every parameter by name."""
    docstring = PUBLIC[name].__doc__ or ""
    places = [
        docstring.find(f"{title}\n    {'-' * len(title)}\n")
        for title in ("Parameters", "Returns", "Raises", "Notes", "Examples")
    ]
    assert -1 not in places
    assert places == sorted(places)
    if name in FORMS:
        parameters = docstring[places[0] : places[1]]
        for option in ("q", "k", "v", *FORMS[name].options, "implementation"):
            assert f"\n    {option} : " in parameters, option
        assert "Source: " in docstring
        assert "Time" in docstring
