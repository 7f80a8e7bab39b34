"""Linear layers in int8 for GPUs: what is computed, and which layers are; on the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from compress.errors import InvalidSpec, NothingToCompress
from compress.export.torchscript import export_torchscript
from compress.quantize import gpu_integers, to_integers
from compress.quantize.integer_linear import IntegerLinear

X = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers of a size, one of another, and one that the kernel does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
        self.wide = nn.Linear(64, 128)
        self.odd = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(self.wide(self.second(self.first(x).relu()).relu()).relu())


@pytest.fixture
def net() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(Net().eval())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The widths that were timed, in a world where 128 outputs are quicker in int8 than 64."""
    found: list[int] = []

    def is_quicker(half: Any, integers: IntegerLinear, x: Tensor) -> bool:
        assert half.weight.dtype == x.dtype == torch.half
        found.append(integers.out_features)
        return integers.out_features > 64

    monkeypatch.setattr(gpu_integers, "_is_quicker", is_quicker)
    return found


def precisions(made: Any) -> dict[str, str]:
    return {layer.name: layer.precision for layer in made.layers}


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(64,), (1, 64), (17, 64), (40, 64), (2, 3, 5, 64), (0, 64)])
def test_a_layer_computes_by_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 24)
    x = (torch.randn(shape) * 10).to(dtype)
    integers = gpu_integers._integers(layer)
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    scale = weight.abs().amax(1, keepdim=True) / 127
    step = x.double().abs().amax(-1, keepdim=True) / 127
    product = (x.double() / step).round() @ (weight / scale).round().t()
    wanted = product * step * scale[:, 0] + bias
    for found in (integers(x), torch.jit.script(integers)(x)):
        assert found.dtype == dtype
        assert found.shape == (*shape[:-1], 24)
        # a number in the middle between two may be rounded either way in float32
        torch.testing.assert_close(found.double(), wanted, rtol=2e-2, atol=0.02)


def test_what_is_no_number_stays_none() -> None:
    integers = gpu_integers._integers(nn.Linear(64, 8))
    x = torch.ones(2, 64)
    x[0, 3] = float("inf")
    answer = integers(x)
    assert not answer[0].isfinite().any()
    assert answer[1].isfinite().all()


def test_layers_are_int8_where_that_is_quicker(net: fx.GraphModule, asked: list[int]) -> None:
    made = to_integers(net, [X[:2]], [X], {})
    assert precisions(made) == {"first": "fp16", "second": "fp16", "wide": "int8", "odd": "fp16"}
    assert asked == [64, 128]  # a size is timed once
    by_name = {layer.name: layer for layer in made.layers}
    assert by_name["first"].reason is not None
    assert "not faster" in by_name["first"].reason
    assert by_name["odd"].reason is not None
    assert "8 divides" in by_name["odd"].reason
    wide = by_name["wide"]
    assert wide.reason is None
    assert wide.size_bytes == (4 * (64 * 128 + 128), 64 * 128 + 2 * 4 * 128)
    assert wide.sqnr_db is not None
    assert 35 < wide.sqnr_db < 60
    with torch.no_grad():
        answer, wanted = made.graph_module(X), net(X)
    assert answer.dtype == torch.float32
    assert 20 * torch.log10(wanted.norm() / (answer - wanted).norm()) > 35


def test_a_weight_that_is_read_by_itself_stays_one(asked: list[int]) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.wide = nn.Linear(64, 128), nn.Linear(64, 128)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) + self.wide(x) + self.first.weight.sum()

    torch.manual_seed(0)
    tied = fx.symbolic_trace(Tied().eval())
    made = to_integers(tied, [X[:2]], [X], {})
    assert precisions(made) == {"first": "fp16", "wide": "int8"}
    with torch.no_grad():
        torch.testing.assert_close(made.graph_module(X), tied(X), rtol=0.02, atol=0.05)


def test_a_layer_of_two_names_is_made_once(asked: list[int]) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.back, self.again = (
                nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 128),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.back(self.wide(x).relu()).relu())

    torch.manual_seed(0)
    graph = fx.symbolic_trace(Twice().eval())
    graph.set_submodule("again", graph.get_submodule("wide"))
    made = to_integers(graph, [X[:2]], [X], {})
    assert precisions(made) == {"wide": "int8", "back": "fp16", "again": "int8"}
    assert made.graph_module.get_submodule("wide") is made.graph_module.get_submodule("again")
    with torch.no_grad():
        torch.testing.assert_close(made.graph_module(X), graph(X), rtol=0.02, atol=0.05)


def test_a_model_without_such_layers_is_told_so() -> None:
    net = fx.symbolic_trace(nn.Sequential(nn.Linear(64, 10)).eval())
    for is_timed in (True, False):
        with pytest.raises(NothingToCompress, match="8 divides"):
            to_integers(net, [X[:2]], [X], {}, is_timed=is_timed)


def test_overrides_decide_without_timing(net: fx.GraphModule, asked: list[int]) -> None:
    made = to_integers(net, [X[:2]], [X], {"first": "int8", "wide": "fp16"})
    assert precisions(made) == {"first": "int8", "second": "fp16", "wide": "fp16", "odd": "fp16"}
    assert asked == [64]
    with pytest.raises(InvalidSpec, match="matches no layer"):
        to_integers(net, [X[:2]], [X], {"third": "int8"})


def test_where_nothing_is_quicker_the_job_says_so(
    net: fx.GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_integers, "_is_quicker", lambda half, integers, x: False)
    with pytest.raises(NothingToCompress, match="No layer of the model is faster in int8"):
        to_integers(net, [X[:2]], [X], {})


def test_layers_are_timed_as_they_will_run() -> None:
    class Slow(nn.Module):
        def __init__(self, times: int) -> None:
            super().__init__()
            self.times = times

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.times):
                x = x.exp().log()
            return x

    assert gpu_integers._is_quicker(Slow(40), Slow(1), X)
    assert not gpu_integers._is_quicker(Slow(1), Slow(40), X)


def test_weights_beyond_float16_go_by_bfloat16(net: fx.GraphModule, asked: list[int]) -> None:
    with torch.no_grad():
        net.get_submodule("odd").weight[0, 0] = 1e6  # type: ignore[index,operator]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_integers, "_is_quicker", lambda half, integers, x: True)
        told: list[str] = []
        made = to_integers(net, [X[:2]], [X], {}, warn=told.append)
    assert precisions(made) == {"first": "int8", "second": "int8", "wide": "int8", "odd": "bf16"}
    assert len(told) == 1
    assert "beyond the range" in told[0]


def test_the_file_computes_what_the_graph_does(
    net: fx.GraphModule, asked: list[int], tmp_path: Path
) -> None:
    torch.jit.trace(Net().eval(), X[:2]).save(str(tmp_path / "original.pt"))
    model = to_integers(net, [X[:2]], [X], {}).graph_module
    export_torchscript(
        model, tmp_path / "original.pt", tmp_path / "file.pt", [[X[:1]], [X]], freeze=False
    )
    loaded = torch.jit.load(str(tmp_path / "file.pt"))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for rows in (1, 3, 40):
            assert torch.equal(loaded(X[:rows]), model(X[:rows]))
