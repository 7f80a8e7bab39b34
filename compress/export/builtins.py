"""Keeps `torch.jit.script` from taking a value for a builtin function that is gone.

torch finds builtins by `id()` alone. Where an operator gets another overload, as those of
`quantized_decomposed` do while torch is imported, it lets the old function go and keeps its `id` in
the table. What comes to lie at that address, such as the padding of a convolution, then counts as
that function, and scripting ends with "builtin cannot be used as a value": once in many processes.
"""

from __future__ import annotations

import torch
from torch.jit import _builtins


def forget_builtins_() -> None:
    """Remove the functions that torch has let go from its table."""
    table: dict[int, str] = _builtins._get_builtin_table()  # type: ignore[no-untyped-call]
    kept = {id(function) for function, _ in _builtins._builtin_ops}
    for key, name in list(table.items()):
        current = _operator(name)
        if key not in kept and current is not None and key != id(current):
            del table[key]


def _operator(name: str) -> object | None:
    """The function of an operator that torch has looked up before; nothing is looked up here."""
    namespace, _, operator = name.partition("::")
    packet = vars(vars(torch.ops).get(namespace, object)).get(operator)
    return packet._op if isinstance(packet, torch._ops.OpOverloadPacket) else None
