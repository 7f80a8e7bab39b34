from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver
from torch.nn import functional as F

from compress.quantize.qat_modules import RoundedLayer, RoundedMean, RoundedValue, RoundedWeight
from compress.quantize.qat_scales import least_squares_steps, widest_steps

INT4 = (-8, 7)


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def by_channel(steps: Tensor, weight: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return steps
    shape = [1] * weight.dim()
    shape[axis] = -1
    return steps.view(shape)


def test_values_are_rounded_as_the_int8_kernel_rounds_them() -> None:
    scale, zero = torch.tensor([0.037]), torch.tensor([91], dtype=torch.int32)
    x = 4 * seeded(64, 32)
    x[0, 0], x[0, 1] = 1e4, -1e4
    wanted = torch.quantize_per_tensor(x, float(scale), int(zero), torch.quint8).dequantize()
    assert torch.equal(RoundedValue(scale, zero)(x), wanted)


def test_gradients_pass_inside_the_range_and_not_beyond() -> None:
    x = torch.tensor([-1.0, 0.5, 2.0, 300.0], requires_grad=True)
    RoundedValue(torch.tensor([1.0]), torch.tensor([0], dtype=torch.int32))(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("side", [2, 3, 4])
def test_means_are_rounded_as_the_int8_kernel_rounds_them(side: int) -> None:
    scale, zero = torch.tensor([0.0371]), torch.tensor([3], dtype=torch.int32)
    value = RoundedValue(scale, zero)
    x = 4 * seeded(64, 32, side, side)
    q = torch.quantize_per_tensor(x, float(scale), int(zero), torch.quint8)
    wanted = F.adaptive_avg_pool2d(q, 1).dequantize()
    means = F.adaptive_avg_pool2d(value(x), 1)
    # qnnpack's kernel, which takes these, now and then breaks a tie the other way
    assert float((RoundedMean(value)(means) == wanted).float().mean()) > 0.999
    if side == 2:  # of nine there are no ties, of sixteen few
        assert float((value(means) == wanted).float().mean()) < 0.95


def test_means_hand_gradients_on() -> None:
    x = seeded(4, 8).requires_grad_()
    RoundedMean(RoundedValue(torch.tensor([0.1]), torch.tensor([128], dtype=torch.int32)))(
        x
    ).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(4, 8))


@pytest.mark.parametrize(("axis", "steps"), [(0, 6), (1, 5), (None, 1)])
def test_weights_become_multiples_of_their_steps(axis: int | None, steps: int) -> None:
    weight = seeded(6, 5, 3, 3)
    start = 0.1 + torch.rand(steps, generator=torch.Generator().manual_seed(1))
    wide = by_channel(start, weight, axis)
    wanted = (weight / wide).round().clamp(*INT4) * wide
    assert torch.allclose(RoundedWeight(weight, start, INT4, axis)(weight), wanted, atol=1e-6)


@pytest.mark.parametrize(("axis", "steps"), [(0, 6), (None, 1)])
def test_gradients_of_weights_and_steps_are_the_papers(axis: int | None, steps: int) -> None:
    weight = seeded(6, 5, 3, 3).requires_grad_()
    start = 0.1 + torch.rand(steps, generator=torch.Generator().manual_seed(1))
    rounding = RoundedWeight(weight, start, INT4, axis)
    above = seeded(6, 5, 3, 3).flip(0)
    (rounding(weight) * above).sum().backward()
    units = weight.detach() / by_channel(start, weight, axis)
    inside = (units.round() >= INT4[0]) & (units.round() <= INT4[1])
    assert weight.grad is not None
    assert torch.allclose(weight.grad, above * inside)
    # d(rounded)/d(step): round(v) - v inside, the end beyond; times 1 / sqrt(N * high)
    by_step = torch.where(inside, units.round() - units, units.clamp(*INT4)) * above
    summed = by_step.sum().reshape(1) if axis is None else by_step.sum((1, 2, 3))
    gradient = summed / math.sqrt(weight.numel() / steps * INT4[1])
    assert rounding.factor.grad is not None
    moved = start * rounding.factor.grad  # by a step of plain descent at a rate of 1
    assert torch.allclose(moved, gradient * start.square() / start.square().mean(), rtol=1e-4)


def test_a_step_never_becomes_negative() -> None:
    rounding = RoundedWeight(seeded(4, 3), torch.tensor([0.5]), INT4, None)
    with torch.no_grad():
        rounding.factor.fill_(-3)
    assert float(rounding.scale.detach()) > 0


@pytest.mark.parametrize("axis", [0, 1, None])
def test_the_first_steps_err_as_little_as_the_best_of_a_fine_grid(axis: int | None) -> None:
    weight = seeded(4, 6, 3, 3) ** 3
    steps = least_squares_steps(weight, INT4, axis)

    def error(chosen: Tensor) -> Tensor:
        wide = by_channel(chosen, weight, axis)
        squares = ((weight / wide).round().clamp(*INT4) * wide - weight).square()
        return squares.sum() if axis is None else squares.transpose(0, axis).flatten(1).sum(1)

    rows = weight.reshape(1, -1) if axis is None else weight.transpose(0, axis).flatten(1)
    widest = rows.abs().amax(1) / 7.5
    least = error(steps)
    for share in torch.linspace(0.25, 1, 200):
        assert bool((least <= error(widest * share) * 1.05).all())


def test_steps_follow_weights_while_they_learn_and_stay_once_they_are_frozen() -> None:
    weight = seeded(6, 5)
    start = least_squares_steps(weight, INT4, 0)
    rounding = RoundedWeight(weight, start, INT4, 0)
    wanted = 3 * rounding.eval()(weight)
    assert torch.allclose(rounding.train()(3 * weight), wanted, atol=1e-5)
    assert torch.allclose(rounding.scale, 3 * start)
    rounding.train().factor.requires_grad_(False)
    rounding(weight)
    assert torch.allclose(rounding.scale, 3 * start)
    rounding.eval().factor.requires_grad_()
    rounding(weight)
    assert torch.allclose(rounding.scale, 3 * start)


@pytest.mark.parametrize("axis", [0, None])
def test_the_widest_steps_are_those_that_calibration_finds(axis: int | None) -> None:
    weight = seeded(6, 5, 3, 3)
    if axis is None:
        observer = MinMaxObserver(torch.qint8, torch.per_tensor_symmetric)
    else:
        observer = PerChannelMinMaxObserver(0, torch.qint8, torch.per_channel_symmetric)
    observer(weight)
    assert torch.equal(widest_steps(weight, (-128, 127), axis), observer.calculate_qparams()[0])


def test_a_weight_of_zeros_has_a_step() -> None:
    assert bool((least_squares_steps(torch.zeros(3, 4), INT4, 0) > 0).all())


def pair(layer: nn.Module, norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean):
            value.copy_(seeded(len(value)))  # type: ignore[operator, arg-type]
        norm.running_var.uniform_(0.2, 3, generator=torch.Generator().manual_seed(2))  # type: ignore[union-attr, operator]
    return layer, norm


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6), (8, 4, 5, 5)),
        (nn.Conv2d(4, 6, 3, padding=1, bias=False, padding_mode="reflect"), nn.BatchNorm2d(6),
         (8, 4, 5, 5)),
        (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (8, 4, 9)),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), (8, 4)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_live", [True, False])
def test_without_rounding_a_layer_and_its_norm_are_what_they_were(
    layer: nn.Module, norm: nn.Module, shape: tuple[int, ...], is_live: bool
) -> None:
    layer, norm = pair(copy.deepcopy(layer), copy.deepcopy(norm))
    plain = nn.Sequential(copy.deepcopy(layer), copy.deepcopy(norm), nn.ReLU()).train(is_live)
    rounded = RoundedLayer(layer, norm, None, is_rectified=True).train(is_live)
    x = seeded(*shape)
    assert torch.allclose(rounded(x), plain(x), atol=1e-5)
    for ours, theirs in zip(norm.buffers(), plain[1].buffers(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_transposed_convolution_is_what_it_was() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
    x = seeded(2, 4, 5, 5)
    assert torch.equal(RoundedLayer(layer, None, None, is_rectified=False)(x), layer(x))


def test_a_live_norm_rounds_what_will_be_exported() -> None:
    layer, norm = pair(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6))
    weight = seeded(6, 4, 3, 3)
    rounding = RoundedWeight(weight, torch.full([6], 0.3), INT4, 0)
    rounding.factor.requires_grad_(False)
    rounded = RoundedLayer(layer, norm, rounding, is_rectified=False).train()
    x = seeded(8, 4, 5, 5)
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).view(-1, 1, 1, 1)  # type: ignore[operator, union-attr, call-overload]
    weight = (layer.weight * factor / 0.3).round().clamp(*INT4) * 0.3 / factor  # type: ignore[operator]
    wanted = F.batch_norm(F.conv2d(x, weight), None, None, norm.weight, norm.bias, True)  # type: ignore[arg-type]
    assert torch.allclose(rounded(x), wanted, atol=1e-4)


def test_a_channel_that_the_norm_makes_constant_has_gradients() -> None:
    layer, norm = pair(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    with torch.no_grad():
        norm.weight[2] = 0  # type: ignore[index, operator]
    weight = seeded(6, 4, 3, 3)
    rounding = RoundedWeight(weight, torch.full([6], 0.3), INT4, 0)
    rounding.factor.requires_grad_(False)
    rounded = RoundedLayer(layer, norm, rounding, is_rectified=False).train()
    y = rounded(seeded(8, 4, 5, 5))
    y.square().sum().backward()
    assert torch.allclose(y[:, 2], norm.bias[2].expand_as(y[:, 2]))  # type: ignore[index, union-attr]
    assert all(bool(p.grad.isfinite().all()) for p in rounded.parameters() if p.grad is not None)
    weight, bias = rounded.eval().folded()
    assert bool((weight[2] == 0).all())
    assert bias is not None
    assert torch.equal(bias[2], norm.bias[2])  # type: ignore[index, union-attr]
