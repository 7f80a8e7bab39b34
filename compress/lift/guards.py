"""What a lifted graph takes for granted about its inputs, as sentences and as checks in the graph.

Control flow folds by the example. Where it hung on a size or on a constant argument, the graph
holds for that answer only; it says so when it is called with another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from compress.lift.islands import Place

Number = bool | int | float

_INFIX = {
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "add": "+", "sub": "-",
    "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "and_": "and",
    "or_": "or",
}  # fmt: skip
_DEEPEST = 4
_NEGATED = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


@dataclass(frozen=True)
class Guard:
    """A number computed from sizes and constant arguments, and what it must be.

    Attributes:
        at: Node of the original that asked for it.
        node: Computes it.
        value: What it was for the example.
    """

    at: Place
    node: fx.Node
    value: Number

    def __str__(self) -> str:
        """The guard as a reader would write it: `image.size(2) > 4`, `sample_rate == 16000`."""
        if isinstance(self.value, bool):
            return describe(self.node, holds=self.value)
        return f"{describe(self.node)} == {self.value}"


def describe(value: Any, *, holds: bool = True, depth: int = 0) -> str:
    """An expression over sizes as a reader would write it.

    Args:
        value: A node, or a number.
        holds: False for the opposite of a condition.
        depth: In how many other expressions it stands; very deep ones are named, not spelt out:
            sizes of sizes would grow without end.
    """
    if not isinstance(value, fx.Node):
        return str(value)
    if depth > _DEEPEST:
        return value.name
    name = getattr(value.target, "__name__", str(value.target)).partition(".")[0]
    sign = _INFIX.get(name) if value.op == "call_function" else None
    if sign == "==" and value.args[1] is False:  # how `not` is written
        return describe(value.args[0], holds=not holds, depth=depth)
    if not holds and sign not in _NEGATED:
        return f"not {describe(value, depth=depth + 1)}"
    if sign is not None and len(value.args) == 2:
        left, right = (describe(each, depth=depth + 1) for each in value.args)
        text = f"{left} {sign if holds else _NEGATED[sign]} {right}"
        return f"({text})" if depth else text
    arguments = [describe(each, depth=depth + 1) for each in value.args]
    if value.op == "call_method":
        return f"{arguments[0]}.{name}({', '.join(arguments[1:])})"
    if value.op == "call_function" and name not in ("getitem",):
        return f"{name}({', '.join(arguments)})"
    return value.name


def expect(graph: fx.Graph, guards: Sequence[Guard]) -> None:
    """Put checks into the graph, each right after what it checks."""
    seen = set()
    for guard in guards:
        key = (guard.node, guard.value)
        if key in seen:
            continue
        seen.add(key)
        check = _CHECKS[type(guard.value)]
        with graph.inserting_after(guard.node):
            call_leaf(graph, check, guard.node, guard.value, str(guard))


def call_leaf(graph: fx.Graph, function: Any, *arguments: Any) -> fx.Node:
    """Emit a call that tracing the graph again does not look into."""
    node = graph.call_function(function, arguments)
    node.meta["is_wrapped"] = True
    return node


# TorchScript compiles these, so that exported files check too.


@fx.node.has_side_effect
def expect_bool(found: bool, wanted: bool, what: str) -> None:
    """Raise unless the numbers are the same."""
    if found != wanted:
        raise RuntimeError("This compressed model holds only where " + what)


@fx.node.has_side_effect
def expect_int(found: int, wanted: int, what: str) -> None:
    """Raise unless the numbers are the same."""
    if found != wanted:
        raise RuntimeError("This compressed model holds only where " + what)


@fx.node.has_side_effect
def expect_float(found: float, wanted: float, what: str) -> None:
    """Raise unless the numbers are the same."""
    if found != wanted:
        raise RuntimeError("This compressed model holds only where " + what)


@fx.node.has_side_effect
def expect_text(found: str, wanted: str, what: str) -> None:
    """Raise unless the texts are the same."""
    if found != wanted:
        raise RuntimeError("This compressed model holds only where " + what)


@fx.node.has_side_effect
def expect_none(found: Tensor | None, what: str) -> None:
    """Raise if there is a tensor."""
    if found is not None:
        raise RuntimeError("This compressed model holds only where " + what)


def expect_tensor(found: Tensor | None, what: str) -> Tensor:
    """Return the tensor; raise if there is none."""
    if found is None:
        raise RuntimeError("This compressed model holds only where " + what)
    return found


_CHECKS: dict[type[Number], Any] = {bool: expect_bool, int: expect_int, float: expect_float}


def is_check(function: Any) -> bool:
    """Whether a function of a graph only checks."""
    return function in _CHECKS.values() or function in (expect_text, expect_none)
