"""The search against all plans there are, written out."""

from __future__ import annotations

import itertools
import random

import pytest

from compress.mixed.search import Choice, order_moves, plan_after, search

PRECISIONS = ("int8", "fp16", "fp32")


def _random_choices(seed: int, layers: int) -> dict[str, list[Choice]]:
    draw = random.Random(seed)
    found = {}
    for index in range(layers):
        costs = sorted(draw.uniform(1, 10) for _ in PRECISIONS)
        noises = sorted((draw.uniform(0, 1) for _ in PRECISIONS), reverse=True)
        found[f"l{index}"] = [
            Choice(precision, cost, noise)
            for precision, cost, noise in zip(PRECISIONS, costs, noises, strict=True)
        ]
    return found


def _weigh(choices: dict[str, list[Choice]], plan: dict[str, str]) -> tuple[float, float]:
    picked = [next(c for c in choices[layer] if c.precision == p) for layer, p in plan.items()]
    return sum(c.cost for c in picked), sum(c.noise for c in picked)


@pytest.mark.parametrize("seed", range(20))
def test_each_plan_on_the_way_is_the_best_for_its_cost(seed: int) -> None:
    choices = _random_choices(seed, 5)
    cheapest, moves = order_moves(choices)
    every = [
        _weigh(choices, dict(zip(choices, combination, strict=True)))
        for combination in itertools.product(PRECISIONS, repeat=len(choices))
    ]
    for steps in range(len(moves) + 1):
        cost, noise = _weigh(choices, plan_after(cheapest, moves, steps))
        assert noise == pytest.approx(min(n for c, n in every if c <= cost + 1e-12))
    most_exact = plan_after(cheapest, moves, len(moves))
    assert _weigh(choices, most_exact)[1] == pytest.approx(min(n for _, n in every))


def test_a_precision_that_costs_more_and_spoils_more_is_never_taken() -> None:
    choices = {"fc": [Choice("int8", 1, 0.5), Choice("bf16", 2, 0.9), Choice("fp32", 4, 0.0)]}
    cheapest, moves = order_moves(choices)
    assert cheapest == {"fc": "int8"}
    assert [move.precision for move in moves] == ["fp32"]


@pytest.mark.parametrize("steps", [0, 1, 2, 7, 54])
@pytest.mark.parametrize("seek_most", [False, True])
def test_bisection_finds_the_threshold(steps: int, seek_most: bool) -> None:
    for threshold in range(-1, steps + 2):
        tried: list[int] = []

        def attempt(at: int, bound: int = threshold, log: list[int] = tried) -> bool:
            log.append(at)
            return at <= bound if seek_most else at >= bound

        fitting = [at for at in range(steps + 1) if attempt(at)]
        tried.clear()
        found = search(steps, attempt, seek_most=seek_most)
        assert found == ((max if seek_most else min)(fitting) if fitting else None)
        assert len(tried) == len(set(tried)) <= 2 + steps.bit_length()
