"""The uploaded model, run to see what it takes and answers, and left as it came."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compress.errors import CompressError, ModelFailed, ShapeMismatch
from compress.lift import clean_message, forward_arguments, has_state, load_model
from compress.spec.arguments import ForwardArgument
from compress.structure import cast_floats
from compress.time_limit import within

REFUSALS = (RuntimeError, torch.jit.Error, IndexError)
"""What TorchScript raises where a model does not run on its inputs."""
FIRST_RUN_LIMIT_S = 60.0
"""One sample takes longer only in models that no processor should run."""
_SHAPE_WORDS = re.compile(
    r"shape|size|dimension|\bdim\b|channel|expected|must match|broadcast|elements|scalar type"
    r"|dtype|data type|input type|tensor type|index out of range|multipl",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Original:
    """A model that stays as its file has it.

    Attributes:
        module: The model, in eval mode.
        dtype: Element type of its floating-point arguments.
        arguments: What forward takes.
        keeps_state: Whether a call changes what the next one answers; each `run` then starts anew.
    """

    module: torch.jit.ScriptModule
    dtype: torch.dtype
    arguments: tuple[ForwardArgument, ...]
    keeps_state: bool

    def run(self, inputs: Sequence[Any]) -> Any:
        """Run the model on inputs in float32, cast to what it takes."""
        module = copy.deepcopy(self.module) if self.keeps_state else self.module
        with torch.no_grad():
            return module(*cast_floats(inputs, self.dtype))

    def first_run(self, inputs: Sequence[Any]) -> Any:
        """Run the model for the first time, on little: it may turn out never to end.

        Raises:
            RunTimeout: It did not.
        """
        return within(FIRST_RUN_LIMIT_S, lambda: self.run(inputs), "The model's forward")

    def accepts(self, inputs: Sequence[Any]) -> bool:
        """Whether the model runs on these inputs at all."""
        try:
            self.run(inputs)
        except REFUSALS:
            return False
        return True


def load_original(path: Path) -> Original:
    """Load a TorchScript file.

    Raises:
        InvalidModel: The file cannot be read as TorchScript.
        BadSignature: It holds no forward.
    """
    module = load_model(path)
    return Original(
        module, float_dtype(module), tuple(forward_arguments(module)), has_state(module)
    )


def float_dtype(module: torch.jit.ScriptModule) -> torch.dtype:
    """Return the element type of the model's weights if all share one, else float32."""
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def refusal(error: Exception, what: str) -> CompressError:
    """Return the error to raise where the model raised `error` on `what`."""
    text = clean_message(error)
    if _SHAPE_WORDS.search(text):
        return ShapeMismatch(f"The model does not take {what}; it says: {text}")
    return ModelFailed(f"The model itself failed on {what}; it says: {text}")
