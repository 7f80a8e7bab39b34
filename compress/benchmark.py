"""Speed and memory of finished files beside the original: one race, one measuring process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compress.devices import CPU, bring
from compress.export.runners import open_artifact
from compress.intake import Intake
from compress.lift import clean_message, load_model
from compress.measure.latency import Comparison, race
from compress.measure.memory import MemoryProbe, NotMeasured
from compress.measure.size import size_bytes
from compress.measure.throughput import BATCH_SIZES, affordable, measure_throughput
from compress.measure.timing import Call, GpuCall
from compress.original import REFUSALS, refusal
from compress.result import Throughput
from compress.spec import Format
from compress.structure import cast_floats, map_tensors, tensors_in

RACE_SHARE_S = 3.0
"""What each file, and the original, adds to the race."""
THROUGHPUT_SHARE_S = 0.7
THROUGHPUT_LIMIT_S = 4.0
"""The same, for each batch size: what is aimed at, and what is never exceeded."""
_RUNS = 3  # TorchScript profiles one call and compiles in the next

Runnable = Callable[..., Any]
"""A loaded file: takes forward's arguments, gives outputs in the original's structure."""


@dataclass(frozen=True)
class Contender:
    """A file to be measured: the original, whose format is None, or a finished one."""

    path: Path
    format: Format | None
    threads: int
    device: torch.device = CPU

    def open(self) -> Runnable:
        """Load it afresh."""
        if self.format is None:
            return load_model(self.path, self.device)
        return open_artifact(self.path, self.format, self.threads, self.device)


def measure_gpu_memory(
    contenders: Mapping[str, Contender], sample: Sequence[Any], device: torch.device
) -> dict[str, int]:
    """Return name to the most of a GPU's memory that loading a file and running it takes.

    Raises:
        ModelFailed: A file does not run there.
    """
    peaks = {}
    for name, contender in contenders.items():
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        try:
            load_and_run(contender, bring(list(sample), device))
        except REFUSALS as error:
            raise refusal(error, f"'{name}' on the GPU") from error
        torch.cuda.synchronize(device)
        peaks[name] = torch.cuda.max_memory_allocated(device) - before
    return peaks


def measure_memory(
    probe: MemoryProbe,
    contenders: Mapping[str, Contender],
    sample: Sequence[Any],
    warn: Callable[[str], None],
) -> dict[str, int]:
    """Return name to peak bytes of loading a file and running it on one sample.

    A file whose process fails is left out, and `warn` told: all else about it is known by then.
    """
    peaks = {}
    for name, contender in contenders.items():
        work = partial(load_and_run, contender, _picklable(sample))
        try:
            peaks[name] = probe.peak_bytes(
                contender.format or "torchscript", contender.threads, work
            )
        except NotMeasured as error:
            warn(f"The memory that '{name}' takes could not be measured: {error}")
    return peaks


def load_and_run(contender: Contender, sample: Sequence[Any]) -> Runnable:
    """Load a file and run it a few times; return it, still loaded."""
    run = contender.open()
    with torch.no_grad():
        for _ in range(_RUNS):
            run(*sample)
    return run


def run_race(
    original: Runnable,
    artifacts: Mapping[str, Runnable],
    sample: Sequence[Any],
    on_round: Callable[[float], None],
    device: torch.device = CPU,
) -> dict[str, Comparison]:
    """Time all models on one sample, in turn, on the threads that torch is set to.

    Args:
        original: On the device.
        artifacts: Name to finished file, likewise.
        sample: On the processor; it is brought there before.
        on_round: Receives the fraction that is done.
        device: Where they run.
    """
    given = bring(list(sample), device)
    with torch.no_grad():
        return race(
            _call(original, given, device),
            {name: _call(run, given, device) for name, run in artifacts.items()},
            budget_s=RACE_SHARE_S * (1 + len(artifacts)),
            on_round=on_round,
        )


def run_batches(
    intake: Intake,
    models: Mapping[str, Runnable],
    sample_s: Mapping[str, float],
    one_bytes: int,
    warn: Callable[[str], None],
    on_part: Callable[[float], None],
    device: torch.device = CPU,
) -> dict[str, list[Throughput]]:
    """Return name to throughput at each batch size above 1 that can be measured.

    Args:
        intake: The job's data.
        models: Name to loaded file.
        sample_s: Name to seconds that one sample takes.
        one_bytes: Memory that one sample takes.
        warn: Is told of batch sizes that a model refuses.
        on_part: Receives the fraction that is done.
        device: Where they run.
    """
    found: dict[str, list[Throughput]] = {name: [] for name in models}
    sizes = BATCH_SIZES[1:]
    for index, size in enumerate(sizes):
        if not affordable(size, sample_s, one_bytes, THROUGHPUT_LIMIT_S * len(models), device):
            break
        batch = batch_of(intake, size)
        if batch is None or not intake.original.accepts(batch):
            break
        cast = bring(cast_floats(batch, intake.dtype), device)
        with torch.no_grad():
            if not _all_take(models, cast, size, warn):
                break
            measured = measure_throughput(
                {name: _call(run, cast, device) for name, run in models.items()},
                size,
                budget_s=THROUGHPUT_SHARE_S * len(models),
                on_round=partial(_tell, on_part, index, len(sizes)),
            )
        for name, throughput in measured.items():
            found[name].append(throughput)
    return found


def _call(run: Runnable, given: Sequence[Any], device: torch.device) -> Call:
    call = partial(run, *given)
    return call if device.type == "cpu" else GpuCall(call)


def _tell(on_part: Callable[[float], None], index: int, parts: int, done: float) -> None:
    on_part((index + done) / parts)


def _all_take(
    models: Mapping[str, Runnable], batch: Sequence[Any], size: int, warn: Callable[[str], None]
) -> bool:
    for name, run in models.items():
        try:
            run(*batch)
        except (RuntimeError, MemoryError) as error:
            warn(f"'{name}' does not take {size} samples at once: {clean_message(error)}")
            return False
    return True


def batch_of(intake: Intake, size: int) -> list[Any] | None:
    """Return a batch of `size` samples, those there are over and over; None where it is unknown.

    Of made-up inputs only those axes grow that grew from the first batch to the second.
    """
    dataset = intake.calibration or intake.evaluation
    if dataset is not None:
        few = dataset.sample(0, min(size, dataset.samples))
        return [map_tensors(value, partial(_repeat, size=size)) for value in few]
    if len(intake.made_up) < 2:
        return None
    single, several = intake.made_up
    before = iter(tensors_in(single))

    def grow(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.shape == next(before).shape else _repeat(tensor, size)

    return [map_tensors(value, grow) for value in several]


def sample_bytes(path: Path, peak_bytes: int | None) -> int:
    """Return about what one sample takes while a file runs, from its peak and its size."""
    return 0 if peak_bytes is None else max(0, peak_bytes - size_bytes(path))


def _repeat(tensor: torch.Tensor, size: int) -> torch.Tensor:
    times = -(-size // tensor.shape[0])
    return torch.cat([tensor] * times)[:size]


def _picklable(value: Any) -> Any:
    """Copies a call's arguments with named tuples as tuples: their classes are made at run time."""
    if isinstance(value, dict):
        return {key: _picklable(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_picklable(item) for item in value)
    if isinstance(value, list):
        return [_picklable(item) for item in value]
    return value
