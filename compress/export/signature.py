"""What a file takes and gives: flat names for formats that know nothing but named tensors.

Such a file carries how its tensors lie in `forward`'s arguments and in what it returned, so that
whoever opens it can call it like the original.
"""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, fx

from compress.errors import ExportFailed


@dataclass(frozen=True)
class Leaf:
    """One tensor among the arguments.

    Attributes:
        name: As dataset arrays are named: `x`, `x.0`, `x.key`.
        place: Number of the argument, then indices and keys.
    """

    name: str
    place: tuple[int | str, ...]


@dataclass(frozen=True)
class Signature:
    """Names and places of all tensors.

    Attributes:
        inputs: In order of the arguments.
        outputs: Names, in order.
        tree: What was returned, as plain data, with the outputs' numbers for tensors.
    """

    inputs: tuple[Leaf, ...]
    outputs: tuple[str, ...]
    tree: Any

    def to_json(self) -> str:
        """Return it as text."""
        inputs = [{"name": leaf.name, "place": list(leaf.place)} for leaf in self.inputs]
        return json.dumps({"inputs": inputs, "outputs": self.outputs, "tree": self.tree})

    @classmethod
    def from_json(cls, text: str) -> Signature:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        leaves = tuple(Leaf(each["name"], tuple(each["place"])) for each in data["inputs"])
        return cls(leaves, tuple(data["outputs"]), data["tree"])

    def pick(self, arguments: Sequence[Any]) -> list[Tensor]:
        """Return the tensors of a call in order of the inputs."""
        picked = []
        for leaf in self.inputs:
            value: Any = arguments[int(leaf.place[0])]
            for key in leaf.place[1:]:
                value = value[key]
            picked.append(value)
        return picked

    def rebuild(self, outputs: Sequence[Tensor]) -> Any:
        """Return tensors in the structure that the original returned."""
        return _built(self.tree, outputs)


def read_signature(names: Sequence[str], probe: Sequence[Any], output: Any) -> Signature:
    """Find names for all tensors of a call.

    Args:
        names: Of the arguments.
        probe: Their values.
        output: What was returned.

    Raises:
        ExportFailed: It returns something that no such file can give.
    """
    leaves = [
        Leaf(name, place)
        for index, (argument, value) in enumerate(zip(names, probe, strict=False))
        for name, place in _leaves(argument, (index,), value)
    ]
    taken = {leaf.name for leaf in leaves}
    wanted = list(_output_names(output, ""))
    outputs: list[str] = []
    for name in wanted:
        free = name
        while free in taken:
            free = f"output.{free}"
        taken.add(free)
        outputs.append(free)
    if not outputs:
        raise ExportFailed("The model returns no tensor, so no other format can hold it.")
    return Signature(tuple(leaves), tuple(outputs), _tree(output, iter(range(len(outputs)))))


def argument_names(graph_module: fx.GraphModule) -> list[str]:
    """Return the names of forward's arguments."""
    return [str(node.target) for node in graph_module.graph.nodes if node.op == "placeholder"]


def free_axes(
    signature: Signature,
    probes: Sequence[Sequence[Any]],
    dynamic_dims: Mapping[str, Sequence[int]],
) -> dict[str, set[int]]:
    """Return name to the axes that vary: those that lifting proved, and between the probes.

    An axis of length 1 in the last probe, which is the example, counts as fixed: it broadcasts.
    """
    axes = {leaf.name: set(dynamic_dims.get(leaf.name, ())) for leaf in signature.inputs}
    for probe in probes:
        for leaf, one, last in zip(
            signature.inputs, signature.pick(probe), signature.pick(probes[-1]), strict=True
        ):
            pairs = enumerate(zip(one.shape, last.shape, strict=True))
            axes[leaf.name] |= {axis for axis, (a, b) in pairs if a != b}
    example = dict(zip(axes, signature.pick(probes[-1]), strict=True))
    return {
        name: {axis for axis in found if example[name].shape[axis] > 1}
        for name, found in axes.items()
    }


def shapes_for_export(
    signature: Signature, probe: Sequence[Any], axes: Mapping[str, set[int]], free: Any
) -> list[Any]:
    """Return what `torch.export` takes as `dynamic_shapes`: `free` at each free axis."""
    names = {leaf.place: leaf.name for leaf in signature.inputs}

    def spread(value: Any, place: tuple[int | str, ...]) -> Any:
        if isinstance(value, Tensor):
            return dict.fromkeys(sorted(axes[names[place]]), free)
        if isinstance(value, dict):
            return {key: spread(item, (*place, key)) for key, item in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(spread(item, (*place, i)) for i, item in enumerate(value)))
        if isinstance(value, list | tuple):
            return type(value)(spread(item, (*place, i)) for i, item in enumerate(value))
        return None

    return [spread(value, (index,)) for index, value in enumerate(probe)]


def _leaves(
    name: str, place: tuple[int | str, ...], value: Any
) -> Iterator[tuple[str, tuple[int | str, ...]]]:
    if isinstance(value, Tensor):
        yield name, place
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}", (*place, key), item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(f"{name}.{index}", (*place, index), item)


def _output_names(value: Any, name: str) -> Iterator[str]:
    """`output`; `output_0, output_1 …`; keys of dicts and fields of named tuples; dots inside."""
    if isinstance(value, Tensor):
        yield name or "output"
        return
    fields = getattr(value, "_fields", None)
    if isinstance(value, dict):
        parts = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, tuple) and fields is not None:
        parts = list(zip(fields, value, strict=True))
    elif isinstance(value, list | tuple):
        parts = [(str(i) if name else f"output_{i}", item) for i, item in enumerate(value)]
    else:
        return
    for part, item in parts:
        yield from _output_names(item, f"{name}.{part}" if name else part)


def _tree(value: Any, numbers: Iterator[int]) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": next(numbers)}
    if isinstance(value, dict):
        keys = [[key, _tree(item, numbers)] for key, item in value.items()]
        return {"dict": keys}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {
            "named": [type(value).__name__, list(value._fields)],
            "items": [_tree(item, numbers) for item in value],
        }
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_tree(item, numbers) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise ExportFailed(f"The model returns a {type(value).__name__}, which no other format holds.")


def _built(tree: Any, outputs: Sequence[Tensor]) -> Any:
    if "tensor" in tree:
        return outputs[tree["tensor"]]
    if "dict" in tree:
        return {key: _built(item, outputs) for key, item in tree["dict"]}
    if "named" in tree:
        name, fields = tree["named"]
        kind = _named_tuple(name, tuple(fields))
        return kind(*(_built(item, outputs) for item in tree["items"]))
    if "list" in tree:
        return [_built(item, outputs) for item in tree["list"]]
    if "tuple" in tree:
        return tuple(_built(item, outputs) for item in tree["tuple"])
    return tree["value"]


@cache
def _named_tuple(name: str, fields: tuple[str, ...]) -> Any:
    return namedtuple(name, fields)
