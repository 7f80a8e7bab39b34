"""The one seam to `torch.ao.quantization`, which upstream means to move out of torch.

Nothing else in Tersor imports from `torch.ao`. What goes in and comes out are `fx.GraphModule`s.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.ao.nn import quantized as nnq
from torch.ao.nn.intrinsic import quantized as nniq
from torch.ao.quantization import (
    HistogramObserver,
    MinMaxObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
    QConfig,
    QConfigMapping,
    observer,
)
from torch.ao.quantization.backend_config import get_native_backend_config
from torch.ao.quantization.fx.custom_config import FuseCustomConfig
from torch.ao.quantization.fx.fuse import fuse
from torch.ao.quantization.fx.prepare import prepare as insert_observers
from torch.ao.quantization.quantize_fx import convert_fx
from torch.nn import functional as F

# the attention to "migrate to torchao" that torch.ao gives on every call is ours, not the user's
_NOISE = r".*(torch\.ao\.quantization is deprecated|_empty_affine_quantized|TypedStorage|must_run)"

# fbgemm's transposed kernels take one weight scale per tensor only (pytorch issue 47535)
_TRANSPOSED_MODULES = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED: tuple[Any, ...] = (
    *_TRANSPOSED_MODULES, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
)  # fmt: skip

_ONEDNN_MAX_GROUPS = 100

_OPERATORS: dict[type[nn.Module], Any] = {
    nnq.Conv1d: torch.ops.quantized.conv1d,
    nnq.Conv2d: torch.ops.quantized.conv2d,
    nnq.Conv3d: torch.ops.quantized.conv3d,
    nniq.ConvReLU1d: torch.ops.quantized.conv1d_relu,
    nniq.ConvReLU2d: torch.ops.quantized.conv2d_relu,
    nniq.ConvReLU3d: torch.ops.quantized.conv3d_relu,
    nnq.ConvTranspose1d: torch.ops.quantized.conv_transpose1d,
    nnq.ConvTranspose2d: torch.ops.quantized.conv_transpose2d,
    nnq.ConvTranspose3d: torch.ops.quantized.conv_transpose3d,
    nnq.Linear: torch.ops.quantized.linear,
    nniq.LinearReLU: torch.ops.quantized.linear_relu,
}


@dataclass(frozen=True, kw_only=True)
class StaticRecipe:
    """How a graph is quantized.

    Attributes:
        granularity: One weight scale per output channel, or one per tensor.
        observer: How activation ranges are found.
        full_range: Activations span 0-255. Only where the processor has VNNI: without it the
            kernels add pairs of products in 16 bits and saturate, so 0-127 is used.
        narrow_layers: Dotted names of convolutions whose weights get 7 bits under the full range;
            see `saturating_depthwise`.
        last_layers: Dotted names of layers whose outputs no int8 product takes in: nothing can
            overflow after them, so they span 0-255 in any case.
        float_layers: Dotted names of the modules that stay float.
    """

    granularity: Literal["per_channel", "per_tensor"] = "per_channel"
    observer: Literal["histogram", "minmax"] = "histogram"
    full_range: bool = False
    narrow_layers: frozenset[str] = frozenset()
    last_layers: frozenset[str] = frozenset()
    float_layers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PackedCall:
    """A quantized layer as one operator: `operator(x, packed, scale, zero_point)`."""

    operator: Any
    packed: Any
    scale: float
    zero_point: int


def saturating_depthwise(module: nn.Module) -> bool:
    """Whether the x86 engine runs a convolution with fbgemm's depthwise kernel.

    That kernel adds pairs of products in 16 bits even where there is VNNI, so full-range
    activations times 8-bit weights saturate, off by up to a quarter of the range; 7-bit weights fit
    (2 * 255 * 64 < 2**15). Up to 100 groups go to oneDNN, which is exact.
    """
    return (
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and module.groups > _ONEDNN_MAX_GROUPS
        and module.groups == module.in_channels == module.out_channels
    )


def computes_wrongly(module: nn.Module) -> bool:
    """Whether torch's int8 kernel for a transposed convolution gives something else altogether.

    oneDNN, which takes those without output padding, swaps input and output channels where they
    differ in number; fbgemm, which takes the others, fails for 2 x 2 kernels.
    """
    if not isinstance(module, _TRANSPOSED_MODULES):
        return False
    if any(module.output_padding):
        return tuple(module.kernel_size) == (2, 2)
    return module.in_channels != module.out_channels


@contextmanager
def x86_engine() -> Iterator[None]:
    """Pack and run weights with torch's `x86` engine: fbgemm, and oneDNN where that is faster."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "x86"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


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
    with _quiet(), x86_engine():
        fused = fuse(graph_module, False, FuseCustomConfig(), backend)
        prepared = insert_observers(
            fused,
            _mapping(recipe, graph_module),
            False,
            scopes,
            tuple(example_inputs),
            backend_config=backend,
        )
    _keep_to_floats(prepared, example_inputs)
    return prepared


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


def observed_targets() -> frozenset[Any]:
    """Functions and methods on whose results quantization puts observers."""
    patterns = [config.pattern for config in get_native_backend_config().configs]
    return frozenset(pattern for pattern in patterns if not isinstance(pattern, tuple))


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


def convert(prepared: fx.GraphModule) -> fx.GraphModule:
    """Turn a calibrated module into an int8 one. Consumes `prepared`."""
    with _quiet(), x86_engine():
        return convert_fx(prepared, backend_config=get_native_backend_config())


def is_int8(module: nn.Module) -> bool:
    """Whether a module holds int8 weights."""
    return isinstance(module, nnq.Conv1d | nnq.Conv2d | nnq.Conv3d | nnq.Linear) or (
        type(module) in _OPERATORS
    )


def is_rectified(module: nn.Module) -> bool:
    """Whether a quantized module also applies the relu that followed it.

    Without a relu operator too: an unsigned output whose zero point is 0 holds nothing below.
    """
    fused = (nniq.ConvReLU1d, nniq.ConvReLU2d, nniq.ConvReLU3d, nniq.LinearReLU)
    return isinstance(module, fused) or int(module.zero_point) == 0  # type: ignore[arg-type]


def stored_bytes(module: nn.Module) -> int:
    """Bytes of an int8 module's weights, scales, zero points and bias."""
    weight, bias = module.weight(), module.bias()  # type: ignore[operator]
    total: int = weight.numel() * weight.element_size()
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        total += weight.q_per_channel_scales().nbytes + weight.q_per_channel_zero_points().nbytes
    return total + (0 if bias is None else bias.nbytes)


def packed_call(module: nn.Module) -> PackedCall | None:
    """Return the operator that a quantized module is a wrapper of, or None if it does more."""
    operator = _OPERATORS.get(type(module))
    if operator is None or getattr(module, "padding_mode", "zeros") != "zeros":
        return None
    packed: Any = module._packed_params
    packed = getattr(packed, "_packed_params", packed)  # Linear wraps its own once more
    return PackedCall(operator, packed, float(module.scale), int(module.zero_point))  # type: ignore[arg-type]


def _mapping(recipe: StaticRecipe, graph_module: fx.GraphModule) -> QConfigMapping:
    ranges: type[HistogramObserver | MinMaxObserver] = (
        HistogramObserver if recipe.observer == "histogram" else MinMaxObserver
    )
    activation = ranges.with_args(
        dtype=torch.quint8,
        qscheme=torch.per_tensor_affine,
        reduce_range=not recipe.full_range,
    )
    per_tensor: Any = MinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_tensor_symmetric
    )
    weight: Any = per_tensor
    if recipe.granularity == "per_channel":
        weight = PerChannelMinMaxObserver.with_args(
            dtype=torch.qint8, qscheme=torch.per_channel_symmetric
        )
    # sigmoid, tanh and hardsigmoid have known ranges: torch's own table says which
    mapping = _with_known_ranges(_qconfig(activation=activation, weight=weight))
    for operator in _TRANSPOSED:
        mapping.set_object_type(operator, _qconfig(activation=activation, weight=per_tensor))
    if recipe.full_range:
        narrow = weight.with_args(quant_min=-64, quant_max=63)
        for name in sorted(recipe.narrow_layers):
            mapping.set_module_name(name, _qconfig(activation, narrow))
    else:
        wide = activation.with_args(reduce_range=False)
        for name in sorted(recipe.last_layers):
            transposed = isinstance(graph_module.get_submodule(name), _TRANSPOSED_MODULES)
            mapping.set_module_name(name, _qconfig(wide, per_tensor if transposed else weight))
    for name in sorted(recipe.float_layers):
        mapping.set_module_name(name, None)
    return mapping


def _qconfig(activation: Any, weight: Any) -> QConfig:
    return QConfig(activation=activation, weight=weight)  # type: ignore[no-untyped-call]


def _with_known_ranges(qconfig: QConfig) -> QConfigMapping:
    mapping = QConfigMapping().set_global(qconfig)
    known = {
        "0to1": (nn.Sigmoid, torch.sigmoid, "sigmoid", "sigmoid_", nn.Hardsigmoid, F.hardsigmoid,
                 "hardsigmoid", "hardsigmoid_"),
        "neg1to1": (nn.Tanh, torch.tanh, "tanh", "tanh_"),
    }  # fmt: skip
    for span, operators in known.items():
        fixed = getattr(observer, f"default_fixed_qparams_range_{span}_observer")
        for operator in operators:
            mapping.set_object_type(operator, _qconfig(activation=fixed, weight=qconfig.weight))
    return mapping


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", message=_NOISE)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.ao\..*")
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.ao\..*")
        yield


logging.getLogger("torch.ao").setLevel(logging.ERROR)
