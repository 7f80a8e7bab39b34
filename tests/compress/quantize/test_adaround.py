from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.quantize import quantize_static
from compress.quantize.adaround import _patches, _positions, round_adaptively_
from compress.quantize.fx_layers import packed_call
from compress.spec import PtqConfig
from tests.compress import zoo

LIMITS = (-8, 7)
"""Of four bits, where rounding hurts."""


def correlated(rows: int, width: int) -> Tensor:
    """Inputs with few directions, in which rounding errors can cancel."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(width // 4, width, generator=generator)
    return torch.randn(rows, width // 4, generator=generator).relu() @ basis


def scales_of(layer: nn.Module) -> Tensor:
    return layer.weight.detach().flatten(1).abs().amax(1) / 7.5  # type: ignore[union-attr, operator]


def rounded(model: nn.Module, data: Tensor, seed: int = 0) -> tuple[fx.GraphModule, list[str]]:
    graph_module = fx.symbolic_trace(copy.deepcopy(model).eval())
    scales = {n: scales_of(m) for n, m in model.named_modules() if hasattr(m, "weight")}
    limits = dict.fromkeys(scales, LIMITS)
    names = round_adaptively_(graph_module, [[data]], scales, limits, seed=seed)
    return graph_module, names


def to_nearest(model: nn.Module) -> nn.Module:
    nearest = copy.deepcopy(model)
    for module in nearest.modules():
        if hasattr(module, "weight"):
            step = scales_of(module).view(-1, *[1] * (module.weight.dim() - 1))
            with torch.no_grad():
                module.weight.copy_((module.weight / step).round().clamp(*LIMITS) * step)
    return nearest


def error(model: nn.Module, reference: nn.Module, data: Tensor) -> float:
    with torch.no_grad():
        return float((model(data) - reference(data)).square().mean())


@pytest.mark.slow
def test_every_weight_goes_to_an_integer_beside_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    after, names = rounded(model, correlated(256, 16))
    assert names == ["0", "2"]
    for name in names:
        before = model.get_submodule(name)
        step = scales_of(before)[:, None]
        units = after.get_submodule(name).weight / step
        assert torch.allclose(units, units.round(), atol=1e-4)
        assert float((units - before.weight / step).abs().max()) < 1 + 1e-4  # type: ignore[operator]


def test_outputs_are_closer_than_with_rounding_to_nearest_on_data_not_seen() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    data = correlated(1024, 32)
    after, _ = rounded(model, data[:512])
    assert error(after, model, data[512:]) < 0.5 * error(to_nearest(model), model, data[512:])


@pytest.mark.slow
def test_convolutions_learn_too_grouped_ones_included() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Conv2d(16, 8, 1),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    data = F.interpolate(torch.randn(32, 4, 5, 5, generator=generator), size=15, mode="bilinear")
    after, names = rounded(model, data[:16])
    assert names == ["0", "2", "4"]
    assert error(after, model, data[16:]) < 0.7 * error(to_nearest(model), model, data[16:])


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.Conv2d(6, 4, 3, padding=2, groups=2, padding_mode="reflect"),
        nn.Conv1d(6, 4, 5, stride=2, padding=2),
    ],
)
def test_patches_are_what_the_kernel_covers(layer: nn.Conv2d) -> None:
    image = torch.randn(3, 6, *[9] * (layer.weight.dim() - 2))
    generator = torch.Generator().manual_seed(0)
    samples, corners = _positions(layer, image, 40, generator)
    patches = _patches(layer, image, samples, corners).view(40, layer.groups, -1)
    kernel = layer.weight.view(layer.groups, 4 // layer.groups, -1)
    with torch.no_grad():
        answer = torch.einsum("rgk,gok->rgo", patches, kernel).reshape(40, 4) + layer.bias
        whole = layer(image)
    places = [corner // stride for corner, stride in zip(corners, layer.stride, strict=True)]
    assert torch.allclose(answer, whole[(samples, slice(None), *places)], atol=1e-5)


@pytest.mark.slow
def test_the_int8_graph_holds_just_the_integers_that_were_learned() -> None:
    model, data = zoo.small_cnn(), torch.randn(16, 1, 8, 8)
    weights = []
    for _ in range(2):
        result = quantize_static(
            fx.symbolic_trace(model.eval()), [data], [[data]], PtqConfig(adaround=True),
            full_range=False, seed=3,
        )  # fmt: skip
        modules = result.graph_module.named_modules()
        weights.append({n: m.weight() for n, m in modules if packed_call(m) is not None})  # type: ignore[operator]
    plain = quantize_static(
        fx.symbolic_trace(model), [data], [[data]], PtqConfig(), full_range=False
    )
    moved = 0
    for name, weight in weights[0].items():
        assert torch.equal(weight.int_repr(), weights[1][name].int_repr())  # the same seed
        nearest = plain.graph_module.get_submodule(name).weight()  # type: ignore[operator]
        assert torch.equal(weight.q_per_channel_scales(), nearest.q_per_channel_scales())
        difference = (weight.int_repr().int() - nearest.int_repr().int()).abs()
        assert int(difference.max()) <= 1
        moved += int(difference.sum())
    assert moved > 0


@pytest.mark.slow
def test_progress_is_told_layer_by_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    told: list[tuple[int, int]] = []
    scales = {name: scales_of(model.get_submodule(name)) for name in ("0", "2")}
    round_adaptively_(
        fx.symbolic_trace(model), [[correlated(64, 8)]], scales, dict.fromkeys(scales, LIMITS),
        on_layer=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(1, 2), (2, 2)]
