"""Linear layers in int8 for GPUs, where that is quicker than 16 bits; all else in these.

A product of int8 has units of its own there, twice as fast as those for 16 bits, but activations
must be scaled and narrowed before it, on each call. So it pays for large products alone, and which
these are, the GPU is asked.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.devices import CPU, bring
from compress.errors import NothingToCompress
from compress.measure.fidelity import NoiseMeter
from compress.measure.timing import Call, GpuCall, enter
from compress.quantize.drafting import Quantized
from compress.quantize.half import to_float32
from compress.quantize.half_computing import to_half_computing
from compress.quantize.islands import keeps_state, renew_islands
from compress.quantize.layers import weighted_layers
from compress.quantize.linears import linears_
from compress.quantize.modules import IntegerLinear
from compress.quantize.narrowing import HALVES
from compress.quantize.overrides import resolve_overrides
from compress.quantize.replacing import override_reason
from compress.spec import LayerPrecision

_MULTIPLE = 8
"""Of which the kernel takes as many inputs and outputs."""
_GAIN = 1.05
"""How many times as fast a layer has to be: less is within what timings differ by."""
_ROUNDS = 5
_WARM_S = 0.2
_SLOWER = "int8 is not faster here than 16 bits"
_NO_KERNEL = "a GPU multiplies int8 in linear layers alone, of sizes that 8 divides"


def to_integers(
    graph_module: fx.GraphModule,
    probe: Sequence[Any],
    batch: Sequence[Any],
    overrides: Mapping[str, LayerPrecision],
    islands: Mapping[str, str] | None = None,
    device: torch.device = CPU,
    *,
    is_timed: bool = True,
) -> Quantized:
    """Return a copy on the device whose linear layers are int8 where that is quicker.

    Args:
        graph_module: Left as it is.
        probe: One small batch of inputs in float32, on the processor.
        batch: As above, of as many samples as layers are timed with.
        overrides: Layer name pattern to precision: `int8` whatever it costs in time, or another for
            16 bits.
        islands: Name to the reason why a module stays TorchScript.
        device: Where the copy is to compute.
        is_timed: Whether layers that could be int8 are so only where that is quicker.

    Raises:
        InvalidSpec: An override that matches no layer.
        NothingToCompress: No layer is quicker in int8, or the model does not compute in 16 bits.
    """
    source = copy.deepcopy(graph_module).eval()
    linears_(source)
    whole = to_float32(source, islands).graph_module
    resolved = resolve_overrides(overrides, list(weighted_layers(whole)))
    half = _halved(whole, probe, islands, device)
    model = half.graph_module
    given = _record(model, bring(list(batch), device))
    table, verdicts = [], dict[Any, bool]()
    for layer in half.layers:
        name = layer.name
        kept = override_reason(resolved, name)
        inputs = given.get(name)
        if kept is None and inputs is None:
            kept = layer.reason or _NO_KERNEL
        if kept is None and inputs is not None:
            integers = _integers(whole.get_submodule(name)).to(device)
            shape = (inputs.shape, integers.weight.shape)
            is_wanted = name in resolved or not is_timed
            if not is_wanted and shape not in verdicts:
                verdicts[shape] = _is_quicker(model.get_submodule(name), integers, inputs)
            if is_wanted or verdicts[shape]:
                noise = _sqnr_db(whole.get_submodule(name), integers, inputs)
                model.set_submodule(name, integers)
                size = (layer.size_bytes[0], integers.stored_bytes())
                layer = replace(layer, precision="int8", size_bytes=size, sqnr_db=noise)
            else:
                kept = _SLOWER
        table.append(replace(layer, reason=kept))
    if not any(layer.precision == "int8" for layer in table):
        raise NothingToCompress(
            "No layer of the model is faster in int8 than in 16 bits on this worker's GPU "
            f"({len(verdicts)} sizes timed). Use method 'convert' with precision 'fp16', or have "
            "layers made int8 whatever it costs in time, by overrides to 'int8'."
        )
    return Quantized(model, table)


def _halved(
    whole: fx.GraphModule,
    probe: Sequence[Any],
    islands: Mapping[str, str] | None,
    device: torch.device,
) -> Quantized:
    """Return the model in float16, or in bfloat16 if its numbers are too large for that."""
    *others, last = HALVES
    for precision in others:
        try:
            return to_half_computing(whole, probe, islands, precision, device)
        except NothingToCompress:
            continue
    return to_half_computing(whole, probe, islands, last, device)


def _record(model: fx.GraphModule, batch: Sequence[Any]) -> dict[str, Tensor]:
    """Return the name of each layer that could be int8, and what it is given first."""
    given: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        given.setdefault(name, arguments[0])

    pristine = copy.deepcopy(model) if keeps_state(model) else None
    handles = [
        model.get_submodule(name).register_forward_pre_hook(partial(keep, name))
        for name, layer in weighted_layers(model).items() if _takes_integers(layer.module)
    ]  # fmt: skip
    try:
        with torch.no_grad():
            model(*batch)
    finally:
        for handle in handles:
            handle.remove()
    if pristine is not None:
        renew_islands(model, pristine)
    return given


def _takes_integers(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Linear)
        and layer.weight.dtype.itemsize == 2
        and layer.in_features % _MULTIPLE == layer.out_features % _MULTIPLE == 0
    )


def _integers(layer: Any) -> IntegerLinear:
    """Return a Linear in int8: each output has a scale, which its largest weight makes 127."""
    weight: Tensor = layer.weight.detach().float()
    scale = weight.abs().amax(1).clamp_min(1e-30) / 127
    return IntegerLinear(
        (weight / scale[:, None]).round().to(torch.int8),
        scale,
        None if layer.bias is None else layer.bias.detach().float(),
    ).eval()


def _is_quicker(half: nn.Module, integers: nn.Module, x: Tensor) -> bool:
    """Time both, in turn, as they will be in the file."""

    def call(layer: nn.Module) -> Call:
        compiled = torch.jit.script(copy.deepcopy(layer).eval())
        run = partial(compiled, x)
        return run if x.device.type == "cpu" else GpuCall(run)

    with torch.no_grad():
        runners = [enter(call(layer), _WARM_S) for layer in (half, integers)]
        times = [[runner.run() for runner in runners] for _ in range(_ROUNDS)]
    half_s, integers_s = (median(each) for each in zip(*times, strict=True))
    return bool(half_s >= _GAIN * integers_s)


@torch.no_grad()
def _sqnr_db(layer: nn.Module, integers: nn.Module, x: Tensor) -> float:
    """Compare with the float32 layer, on what the layer was given."""
    meter = NoiseMeter()
    reference = copy.deepcopy(layer).to(x.device)
    meter.add(reference(x.float()), integers(x).float())
    return meter.sqnr_db
