"""What each TorchScript operator becomes. One file per family, read as tables.

A call goes to the first of these that takes it:
    numbers       sizes and scalars -> Python operators
    collections   lists, dicts, strings, facts on shapes and types -> nothing, they fold
    inplace       becomes functional, then goes the same way
    linear, layers, recurrent    operators with weights -> nn modules under their original names
    attention     fused inference operators -> what they are made of
    functions     operators that quantization patterns know -> the Python callables they know
    everything else -> `torch.ops` by its exact overload
"""

from compress.lift.operators.dispatch import lift_call
from compress.lift.operators.inplace import write_tensor
from compress.lift.operators.registry import Call

__all__ = ["Call", "lift_call", "write_tensor"]
