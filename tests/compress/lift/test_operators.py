"""Operators one by one: lifted, each computes what the model did, at three batch sizes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.lift import lift
from tests.compress.lift.exported import HOWS, How, export

pytestmark = pytest.mark.slow

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": lambda x: F.softmax(x, 1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "softplus": F.softplus,
    "glu": lambda x: F.glu(x, 1),
}
ARITHMETIC: dict[str, Callable[[Tensor], Tensor]] = {
    "scalars": lambda x: 1 - (2 * x + 1) / 3 - x * 0.5,
    "in_place": lambda x: x.mul_(2).add_(1),
    "floor_divide": lambda x: torch.floor_divide(x, 0.3),
    "floor_divide_integers": lambda x: x.flatten()[x.argsort(1).flatten() // 2 + x.size(1) // 2],
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "sqrt_of_a_size": lambda x: x / math.sqrt(x.size(-1)),
    "power": lambda x: x**2 + x.abs().sqrt(),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "sum": lambda x: x.sum(1),
    "variance": lambda x: x.var(1) + x.std(1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "matmul": lambda x: torch.matmul(x, x.transpose(-1, -2)),
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "where": lambda x: torch.where(x > 0, x, -x),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "clamp": lambda x: x.clamp(0, 1) + x.clamp(min=0.5),
    "to_and_back": lambda x: x.to(torch.float64).float() + (x > 0).float(),
}
SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "cat": lambda x: torch.cat([x, x * 2], 1),
    "stack": lambda x: torch.stack([x, x], 0),
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "split": lambda x: torch.cat(torch.split(x, [1, 3], 1)[::-1], 1),
    "unbind": lambda x: x.unbind(1)[1],
    "permute": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "transpose": lambda x: x.transpose(1, 2),
    "unsqueeze_squeeze": lambda x: x.unsqueeze(1).squeeze(1),
    "slices": lambda x: x[:, 1:3, ::2, :-1],
    "slice_to_half": lambda x: x[:, :, : x.shape[2] // 2],
    "select": lambda x: x[:, 0] + x[..., -1, :].mean(1, keepdim=True),
    "flatten": lambda x: x.flatten(1),
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "view_of_a_product": lambda x: x.view(x.size(0) * x.size(1), -1),
    "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1) + x,
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "index": lambda x: x[:, [2, 1]],
    "arange": lambda x: x + torch.arange(x.shape[-1]),
    "zeros": lambda x: x + torch.zeros(x.shape[0], 1, 1, 1),
    "new_zeros": lambda x: torch.cat([x.new_zeros(x.shape[0], 1, *x.shape[2:]), x], 1),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
}
IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "adaptive_avg_pool": lambda x: F.adaptive_avg_pool2d(x, (3, None)),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool2d(x, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0),
    "nearest_recomputed": lambda x: F.interpolate(x, scale_factor=2.0, recompute_scale_factor=True),
    "bilinear": lambda x: F.interpolate(x, size=(20, 20), mode="bilinear", align_corners=True),
    "bilinear_to_own_size": lambda x: F.interpolate(x, size=x.shape[2:], mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "reflection_pad": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "instance_norm": F.instance_norm,
    "dropout": lambda x: F.dropout(x, 0.3, training=False),
}
FUNCTIONS = ACTIVATIONS | ARITHMETIC | SHAPES | IMAGES


class Around(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name: str) -> None:
    model, given = Around(FUNCTIONS[name]).eval(), torch.randn(2, 4, 16, 16)
    lifted = lift(export(model, [given], "trace"), [given])
    assert lifted.report.guards == []
    with torch.no_grad():
        for batch in (2, 1, 5):
            more = torch.randn(batch, 4, 16, 16)
            torch.testing.assert_close(lifted.graph_module(more), model(more), rtol=1e-5, atol=1e-6)


class Layers(nn.Module):
    """Convolutions of every rank, norms of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(4, 6, 3, padding="same")
        self.bn1d = nn.BatchNorm1d(6)
        self.up1d = nn.ConvTranspose1d(6, 2, 4, 2, 1, output_padding=1)
        self.conv3d = nn.Conv3d(1, 2, 3, padding=1, padding_mode="circular")
        self.bn3d = nn.BatchNorm3d(2, affine=False)
        self.gn = nn.GroupNorm(2, 2)
        self.prelu = nn.PReLU(2)
        self.ln = nn.LayerNorm(41, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up1d(F.relu(self.bn1d(self.conv1d(x))))
        volume = self.conv3d(y.unsqueeze(1).unsqueeze(-1))
        return self.ln(self.prelu(self.gn(self.bn3d(volume))).squeeze(-1))


@pytest.mark.parametrize("how", HOWS)
def test_layers_of_every_rank_and_kind_form_again(how: How) -> None:
    model, given = Layers().eval(), torch.randn(2, 4, 20)
    lifted = lift(export(model, [given], how), [given])
    assert lifted.report.modules == {
        name: type(module).__name__ for name, module in model.named_children()
    }
    assert lifted.graph_module.state_dict().keys() == model.state_dict().keys()


class Products(nn.Module):
    """A linear layer as old traces write it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.fc.weight.t()).add_(self.fc.bias)


class Addmm(Products):
    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.fc.bias, x, self.fc.weight.t())


class SharedProduct(Products):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        product = torch.matmul(x, self.fc.weight.t())
        return product + self.fc.bias, product * 2


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", [Products, Addmm, SharedProduct])
def test_matmul_with_a_transposed_weight_is_a_linear_layer(kind: type[nn.Module], how: How) -> None:
    given = torch.randn(3, 8)
    lifted = lift(export(kind(), [given], how), [given])
    assert lifted.report.modules == {"fc": "Linear"}
    assert isinstance(lifted.graph_module.get_submodule("fc").bias, nn.Parameter)


class RawWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 4, 3, 3))
        self.register_buffer("mean", torch.randn(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x - self.mean, self.kernel)


@pytest.mark.parametrize("how", HOWS)
def test_weights_under_other_names_keep_them(how: How) -> None:
    given = torch.randn(2, 4, 8, 8)
    lifted = lift(export(RawWeights(), [given], how), [given]).graph_module
    assert set(lifted.state_dict()) == {"kernel", "mean"}
    assert dict(lifted.named_parameters()).keys() == {"kernel"}
    assert any(node.target is torch.conv2d for node in lifted.graph.nodes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_lifted_in_float32(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU()).to(dtype)
    original = export(model, [], "script")
    lifted = lift(original, [torch.randn(2, 6).to(dtype)])
    assert {value.dtype for value in lifted.graph_module.parameters()} == {torch.float32}
    assert {value.dtype for value in original.parameters()} == {dtype}
