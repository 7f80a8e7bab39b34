"""Small plans to export."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, fx, nn

from compress.export import Plan
from compress.lift import lift
from compress.quantize import quantize_static, to_float32, to_half
from compress.spec import PtqConfig


class Net(nn.Module):
    """Convolutions, a residual, a gate, pooling, an activation without int8 kernel, a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.gate = nn.Conv2d(16, 16, 1)
        self.wide = nn.Conv2d(16, 64, 3, stride=2)
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(image)))
        x = torch.relu(x + self.second(x))
        x = x * torch.sigmoid(self.gate(nn.functional.adaptive_avg_pool2d(x, 1)))
        x = nn.functional.hardswish(self.wide(x))
        return self.head(x.mean([2, 3]))


def images(batch: int, side: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def image_plan(folder: Path, precision: str) -> Plan:
    torch.manual_seed(0)
    return plan_of(Net(), folder, precision, [[images(1)], [images(3, seed=1)]])


def plan_of(
    model: nn.Module,
    folder: Path,
    precision: str,
    probes: list[list[Tensor]],
    *,
    script: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Plan:
    """Save, load, lift and compress a model."""
    model.eval()
    example = tuple(probes[-1])
    made = torch.jit.script(model) if script else torch.jit.trace(model, example, strict=False)
    original = folder / "original.pt"
    made.to(dtype).save(str(original))
    lifted = lift(torch.jit.load(str(original)).eval(), list(example))
    return Plan(
        graph_module=compressed(lifted.graph_module, precision, probes),
        original=original,
        probes=probes,
        precision=precision,
        dtype=dtype,
        dynamic_dims=lifted.report.dynamic_dims,
        islands={island.name: island.reason for island in lifted.report.islands},
        guards=lifted.report.guards,
        freeze=precision == "int8",
    )


def compressed(
    graph_module: fx.GraphModule, precision: str, probes: list[list[Tensor]]
) -> fx.GraphModule:
    if precision == "fp32":
        return to_float32(graph_module).graph_module
    if precision == "fp16":
        return to_half(graph_module).graph_module
    config = PtqConfig(observer="minmax")
    return quantize_static(graph_module, probes[-1], probes, config, full_range=False).graph_module
