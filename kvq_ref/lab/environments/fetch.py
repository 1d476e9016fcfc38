"""MiniGrid-Fetch-6x6-N2-v0 (Chevalier-Boisvert et al. 2023): two things lie in a room, and one is to be fetched.

A teacher likes one kind of thing, such as a red ball, and fetches it by the shortest way: it turns left or right, goes
forward, and picks up what is in front of it. The environment's mission names a kind too; an episode is one in which
it names the teacher's, so the reward, 1 - 0.9 steps / most steps, is for what the teacher wants. Whoever distils it is
not told the mission. Of 12 kinds 4 are held out.

Colours and shapes have no meaning but what a context gives them: they are named anew, at random, for each context and
whoever answers from it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvq_ref.lab.environments.family import Family
from kvq_ref.types import Array

LEFT, RIGHT, FORWARD, PICK_UP = range(4)
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # by direction
COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
SHAPES = ("key", "ball")
ATTRIBUTES = (*COLOURS, *SHAPES)
HELD_OUT = (("red", "ball"), ("blue", "key"), ("purple", "ball"), ("yellow", "key"))
MOST_STEPS = 60  # the environment's own are 180; a shortest way takes 9 at most

Place = tuple[int, int]


@dataclass(frozen=True)
class Seek:
    """A teacher who likes one kind of thing."""

    colour: str
    shape: str

    def act(self, env: Any) -> int:
        world = env.unwrapped
        things = _things(env)
        liked = frozenset(at for at, colour, shape in things if (colour, shape) == (self.colour, self.shape))
        plan = shortest_way(world.width, frozenset(at for at, _, _ in things), liked)
        x, y = map(int, world.agent_pos)
        return plan[x, y, int(world.agent_dir)]


@functools.lru_cache(maxsize=4096)
def shortest_way(width: int, things: frozenset[Place], liked: frozenset[Place]) -> dict[tuple[int, int, int], int]:
    """What to do at each place, in each direction, in a square room with walls; of equal ways, forward goes first.

    Breadth first, from where the thing can be picked up back to everywhere.

    Examples
    --------
    >>> plan = shortest_way(6, frozenset({(4, 1)}), frozenset({(4, 1)}))
    >>> plan[1, 1, 0] == FORWARD, plan[3, 1, 0] == PICK_UP, plan[4, 2, 0] == LEFT
    (True, True, True)
    """
    inside = range(1, width - 1)
    free = {(x, y) for x in inside for y in inside} - things
    everywhere = [(x, y, d) for x, y in sorted(free) for d in range(4)]

    def ahead(x: int, y: int, d: int) -> Place:
        return x + STEPS[d][0], y + STEPS[d][1]

    def after(x: int, y: int, d: int) -> dict[int, tuple[int, int, int]]:
        turned = {LEFT: (x, y, (d - 1) % 4), RIGHT: (x, y, (d + 1) % 4)}
        return {FORWARD: (*ahead(x, y, d), d)} | turned if ahead(x, y, d) in free else turned

    plan = {state: PICK_UP for state in everywhere if ahead(*state) in liked}
    newest = set(plan)
    while newest:
        found = {}
        for state in everywhere:
            if state not in plan:
                for action, then in after(*state).items():
                    if then in newest:
                        found[state] = action
                        break
        plan |= found
        newest = set(found)
    return plan


def _things(env: Any) -> list[tuple[Place, str, str]]:
    """Where each is, and of what kind."""
    world = env.unwrapped
    inside = range(1, world.width - 1)
    cells = [((x, y), world.grid.get(x, y)) for x in inside for y in inside]
    return [(at, cell.color, cell.type) for at, cell in cells if cell is not None]


def see(env: Any) -> Array:
    """For each colour and shape: how many things have it, and how far ahead and to the right they are, summed."""
    world = env.unwrapped
    seen = np.zeros((len(ATTRIBUTES), 3))
    for at, *attributes in _things(env):
        way = np.subtract(at, world.agent_pos)
        for attribute in attributes:
            seen[ATTRIBUTES.index(attribute)] += (1.0, way @ world.dir_vec, way @ world.right_vec)
    return seen.ravel()


def met(env: Any, teacher: Seek, reward: float) -> float:
    """Whether the right thing has been fetched."""
    return float(reward > 0)


def fits(env: Any, teacher: Seek) -> bool:
    """Whether the mission is to fetch what the teacher likes."""
    return (env.unwrapped.targetColor, env.unwrapped.targetType) == (teacher.colour, teacher.shape)


def renamed(rng: np.random.Generator, n: int) -> Array:
    """Orders of what :func:`see` gives: colours change places with colours, shapes with shapes.

    Examples
    --------
    >>> order = renamed(np.random.default_rng(0), 2)
    >>> order.shape, sorted(order[0].tolist()) == list(range(24))
    ((2, 24), True)
    """
    colours = rng.permuted(np.tile(np.arange(len(COLOURS)), (n, 1)), axis=1)
    shapes = rng.permuted(np.tile(np.arange(len(COLOURS), len(ATTRIBUTES)), (n, 1)), axis=1)
    attributes = np.concatenate([colours, shapes], axis=1)
    return (3 * attributes[..., None] + np.arange(3)).reshape(n, -1)


KINDS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
FETCH = Family(
    "MiniGrid-Fetch-6x6-N2-v0",
    3 * len(ATTRIBUTES),
    4,
    tuple(Seek(*kind) for kind in KINDS if kind not in HELD_OUT),
    tuple(Seek(*kind) for kind in HELD_OUT),
    pairs=300,
    see=see,
    met=met,
    fits=fits,
    options=(("max_steps", MOST_STEPS), ("agent_view_size", 3)),  # nothing is made of the view: a small one is quick
    renamed=renamed,
)
