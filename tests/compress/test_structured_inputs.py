"""Models that take or give more than a tensor each, from dataset file to finished file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.measure.fidelity import NoiseMeter
from compress.measure.outputs import output_tensors, same_structure
from compress.pipeline import preflight, run
from compress.result import Inputs, Result
from compress.spec import Config, ConvertConfig, EngineSpec, PtqConfig, TensorSpec
from tests.compress import structured
from tests.compress.sinks import Recorder, out_dir

pytestmark = pytest.mark.slow

SAMPLES = 24


def rows(width: int = 4, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(SAMPLES, width)).astype("f4")


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 3)

    def net(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))  # type: ignore[no-any-return]


class TakesPair(Layers):
    def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        first, second = pair
        return self.net(first + second), first - second


class TakesList(Layers):
    def forward(self, parts: list[Tensor]) -> list[Tensor]:
        return [self.net(torch.stack(parts).sum(0)), parts[0]]


class TakesDict(Layers):
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = batch["image"]
        if "mask" in batch:
            x = x * batch["mask"]
        return {"logits": self.net(x), "input": x}


class TakesNested(Layers):
    def forward(
        self, x: Tensor, state: tuple[dict[str, Tensor], list[Tensor]]
    ) -> tuple[Tensor, tuple[dict[str, Tensor], list[Tensor]]]:
        words, past = state
        y = x + words["a"] * words["b"] + past[0] - past[1]
        return self.net(y), ({"y": y}, [y, x])


class LeavesOut(Layers):
    """As BERT: ids, attention mask, token types."""

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None
    ) -> tuple[Tensor, int]:
        x = ids
        if mask is not None:
            x = x * mask
        if types is not None:
            x = x + 0.5 * types
        return self.net(x), x.size(1)


class TakesNumbers(Layers):
    """As silero-vad: control flow hangs on the rate."""

    def forward(self, x: Tensor, rate: int, scale: float = 1.0, flip: bool = False) -> Tensor:
        if rate == 16000:
            x = x[:, ::2].repeat(1, 2)
        elif rate != 8000:
            raise ValueError("rate must be 8000 or 16000")
        if flip:
            x = -x
        return self.net(x * scale)


PAIR = {"input.0": rows(), "input.1": rows(seed=1)}
STATE = {"input_1.0.a": rows(seed=1), "input_1.0.b": rows(seed=2),
         "input_1.1.0": rows(seed=3), "input_1.1.1": rows(seed=4)}  # fmt: skip
RATE = np.full(SAMPLES, 16000)

CASES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "pair": (TakesPair, PAIR),
    "list": (TakesList, PAIR),
    "dict": (TakesDict, {"input.image": rows(), "input.mask": (rows(seed=1) > 0).astype("f4")}),
    "dict without a key": (TakesDict, {"input_0.image": rows()}),
    "nested": (TakesNested, {"input_0": rows()} | STATE),
    "first of three": (LeavesOut, {"input": rows()}),
    "first and last": (LeavesOut, {"input_0": rows(), "input_2": rows(seed=1)}),
    "integers": (LeavesOut, {"input_0": rows(), "input_2": np.arange(SAMPLES)[:, None] % 2}),
    "number": (TakesNumbers, {"input_0": rows(), "input_1": RATE}),
    "numbers": (
        TakesNumbers,
        {"input_0": rows(), "input_1": RATE, "input_2": np.full(SAMPLES, 2.0),
         "input_3": np.ones(SAMPLES, bool)},
    ),
    "named tuple": (
        structured.Structured,
        {"input_0.ids": rows(), "input_0.inner.sizes.0": rows(seed=1),
         "input_0.inner.sizes.1": np.full(SAMPLES, 2), "input_0.mask": rows(seed=2),
         "input_1.x": rows(seed=3), "input_3": np.full(SAMPLES, 0.5)},
    ),
}  # fmt: skip


def compress(
    model: nn.Module, arrays: dict[str, Any], config: Config, tmp_path: Path
) -> tuple[Result, Path]:
    torch.jit.save(torch.jit.script(model.eval()), str(tmp_path / "m.pt"))
    np.savez(tmp_path / "c.npz", **arrays)
    spec = EngineSpec(
        method="ptq" if isinstance(config, PtqConfig) else "convert",
        config=config,
        calibration_batch_size=5,
    )
    files = Inputs(model=tmp_path / "m.pt", calibration=tmp_path / "c.npz")
    result = run(spec, files, Recorder(), out_dir(tmp_path))
    return result, tmp_path / "out" / result.artifacts[0].name


def arguments(case: str, start: int, stop: int) -> list[Any]:
    """Give the arguments of a call by hand, as a user of the finished file does."""
    _, arrays = CASES[case]
    t = {name: torch.from_numpy(array[start:stop]) for name, array in arrays.items()}
    if case in ("pair", "list"):
        pair = [t["input.0"], t["input.1"]]
        return [tuple(pair) if case == "pair" else pair]
    if case.startswith("dict"):
        return [{name.rpartition(".")[2]: value for name, value in t.items()}]
    if case == "nested":
        words = {"a": t["input_1.0.a"], "b": t["input_1.0.b"]}
        return [t["input_0"], (words, [t["input_1.1.0"], t["input_1.1.1"]])]
    if case in ("first and last", "integers"):
        return [t["input_0"], None, t["input_2"]]
    if case == "numbers":
        return [t["input_0"], 16000, 2.0, True]
    if case == "number":
        return [t["input_0"], 16000]
    if case == "named tuple":
        inner = structured.Inner((t["input_0.inner.sizes.0"], 2))
        batch = structured.Outer(t["input_0.ids"], inner, t["input_0.mask"])
        return [batch, {"x": t["input_1.x"]}, None, 0.5]
    return list(t.values())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("config", "floor_db"),
    [(PtqConfig(), 20.0), (ConvertConfig(precision="fp16"), 50.0), (ConvertConfig(), 100.0)],
    ids=["int8", "fp16", "fp32"],
)
def test_the_file_is_called_as_the_original_is(
    case: str, config: Config, floor_db: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, arrays = CASES[case]
    result, artifact = compress(model(), arrays, config, tmp_path)
    assert len(result.layers) == 2
    original = torch.jit.load(str(tmp_path / "m.pt")).eval()  # type: ignore[no-untyped-call]
    loaded = torch.jit.load(str(artifact))  # type: ignore[no-untyped-call]
    for start, stop in ((0, 1), (1, 4), (4, 11)):
        given = arguments(case, start, stop)
        with torch.no_grad():
            want, have = original(*given), loaded(*given)
        assert same_structure(want, have)
        meter = NoiseMeter()
        for a, b in zip(output_tensors(want), output_tensors(have), strict=True):
            meter.add(a, b)
        assert meter.sqnr_db > floor_db


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", ["nested", "named tuple", "dict"])
def test_halves_and_doubles_are_cast_at_any_depth(
    case: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, arrays = CASES[case]
    _, artifact = compress(model().to(dtype), arrays, PtqConfig(), tmp_path)
    loaded = torch.jit.load(str(artifact))  # type: ignore[no-untyped-call]

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(dtype)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(cast, value))
        if isinstance(value, list | tuple):
            return type(value)(map(cast, value))
        return {k: cast(v) for k, v in value.items()} if isinstance(value, dict) else value

    for tensor in output_tensors(loaded(*cast(arguments(case, 0, 2)))):
        assert tensor.dtype == dtype


def test_labels_measure_the_first_tensor_of_a_named_tuple(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, arrays = CASES["named tuple"]
    torch.jit.save(torch.jit.script(model().eval()), str(tmp_path / "m.pt"))
    np.savez(tmp_path / "c.npz", **arrays)
    np.savez(tmp_path / "e.npz", **arrays, label=np.arange(SAMPLES) % 3)
    files = Inputs(
        model=tmp_path / "m.pt", calibration=tmp_path / "c.npz", evaluation=tmp_path / "e.npz"
    )
    quality = run(EngineSpec(), files, Recorder(), out_dir(tmp_path)).artifacts[0].quality
    assert quality is not None
    assert (quality.metric, quality.samples) == ("top1", SAMPLES)


def test_declared_numbers_and_parts_convert_without_a_dataset(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(TakesNumbers().eval()), str(tmp_path / "m.pt"))
    declared = (
        TensorSpec(name="x", shape=("batch", 4)), TensorSpec(name="rate", dtype="int64", value=8000)
    )  # fmt: skip
    files = Inputs(model=tmp_path / "m.pt", model_inputs=declared)
    run(EngineSpec(method="convert", config=ConvertConfig()), files, Recorder(), out_dir(tmp_path))
    loaded = torch.jit.load(  # type: ignore[no-untyped-call]
        str(tmp_path / "out" / "model.fp32.torchscript.pt")
    )
    assert loaded(torch.randn(5, 4), 8000).shape == (5, 3)


def test_preflight_takes_structures_too(tmp_path: Path) -> None:
    model, arrays = CASES["named tuple"]
    torch.jit.save(torch.jit.script(model().eval()), str(tmp_path / "m.pt"))
    np.savez(tmp_path / "c.npz", **arrays)
    files = Inputs(model=tmp_path / "m.pt", calibration=tmp_path / "c.npz")
    answer = preflight(EngineSpec(), files, Recorder())
    assert answer["counts"] == {"int8": 2}
    assert [array["name"] for array in answer["dataset"]["arrays"]] == sorted(arrays)


class Streaming(Layers):
    """Answers with what came before, too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("before", torch.zeros(1, 16))

    def forward(self, x: Tensor) -> Tensor:
        self.before = 0.5 * self.before + torch.relu(self.first(x)).mean(0, keepdim=True)
        return self.last(self.before.expand(x.size(0), 16))  # type: ignore[no-any-return]


@pytest.mark.parametrize("config", [PtqConfig(), ConvertConfig()], ids=["int8", "fp32"])
def test_state_evolves_as_the_originals_does(config: Config, tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, artifact = compress(Streaming(), {"input": rows()}, config, tmp_path)
    original = torch.jit.load(str(tmp_path / "m.pt")).eval()  # type: ignore[no-untyped-call]
    loaded = torch.jit.load(str(artifact))  # type: ignore[no-untyped-call]
    for start in range(0, SAMPLES, 4):
        batch = torch.from_numpy(rows()[start : start + 4])
        meter = NoiseMeter()
        with torch.no_grad():
            meter.add(original(batch), loaded(batch))
        assert meter.sqnr_db > 20
