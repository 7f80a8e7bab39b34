"""Forms nn modules again around the weights that an operator reads."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from compress.lift.builder import GraphBuilder
from compress.lift.operators.registry import Call
from compress.lift.values import Symbol, Value


def form_module(
    builder: GraphBuilder,
    call: Call,
    make: Callable[[], nn.Module],
    tensors: dict[str, Value],
) -> str | None:
    """Forms the module that holds `tensors` again, or finds it formed already.

    Args:
        builder: The graph under way.
        call: The operator; its owner tells what else lives beside the weights.
        make: Builds the module on the meta device.
        tensors: Attribute of the module (`weight`) to its value in the original, None if it has
            none.

    Returns:
        Dotted name of the module; None if the tensors are not one module's own attributes.
    """
    path = _frozen_path(builder, make, tensors) or _path(builder, call, tensors)
    if path is None:
        return None
    with _disable_current_modes():  # its empty weights are no part of what is computed
        module = make()
    if path in builder.modules:
        known = builder.modules[path]
        return path if repr(known) == repr(module) else None
    for name, symbol in tensors.items():
        held = None if symbol is None else symbol.value
        if builder.weights.is_frozen and held is not None:
            held = builder.weights.own_constant(held)
        if isinstance(held, nn.Parameter) or name not in module._buffers:
            module.register_parameter(name, held)
        else:
            module._buffers[name] = held
    builder.modules[path] = module.eval()
    return path


def _path(builder: GraphBuilder, call: Call, tensors: dict[str, Value]) -> str | None:
    """Where the original has the module; a model that is a single layer gets a name for it."""
    prefixes = set()
    for name, symbol in tensors.items():
        if symbol is None:
            continue
        if not isinstance(symbol, Symbol) or symbol.path is None:
            return None
        prefix, _, last = builder.weights.name_in(call.owner, name, symbol).rpartition(".")
        if last != name:
            return None
        prefixes.add(prefix)
    if len(prefixes) != 1:
        return None
    path = prefixes.pop()
    if not builder.weights.is_leaf(path, frozenset(tensors)):
        return None
    return path or "layer"


def _frozen_path(
    builder: GraphBuilder, make: Callable[[], nn.Module], tensors: dict[str, Value]
) -> str | None:
    """A name for a layer of a frozen model, whose weights are constants without names."""
    given = [symbol for symbol in tensors.values() if symbol is not None]
    if not builder.weights.is_frozen or not all(
        isinstance(symbol, Symbol) and symbol.is_constant and symbol.is_tensor for symbol in given
    ):
        return None
    key = tuple(id(symbol) for symbol in given)
    if key not in builder.weights.frozen_names:
        builder.weights.frozen_names[key] = builder.fresh_name(type(make()).__name__.lower())
    return builder.weights.frozen_names[key]
