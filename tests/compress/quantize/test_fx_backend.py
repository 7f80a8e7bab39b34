from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from compress.measure.environment import int8_saturates, read_environment
from compress.quantize import fx_backend
from compress.quantize.fx_backend import StaticRecipe
from compress.quantize.fx_layers import computes_wrongly, packed_call, saturating_depthwise


def convert(model: nn.Module, data: Tensor, **recipe: object) -> fx.GraphModule:
    graph_module = fx.symbolic_trace(model.eval())
    prepared = fx_backend.prepare(graph_module, [data], StaticRecipe(**recipe))  # type: ignore[arg-type]
    with torch.no_grad():
        prepared(data)
    return fx_backend.convert(prepared)


LAYERS = {
    "dense": (nn.Conv2d(32, 48, 3, padding=1), (32, 9, 9)),
    "strided": (nn.Conv2d(16, 16, 5, stride=2), (16, 9, 9)),
    "grouped": (nn.Conv2d(256, 256, 3, groups=128), (256, 5, 5)),
    "few depthwise": (nn.Conv2d(64, 64, 3, groups=64), (64, 9, 9)),
    "depthwise": (nn.Conv2d(144, 144, 3, padding=1, groups=144), (144, 9, 9)),
    "depthwise 5": (nn.Conv2d(128, 128, 5, stride=2, padding=2, groups=128), (128, 9, 9)),
    "depthwise 1d": (nn.Conv1d(128, 128, 3, padding=1, groups=128), (128, 20)),
    "depthwise 3d": (nn.Conv3d(128, 128, 3, padding=1, groups=128), (128, 5, 5, 5)),
    "transposed": (nn.ConvTranspose2d(16, 16, 3, stride=2), (16, 6, 6)),
    "linear": (nn.Linear(300, 40), (300,)),
}


VNNI = not int8_saturates(read_environment(1))


@pytest.mark.parametrize("full_range", [False, True] if VNNI else [False])
@pytest.mark.parametrize("name", LAYERS)
def test_int8_kernels_do_not_saturate_against_a_float_oracle(name: str, full_range: bool) -> None:
    """The worst input there is: activations and weights at both ends of their ranges."""
    layer, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 2, (4, *shape), generator=generator) * 2.0
    with torch.no_grad():
        layer.weight.copy_(torch.randint(0, 2, layer.weight.shape, generator=generator) * 2.0 - 1)
        layer.bias.zero_()  # type: ignore[union-attr]
    narrow = frozenset({"0"} if saturating_depthwise(layer) else ())
    converted = convert(
        nn.Sequential(layer), data, full_range=full_range, narrow_layers=narrow, observer="minmax"
    )
    call = packed_call(converted.get_submodule("0"))
    assert call is not None
    weight = converted.get_submodule("0").weight().dequantize().double()  # type: ignore[operator]
    nodes = {node.op: node for node in converted.graph.nodes}
    assert nodes  # a graph that quantizes, calls and dequantizes
    quantized_input = next(
        node for node in converted.graph.nodes if node.target is torch.quantize_per_tensor
    )
    scale, zero = (getattr(converted, str(arg.target)) for arg in quantized_input.args[1:3])
    seen = torch.quantize_per_tensor(data, float(scale), int(zero), torch.quint8)
    oracle = nn.utils.skip_init(type(layer), **_geometry(layer)).double()
    with torch.no_grad():
        oracle.weight.copy_(weight)
        oracle.bias.zero_()
        expected = oracle(seen.dequantize().double())
        answer = converted(data).double()
    low, high = -call.zero_point * call.scale, (255 - call.zero_point) * call.scale
    off = ((answer - expected.clamp(low, high)).abs() / call.scale).max()
    assert off <= 0.51  # half a step: rounding alone


def _geometry(layer: nn.Module) -> dict[str, object]:
    if isinstance(layer, nn.Linear):
        return {"in_features": layer.in_features, "out_features": layer.out_features}
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups")
    return {name: getattr(layer, name) for name in names}


def test_eight_bit_weights_do_saturate_in_the_depthwise_kernel_that_is_narrowed() -> None:
    """Holds the reason for 7 bits: the day this fails upstream, they can go."""
    if not VNNI:
        pytest.skip("no AVX512-VNNI")
    layer = nn.Conv2d(144, 144, 3, padding=1, groups=144, bias=False)
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 2, (2, 144, 9, 9), generator=generator) * 2.0
    error = {}
    with torch.no_grad():
        layer.weight.copy_(torch.randint(0, 2, layer.weight.shape, generator=generator) * 2.0 - 1)
        for narrow in (frozenset[str](), frozenset({"0"})):
            converted = convert(
                nn.Sequential(layer), data, full_range=True, narrow_layers=narrow,
                observer="minmax",
            )  # fmt: skip
            error[bool(narrow)] = float((converted(data) - layer(data)).abs().max())
    assert error[True] < 0.2 < 1 < error[False]


TRANSPOSED = {
    "2 x 2": nn.ConvTranspose2d(16, 16, 2, stride=2),
    "2 x 2 with output padding": nn.ConvTranspose2d(16, 16, 2, stride=2, output_padding=1),
    "as many": nn.ConvTranspose2d(16, 16, 4, stride=2),
    "3 x 3 with output padding": nn.ConvTranspose2d(16, 8, 3, stride=2, output_padding=1),
    "2 wide": nn.ConvTranspose1d(16, 16, 2, stride=2),
    "volumes": nn.ConvTranspose3d(8, 8, 3, stride=2),
    "grouped": nn.ConvTranspose2d(16, 16, 2, stride=2, groups=4),
}
SWAPPED = {
    "more in than out": nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1),
    "more out than in": nn.ConvTranspose1d(8, 16, 4, stride=2),
}


def error_of(layer: nn.Module) -> float:
    axes = len(layer.kernel_size)  # type: ignore[arg-type]
    data = torch.randn(2, layer.in_channels, *[6] * axes)  # type: ignore[arg-type]
    with torch.no_grad():
        converted, expected = convert(nn.Sequential(layer), data), layer(data)
        return float((converted(data) - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions_are_right_in_int8_where_they_are_not_kept_float(
    name: str,
) -> None:
    layer = TRANSPOSED[name]
    if not computes_wrongly(layer):
        assert error_of(layer) < 0.05
    assert computes_wrongly(layer) == name.startswith("2 x 2")


@pytest.mark.parametrize("name", SWAPPED)
def test_onednn_swaps_the_channels_of_transposed_convolutions(name: str) -> None:
    """Holds the reason: the day this fails upstream, they can be int8."""
    assert computes_wrongly(SWAPPED[name])
    if not VNNI:
        pytest.skip("no AVX512-VNNI")
    assert error_of(SWAPPED[name]) > 0.5


def test_fbgemm_reads_foreign_memory_for_transposed_convolutions_of_2_by_2() -> None:
    """Holds the reason: the day this fails upstream, they can be int8."""
    assert error_of(TRANSPOSED["2 x 2 with output padding"]) > 0.5


def test_reduced_range_halves_the_steps() -> None:
    data = torch.linspace(-1, 1, 64).reshape(4, 16)
    steps = []
    for full_range in (True, False):
        converted = convert(nn.Sequential(nn.Linear(16, 4)), data, full_range=full_range,
                            observer="minmax")  # fmt: skip
        node = next(n for n in converted.graph.nodes if n.target is torch.quantize_per_tensor)
        steps.append(float(getattr(converted, str(node.args[1].target))))
    assert steps[1] / steps[0] == pytest.approx(255 / 127, rel=0.02)
    assert steps[0] == pytest.approx(2 / 255, rel=1e-5)


@pytest.mark.parametrize(("granularity", "scales"), [("per_channel", 8), ("per_tensor", 1)])
def test_weight_scales_follow_the_formula(granularity: str, scales: int) -> None:
    layer = nn.Linear(16, 8)
    converted = convert(nn.Sequential(layer), torch.randn(4, 16), granularity=granularity)
    weight = converted.get_submodule("0").weight()  # type: ignore[operator]
    if scales == 1:
        expected = layer.weight.detach().abs().max() / 127.5
        assert weight.q_scale() == pytest.approx(float(expected), rel=1e-5)
    else:
        expected = layer.weight.detach().abs().amax(1).double() / 127.5
        assert torch.allclose(weight.q_per_channel_scales(), expected, rtol=1e-5)
