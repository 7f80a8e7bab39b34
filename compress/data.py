"""Datasets as memory-mapped arrays: `.npz` and `.safetensors`, larger than RAM is fine.

Arrays are named `input`, or `input_0, input_1, …` in the order of forward's arguments; the first
axis is the sample. An optional `label` holds class ids or float targets. Nothing is unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compress.data_files import read_npz, read_safetensors
from compress.errors import (
    BadCalibrationData,
    BadEvaluationData,
    EmptyDataset,
    InvalidDataset,
    LabelMismatch,
    ShapeMismatch,
)

_NUMBERED = re.compile(r"input_(0|[1-9]\d*)")
_SCAN_ELEMENTS = 1 << 20
_TORCH_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1", "c8", "c16")


@dataclass(frozen=True)
class Dataset:
    """Samples along the first axis of every array.

    Attributes:
        inputs: One array per argument of forward, each `[samples, …]`.
        names: Names of the input arrays in the file.
        label: Class ids or float targets `[samples, …]`, or None.
    """

    inputs: list[np.ndarray]
    names: list[str]
    label: np.ndarray | None = None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return int(self.inputs[0].shape[0])

    def sample(self, start: int, stop: int) -> list[Tensor]:
        """Return the input tensors of samples `[start, stop)`, floats as float32."""
        return [to_tensor(array[start:stop]) for array in self.inputs]

    def batches(
        self, batch_size: int, limit: int | None = None
    ) -> Iterator[tuple[list[Tensor], Tensor | None]]:
        """Yield `(inputs, label)` in file order, at most `limit` samples in all."""
        stop = self.samples if limit is None else min(limit, self.samples)
        for start in range(0, stop, batch_size):
            end = min(start + batch_size, stop)
            label = None if self.label is None else to_tensor(self.label[start:end])
            yield self.sample(start, end), label

    def check_calibration(self, limit: int) -> None:
        """Raise BadCalibrationData where the first `limit` samples cannot give ranges."""
        for name, array in zip(self.names, self.inputs, strict=True):
            if array.dtype.kind != "f":
                continue
            lowest, highest = np.inf, -np.inf
            for index in range(min(limit, self.samples)):
                sample = array[index]
                if not np.isfinite(sample).all():
                    raise BadCalibrationData(
                        f"Array '{name}', sample {index}, holds NaN or infinite values; activation "
                        "ranges cannot be found from it. Clean or drop that sample."
                    )
                if sample.size:
                    lowest = min(lowest, float(sample.min()))
                    highest = max(highest, float(sample.max()))
            if lowest >= highest:
                raise BadCalibrationData(
                    f"Array '{name}' is constant: samples 0 to {min(limit, self.samples) - 1} all "
                    f"hold {lowest:g}. Calibrate with real samples."
                )

    def check_evaluation(self) -> None:
        """Raise BadEvaluationData at the first NaN; infinite inputs may be masks and may stay."""
        arrays = dict(zip(self.names, self.inputs, strict=True))
        if self.label is not None:
            arrays["label"] = self.label
        for name, array in arrays.items():
            if array.dtype.kind != "f":
                continue
            step = max(1, _SCAN_ELEMENTS * self.samples // max(array.size, 1))
            for start in range(0, self.samples, step):
                part = array[start : start + step].reshape(-1, array[0].size)
                bad = np.isnan(part).any(1)
                if name == "label":
                    bad |= np.isinf(part).any(1)
                if bad.any():
                    raise BadEvaluationData(
                        f"Array '{name}', sample {start + int(bad.argmax())}, holds NaN or "
                        "infinite values, which nothing can be compared with. Clean or drop that "
                        "sample."
                    )


def open_dataset(path: Path, scratch: Path) -> Dataset:
    """Open the dataset at `path`, told apart by content rather than by file name.

    Args:
        path: An `.npz` or `.safetensors` file.
        scratch: An existing folder; compressed arrays are unpacked into it and mapped from there.

    Raises:
        InvalidDataset: Neither format, damaged, or arrays named otherwise.
        ObjectArrays: An array of pickled objects.
        EmptyDataset: No samples.
        ShapeMismatch: Input arrays of different lengths.
        LabelMismatch: Another number of labels than of samples.
    """
    with path.open("rb") as file:
        start = file.read(4)
    zipped = start in (b"PK\x03\x04", b"PK\x05\x06")
    arrays = read_npz(path, scratch) if zipped else read_safetensors(path)
    return _assemble(arrays)


def to_tensor(array: np.ndarray) -> Tensor:
    """Copy an array into a tensor; float64 and float16 become float32, which models eat."""
    if array.dtype.kind == "f":
        return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _assemble(arrays: dict[str, np.ndarray]) -> Dataset:
    names = _input_names(list(arrays))
    for name in [*names, *(["label"] if "label" in arrays else [])]:
        array = arrays[name]
        if array.dtype.str[1:] not in _TORCH_DTYPES:
            raise InvalidDataset(
                f"Array '{name}' has element type {array.dtype}, which no tensor can hold."
            )
        if array.ndim == 0:
            raise InvalidDataset(f"Array '{name}' is a scalar; its first axis must be the sample.")
    inputs = [arrays[name] for name in names]
    lengths = {name: arrays[name].shape[0] for name in names}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ShapeMismatch(f"Input arrays hold different numbers of samples: {told}.")
    samples = inputs[0].shape[0]
    if samples == 0:
        raise EmptyDataset("The dataset holds no samples; the first axis has length 0.")
    label = arrays.get("label")
    if label is not None and label.shape[0] != samples:
        raise LabelMismatch(f"There are {samples} samples but {label.shape[0]} labels.")
    return Dataset(inputs, names, label)


def _input_names(found: list[str]) -> list[str]:
    """Return the input arrays' names in the order of forward's arguments."""
    numbered = sorted((n for n in found if _NUMBERED.fullmatch(n)), key=lambda n: int(n[6:]))
    known = {"input", "label", *numbered}
    for name in found:
        if name not in known:
            close = get_close_matches(name, ["input", "input_0", "label"], 1)
            hint = f"did you mean '{close[0]}'?" if close else "remove it."
            raise InvalidDataset(
                f"Array '{name}' has no meaning here; arrays are named 'input' (or 'input_0', "
                f"'input_1', …) and 'label': {hint}"
            )
    if "input" in found and numbered:
        raise InvalidDataset("Use either 'input' or 'input_0', 'input_1', …, not both.")
    if "input" in found:
        return ["input"]
    if not numbered:
        if found:
            raise InvalidDataset("There is no array named 'input' or 'input_0'.")
        raise EmptyDataset("The dataset holds no arrays.")
    expected = [f"input_{index}" for index in range(len(numbered))]
    if numbered != expected:
        missing = next(name for name in expected if name not in numbered)
        raise InvalidDataset(f"Input arrays are numbered from 0 without gaps; '{missing}' is gone.")
    return numbered
