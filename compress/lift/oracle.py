"""The original model, run to say what is right."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.jit._fuser import optimized_execution

from compress.errors import ModelFailed, OutOfMemory
from compress.lift.state import has_state
from compress.structure import map_tensors


class Oracle:
    """The original model, run without the executor's profiling, which makes first calls slow.

    A model that keeps state between calls is copied for each, so that each begins alike.
    """

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self.module = module
        self.keeps_state = has_state(module)

    def run(self, inputs: Sequence[Any]) -> Any:
        """Output for the inputs, which it may not change.

        Raises:
            ModelFailed: The model raised; carries its own message.
            OutOfMemory: There was no memory for it.
        """
        module = copy.deepcopy(self.module) if self.keeps_state else self.module
        try:
            with torch.no_grad(), optimized_execution(False):
                return module(*(map_tensors(value, Tensor.clone) for value in inputs))
        except (RuntimeError, torch.jit.Error, IndexError, ValueError) as error:
            if "allocate memory" in str(error) or "out of memory" in str(error):
                raise OutOfMemory(
                    "The model did not fit into memory; send smaller inputs or a smaller batch."
                ) from error
            raise ModelFailed(
                f"The model raised on the samples given: {clean_message(error)}"
            ) from error

    def run_without_numbers(self, inputs: Sequence[Any]) -> Any:
        """Output for stand-ins, in a run of `Formulas`; what it raises is torch's own."""
        with optimized_execution(False):
            return self.module(*inputs)

    def accepts(self, inputs: Sequence[Any]) -> tuple[bool, Any]:
        """Whether the model runs on the inputs, and its output if so."""
        try:
            return True, self.run(inputs)
        except ModelFailed:
            return False, None


def clean_message(error: BaseException) -> str:
    """Return the heart of an error raised in TorchScript: no trace, no code, no path."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [
        match
        for line in lines
        if (match := re.match(r"(?:[\w.]*(?:Error|Exception)): (.+)", line)) is not None
    ]
    text = raised[-1].group(1) if raised else (lines[0] if lines else type(error).__name__)
    text = re.sub(r"(?:/[\w.+-]+){2,}", "…", text)
    return text if len(text) <= 300 else text[:299] + "…"
