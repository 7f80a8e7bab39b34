"""Forms nn modules again around the weights that an operator reads."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

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
    prefixes = set()
    for name, symbol in tensors.items():
        if symbol is None:
            continue
        if not isinstance(symbol, Symbol) or symbol.path is None:
            return None
        prefix, _, last = builder.name_in(call.owner, name, symbol).rpartition(".")
        if last != name:
            return None
        prefixes.add(prefix)
    if len(prefixes) != 1:
        return None
    path = prefixes.pop()
    if not path or not builder.is_leaf(path, frozenset(tensors)):
        return None
    module = make()
    if path in builder.modules:
        known = builder.modules[path]
        return path if repr(known) == repr(module) else None
    for name, symbol in tensors.items():
        held = None if symbol is None else symbol.value
        if isinstance(held, nn.Parameter) or name not in module._buffers:
            module.register_parameter(name, held)
        else:
            module._buffers[name] = held
    builder.modules[path] = module.eval()
    return path
