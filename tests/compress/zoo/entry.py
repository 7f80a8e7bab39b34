"""A model of the zoo: how to build it, what it takes, and what is known of it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from compress.export.builtins import forget_builtins_
from tests.compress.zoo.blocks import settle

How = Literal["trace", "script", "file"]
Inputs = Callable[[bool, int, int], list[Any]]
"""From whether the sizes are the published ones, the batch, and the extent."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One architecture.

    An extent is what may vary beside the batch: an image's side, a sequence's length, points,
    edges. The original runs at every batch and extent that is given here.

    Attributes:
        name: Unique; a file name.
        build: The model at its published size, or a small one.
        inputs: One value for each argument of `forward`.
        extent: Of the example; of the small model.
        other: Another extent that the small model takes; None where there is none.
        full_extent: As `extent`, at the published size.
        full_other: As `other`, at the published size.
        hows: The ways in which it can become TorchScript. "file" is TorchScript already.
        fixed: The ways in which the extent becomes a constant of the file.
        islands: Regions that cannot be lifted; for all ways that are not named, none.
        unused: Beginnings of names of parameters that `forward` never reaches in eval mode.
        in_islands: Beginnings of names of parameters that only an island uses.
        stateful: Whether a call depends on those before it.
    """

    name: str
    build: Callable[[bool], nn.Module]
    inputs: Inputs
    extent: int
    other: int | None
    full_extent: int
    full_other: int | None
    hows: tuple[How, ...] = ("trace", "script")
    fixed: tuple[How, ...] = ()
    islands: Mapping[How, int] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    in_islands: tuple[str, ...] = ()
    stateful: bool = False

    def model(self, *, full: bool = False) -> nn.Module:
        """In eval mode, with the same weights each time; a `ScriptModule` where it is a file."""
        torch.manual_seed(0)
        return settle(self.build(full))

    def example(self, *, full: bool = False) -> list[Any]:
        """The inputs to export and to lift with."""
        batch, extent = self.sizes("file", full=full)[0]
        return self.inputs(full, batch, extent)

    def sizes(self, how: How, *, full: bool = False) -> list[tuple[int, int]]:
        """Batch and extent of the example; of two other batches; of another extent, if it may."""
        extent, other = (self.full_extent, self.full_other) if full else (self.extent, self.other)
        batches = (2, 1, 3) if full else (2, 1, 5)  # some traces of one row take no second
        sizes = [(batch, extent) for batch in batches]
        if other is not None and how not in self.fixed:
            sizes.append((batches[0], other))
        return sizes


def export(model: nn.Module, inputs: list[Any], how: How) -> bytes:
    """The TorchScript file of a model."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if how == "file":
            assert isinstance(model, torch.jit.ScriptModule)
            module = model
        elif how == "trace":  # not strict: dicts and lists may come out
            module = torch.jit.trace(model, tuple(inputs), check_trace=False, strict=False)
        else:
            forget_builtins_()
            module = torch.jit.script(model)
        buffer = io.BytesIO()
        torch.jit.save(module, buffer)
    return buffer.getvalue()


def load(file: bytes) -> torch.jit.ScriptModule:
    """A model afresh from its file, in eval mode."""
    return torch.jit.load(io.BytesIO(file)).eval()
