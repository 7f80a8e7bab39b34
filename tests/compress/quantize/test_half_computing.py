"""Computing in 16 bits: everything inside is so, everything at the borders as before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from compress.errors import NothingToCompress
from compress.lift import lift
from compress.quantize import to_half_computing

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Normed(nn.Module):
    """Has a sum in float32 by name, a constant of its own, ids and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 8)
        self.mix = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.mix(x) + self.words(ids) + torch.ones(8)
        size = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        return self.scale * (x * torch.rsqrt(size + 1e-6)), ids + 1


def dtypes_inside(model: fx.GraphModule, *inputs: Any) -> set[torch.dtype]:
    """Element types of the floats that layers are given."""
    seen: set[torch.dtype] = set()

    class Watch(fx.Interpreter):
        def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
            seen.update(a.dtype for a in args if isinstance(a, Tensor) and a.is_floating_point())
            return super().call_module(target, args, kwargs)

    Watch(model).run(*inputs)
    return seen


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.half), ("bf16", torch.bfloat16)])
def test_a_net_computes_as_its_halved_self_does(precision: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    made = to_half_computing(fx.symbolic_trace(net), [X], precision=precision)
    model = made.graph_module
    with torch.no_grad():
        expected = copy.deepcopy(net).to(dtype)(X.to(dtype)).float()
        answer = model(X)
    assert answer.dtype == torch.float32
    assert torch.equal(answer, expected)
    assert dtypes_inside(model, X) == {dtype}
    assert {value.dtype for value in model.parameters()} == {dtype}
    assert next(net.parameters()).dtype == torch.float32  # left as it was
    assert all(layer.precision == precision for layer in made.layers)
    assert all(layer.size_bytes[0] == 2 * layer.size_bytes[1] for layer in made.layers)


def test_wider_numbers_on_the_way_are_narrowed() -> None:
    ids = torch.tensor([0, 4, 2, 2])
    net = Normed().eval()
    lifted = lift(torch.jit.script(net), [X, ids])
    model = to_half_computing(lifted.graph_module, [X, ids]).graph_module
    with torch.no_grad():
        answer, counted = model(X, ids)
        wanted, _ = net(X, ids)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, wanted, rtol=5e-3, atol=5e-3)
    assert torch.equal(counted, ids + 1)
    assert dtypes_inside(model, X, ids) == {torch.half}
    with torch.no_grad():
        assert model(X[:1], ids[:1])[0].shape == (1, 8)  # any batch size, still


def test_what_16_bits_cannot_hold_is_told() -> None:
    net = nn.Sequential(nn.Linear(8, 2))
    net[0].weight.data[0, 0] = 1e5
    with pytest.raises(NothingToCompress, match=r"'0.weight' is beyond the range of float16.*bf16"):
        to_half_computing(fx.symbolic_trace(net), [X])
    to_half_computing(fx.symbolic_trace(net), [X], precision="bf16")


def test_an_operator_without_16_bits_computes_in_32() -> None:
    class Inverts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            square = self.mix(x @ x.t()) + 9 * torch.eye(4)
            return self.mix(torch.linalg.inv(square))

    net = Inverts().eval()
    model = to_half_computing(fx.symbolic_trace(net), [X]).graph_module
    with torch.no_grad():
        answer = model(X)
        torch.testing.assert_close(answer, net(X), rtol=5e-3, atol=5e-3)
    assert answer.dtype == torch.float32
    assert dtypes_inside(model, X) == {torch.half}


def test_a_layer_without_16_bits_computes_in_32() -> None:
    video = torch.rand(1, 2, 4, 4, 4)
    pool = nn.Sequential(nn.Conv3d(2, 2, 1), nn.AvgPool3d(2))  # none on a processor, of torch 2.13
    model = to_half_computing(fx.symbolic_trace(pool), [video]).graph_module
    with torch.no_grad():
        torch.testing.assert_close(model(video), pool(video), rtol=5e-3, atol=5e-3)


def test_what_does_not_run_at_all_is_told() -> None:
    class Refuses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(3, 3)

    with pytest.raises(NothingToCompress, match=r"does not compute in float16 on 'cpu'.*'fp32'"):
        to_half_computing(fx.symbolic_trace(Refuses()), [X])


def test_a_mask_of_infinities_is_no_weight_out_of_range() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mask = nn.Buffer(torch.full((8, 8), -torch.inf).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x[:, None] * x[:, :, None] + self.mask, -1)

    net = Masked()
    model = to_half_computing(fx.symbolic_trace(net), [X]).graph_module
    torch.testing.assert_close(model(X), net(X), rtol=5e-3, atol=5e-3)


def test_a_lack_of_memory_is_not_taken_for_a_lack_of_kernels() -> None:
    class Hungry(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.expand(2**46, 4, 8).clone()

    with pytest.raises(RuntimeError, match="memory"):
        to_half_computing(fx.symbolic_trace(Hungry()), [X])
