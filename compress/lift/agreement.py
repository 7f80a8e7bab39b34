"""Whether a lifted graph and the original agree on some inputs: by numbers, or by formulas."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import fx

from compress.lift.compare import relative_error, run_lifted
from compress.lift.formulas import Formula, Formulas
from compress.lift.oracle import Oracle

RAISED = (RuntimeError, torch.jit.Error, IndexError, TypeError, ValueError)
"""What a graph raises on inputs that it does not take."""


class Agreement(Protocol):
    """Compares a graph with the original."""

    def error(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> float | None:
        """The relative error, infinite where the graph raises; None where the original does."""


class ByNumbers:
    """Runs both.

    Args:
        oracle: The original.
    """

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle

    def error(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> float | None:
        """See `Agreement`."""
        accepted, expected = self._oracle.accepts(inputs)
        if not accepted:
            return None
        if self._oracle.keeps_state:
            graph_module = copy.deepcopy(graph_module)
        try:
            return relative_error(run_lifted(graph_module, inputs), expected)
        except RAISED:
            return float("inf")


class ByFormulas:
    """Asks for formulas first, and runs both only where those are unlike or say too little.

    Args:
        oracle: The original, which keeps no state.
        formulas: Shared by all runs.

    Attributes:
        numbers: For those that must be run.
        has_run: Whether any had to be.
    """

    def __init__(self, oracle: Oracle, formulas: Formulas) -> None:
        self._oracle = oracle
        self._formulas = formulas
        self.numbers = ByNumbers(oracle)
        self.has_run = False

    def original(self, inputs: Sequence[Any]) -> tuple[Any, Formula, int] | None:
        """The original's output without numbers, its formula, and how many operations it takes.

        Returns:
            None where the original raises, or formulas are not enough.
        """
        with self._formulas.run(inputs) as given:
            try:
                output = self._oracle.run_without_numbers(given)
            except RAISED:
                return None
            formula = self._formulas.of(output)
        if self._formulas.failure is not None:
            return None
        return output, formula, self._formulas.operations

    def error(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> float | None:
        """See `Agreement`."""
        known = self.original(inputs)
        if known is None and self._formulas.failure is None:
            return None
        if known is not None:
            with self._formulas.run(inputs) as given:
                try:
                    formula = self._formulas.of(graph_module(*given))
                except RAISED:
                    formula = None
            if self._formulas.failure is None:
                if formula is None:
                    return float("inf")
                if formula == known[1]:
                    return 0.0
        self.has_run = True
        return self.numbers.error(graph_module, inputs)
