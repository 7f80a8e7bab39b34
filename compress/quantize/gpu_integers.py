"""Linear layers in int8 for GPUs, where that is quicker than 16 bits; all else in these.

A product of int8 has units of its own there, twice as fast as those for 16 bits, but activations
must be scaled and narrowed before it, on each call. So it pays for large products alone, and which
these are, the GPU is asked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
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
from compress.quantize.half_computing import to_any_half
from compress.quantize.integer_linear import IntegerLinear
from compress.quantize.islands import keeps_state, renew_islands
from compress.quantize.layers import nothing_done, weighted_layers
from compress.quantize.linears import linears_
from compress.quantize.modules import StoredLayer
from compress.quantize.overrides import resolve_overrides
from compress.quantize.replacing import replace_layers_
from compress.quantize.rounding import round_int8
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
    warn: Callable[[str], None] = lambda message: None,
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
        warn: Is told why the rest does not compute in float16.
        is_timed: Whether layers that could be int8 are so only where that is quicker.

    Raises:
        InvalidSpec: An override that matches no layer.
        NothingToCompress: No layer is quicker in int8, or the model does not compute in 16 bits.
    """
    source = copy.deepcopy(graph_module).eval()
    linears_(source)
    whole = to_float32(source, islands).graph_module
    resolved = resolve_overrides(overrides, list(weighted_layers(whole)))
    half, _ = to_any_half(whole, probe, islands, device, warn)
    model = half.graph_module
    layers = weighted_layers(model)
    names = {id(layer.module): name for name, layer in layers.items()}
    given = _record(model, bring(list(batch), device))
    verdicts: dict[Any, bool] = {}
    noise_db: dict[str, float] = {}

    def convert(module: nn.Module) -> StoredLayer | str:
        name = names.get(id(module))
        if name is None or name not in given:
            return _NO_KERNEL
        pattern, precision = resolved.get(name, (None, "int8"))
        if precision != "int8":
            return f"override '{pattern}' keeps it in 16 bits"
        inputs, layer = given[name], whole.get_submodule(name)
        integers = _integers(layer).to(device)
        size = (inputs.shape, integers.integers.shape)
        if pattern is None and is_timed:
            if size not in verdicts:
                verdicts[size] = _is_quicker(module, integers, inputs)
            if not verdicts[size]:
                return _SLOWER
        noise_db[name] = _sqnr_db(layer, integers, inputs)
        return integers

    reasons = replace_layers_(
        model, [name for name, layer in layers.items() if not layer.is_island], convert
    )
    table = [
        replace(
            layer, precision="int8", sqnr_db=noise_db.get(layer.name),
            size_bytes=(layer.size_bytes[0], _bytes_of(model, layer.name)),
        )
        if reasons.get(layer.name, _NO_KERNEL) is None
        else replace(layer, reason=layer.reason or reasons.get(layer.name))
        for layer in half.layers
    ]  # fmt: skip
    if not any(layer.precision == "int8" for layer in table):
        raise NothingToCompress(
            "No layer of the model is faster in int8 than in 16 bits on this worker's GPU "
            f"({len(verdicts)} sizes timed). Use method 'convert' with precision 'fp16', or have "
            "layers made int8 whatever it costs in time, by overrides to 'int8'."
            if verdicts
            else nothing_done(table, "can be int8 on a GPU")
        )
    return Quantized(model, table)


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


def _bytes_of(model: fx.GraphModule, name: str) -> int:
    layer = model.get_submodule(name)
    assert isinstance(layer, StoredLayer)
    return layer.stored_bytes()


def _takes_integers(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Linear)
        and layer.weight.dtype.itemsize == 2
        and layer.in_features % _MULTIPLE == layer.out_features % _MULTIPLE == 0
    )


def _integers(layer: Any) -> IntegerLinear:
    """Return a float32 Linear in int8; each output has a scale."""
    bias = None if layer.bias is None else layer.bias.detach()
    return IntegerLinear(round_int8(layer.weight.detach()), bias).eval()


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
