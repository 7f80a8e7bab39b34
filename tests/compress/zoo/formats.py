"""Models of the zoo in every format and precision, and what is promised of their files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.jit._fuser import optimized_execution

from compress.errors import ExportFailed, NothingToCompress
from compress.export import Plan, open_artifact
from compress.export import export as export_plan
from compress.export.plan import LOST_DB
from compress.export.torchscript import export_torchscript
from compress.lift import Lifted, lift
from compress.lift.compare import relative_error
from compress.measure.fidelity import FidelityMeter
from compress.quantize import Quantized, quantize_static, to_float32, to_half
from compress.quantize.dynamic import quantize_dynamic
from compress.spec import PtqConfig
from compress.structure import map_tensors
from tests.compress.zoo.entry import Entry, How, export, load
from tests.compress.zoo.registry import ENTRIES

Precision = Literal["fp32", "fp16", "int8", "dynamic"]
Kind = tuple[Literal["torchscript", "onnx"], Precision]

KINDS: tuple[Kind, ...] = (
    ("torchscript", "fp32"),
    ("torchscript", "fp16"),
    ("torchscript", "int8"),
    ("torchscript", "dynamic"),
    # float parts of an int8 graph go the way that a float graph goes, so int8 shows both
    ("onnx", "int8"),
)

TOLERANCE = 1e-5
FLOORS_DB = {"fp16": 50.0, "int8": 15.0, "dynamic": 24.0}
"""Weights are random: nothing in these nets makes up for rounding, as training does."""

# trained, and the only one with outliers in its activations, which leave few of 7 bits to the rest
FLOORS_OF_ONE_DB = {("minilm", "int8"): 3.0, ("minilm", "dynamic"): 15.0}

# What has no such file: words of the error.
CONVOLUTIONS_ALONE = ("squeezenet", "unet", "retinanet", "yolo", "autoencoder")
NOTHING = {
    ("seq2seq_until_end", "int8"): "encoder: LSTM has no static int8 kernel",
    ("silero_vad", "dynamic"): "Conv1d gains nothing",
    **{(name, "dynamic"): "gains from dynamic int8" for name in CONVOLUTIONS_ALONE},
}
NOT_IN_ONNX = {
    "packed_tagger": "packs sequences",
    "speech_lstm": "LSTM with a projection",
    "cell_loop": "runs a loop as often as its input says",
    "seq2seq_until_end": "stays TorchScript, which ONNX cannot hold",
    "silero_vad": "stays TorchScript, which ONNX cannot hold",
}


@dataclass(frozen=True)
class Case:
    """An exported model, lifted; and what was made of it, each precision once."""

    entry: Entry
    how: How
    file: bytes
    lifted: Lifted
    made: dict[Precision, Quantized] = field(default_factory=dict)

    def inputs(self) -> list[list[Any]]:
        return [self.entry.inputs(False, *size) for size in self.entry.sizes(self.how)]

    def compressed(self, precision: Precision) -> Quantized:
        if precision not in self.made:
            self.made[precision] = _compress(self, precision)
        return self.made[precision]


@dataclass(frozen=True)
class Outcome:
    """A written file, loaded afresh, beside the original; or why there is none.

    Attributes:
        size_ratio: Bytes of the original for one of the file.
        sqnr_db: The lowest of all inputs.
        max_relative_error: The largest of all inputs.
        layers: How many layers are of the precision that was asked for.
        unexplained: Layers that are not, and have no reason.
        refusal: The error, where there is no file.
    """

    size_ratio: float = 0.0
    sqnr_db: float = 0.0
    max_relative_error: float = 0.0
    layers: int = 0
    unexplained: tuple[str, ...] = ()
    refusal: ExportFailed | NothingToCompress | None = None


def case_of(name: str) -> Case:
    """The model in the last of the ways in which it becomes TorchScript, lifted."""
    entry = ENTRIES[name]
    how = entry.hows[-1]
    file = export(entry.model(), entry.example(), how)
    return Case(entry, how, file, lift(load(file), entry.example(), verify=False))


def kinds_of(name: str) -> list[Kind]:
    """The files to write: what has nothing to make int8 goes to ONNX as it is."""
    bare = (name, "int8") in NOTHING
    return [("onnx", "fp32") if bare and kind[0] == "onnx" else kind for kind in KINDS]


def write(case: Case, kind: Kind, folder: Path) -> Outcome:
    """Compress a model, write it, load the file, and run it beside the original."""
    file_format, precision = kind
    try:
        quantized = case.compressed(precision)
        (folder / "original.pt").write_bytes(case.file)
        writer = _write_torchscript if file_format == "torchscript" else _write_onnx
        path, opened = writer(case, quantized, precision, folder)
    except (ExportFailed, NothingToCompress) as error:
        return Outcome(refusal=error)
    pairs = _answers(case, opened)
    layer_precision = "int8" if precision == "dynamic" else precision
    fitting = [layer for layer in quantized.layers if layer.precision == layer_precision]
    return Outcome(
        size_ratio=len(case.file) / path.stat().st_size,
        sqnr_db=lowest_sqnr_db(pairs),
        max_relative_error=max(relative_error(answer, wanted) for wanted, answer in pairs),
        layers=len(fitting),
        unexplained=tuple(
            layer.name for layer in quantized.layers if layer not in fitting and not layer.reason
        ),
    )


def breach(name: str, kind: Kind, outcome: Outcome) -> str | None:
    """What is promised of a file and does not hold."""
    file_format, precision = kind
    words = NOTHING.get((name, precision))
    if file_format == "onnx":
        words = NOT_IN_ONNX.get(name, words)
    if words is not None:
        expected = ExportFailed if file_format == "onnx" else NothingToCompress
        if isinstance(outcome.refusal, expected) and words in str(outcome.refusal):
            return None
        return f"not refused with '{words}', but: {outcome.refusal or 'written'}"
    if outcome.refusal is not None:
        return str(outcome.refusal)
    if precision == "fp32":
        tolerance = TOLERANCE * (10 if file_format == "onnx" else 1)
        if outcome.max_relative_error > tolerance:
            return f"error {outcome.max_relative_error:.0e}"
        return None
    if outcome.unexplained:
        return f"no reason for {', '.join(outcome.unexplained)}"
    if not outcome.layers and precision != "fp16":
        return "nothing became int8"
    floor_db = FLOORS_OF_ONE_DB.get((name, precision), FLOORS_DB[precision])
    floor_db -= LOST_DB if file_format == "onnx" else 0.0
    return None if outcome.sqnr_db > floor_db else f"{outcome.sqnr_db:.1f} dB"


def call(module: torch.jit.ScriptModule, given: list[Any]) -> Any:
    # without the executor's profiling, which makes first calls slow
    with torch.no_grad(), optimized_execution(False):
        return module(*copied(given))


def copied(given: list[Any]) -> list[Any]:
    copies: list[Any] = map_tensors(given, Tensor.clone)
    return copies


def lowest_sqnr_db(pairs: list[tuple[Any, Any]]) -> float:
    """The lowest of all inputs; of pairs of outputs, the wanted one first."""
    found = []
    for wanted, answer in pairs:
        meter = FidelityMeter()
        meter.add(wanted, answer)
        found.append(meter.report().sqnr_db)
    return min(found)


def _compress(case: Case, precision: Precision) -> Quantized:
    graph, example = case.lifted.graph_module, copied(case.entry.example())
    if precision == "fp32":
        return to_float32(graph)
    if precision == "fp16":
        return to_half(graph)
    if precision == "dynamic":
        config = PtqConfig(mode="dynamic")
        return quantize_dynamic(graph, config, example_inputs=example, probes=[copied(example)])
    return quantize_static(
        graph,
        example,
        map(copied, case.inputs()),
        PtqConfig(observer="minmax"),  # histograms take most of the time, and are tested elsewhere
        full_range=False,
    )


Opened = Callable[[], Callable[..., Any]]
"""Opens a file, with nothing in it of earlier calls."""


def _write_torchscript(
    case: Case, quantized: Quantized, precision: Precision, folder: Path
) -> tuple[Path, Opened]:
    path = folder / f"{precision}.pt"
    export_torchscript(
        quantized.graph_module,
        folder / "original.pt",
        path,
        [copied(case.entry.example())],
        freeze=precision in ("int8", "dynamic"),
    )
    written = path.read_bytes()

    def opened() -> Callable[..., Any]:
        module = load(written)
        return lambda *given: call(module, list(given))

    return path, opened


def _write_onnx(
    case: Case, quantized: Quantized, precision: Precision, folder: Path
) -> tuple[Path, Opened]:
    *others, example = reversed(case.inputs())
    plan = Plan(
        graph_module=quantized.graph_module,
        original=folder / "original.pt",
        probes=[*others, example],
        precision="fp32" if precision == "fp32" else "int8",
    )
    path = export_plan("onnx", plan, folder).path
    return path, lambda: open_artifact(path, "onnx", 1)


def _answers(case: Case, opened: Opened) -> list[tuple[Any, Any]]:
    original, compressed = load(case.file), opened()
    answers = []
    for given in case.inputs():
        if case.entry.stateful:
            original, compressed = load(case.file), opened()
        answers.append((call(original, given), compressed(*copied(given))))
    return answers
