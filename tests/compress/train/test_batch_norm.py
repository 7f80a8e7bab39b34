"""BatchNorm of images that lie pixel by pixel: against the formula, computed in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from compress.train.batch_norm import batch_norm
from compress.train.kernels import quick_kernels
from tests.compress.train import runs

EPS = 1e-5
MOMENTUM = 0.1
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 6e-3}


def images(channels: int, dtype: torch.dtype, samples: int = 16, size: int = 6) -> Tensor:
    """Channels that differ in mean and spread."""
    torch.manual_seed(channels)
    spread = 0.1 + torch.rand(channels, 1, 1)
    x = torch.randn(samples, channels, size, size) * spread + 3 * torch.randn(channels, 1, 1)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def formula(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    axes = (-1, 1, 1)
    normal = (x - mean.view(axes)) / (variance.view(axes) + EPS).sqrt()
    return normal * weight.view(axes) + bias.view(axes)


def off(found: Tensor, wanted: Tensor) -> float:
    """Error, in units of the wanted."""
    return float(((found.double() - wanted).norm() / wanted.norm()).detach())


def check_gradients(
    y: Tensor, wanted: Tensor, leaves: Sequence[Tensor], doubles: Sequence[Tensor]
) -> None:
    gradient = torch.randn_like(y)
    y.backward(gradient)  # type: ignore[no-untyped-call]
    wanted.backward(gradient.double())  # type: ignore[no-untyped-call]
    for leaf, double in zip(leaves, doubles, strict=True):
        assert leaf.grad is not None
        assert double.grad is not None
        assert leaf.grad.dtype == leaf.dtype
        is_image = leaf.dim() == 4
        assert off(leaf.grad, double.grad) < (TOLERANCE[y.dtype] if is_image else 1e-5)


def quick(y: Tensor) -> bool:
    """Whether an answer came the quicker way, whose last operation is a change of axes."""
    return y.grad_fn is not None and y.grad_fn.name() == "_BatchNormBackward"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 8, 24, 40])
def test_training_gives_the_formula_and_its_gradients(channels: int, dtype: torch.dtype) -> None:
    x = images(channels, dtype).requires_grad_()
    weight, bias = torch.rand(channels).requires_grad_(), torch.randn(channels).requires_grad_()
    running_mean, running_var = torch.randn(channels), torch.rand(channels)
    leaves = [leaf.detach().double().requires_grad_() for leaf in (x, weight, bias)]
    axes = (0, 2, 3)
    mean, variance = leaves[0].mean(axes), leaves[0].var(axes, unbiased=False)
    wanted = formula(leaves[0], mean, variance, leaves[1], leaves[2])
    wanted_mean = (1 - MOMENTUM) * running_mean + MOMENTUM * mean
    wanted_var = (1 - MOMENTUM) * running_var + MOMENTUM * leaves[0].var(axes)

    y = batch_norm(x, running_mean, running_var, weight, bias, True, MOMENTUM, EPS)
    assert quick(y)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert off(y, wanted) < TOLERANCE[dtype]
    assert off(running_mean, wanted_mean) < 1e-6
    assert off(running_var, wanted_var) < 1e-6

    check_gradients(y, wanted, (x, weight, bias), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_frozen_it_goes_by_the_running_figures_and_still_learns(dtype: torch.dtype) -> None:
    x = images(24, dtype).requires_grad_()
    weight, bias = torch.rand(24).requires_grad_(), torch.randn(24).requires_grad_()
    mean, variance = torch.randn(24), torch.rand(24)
    kept = mean.clone(), variance.clone()
    leaves = [leaf.detach().double().requires_grad_() for leaf in (x, weight, bias)]
    wanted = formula(leaves[0], mean.double(), variance.double(), leaves[1], leaves[2])
    y = batch_norm(x, mean, variance, weight, bias, False, MOMENTUM, EPS)
    assert off(y, wanted) < TOLERANCE[dtype]
    check_gradients(y, wanted, (x, weight, bias), leaves)
    assert torch.equal(mean, kept[0])
    assert torch.equal(variance, kept[1])


def test_without_weights_or_running_figures() -> None:
    x = images(8, torch.float32).requires_grad_()
    y = batch_norm(x, None, None, training=True)
    assert quick(y)
    assert off(y, F.batch_norm(x.double(), None, None, training=True)) < 1e-5
    y.square().sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None


def test_gradients_may_lie_any_way() -> None:
    x = images(8, torch.float32).requires_grad_()
    found = []
    for layout in (torch.channels_last, torch.contiguous_format):
        gradient = images(8, torch.float32).mul(2).contiguous(memory_format=layout)
        (of_x,) = torch.autograd.grad(batch_norm(x, None, None, training=True), x, gradient)
        found.append(of_x)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "x",
    [
        images(16, torch.float32),  # rows fill cache lines as they are
        images(8, torch.float32).contiguous(),
        images(8, torch.float32, samples=1, size=3),  # nine pixels, of which eight made a row
        images(8, torch.float64),
        torch.randn(64, 8),
    ],
    ids=["full lines", "plain layout", "no whole rows", "float64", "vectors"],
)
def test_all_else_is_left_to_pytorch(x: Tensor) -> None:
    channels = x.shape[1]
    weight: Any = torch.rand(channels, dtype=x.dtype)
    found = [function(x.clone().requires_grad_(), None, None, weight, training=True)
             for function in (batch_norm, F.batch_norm)]  # fmt: skip
    assert not quick(found[0])
    assert torch.equal(*found)


def test_models_find_it_while_they_learn() -> None:
    norm = torch.nn.BatchNorm2d(8)
    with quick_kernels(runs.CPU):
        y = norm(images(8, torch.float32))
    assert quick(y)
    assert norm.num_batches_tracked == 1
    assert not quick(norm(images(8, torch.float32)))
