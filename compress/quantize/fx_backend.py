"""The seam to `torch.ao.quantization`, which upstream means to move out of torch.

Nothing but the files `fx_*.py` here imports from `torch.ao`. What goes in and comes out are
`fx.GraphModule`s.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import ObserverBase
from torch.ao.quantization.backend_config import get_native_backend_config
from torch.ao.quantization.fx.custom_config import FuseCustomConfig
from torch.ao.quantization.fx.fuse import fuse
from torch.ao.quantization.fx.prepare import prepare as insert_observers
from torch.ao.quantization.quantize_fx import convert_fx
from torch.nn import functional as F

from compress.quantize.engines import engine_for, x86_engine
from compress.quantize.fx_layers import packed_call
from compress.quantize.fx_observers import EchoObserver, RangeObserver
from compress.quantize.fx_recipe import REDUCED_MAX, StaticRecipe, mapping_for
from compress.spec import Backend

__all__ = [
    "StaticRecipe", "clip_ends", "convert", "engine_for", "float_reference", "observed_targets",
    "packed_call", "prepare", "x86_engine",
]  # fmt: skip

# the attention to "migrate to torchao" that torch.ao gives on every call is ours, not the user's
_NOISE = r".*(torch\.ao\.quantization is deprecated|_empty_affine_quantized|TypedStorage|must_run)"


def prepare(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any], recipe: StaticRecipe
) -> fx.GraphModule:
    """Fuse conv-bn-relu and its like, and put observers in. Changes `graph_module`'s modules.

    `prepare_fx` would trace the model anew and lose what Python computes from its stand-ins for
    numbers; these are its steps after that, on a graph that is one already.
    """
    backend = get_native_backend_config()
    scopes: dict[str, tuple[str, type]] = {}
    for node in graph_module.graph.nodes:
        called = node.op == "call_module"
        name = str(node.target) if called else ""
        scopes[node.name] = (
            name,
            type(graph_module.get_submodule(name)) if called else type(None),
        )
    with _quiet(), engine_for(recipe.backend):
        fused = fuse(graph_module, False, FuseCustomConfig(), backend)
        prepared = insert_observers(
            fused,
            mapping_for(recipe, graph_module),
            False,
            scopes,
            tuple(example_inputs),
            backend_config=backend,
        )
    _keep_to_floats(prepared, example_inputs)
    _span_all_calls(prepared)
    _look_behind_clips(prepared)
    if not recipe.full_range:
        _narrow_inputs(prepared, recipe.last_layers)
    return prepared


def convert(prepared: fx.GraphModule, backend: Backend = "x86") -> fx.GraphModule:
    """Turn a calibrated module into an int8 one. Consumes `prepared`."""
    with _quiet(), engine_for(backend):
        return convert_fx(prepared, backend_config=get_native_backend_config())


def float_reference(prepared: fx.GraphModule) -> fx.GraphModule:
    """Return a copy without observers: the fused float graph, its modules named as the int8 ones.

    Taken before `convert`, which consumes what it is given.
    """
    reference = copy.deepcopy(prepared)
    for node in list(reference.graph.nodes):
        if node.op == "call_module" and isinstance(
            reference.get_submodule(str(node.target)), ObserverBase
        ):
            node.replace_all_uses_with(node.args[0])
            reference.graph.erase_node(node)
    reference.delete_all_unused_submodules()
    reference.recompile()
    return reference


def observed_targets() -> frozenset[Any]:
    """Functions and methods on whose results quantization puts observers."""
    patterns = [config.pattern for config in get_native_backend_config().configs]
    return frozenset(pattern for pattern in patterns if not isinstance(pattern, tuple))


def clip_ends(graph_module: fx.GraphModule, node: fx.Node) -> tuple[float, float] | None:
    """Return the ends of what clips values, if a node does just that."""
    low: Any
    high: Any
    if node.op == "call_module":
        module = graph_module.get_submodule(str(node.target))
        if isinstance(module, nn.Hardtanh):  # ReLU6 is one
            return float(module.min_val), float(module.max_val)
        return None
    if node.target is F.relu6:
        return 0.0, 6.0
    if node.target is F.hardtanh:
        given = dict(zip(("min_val", "max_val"), node.args[1:3], strict=False)) | node.kwargs
        low, high = given.get("min_val", -1.0), given.get("max_val", 1.0)
    elif node.target in (torch.clamp, "clamp", "clamp_"):
        given = dict(zip(("min", "max"), node.args[1:], strict=False)) | node.kwargs
        low, high = given.get("min"), given.get("max")
    else:
        return None
    if isinstance(low, int | float) and isinstance(high, int | float):
        return float(low), float(high)
    return None


def _span_all_calls(prepared: fx.GraphModule) -> None:
    """Find one scale for all answers of a module that is called several times: int8 ones have one.

    The last call's would be used for every call, however small its answers.
    """
    first: dict[str, nn.Module] = {}
    for node in prepared.graph.nodes:
        if node.op != "call_module" or not node.all_input_nodes:
            continue
        source = node.all_input_nodes[0]
        observer = prepared.get_submodule(str(node.target))
        if source.op != "call_module" or type(observer) is not RangeObserver:
            continue
        shared = first.setdefault(str(source.target), observer)
        if shared is not observer:
            for name, each in list(prepared.named_modules(remove_duplicate=False)):
                if each is observer:
                    prepared.set_submodule(name, shared)


def _look_behind_clips(prepared: fx.GraphModule) -> None:
    """Before relu6 and its like, take the scale of what they leave, where nobody else sees it.

    An observer is shared across them, so that it would count what is about to be clipped away.
    """
    modules = dict(prepared.named_modules(remove_duplicate=False))
    for node in prepared.graph.nodes:
        if clip_ends(prepared, node) is None or not isinstance(node.args[0], fx.Node):
            continue
        before = node.args[0]
        leader = modules.get(str(before.target)) if before.op == "call_module" else None
        behind = [modules.get(str(user.target)) for user in node.users if user.op == "call_module"]
        if type(leader) is RangeObserver and leader in behind and len(before.users) == 1:
            name = f"{node.name}_echo"
            prepared.add_submodule(name, EchoObserver(leader))
            before.target = name
    prepared.recompile()


def _narrow_inputs(prepared: fx.GraphModule, last_layers: frozenset[str]) -> None:
    """Let last layers take 7 bits in: an observer that is only theirs was made like their output's.

    Such has what comes from a float part of the graph.
    """
    for node in prepared.graph.nodes:
        if node.op == "call_module" and str(node.target) in last_layers:
            for source in node.all_input_nodes:
                if source.op == "call_module":
                    observer = prepared.get_submodule(str(source.target))
                    if isinstance(observer, RangeObserver):
                        observer.quant_max = REDUCED_MAX


class _Blindfolded(fx.Interpreter):
    """Runs a prepared graph once past its observers.

    Attributes:
        misplaced: Observers of what has no int8 scale: numbers, positions, masks.
    """

    def __init__(self, prepared: fx.GraphModule) -> None:
        super().__init__(prepared)
        self.misplaced: list[fx.Node] = []

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_module" or not isinstance(self.fetch_attr(str(n.target)), ObserverBase):
            return super().run_node(n)
        value = self.env[n.all_input_nodes[0]]
        if not _has_scale(value):
            self.misplaced.append(n)
        return value


def _has_scale(value: Any) -> bool:
    """Whether some int8 scale spans a value: of masks, none does."""
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return False
    # beyond float16 is what models write for infinity
    return value.numel() == 0 or float(value.detach().abs().max()) < torch.finfo(torch.float16).max


def _keep_to_floats(prepared: fx.GraphModule, example_inputs: Sequence[Any]) -> None:
    """Take away the observers of what only looks like an activation to who knows no values."""
    run = _Blindfolded(prepared)
    with torch.no_grad():
        run.run(*example_inputs)
    for node in run.misplaced:
        node.replace_all_uses_with(node.all_input_nodes[0])
        prepared.graph.erase_node(node)
    prepared.delete_all_unused_submodules()
    prepared.recompile()


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", message=_NOISE)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.ao\..*")
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.ao\..*")
        yield


logging.getLogger("torch.ao").setLevel(logging.ERROR)
