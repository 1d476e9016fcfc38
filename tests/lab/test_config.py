"""The settings of a run: what is refused, and what makes two runs the same."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from kvq_ref.dispatch import FORMS, file_name
from kvq_ref.lab.config import TASKS, Config, check_setting, parse

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "form": ({"form": "expresive"}, "form: .*did you mean 'expressive'"),
    "task": ({"task": "n"}, "task: expected one of 'nt'"),
    "N": ({"N": 1}, "N: expected at least 2, got 1"),
    "tau": ({"tau": 0}, "tau: expected at least 1"),
    "heads": ({"heads": 3}, "heads: expected a divisor of the width, 32, got 3"),
    "heads of no width": ({"heads": 0}, "heads: expected at least 1"),
    "odd rotary": ({"width": 6, "heads": 2}, "positions: rotary needs an even width a head, got 3"),
    "key": ({"hedas": 4}, "hedas: there is no such setting; did you mean 'heads'"),
    "far key": ({"qqqq": 4}, "qqqq: there is no such setting; there are task, N"),
    "positions": ({"positions": "rotery"}, "positions: expected one of"),
    "alibi": ({"positions": "alibi", "form": "linear"}, "alibi is a bias"),
    "alpha": ({"alpha": 1.0}, "alpha: softmax attention takes none"),
    "batch": ({"batch": 0}, "batch: expected at least 1, got 0"),
    "rate": ({"rate": -1.0}, "rate: expected at least 0"),
    "no number": ({"rate": float("nan")}, "rate: expected a finite number"),
    "schedule": ({"schedule": "cosin"}, "schedule: .*did you mean 'cosine'"),
    "optimizer": ({"optimizer": "adam"}, "optimizer: .*did you mean 'adamw'"),
    "pairs": ({"task": "several", "tasks": "2:5 3"}, "tasks: expected pairs N:tau such as '2:5 3:4', got '3'"),
}
WRONG_TYPE = {"layers": 2.5, "form": 3, "rate": "fast", "seed": True, "T": "long"}


@pytest.mark.parametrize(("settings", "message"), list(REFUSED.values()), ids=REFUSED)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.of(settings)


@pytest.mark.parametrize(("name", "value"), list(WRONG_TYPE.items()))
def test_wrong_types(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name}: expected"):
        Config.of({name: value})


@pytest.mark.parametrize("form", [file_name(name) for name in FORMS])
@pytest.mark.parametrize("task", list(TASKS))
def test_round_trip(task: str, form: str) -> None:
    config = Config(task=task, form=form, N=5, tau=4, rate=1e-3, seed=3)
    again = Config.from_toml(config.to_toml())
    assert again.settings == config.settings
    assert again.name == config.name


def test_a_name_for_what_matters() -> None:
    """A default that is spelt out, or a setting that the task does not use, makes no other run."""
    config = Config(form="softmax")
    same = [Config(form="softmax_attention"), Config(T=21), Config(terms=7), Config(momentum=0.5), Config(tasks="2:9")]
    others = [Config(form="expressive"), Config(seed=1), Config(T=22), Config(optimizer="sgd"), Config(rate=1e-3)]
    assert {x.name for x in same} == {config.name}
    assert len({x.name for x in [config, *others]}) == 1 + len(others)


NAMES = {
    "f32b9d5341fe": Config(),
    "bd1896d92f33": Config(task="sums", terms=3, tau=7),
    "67dfe9d3bf85": Config(task="products", N=9),
    "56df19ea21db": Config(task="copy"),
    "2ce549a96073": Config(task="lookup", N=5),
    "75186a701540": Config(task="several"),
    "bb12355cc577": Config(form="intention", alpha=0.5),
    "961957f1af49": Config(optimizer="sgd"),
}


def test_names_stay_what_they_were() -> None:
    """Folders of runs that were stored are found again, whatever settings are added for other tasks."""
    assert {name: config.name for name, config in NAMES.items()} == {name: name for name in NAMES}


STORED = Path(__file__).parents[2] / "tutorials" / "results" / "ladder.json"


@pytest.mark.skipif(not STORED.exists(), reason="the tutorials are not part of an installation")
def test_stored_results_have_the_names_and_commands_that_they_had() -> None:
    digest = hashlib.sha256()
    for run in (run for study in json.loads(STORED.read_text()).values() for run in study):
        _, _, task, *words = shlex.split(run["command"])
        names = [word.removeprefix("--").replace("-", "_") for word in words[::2]]
        given = {name: parse(name, text) for name, text in zip(names, words[1::2], strict=True)}
        config = Config.of({"task": task, **given})
        assert config.command() == run["command"]
        digest.update(config.name.encode())
    assert digest.hexdigest()[:12] == "992fca2742d9"


def test_tasks_in_context_start_from_settings_of_their_own() -> None:
    config = Config(task="sinusoid", form="intention")
    assert (config.layers, config.width, config.rate, config.steps, config.weight_decay) == (1, 64, 1e-3, 4000, 0.0)
    assert config.command() == "kvq-ref run sinusoid --form intention"
    other = Config(task="sinusoid", form="intention", rate=2e-3, layers=2)  # what sequences start from is said here
    assert other.command() == "kvq-ref run sinusoid --form intention --layers 2 --rate 0.002"
    assert Config.from_toml(other.to_toml()).name == other.name
    assert not {"N", "tau", "T", "d", "positions", "gain", "loss"} & set(config.settings)
    assert not {"K", "d", "encoder", "values", "learn", "depth"} & set(Config().settings)
    assert Config(task="sinusoid", d=3, tau=9).name == Config(task="sinusoid").name


def test_the_command_repeats_the_run() -> None:
    config = Config(task="several", form="sigma_intention", tasks="2:3 3:2", evaluate_every=10, alpha=0.5)
    assert config.command() == (
        "kvq-ref run several --tasks '2:3 3:2' --form sigma_intention --alpha 0.5 --evaluate-every 10"
    )


def test_parse() -> None:
    assert parse("scale", "none") is None
    assert parse("rate", "1e-3") == 0.001
    with pytest.raises(ValueError, match=r"N: expected a whole number, got '2\.5'"):
        parse("N", "2.5")
    with pytest.raises(ValueError, match="form"):
        check_setting("froms")
    with pytest.raises(ValueError, match="N: expected a whole number, got 'none'"):
        parse("N", "none")
