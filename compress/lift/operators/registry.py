"""One operator call, as rules see it, and the table that finds the rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from compress.lift.builder import GraphBuilder
from compress.lift.values import ModuleRef, Value


@dataclass(frozen=True)
class Call:
    """One operator of the TorchScript graph with its arguments bound to the schema's names.

    Attributes:
        name: Such as `aten::add`; the functional name where the original was in-place.
        overload: Such as `Tensor`; may be empty.
        arguments: In the schema's order.
        keyword_only: Names of those that must be passed by keyword.
        defaults: Default values of those that have one.
        owner: Module whose code is being walked.
    """

    name: str
    overload: str
    arguments: Mapping[str, Value]
    keyword_only: frozenset[str]
    defaults: Mapping[str, Any]
    owner: ModuleRef

    def __getitem__(self, name: str) -> Value:
        return self.arguments[name]

    def get(self, name: str, default: Value = None) -> Value:
        return self.arguments.get(name, default)

    @property
    def values(self) -> tuple[Value, ...]:
        return tuple(self.arguments.values())

    def split(self) -> tuple[list[Value], dict[str, Value]]:
        """Positional and keyword arguments, without those that only repeat the default."""
        positional = [(k, v) for k, v in self.arguments.items() if k not in self.keyword_only]
        while positional and self._is_default(*positional[-1]):
            positional.pop()
        keywords = {
            name: value
            for name, value in self.arguments.items()
            if name in self.keyword_only and not self._is_default(name, value)
        }
        return [value for _, value in positional], keywords

    def _is_default(self, name: str, value: Value) -> bool:
        if name not in self.defaults:
            return False
        default = self.defaults[name]
        return value is default or (
            isinstance(value, bool | int | float | str | list)
            and type(value) is type(default)
            and bool(value == default)
        )


Rule = Callable[[GraphBuilder, Call], Value]
"""Lifts one call; returns `NotImplemented` where the general way fits better."""

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for operators, named without their overload."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"two rules for {name}")
            RULES[name] = function
        return function

    return register


def overload_of(call: Call) -> Any:
    """The `torch.ops` overload of a call, or None when torch has no such operator."""
    namespace, _, short = call.name.partition("::")
    try:
        packet = getattr(getattr(torch.ops, namespace), short)
        return getattr(packet, call.overload or "default")
    except AttributeError:
        return None
