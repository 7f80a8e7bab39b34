"""Last touches to an ONNX graph: names, what it says of itself, and weights in half."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.errors import ExportFailed
from compress.export.runners import SIGNATURE_KEY
from compress.export.signature import Signature
from compress.export.stored import INT4_SUFFIX

_SMALLEST_HALF = 64
"""Elements; below, the widening costs more than is saved."""


def finish_graph(
    model: Any, signature: Signature, properties: Mapping[str, str], *, halve: bool
) -> None:
    """Finish an ONNX model in place.

    Args:
        model: Of `onnx_ir`.
        signature: The names.
        properties: What the file says of itself.
        halve: Store float weights that 16 bits hold exactly so, with a Cast.

    Raises:
        ExportFailed: Its inputs are not those of the model.
    """
    graph = model.graph
    if len(graph.inputs) != len(signature.inputs):
        raise ExportFailed(
            f"The model could not be written as ONNX: it came out with {len(graph.inputs)} inputs "
            f"instead of {len(signature.inputs)}."
        )
    if halve:
        _halve(model)
    for value in graph.initializers.values():
        if str(value.name).endswith(INT4_SUFFIX):
            _pack(value)
    _rename(graph, signature)
    for node in graph.all_nodes():  # the exporter's notes on where in its code each came from
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    graph.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props.update(properties)
    model.metadata_props[SIGNATURE_KEY] = signature.to_json()
    model.producer_name = "tersor"
    model.producer_version = properties["tersor.version"]


def _rename(graph: Any, signature: Signature) -> None:
    names = [leaf.name for leaf in signature.inputs] + list(signature.outputs)
    outer = [*graph.inputs, *graph.outputs]
    wanted = set(names)
    inner = [value for node in graph.all_nodes() for value in node.outputs]
    for number, value in enumerate([*inner, *graph.initializers.values()]):
        if value.name in wanted:
            value.name = f"inner_{number}_{value.name}"
    for value in graph.inputs:  # they may swap names
        value.name = f"given_{value.name}"
    for value, name in zip(outer, names, strict=True):
        value.name = name


def _pack(value: Any) -> None:
    """Store integers of four bits two to a byte."""
    import ml_dtypes
    import onnx_ir as ir

    values = value.const_value.numpy().astype(ml_dtypes.uint4)
    value.const_value = ir.tensor(values, dtype=ir.DataType.UINT4, name=value.name)
    value.type = ir.TensorType(ir.DataType.UINT4)


def _halve(model: Any) -> None:
    import onnx_ir as ir

    graph = model.graph
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor.dtype != ir.DataType.FLOAT or tensor.size < _SMALLEST_HALF:
            continue
        half = _in_16_bits(tensor.numpy())
        if half is None:
            continue
        stored = ir.Value(
            name=f"{value.name}_half",
            type=ir.TensorType(ir.DataType.from_numpy(half.dtype)),
            shape=value.shape,
            const_value=ir.tensor(half, name=f"{value.name}_half"),
        )
        users = list(value.uses())
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
        wide = cast.outputs[0]
        wide.name, wide.shape, wide.type = f"{value.name}_wide", value.shape, value.type
        graph.initializers.add(stored)
        graph.insert_before(graph[0], cast)
        for node, index in users:
            node.replace_input_with(index, wide)
        if not value.is_graph_output():
            del graph.initializers[value.name]


def _in_16_bits(array: Any) -> Any:
    """Return an array as float16 or bfloat16, whichever holds it exactly; None if neither does."""
    import ml_dtypes
    import numpy

    for dtype in (numpy.float16, ml_dtypes.bfloat16):
        with numpy.errstate(over="ignore"):
            half = array.astype(dtype)
        if numpy.array_equal(half.astype(numpy.float32), array):
            return half
    return None
