"""Reads a TorchScript file, and says what its `forward` takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from compress.devices import CPU
from compress.errors import BadSignature, InvalidModel
from compress.lift.devices import use_device_
from compress.out_of_memory import lacks_memory
from compress.spec.arguments import ForwardArgument


def load_model(path: Path, device: torch.device = CPU) -> torch.jit.ScriptModule:
    """Loads a TorchScript file to a device, in eval mode, wherever it was saved.

    Element types stay as they are in the file.

    Raises:
        InvalidModel: The file cannot be read as TorchScript.
        BadSignature: It holds no `forward`.
    """
    try:
        module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
            str(path), map_location=device
        )
    except Exception as error:  # torch lets through whatever its C++ throws, an IndexError too
        if lacks_memory(error):
            raise
        raise InvalidModel(
            "The file could not be read as TorchScript; save the model with torch.jit.save, "
            "after torch.jit.trace or torch.jit.script."
        ) from error
    forward_arguments(module)
    module.eval()
    use_device_(module, device)
    return module


def forward_arguments(module: torch.jit.ScriptModule) -> list[ForwardArgument]:
    """The arguments of `forward`, without `self`.

    Raises:
        BadSignature: The module has no `forward`.
    """
    if not module._c._has_method("forward"):
        raise BadSignature("The model has no forward method; export one that can be called.")
    arguments = []
    for argument in module._c._get_method("forward").schema.arguments[1:]:
        has_default = argument.has_default_value()
        arguments.append(
            ForwardArgument(
                name=argument.name,
                type=str(argument.type),
                has_default=has_default,
                default=argument.default_value if has_default else None,
                fields=_named_tuples(argument.type),
            )
        )
    return arguments


def _named_tuples(kind: Any) -> dict[str, dict[str, str]]:
    """Return the fields of all named tuples in a type: full name to field to type."""
    found: dict[str, dict[str, str]] = {}
    waiting = [kind]
    while waiting:
        kind = waiting.pop()
        parts = list(kind.containedTypes())
        if kind.kind() == "TupleType" and kind.str().startswith("NamedTuple("):
            names = _field_names(kind.str())
            found[str(kind)] = dict(zip(names, map(str, parts), strict=True))
        waiting.extend(parts)
    return found


def _field_names(text: str) -> list[str]:
    """Read the names in `NamedTuple(x : Tensor, y : NamedTuple(z : int))`, of the outer one."""
    names: list[str] = []
    depth = 0
    for token in re.findall(r"\w+ : |[()\[\]]", text):
        if token in "([":
            depth += 1
        elif token in ")]":
            depth -= 1
        elif depth == 1:
            names.append(token.removesuffix(" : "))
    return names
