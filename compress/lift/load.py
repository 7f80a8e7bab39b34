"""Reads a TorchScript file, and says what its `forward` takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from compress.errors import BadSignature, InvalidModel
from compress.lift.devices import use_processor_


@dataclass(frozen=True)
class Argument:
    """One argument of `forward`, without `self`. `type` is as TorchScript prints it."""

    name: str
    type: str
    has_default: bool


def load_model(path: Path) -> torch.jit.ScriptModule:
    """Loads a TorchScript file to the processor, in eval mode; one saved on a GPU too.

    Element types stay as they are in the file.

    Raises:
        InvalidModel: The file cannot be read as TorchScript.
        BadSignature: It holds no `forward`.
    """
    try:
        module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
            str(path), map_location="cpu"
        )
    except (RuntimeError, ValueError, OSError, UnicodeDecodeError, EOFError) as error:
        raise InvalidModel(
            "The file could not be read as TorchScript; save the model with torch.jit.save, "
            "after torch.jit.trace or torch.jit.script."
        ) from error
    forward_arguments(module)
    module.eval()
    use_processor_(module)
    return module


def forward_arguments(module: torch.jit.ScriptModule) -> list[Argument]:
    """The arguments of `forward`, without `self`.

    Raises:
        BadSignature: The module has no `forward`.
    """
    if not module._c._has_method("forward"):
        raise BadSignature("The model has no forward method; export one that can be called.")
    schema = module._c._get_method("forward").schema
    return [
        Argument(argument.name, str(argument.type), argument.has_default_value())
        for argument in schema.arguments[1:]
    ]
