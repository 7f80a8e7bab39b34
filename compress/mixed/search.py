"""The cheapest plan within a bound: greedy on the hull of cost and noise, then bisection.

Each layer takes one of a few precisions, each with a cost (bytes and time) and a noise (what it
does to the outputs). Noises add nearly, so the best plan for any budget is found by a multiple-
choice knapsack; its greedy solution takes the steps along each layer's lower convex hull in order
of noise removed per cost added (Sinha and Zoltners 1979). Since noises add only nearly, how far to
go is not read from the sum: the plans along that order are converted and measured, by bisection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from compress.spec import LayerPrecision

Plan = Mapping[str, LayerPrecision]


@dataclass(frozen=True)
class Choice:
    """One precision that a layer may take.

    Attributes:
        precision: Which.
        cost: What it takes, in any unit that adds up over layers.
        noise: What it does to the outputs, as a fraction of their power.
    """

    precision: LayerPrecision
    cost: float
    noise: float


@dataclass(frozen=True)
class Move:
    """One step up: `layer` goes from what it was to `precision`."""

    layer: str
    precision: LayerPrecision
    gain: float


def order_moves(
    choices: Mapping[str, Sequence[Choice]],
) -> tuple[dict[str, LayerPrecision], list[Move]]:
    """Return the cheapest plan, and the steps from it to the most exact one, best first."""
    cheapest: dict[str, LayerPrecision] = {}
    moves = []
    for layer, options in choices.items():
        hull = _hull(options)
        cheapest[layer] = hull[0].precision
        for before, after in pairwise(hull):
            gain = (before.noise - after.noise) / (after.cost - before.cost)
            moves.append(Move(layer, after.precision, gain))
    moves.sort(key=lambda move: -move.gain)  # stable: of one layer, steps stay in order
    return cheapest, moves


def plan_after(cheapest: Plan, moves: Sequence[Move], steps: int) -> dict[str, LayerPrecision]:
    """Return the plan that the first `steps` moves lead to."""
    plan = dict(cheapest)
    for move in moves[:steps]:
        plan[move.layer] = move.precision
    return plan


def search(steps: int, attempt: Callable[[int], bool], *, seek_most: bool = False) -> int | None:
    """Return the fewest steps whose plan fits, or with `seek_most` the most; None if none does.

    Args:
        steps: How many moves there are.
        attempt: Tries the plan after so many moves. Taken to be monotone: more moves, more exact
            and larger.
        seek_most: For a bound on size, which small plans keep.
    """
    low, high = 0, steps
    cheap, exact = (0, steps) if not seek_most else (steps, 0)
    if attempt(cheap):
        return cheap
    if steps == 0 or not attempt(exact):
        return None
    # the bound is kept at `exact` and broken at `cheap`
    while high - low > 1:
        middle = (low + high) // 2
        if attempt(middle) != seek_most:
            high = middle
        else:
            low = middle
    return low if seek_most else high


def _hull(options: Sequence[Choice]) -> list[Choice]:
    """Return the lower convex hull of cost and noise, cheapest first."""
    hull: list[Choice] = []
    for choice in sorted(options, key=lambda option: (option.cost, option.noise)):
        if hull and choice.noise >= hull[-1].noise:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(before: Choice, after: Choice) -> float:
    return (before.noise - after.noise) / (after.cost - before.cost)
