"""What a training run is: one flat list of settings, as TOML, and a hash that names it.

``task`` chooses which settings count, and where some of them start (see
catalogue.py); ``settings`` has those that do, with every default filled in, and
two runs with the same settings are the same run.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import inspect
import json
import math
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import tomli_w

import kvq_ref
from kvq_ref.arguments import check_word
from kvq_ref.dispatch import FORMS, file_name, form_name
from kvq_ref.lab.catalogue import TASKS, unused_by
from kvq_ref.lab.nn.in_context import InContext
from kvq_ref.lab.nn.model import Transformer
from kvq_ref.lab.nn.optimizers import OPTIMIZERS
from kvq_ref.lab.tasks.episodes import EpisodeTask
from kvq_ref.lab.tasks.task import SequenceTask

LOSSES = ("determined", "all")
SCHEDULES = ("constant", "cosine")
BACKENDS = ("numpy", "cupy")
DTYPES = ("float32", "float64")


Class = TypeVar("Class", bound=type)


def _starting_where_its_task_does(config: Class) -> Class:
    """What is not given is what the task starts from, where it has a start of its own."""
    init = config.__init__  # type: ignore[misc]

    @functools.wraps(init)
    def filled(self: Any, task: Any = "nt", **given: Any) -> None:
        init(self, task, **(dict(TASKS[task].starts) if task in TASKS else {}) | given)

    setattr(config, "__init__", filled)  # noqa: B010 (what a type checker knows of it stays)
    return config


@_starting_where_its_task_does
@dataclass(frozen=True)
class Config:
    """The settings of a run.

    Defaults are those of the tasks of sequences; the tasks in context have some of their own.

    Attributes
    ----------
    task : str
        One of ``TASKS``: of sequences, nt, sums, products, copy, lookup, several; in context,
        sinusoid, linear_regression, digits, photographs, recall, registration, outliers; of policies, in
        environments, cartpole, mountain_car, fetch.
    N, tau : int
        Tokens are numbers mod N; the furthest that the task looks back (nt, sums, products, copy).
        N is also the number of classes (digits, photographs) and of symbols (recall).
    terms : int
        Terms of a sum; lookups for a token.
    tasks : str
        Pairs N:tau for several, such as "2:5 3:4".
    T : int, optional
        Tokens that the model sees; by default the task's choice.
    K, K_least : int
        Pairs in a context, of each class (digits, photographs) or in all; training draws their number from K_least
        to K.
    d : int
        Dimensions of x (linear_regression, recall, registration, outliers).
    noise, outlier_share : float
        What is added to y in the context (of policies: the largest share of a teacher's actions that are random);
        the share of pairs that tell nothing (registration).
    form : str
        The attention.
    scale, alpha : float, optional
        Of the attention; by default the form's own, and 1 for alpha. Models that read a context start from them.
    encoder, values, learn, depth : str, str, str, int
        Of models that read a context: as :class:`~kvq_ref.lab.nn.in_context.InContext` has them.
    positions : {"none", "learned", "sinusoidal", "rotary", "alibi"}
    layers, width, heads : int
    mlp : int
        Hidden units of a perceptron, in units of the width.
    activation : {"gelu", "relu"}
    norm : {"pre", "post", "none"}
        Models that read a context have no post; they have "unit", queries and keys of length 1.
    gain : float
        Initial queries and keys are so many times as large as the layer's default.
    optimizer : {"adamw", "sgd"}
    rate : float
        The step size, after the first steps.
    momentum, weight_decay : float
        Momentum is SGD's.
    warm_up : int
        Steps until the rate is reached.
    schedule : {"constant", "cosine"}
        What becomes of the rate afterwards.
    batch, steps : int
        Sequences or episodes in a step; the most steps.
    loss : {"determined", "all"}
        Whether tokens that cannot be known count.
    target : float
        Stop once the score on what is held out is as good: accuracy that is at least the target
        (above 1, never), or an error that is at most it (0: never).
    evaluate_every : int
        Steps.
    evaluate_on : int
        Sequences or episodes, held out.
    seed : int
    dtype : {"float32", "float64"}
    threads : int
        Of matrix products and kernels.
    backend : {"numpy", "cupy"}
        CuPy trains on the GPU.

    Raises
    ------
    TypeError, ValueError
        For a setting that cannot be, with the nearest that can.

    Examples
    --------
    >>> config = Config(form="expressive", N=2, tau=5)
    >>> config.task_of().score.name, config.model().heads
    ('accuracy', 2)
    >>> Config(task="sinusoid").steps, Config(task="sinusoid", steps=10).steps
    (4000, 10)
    """

    task: str = "nt"
    N: int = 2
    tau: int = 5
    terms: int = 2
    tasks: str = "2:5 3:4"
    T: int | None = None
    K: int = 10
    K_least: int | None = None
    d: int = 8
    noise: float = 0.0
    outlier_share: float = 0.0
    form: str = "softmax"
    scale: float | None = None
    alpha: float | None = None
    encoder: str = "shared"
    values: str = "plain"
    learn: str = "one"
    depth: int = 2
    positions: str = "rotary"
    layers: int = 2
    width: int = 32
    heads: int = 2
    mlp: int = 4
    activation: str = "gelu"
    norm: str = "pre"
    gain: float = 1.0
    optimizer: str = "adamw"
    rate: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 0.1
    warm_up: int = 50
    schedule: str = "constant"
    batch: int = 64
    steps: int = 5000
    loss: str = "all"
    target: float = 1.0
    evaluate_every: int = 50
    evaluate_on: int = 512
    seed: int = 0
    dtype: str = "float32"
    threads: int = 1
    backend: str = "numpy"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(
                self, field.name, _checked_type(field.name, getattr(self, field.name), FIELDS[field.name])
            )
        object.__setattr__(self, "form", file_name(form_name(self.form)))
        words = {"task": TASKS, "loss": LOSSES, "schedule": SCHEDULES, "backend": BACKENDS, "dtype": DTYPES}
        for name, known in (words | {"optimizer": OPTIMIZERS}).items():
            check_word(name, getattr(self, name), known)
        for name in ("batch", "steps", "evaluate_every", "evaluate_on", "threads"):
            _at_least(name, getattr(self, name), 1)
        for name in ("warm_up", "seed", "momentum", "weight_decay", "gain", "target", "rate"):
            _at_least(name, getattr(self, name), 0)
        self.model()

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """All that matters to this run, with every default filled in; what its task and form do not use is left out."""
        task = self.task_of()
        found = dataclasses.asdict(self)
        unused = unused_by(self.task) | ({"momentum"} if self.optimizer != "sgd" else set())
        found |= self.options()
        if isinstance(task, SequenceTask):
            found["T"] = task.length
        return {name: value for name, value in found.items() if value is not None and name not in unused}

    @functools.cached_property
    def name(self) -> str:
        """Twelve hexadecimal digits that stand for the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]

    def options(self) -> dict[str, float]:
        """The keyword arguments of the attention."""
        takes = FORMS[form_name(self.form)].options
        given = {"scale": self.scale, "alpha": 1.0 if self.alpha is None else self.alpha}
        return {name: value for name, value in given.items() if name in takes and value is not None}

    def task_of(self) -> SequenceTask | EpisodeTask:
        """The task."""
        entry = TASKS[self.task]
        return entry.make(**{name: getattr(self, name) for name in entry.settings})

    def model(self) -> Transformer | InContext:
        """The model, as yet without numbers."""
        for name in ("scale", "alpha"):
            if getattr(self, name) is not None and name not in self.options():
                raise ValueError(f"{name}: {self.form} attention takes none")
        task = self.task_of()
        how: dict[str, Any] = {"form": getattr(kvq_ref, form_name(self.form)), "options": self.options()}
        how |= {name: getattr(self, name) for name in ("width", "layers", "heads", "mlp", "activation", "norm")}
        if isinstance(task, SequenceTask):
            return Transformer(task.vocabulary, task.outputs, positions=self.positions, context=task.length, **how)
        how |= {name: getattr(self, name) for name in ("encoder", "values", "learn", "depth")}
        is_logits = task.loss == "cross_entropy"
        return InContext(task.inputs, task.values_in, task.outputs, is_logits=is_logits, **how)

    def to_toml(self) -> str:
        """The settings as TOML.

        Examples
        --------
        >>> Config.from_toml(Config(tau=3).to_toml()).tau
        3
        """
        return tomli_w.dumps(self.settings)

    @classmethod
    def from_toml(cls, text: str) -> Config:
        """Back from :meth:`to_toml`, or from a file that a person wrote.

        Raises
        ------
        TypeError, ValueError
            If it is no TOML, or names what is no setting.
        """
        return cls.of(tomllib.loads(text))

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Config:
        """From names and values.

        Raises
        ------
        ValueError
            For a name that is none, with the nearest that is one.

        Examples
        --------
        >>> Config.of({"taw": 3})
        Traceback (most recent call last):
            ...
        ValueError: taw: there is no such setting; did you mean 'tau'?
        """
        for name in settings:
            check_setting(name)
        return cls(**settings)

    def command(self) -> str:
        """What repeats this run.

        Examples
        --------
        >>> Config(form="expressive", seed=3).command()
        'kvq-ref run nt --form expressive --seed 3'
        """
        words = ["kvq-ref", "run", self.task]
        starts = {field.name: field.default for field in dataclasses.fields(self)} | dict(TASKS[self.task].starts)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "task" and value != starts[field.name] and field.name in self.settings:
                words += [f"--{field.name.replace('_', '-')}", str(value)]
        return shlex.join(words)


FIELDS: dict[str, type] = {
    name: next(kind for kind in (int, float, str) if kind.__name__ in str(annotation).split(" | "))
    for name, annotation in inspect.get_annotations(Config).items()
}
"""The type of each setting."""


def check_setting(name: str) -> None:
    """Raise if there is no setting of the name, and say which one is near.

    Raises
    ------
    ValueError
    """
    if name not in FIELDS:
        near = difflib.get_close_matches(name, FIELDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(FIELDS)}"
        raise ValueError(f"{name}: there is no such setting; {hint}")


def parse(name: str, text: str) -> Any:
    """A setting's value from the word that stands for it.

    >>> parse("rate", "2e-3"), parse("N", "5"), parse("T", "none")
    (0.002, 5, None)
    """
    check_setting(name)
    if text.lower() == "none" and _may_be_none(name):
        return None
    kind = FIELDS[name]
    try:
        return kind(text)
    except ValueError:
        what = {int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"{name}: expected {what}, got {text!r}") from None


def _may_be_none(name: str) -> bool:
    return "None" in str(inspect.get_annotations(Config)[name])


def _checked_type(name: str, value: Any, kind: type) -> Any:
    """The value, an int as a float where that is meant."""
    if value is None and _may_be_none(name):
        return None
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        what = {int: "a whole number", float: "a number", str: "a word"}[kind]
        raise TypeError(f"{name}: expected {what}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return value


def _at_least(name: str, value: float, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
