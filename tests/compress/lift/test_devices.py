"""Files made on a GPU load and lift where there is none."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from compress.lift import lift, load_model
from compress.lift.devices import use_device_

GIVEN = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))


def ramp(length: int) -> Tensor:
    return torch.arange(length, device=torch.device("cuda", 0))


class OnGpu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def helper(self, x: Tensor) -> Tensor:
        return x + ramp(4)

    def forward(self, x: Tensor) -> Tensor:
        shift = torch.ones([x.size(0), 4], device="cuda:0")
        if x.size(1) == 4:
            x = x.to("cuda")
        return self.helper(self.mix(x.cuda()) + shift).to(device="cuda:1", dtype=torch.float32)


def test_devices_that_code_names_become_the_processor(tmp_path: Path) -> None:
    model = OnGpu().eval()
    torch.jit.script(model).save(str(tmp_path / "model.pt"))
    loaded = load_model(tmp_path / "model.pt")
    expected = model.mix(GIVEN) + 1 + torch.arange(4)
    torch.testing.assert_close(loaded(GIVEN), expected)
    lifted = lift(loaded, [GIVEN])
    assert lifted.report.islands == []
    torch.testing.assert_close(lifted.graph_module(GIVEN), expected)


def test_for_a_gpu_the_processor_is_named_no_more() -> None:
    class OnProcessor(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            shift = torch.ones([x.size(0), 4], device=torch.device("cpu"))
            return x.cpu() + shift.to("cpu")

    scripted = torch.jit.script(OnProcessor())
    use_device_(scripted, torch.device("cuda"))
    code = str(scripted.graph)
    assert "cuda" in code
    assert "cpu" not in code
