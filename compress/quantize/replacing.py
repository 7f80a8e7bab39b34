"""Puts other modules in the place of a graph's layers, and lists what became of each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import fx, nn

from compress.lift import is_loop
from compress.quantize.islands import renew_islands
from compress.quantize.layers import STAYS, Weighted, measure_layers, type_name
from compress.quantize.modules import StoredLayer
from compress.result import Layer
from compress.spec import LayerPrecision

Convert = Callable[[nn.Module], StoredLayer | str]
"""From a float layer to what takes its place, or to the reason why nothing does."""
READ_ALONE = "its weight is also read by itself"


def replace_layers_(
    graph_module: fx.GraphModule, names: Iterable[str], convert: Convert
) -> dict[str, str | None]:
    """Convert layers in place; a module that has two names is converted once.

    Into a loop's body and a fused pair it goes, too: such are done where any layer inside is.

    Args:
        graph_module: Calls the layers.
        names: Their dotted names.
        convert: Is asked for each layer once.

    Returns:
        Name to why it could not be, None where it was done.
    """
    done: dict[int, StoredLayer | str] = {}
    kept: list[nn.Module] = []  # so that no id is used twice

    def replace(owner: fx.GraphModule, name: str) -> str | None:
        module = owner.get_submodule(name)
        inside = _layers_inside(module)
        if inside is not None:
            body, within = inside
            reasons = [replace(body, each) for each in within]
            return None if None in reasons else next(iter(reasons), "it holds no weights")
        if id(module) not in done:
            kept.append(module)
            done[id(module)] = convert(module)
        converted = done[id(module)]
        if isinstance(converted, str):
            return converted
        if reads_alone(owner, name, converted):
            return READ_ALONE
        converted.train(module.training)
        owner.set_submodule(name, converted)
        return None

    return {name: replace(graph_module, name) for name in names}


def _layers_inside(module: nn.Module) -> tuple[Any, list[str]] | None:
    """Return what calls layers inside a module, and their names there."""
    if is_loop(module):
        called = [str(n.target) for n in module.body.graph.nodes if n.op == "call_module"]
        return module.body, [
            name
            for name in dict.fromkeys(called)
            if any(True for _ in module.body.get_submodule(name).parameters())
        ]
    if isinstance(module, nn.Sequential):  # torch.ao's fused pairs
        return module, [
            name for name, child in module.named_children() if any(True for _ in child.parameters())
        ]
    return None


def reads_alone(owner: nn.Module, name: str, converted: nn.Module) -> bool:
    """Whether a graph reads attributes of a layer that its replacement does not have."""
    graph = getattr(owner, "graph", None)
    if graph is None:
        return False
    read = (str(node.target) for node in graph.nodes if node.op == "get_attr")
    return any(
        path.startswith(f"{name}.") and not hasattr(converted, path[len(name) + 1 :])
        for path in read
    )


def stored_table(
    layers: Mapping[str, Weighted],
    converted: fx.GraphModule,
    reasons: Mapping[str, str | None],
    islands: Mapping[str, str],
    sqnr_db: Mapping[str, float],
) -> list[Layer]:
    """List every weighted layer.

    Args:
        layers: Name to float layer, before.
        converted: The graph after `replace_layers_`.
        reasons: Name to what there is to say of it, if anything.
        islands: Name to the reason why it stays TorchScript.
        sqnr_db: Name to signal-to-quantization-noise ratio of the layer's output.
    """
    table = []
    for name, layer in layers.items():
        stored = stored_layers(converted.get_submodule(name))
        after = layer.size_bytes
        if stored:
            after = _bytes_after(converted.get_submodule(name))
        table.append(
            Layer(
                name=name,
                type=type_name(layer.module),
                precision=stored[0].stored_as if stored else "fp32",
                size_bytes=(layer.size_bytes, after),
                sqnr_db=sqnr_db.get(name),
                reason=islands.get(name, STAYS) if layer.is_island else reasons.get(name),
            )
        )
    return table


def stored_layers(module: nn.Module) -> list[StoredLayer]:
    """Return the converted layers that a module of a graph is or holds, outermost first."""
    if isinstance(module, StoredLayer):
        return [module]
    return [layer for child in module.children() for layer in stored_layers(child)]


def _bytes_after(module: nn.Module) -> int:
    if isinstance(module, StoredLayer):
        return module.stored_bytes()
    own = sum(int(weight.nbytes) for weight in module.parameters(recurse=False))
    return own + sum(_bytes_after(child) for child in module.children())


def reference_for(
    graph_module: fx.GraphModule, probes: Sequence[Sequence[Any]]
) -> fx.GraphModule | None:
    """Return a copy to measure against, before layers are replaced; None where nothing is run."""
    return copy.deepcopy(graph_module) if probes else None


def measure_replaced(
    reference: fx.GraphModule | None,
    converted: fx.GraphModule,
    source: fx.GraphModule,
    names: Iterable[str],
    probes: Sequence[Sequence[Any]],
) -> dict[str, float]:
    """Return each layer's SQNR in dB; see `measure_layers`.

    Args:
        reference: The float graph, as `reference_for` returned it; its islands are hidden.
        converted: The finished graph; gets its islands afresh after it was run.
        source: The lifted graph, whose islands nobody has run.
        names: Layers to compare.
        probes: Few, small batches; none, and nothing is run.
    """
    if reference is None:
        return {}
    for measured in (reference, converted):
        renew_islands(measured, source, hidden=True)
    found = measure_layers(reference, converted, names, probes)
    renew_islands(converted, source)
    return found


def override_reason(overrides: Mapping[str, tuple[str, LayerPrecision]], name: str) -> str | None:
    """Return why an override keeps a layer from integers, if one does."""
    pattern, precision = overrides.get(name, ("", "int8"))
    return None if precision == "int8" else f"override '{pattern}' keeps it {precision}"
