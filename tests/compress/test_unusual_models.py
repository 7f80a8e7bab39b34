"""Models that are seldom met, end to end: each once ended in an internal error or a wrong file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.errors import UnsupportedOperator
from compress.measure.outputs import output_tensors
from compress.pipeline import run
from compress.result import Inputs, Result
from compress.spec import Config, ConvertConfig, EngineSpec, PtqConfig
from tests.compress.sinks import Recorder, out_dir


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(12, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.encoder(x)), self.encoder.weight.t())


class TiedNorm(nn.Module):
    """A layer that BatchNorm would fold into, whose weight the model also reads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(12, 8)
        self.norm = nn.BatchNorm1d(8)
        self.norm.running_var.fill_(4.0)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(self.encoder(x)), self.encoder.weight.t())


class SingleSample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.view(1, 12))  # type: ignore[no-any-return]


class Gated(nn.Module):
    """A learned gate of one element, as attention in convolutional nets has it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 12)
        self.gate = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate * self.layer(x) + x  # type: ignore[no-any-return]


class Rectified(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 8)
        self.activation = nn.PReLU()
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.layer(x)))  # type: ignore[no-any-return]


class Filled(nn.Module):
    """Makes tensors of sizes only known when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y + torch.zeros(x.size(0), 8) + torch.ones([x.size(0), 1])  # type: ignore[no-any-return]


class Joined(nn.Module):
    """Joins an activation with a tensor that is made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = torch.cat([y, torch.zeros(x.size(0), 2), torch.ones(x.size(0), 1).expand(-1, 6)], 1)
        return self.last(y)  # type: ignore[no-any-return]


class DropsInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 8)
        self.dropout = nn.Dropout(0.5, inplace=True)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(self.layer(x)))  # type: ignore[no-any-return]


class Echo(nn.Module):
    """Returns its input too, as it came."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x


class Entered(nn.Module):
    """Adds to a dictionary after making it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        entries = {"logits": self.layer(x)}
        entries["input"] = x
        return entries


def compress(model: nn.Module, config: Config, tmp_path: Path) -> tuple[Result, Path]:
    """Scripts the model, compresses it, and returns the result and the artifact."""
    torch.jit.save(torch.jit.script(model.eval()), str(tmp_path / "m.pt"))
    np.savez(tmp_path / "c.npz", input=samples().numpy())
    spec = EngineSpec(method="ptq" if isinstance(config, PtqConfig) else "convert", config=config)
    files = Inputs(model=tmp_path / "m.pt", calibration=tmp_path / "c.npz")
    result = run(spec, files, Recorder(), out_dir(tmp_path))
    return result, tmp_path / "out" / result.artifacts[0].name


def samples() -> Tensor:
    return torch.randn(40, 12, generator=torch.Generator().manual_seed(3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [Tied, TiedNorm, SingleSample, Gated, Rectified, Filled, Joined, DropsInPlace, Echo, Entered],
)
@pytest.mark.parametrize(
    ("config", "floor_db"),
    [(PtqConfig(), 20.0), (ConvertConfig(precision="fp16"), 50.0), (ConvertConfig(), 100.0)],
    ids=["int8", "fp16", "fp32"],
)
def test_answers_as_the_original_does(
    model: type[nn.Module], config: Config, floor_db: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    original = model()
    _, artifact = compress(original, config, tmp_path)
    loaded = torch.jit.load(str(artifact))  # type: ignore[no-untyped-call]
    for sample in torch.unbind(samples()[:3, None]):
        want, have = (output_tensors(m(sample))[0] for m in (original, loaded))
        noise = (want - have).square().sum() / want.square().sum()
        assert -10 * torch.log10(noise + 1e-20) > floor_db


def test_a_half_model_returns_an_input_in_half(tmp_path: Path) -> None:
    _, artifact = compress(Echo().half(), PtqConfig(), tmp_path)
    sample = samples()[:2].half()
    answer, echo = torch.jit.load(str(artifact))(sample)  # type: ignore[no-untyped-call]
    assert answer.dtype == torch.float16
    assert torch.equal(echo, sample)


def test_a_name_that_the_graph_needs_itself_is_refused_by_name(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("code", nn.Linear(12, 8))
    with pytest.raises(UnsupportedOperator, match="'code'"):
        compress(model, ConvertConfig(), tmp_path)
