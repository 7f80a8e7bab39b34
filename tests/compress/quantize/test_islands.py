"""What stays TorchScript: a row of its own in the table, and its state as the original has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress.export.torchscript import export_torchscript
from compress.lift import lift
from compress.quantize import quantize_static, to_float32, to_half
from compress.spec import PtqConfig
from tests.compress.zoo.entry import export, load

GIVEN = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))


class Branches(nn.Module):
    """The second layer hangs on data; a carved region reads its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.sum() > 0:
            x = self.second(x) * 2
        return x


def test_weights_of_an_island_are_one_row_with_its_reason() -> None:
    lifted = lift(load(export(Branches().eval(), [GIVEN], "script")), [GIVEN])
    (island,) = lifted.report.islands
    result = quantize_static(
        lifted.graph_module, [GIVEN], [[GIVEN]], PtqConfig(), full_range=False,
        islands={island.name: island.reason}, probes=[[GIVEN]],
    )  # fmt: skip
    first, second = result.layers
    assert (first.name, first.precision) == ("first", "int8")
    assert (second.name, second.precision) == (island.name, "fp32")
    assert (second.reason, second.size_bytes) == (island.reason, (4 * 272, 4 * 272))
    rows = to_float32(lifted.graph_module, {island.name: island.reason}).layers
    assert [(row.name, row.reason) for row in rows] == [
        ("first", None), (island.name, island.reason)
    ]  # fmt: skip


def test_weights_that_an_island_is_given_are_halved() -> None:
    lifted = lift(load(export(Branches().eval(), [GIVEN], "script")), [GIVEN])
    result = to_half(lifted.graph_module)
    with torch.no_grad():
        expected = lifted.graph_module(GIVEN)
        assert torch.allclose(result.graph_module(GIVEN), expected, rtol=1e-2, atol=1e-2)
    # the bias of 16 elements is too small to be worth it
    assert result.layers[1].size_bytes == (4 * 272, 2 * 256 + 4 * 16)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(1))
        self.last = torch.zeros(1, 8)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.layer(x) * self.calls + self.last
        self.last = y.mean(0, keepdim=True)
        return y


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
def test_a_file_starts_with_the_originals_state(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = export(Counts().eval(), [GIVEN], "script")
    (tmp_path / "original.pt").write_bytes(file)
    lifted = lift(load(file), [GIVEN])
    if kind == "int8":
        result = quantize_static(
            lifted.graph_module, [GIVEN], [[GIVEN]] * 3, PtqConfig(), full_range=False,
            probes=[[GIVEN]],
        )  # fmt: skip
    else:
        result = (to_half if kind == "fp16" else to_float32)(lifted.graph_module)
    export_torchscript(
        result.graph_module, tmp_path / "original.pt", tmp_path / "new.pt",
        [[GIVEN[:1]], [GIVEN]], freeze=kind == "int8",
    )  # fmt: skip
    original, compressed = load(file), load((tmp_path / "new.pt").read_bytes())
    for _ in range(3):
        with torch.no_grad():
            expected, answer = original(GIVEN), compressed(GIVEN)
        # ranges were found on three calls, and each is larger than the one before
        assert float((answer - expected).norm() / expected.norm()) < 0.05
