from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from compress.quantize import Quantized, quantize_static
from compress.quantize.bias_correction import correct_biases_
from compress.quantize.fx_backend import StaticRecipe, convert, float_reference, prepare
from compress.quantize.fx_layers import before_rounding, is_int8
from compress.quantize.graph_rules import make_quantizable
from compress.spec import PtqConfig
from tests.compress import zoo


def quantized(model: nn.Module, data: Tensor, **config: object) -> Quantized:
    return quantize_static(
        fx.symbolic_trace(model.eval()),
        [data[:2]],
        [[data[:16]], [data[16:]]],
        PtqConfig(**config),  # type: ignore[arg-type]
        full_range=False,
        probes=[[data]],
    )


def pair(model: nn.Module, data: Tensor) -> tuple[fx.GraphModule, fx.GraphModule]:
    recipe = StaticRecipe(granularity="per_tensor", observer="minmax")
    graph_module = fx.symbolic_trace(model.eval())
    make_quantizable(graph_module)
    prepared = prepare(graph_module, [data], recipe)
    with torch.no_grad():
        prepared(data)
    reference = float_reference(prepared)
    return convert(prepared), reference


def test_the_first_layers_shift_is_the_mean_error_of_its_channels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3))
    data = torch.rand(24, 3, 9, 9)
    with torch.no_grad():
        expected = model[0](data)
        converted, reference = pair(model, data)
        quantizer = next(n for n in converted.graph.nodes if n.target is torch.quantize_per_tensor)
        scale, zero = (float(getattr(converted, arg.target)) for arg in quantizer.args[1:3])
        seen = torch.quantize_per_tensor(data, scale, int(zero), torch.quint8).dequantize()
        weight = converted.get_submodule("0").weight().dequantize()  # type: ignore[operator]
        error = expected - nn.functional.conv2d(seen, weight)
    shifts = correct_biases_(converted, reference, [[data[:10]], [data[10:]]])
    assert list(shifts) == ["0", "2"]
    assert torch.allclose(shifts["0"], error.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(converted.get_submodule("0").bias(), shifts["0"])  # type: ignore[operator]


def test_each_layer_is_corrected_on_what_the_corrected_ones_before_give() -> None:
    """Afterwards no layer's output is off in the mean, whatever stands before it."""
    model, data = zoo.small_cnn(), torch.rand(32, 1, 8, 8)
    converted, reference = pair(model, data)
    correct_biases_(converted, reference, [[data]])
    left = correct_biases_(converted, reference, [[data]])
    for name, shift in left.items():
        layer = converted.get_submodule(name)
        assert float(shift.abs().max()) < 1e-5 + 0.02 * float(layer.scale)  # type: ignore[arg-type]


def test_what_is_computed_before_rounding_is_what_the_kernel_rounds() -> None:
    torch.manual_seed(0)
    layers: list[tuple[nn.Module, Tensor]] = [
        (nn.Linear(8, 5), torch.rand(3, 8)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), torch.rand(2, 4, 9)),
        (nn.Conv2d(4, 6, 3, groups=2, dilation=2), torch.rand(2, 4, 9, 9)),
        (nn.Conv3d(4, 6, 2), torch.rand(2, 4, 5, 5, 5)),
        (nn.ConvTranspose1d(4, 4, 3, stride=2, padding=1), torch.rand(2, 4, 6)),
        (nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=1), torch.rand(2, 4, 6, 6)),
    ]
    for layer, data in layers:
        converted, _ = pair(nn.Sequential(layer), data)
        module = converted.get_submodule("0")
        quantizer = next(n for n in converted.graph.nodes if n.target is torch.quantize_per_tensor)
        scale, zero = (float(getattr(converted, arg.target)) for arg in quantizer.args[1:3])
        seen = torch.quantize_per_tensor(data, scale, int(zero), torch.quint8)
        with torch.no_grad():
            exact = before_rounding(module, seen)
            answer = module(seen)
        assert exact is not None
        assert float((exact - answer.dequantize()).abs().max()) < 0.75 * answer.q_scale()


@pytest.mark.slow
def test_correction_brings_answers_closer_where_weights_share_one_scale() -> None:
    model = zoo.mobilenet_v2(10, full=False)
    data = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    errors = {}
    for corrected in (False, True):
        result = quantized(model, data, granularity="per_tensor", bias_correction=corrected)
        with torch.no_grad():
            bias = (result.graph_module(data) - model(data)).mean(0)
        errors[corrected] = float(bias.square().sum())
    assert errors[True] < errors[False] / 2


def test_layers_without_a_bias_get_one() -> None:
    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    converted, reference = pair(model, torch.rand(16, 8))
    assert correct_biases_(converted, reference, [[torch.rand(16, 8)]])
    module = converted.get_submodule("0")
    assert is_int8(module)
    assert module.bias() is not None  # type: ignore[operator]
