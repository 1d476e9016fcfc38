"""The tasks: what follows, what can be known, and what is kept for the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kvq_ref.lab.tasks.held_out import draw, hashed, threshold
from kvq_ref.lab.tasks.lookups import Lookup
from kvq_ref.lab.tasks.recurrences import Recurrence, copy, nt, products, sums
from kvq_ref.lab.tasks.several import Several
from kvq_ref.lab.tasks.task import Task

TASKS: dict[str, Task] = {
    "nt": nt(5, 3),
    "delayed xor": nt(2, 7, T=20),
    "sums": sums(4, 6, 3),
    "products": products(9, 3),
    "copy": copy(3, 4),
    "lookup": Lookup(5, depth=2),
    "few tables": Lookup(4),
    "several": Several(((2, 5), (5, 2), (3, 3))),
}
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def whole(task: Task, rng: np.random.Generator, n: int, held_out: bool = False) -> np.ndarray:
    batch = task.sample(rng, n, held_out)
    return np.concatenate([batch.tokens, batch.targets[:, -1:]], axis=1)


@each_task
def test_a_batch_is_what_the_task_says(task: Task, rng: np.random.Generator) -> None:
    for held_out in (False, True):
        batch = task.sample(rng, 40, held_out)
        assert batch.tokens.shape == batch.targets.shape == batch.determined.shape == (40, task.length)
        assert batch.tokens.min() >= 0
        assert batch.tokens.max() < task.vocabulary
        assert batch.targets.max() < task.outputs
        assert batch.determined.any(axis=1).all()
        assert batch.kinds.shape == (40,)
        assert set(batch.kinds) <= set(range(len(task.kinds)))
        shifted = batch.targets[:, :-1] == batch.tokens[:, 1:]
        assert shifted.all()


@each_task
def test_the_same_seed_gives_the_same(task: Task) -> None:
    for x, y in zip(*(task.sample(np.random.default_rng(5), 10) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(x, y)


RULES: dict[str, tuple[Recurrence, Callable[[np.ndarray, int], Any]]] = {
    "nt": (nt(5, 3), lambda x, t: (x[:, t - 1] + x[:, t - 3]) % 5),
    "nt, tau = 1": (nt(5, 1), lambda x, t: 2 * x[:, t - 1] % 5),
    "sums": (sums(4, 7, 3), lambda x, t: (x[:, t - 1] + x[:, t - 4] + x[:, t - 7]) % 4),
    "one term": (sums(4, 7, 1), lambda x, t: x[:, t - 7]),
    "products": (products(9, 4), lambda x, t: x[:, t - 1] * x[:, t - 4] % 9),
    "copy": (copy(6, 3), lambda x, t: x[:, t - 3]),
}


@pytest.mark.parametrize(("task", "rule"), RULES.values(), ids=RULES)
def test_recurrences(task: Recurrence, rule: Callable[[np.ndarray, int], Any], rng: np.random.Generator) -> None:
    """Every determined token follows by the rule, and no other is said to be determined."""
    x = whole(task, rng, 200)
    determined = task.sample(rng, 3).determined
    for t in range(1, x.shape[1]):
        assert (determined[:, t - 1] == (t >= task.order)).all()
        if t >= task.order:
            np.testing.assert_array_equal(x[:, t], rule(x, t))


@pytest.mark.parametrize("task", [nt(2, 2), nt(3, 4), nt(2, 20), products(9, 4), copy(2, 3)], ids=str)
def test_starts(task: Recurrence, rng: np.random.Generator) -> None:
    """Never all zero; those of the test are never met in training; all others are, where they are few."""
    learned, tested = (whole(task, rng, 3000, held_out)[:, : task.order] for held_out in (False, True))
    assert learned.any(axis=1).all()
    assert tested.any(axis=1).all()
    seen, kept = (set(map(tuple, starts.tolist())) for starts in (learned, tested))
    assert not seen & kept
    if len(task.values) ** task.order < 100:
        assert len(seen | kept) == len(task.values) ** task.order - (0 in task.values)
    assert {x for start in seen for x in start} == set(task.values)


def test_units_stay_units(rng: np.random.Generator) -> None:
    assert np.gcd(whole(products(12, 3), rng, 100), 12).max() == 1


def test_lookups(rng: np.random.Generator) -> None:
    """The table has each symbol once on either side, and the chain follows it depth times a step."""
    task = Lookup(6, depth=3)
    for row in whole(task, rng, 30):
        f = dict(zip(row[:12:2].tolist(), row[1:12:2].tolist(), strict=True))
        assert set(f) == set(f.values()) == set(range(6))
        for a, b in zip(row[12:-1].tolist(), row[13:].tolist(), strict=True):
            assert f[f[f[a]]] == b
    determined = task.sample(rng, 1).determined[0]
    np.testing.assert_array_equal(np.flatnonzero(determined), np.arange(12, task.length))


def test_several_tasks_at_once(rng: np.random.Generator) -> None:
    """The token in front says which; what follows is of that task."""
    task = Several(((2, 5), (5, 2)))
    batch = task.sample(rng, 100, held_out=True)
    assert np.bincount(batch.kinds).tolist() == [50, 50]
    for kind, (N, tau) in enumerate(((2, 5), (5, 2))):
        rows = batch.kinds == kind
        assert (batch.tokens[rows, 0] == 5 + kind).all()
        x = np.concatenate([batch.tokens[rows, 1:], batch.targets[rows, -1:]], axis=1)
        assert (x < N).all()
        for t in range(tau, x.shape[1]):
            np.testing.assert_array_equal(x[:, t], (x[:, t - 1] + x[:, t - tau]) % N)
        # target t is token t + 1 of the whole, and that of the number t: the token in front comes first
        np.testing.assert_array_equal(batch.determined[rows], np.arange(task.length) >= tau + np.zeros((50, 1)))
    assert set(task.sample(rng, 50).kinds) == {0, 1}


def test_hashes_are_spread(rng: np.random.Generator) -> None:
    """An eighth of all starts, whatever they are; and no two alike."""
    starts = rng.permuted(np.arange(16**3))[:, None] // np.array([256, 16, 1]) % 16
    h = hashed(starts)
    assert len(set(h.tolist())) == len(h)
    assert abs((h < np.uint64(2**61)).mean() - 1 / 8) < 0.03
    assert abs((h < np.uint64(threshold(starts))).sum() - 512) <= 1


def test_draw_gives_as_many_as_asked(rng: np.random.Generator) -> None:
    for n in (0, 1, 7, 300):
        for held_out in (False, True):
            assert draw(lambda count: rng.integers(0, 9, (count, 4)), n, held_out).shape == (n, 4)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "N": (lambda: nt(1, 5), "N: expected at least 2"),
    "a product mod 2": (lambda: products(2, 3), "N: expected at least 3, for 1 is the only unit mod 2"),
    "tau": (lambda: nt(2, 0), "tau: expected at least 1"),
    "too few starts": (lambda: nt(2, 1), "tau: 1 is too little for N = 2"),
    "T": (lambda: nt(2, 5, T=4), "T: expected at least 5"),
    "terms": (lambda: sums(2, 5, 6), "terms: expected 1 to tau, 5, got 6"),
    "symbols": (lambda: Lookup(3), "N: expected at least 4"),
    "depth": (lambda: Lookup(5, depth=0), "terms: expected a depth of at least 1"),
    "no pairs": (lambda: Several(()), "tasks: expected pairs"),
    "a pair": (lambda: Several(((2, 5), (1, 3))), "N: expected at least 2"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
