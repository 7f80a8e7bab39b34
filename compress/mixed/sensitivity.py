"""What the model's answers lose when one layer alone is quantized.

The layer's weights, and for int8 its input and output too, are rounded as the finished file would
round them; all else stays float. Nodes before the layer are not computed again. The measure is the
noise in the outputs as a fraction of their power: what HAWQ (Dong et al. 2019) estimates from
curvature is measured here, as in Nagel et al. 2021, "A White Paper on Neural Network Quantization",
3.7.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.measure.fidelity import NoiseMeter
from compress.measure.outputs import output_tensors
from compress.quantize.islands import keeps_state, renew_islands
from compress.spec import LayerPrecision

_HALF: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Sensitivity:
    """What one layer in one precision does to the model's outputs.

    Attributes:
        name: Of the layer.
        precision: Of the layer; all others stay float.
        sqnr_db: Outputs against those of the float model.
    """

    name: str
    precision: LayerPrecision
    sqnr_db: float

    @property
    def noise(self) -> float:
        """Noise power as a fraction of signal power."""
        return float(10.0 ** (-self.sqnr_db / 10))


def measure_sensitivity(
    graph_module: fx.GraphModule,
    candidates: Mapping[str, Sequence[LayerPrecision]],
    probes: Sequence[Any],
    *,
    static: Collection[str] = (),
    per_channel: bool = True,
    on_layer: Callable[[int, int], None] = lambda done, total: None,
) -> list[Sensitivity]:
    """Measure each layer in each precision but fp32, in order of the layers' calls.

    Args:
        graph_module: Float; BatchNorm folded, so that a layer is what the file will hold. Its
            weights are changed and put back.
        candidates: Layer name to the precisions that it may take.
        probes: One batch of forward's arguments.
        static: Layers whose int8 kernel gives int8, so that their outputs are rounded, too.
        per_channel: Whether int8 weights have a scale for each output channel.
        on_layer: Receives layers done and layers in all.
    """
    run = _Rerun(graph_module, probes)
    found = []
    for done, (name, precisions) in enumerate(candidates.items(), 1):
        for precision in precisions:
            if precision != "fp32":
                module = graph_module.get_submodule(name)
                with _rounded(
                    module,
                    precision,
                    per_channel=per_channel,
                    output=name in static,
                    rectified=_is_rectified(graph_module, name),
                ):
                    found.append(Sensitivity(name, precision, run.sqnr_db(name)))
        on_layer(done, len(candidates))
    return found


class _Rerun:
    """Runs a graph again from a layer's first call on, with what came before as it was."""

    def __init__(self, graph_module: fx.GraphModule, probes: Sequence[Any]) -> None:
        self._model = graph_module
        self._probes = probes
        # state that a run changes is only right from the start on
        self._source = fx.GraphModule(graph_module, graph_module.graph)
        self._stateful = keeps_state(graph_module)
        self._env: dict[fx.Node, Any] = {}
        self._reference = output_tensors(self._run({}, keep=True))

    def sqnr_db(self, name: str) -> float:
        """Signal to noise of the outputs, in dB, with the layer as it is now."""
        known: dict[fx.Node, Any] = {}
        if not self._stateful:
            for node in self._model.graph.nodes:
                if node.op == "call_module" and node.target == name:
                    break
                if node in self._env:
                    known[node] = self._env[node]
        meter = NoiseMeter()
        answers = output_tensors(self._run(known, keep=False))
        for before, after in zip(self._reference, answers, strict=True):
            if before.is_floating_point():
                meter.add(before, after)
        return meter.sqnr_db

    def _run(self, known: dict[fx.Node, Any], *, keep: bool) -> Any:
        if self._stateful:
            renew_islands(self._model, self._source)
        runner = fx.Interpreter(self._model, garbage_collect_values=not keep)
        runner.extra_traceback = False
        with torch.no_grad():
            answer = runner.run(*self._probes, initial_env=dict(known))
        if keep and not self._stateful:
            self._env = runner.env
        return answer


@contextmanager
def _rounded(
    module: nn.Module,
    precision: LayerPrecision,
    *,
    per_channel: bool,
    output: bool,
    rectified: bool,
) -> Iterator[None]:
    """Round a layer's weights, and what int8 rounds beside, for as long as the context lasts."""
    kept = {name: weight.data for name, weight in module.named_parameters() if weight.dim() > 1}
    handles = []
    try:
        for name, weight in module.named_parameters():
            if name in kept:
                weight.data = _round_weight(module, weight.data, precision, per_channel)
        if precision == "int8" and not isinstance(module, nn.Embedding | nn.EmbeddingBag):
            handles.append(module.register_forward_pre_hook(_round_input))
            if output:
                handles.append(
                    module.register_forward_hook(
                        lambda _, __, answer: _round_values(answer.relu() if rectified else answer)
                    )
                )
        yield
    finally:
        for name, weight in module.named_parameters():
            if name in kept:
                weight.data = kept[name]
        for handle in handles:
            handle.remove()


def _is_rectified(graph_module: fx.GraphModule, name: str) -> bool:
    """Whether a relu alone takes the layer's outputs, so that the int8 kernel applies it."""
    calls = [n for n in graph_module.graph.nodes if n.op == "call_module" and n.target == name]
    return all(
        len(call.users) == 1 and _is_relu(graph_module, next(iter(call.users))) for call in calls
    )


def _is_relu(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph_module.get_submodule(str(node.target)), nn.ReLU)
    return node.target in (torch.relu, torch.relu_, F.relu, "relu", "relu_")


def _round_weight(
    module: nn.Module, weight: Tensor, precision: LayerPrecision, per_channel: bool
) -> Tensor:
    if precision in _HALF:
        return weight.to(_HALF[precision]).to(weight.dtype)
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)  # in-channels come first
    spread = weight.abs()
    if per_channel and not transposed:
        limit = spread.flatten(1).amax(1).reshape(-1, *[1] * (weight.dim() - 1))
    else:
        limit = spread.amax()
    scale = (limit / 127.5).clamp_min(torch.finfo(torch.float32).eps)
    return (weight / scale).round().clamp(-128, 127) * scale


def _round_input(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    first, *rest = arguments
    return (_round_values(first) if isinstance(first, Tensor) else first, *rest)


def _round_values(values: Tensor) -> Tensor:
    """Round to 7 bits over the range of the values and 0, as int8 kernels take them."""
    if not values.is_floating_point() or not values.numel():
        return values
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = max((high - low) / 127, torch.finfo(torch.float32).eps)
    zero = min(127, max(0, round(-low / scale)))
    return (((values / scale).round() + zero).clamp(0, 127) - zero) * scale
