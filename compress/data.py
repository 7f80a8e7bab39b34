"""Datasets as memory-mapped arrays: `.npz` and `.safetensors`, larger than RAM is fine.

Arrays are named `input`, or `input_0, input_1, …` in the order of forward's arguments, and
`input_1.key` for a part of a tuple, list or dict; the first axis is the sample. An optional `label`
holds class ids or float targets. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.data_files import read_npz, read_safetensors
from compress.errors import (
    BadCalibrationData,
    BadEvaluationData,
    BadSignature,
    CompressError,
    EmptyDataset,
    InvalidDataset,
    LabelMismatch,
    ShapeMismatch,
)
from compress.spec import Number
from compress.spec.arguments import ForwardArgument, Layout, Slot, bind_arrays, check_number
from compress.spec.names import Misfit, Place, order_names, read_name

_SCAN_ELEMENTS = 1 << 20
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_TORCH_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1", "c8", "c16")


@dataclass(frozen=True)
class Dataset:
    """Samples along the first axis of every array.

    Attributes:
        inputs: One array for each tensor or number in forward's arguments, each `[samples, …]`.
        names: Names of the input arrays in the file.
        label: Class ids or float targets `[samples, …]`, or None.
        layout: Which array goes where in the arguments; without one each is an argument.
        numbers: Name to value of the arrays that forward takes as one Python number.
    """

    inputs: list[np.ndarray]
    names: list[str]
    label: np.ndarray | None = None
    layout: Layout | None = None
    numbers: Mapping[str, Number] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return int(self.inputs[0].shape[0])

    def bind(self, arguments: Sequence[ForwardArgument]) -> Dataset:
        """Return the dataset with its arrays put in their places in forward's arguments.

        Raises:
            ShapeMismatch: Arrays that are missing or too many, or a number that varies.
            BadSignature: An argument that no array can be given for.
        """
        try:
            layout = bind_arrays(arguments, self.names)
            arrays = dict(zip(self.names, self.inputs, strict=True))
            for slot in layout.slots:
                check_number(slot, arrays[slot.name].dtype.name, arrays[slot.name].shape)
        except Misfit as misfit:
            raise as_error(misfit) from misfit
        numbers = {
            slot.name: _only_value(slot, arrays[slot.name])
            for slot in layout.slots
            if slot.type != "Tensor"
        }
        return replace(self, layout=layout, numbers=numbers)

    def numbers_by_place(self) -> dict[Place | None, Number | None]:
        """Return what each array is in forward's arguments: a number, or None for a tensor."""
        return {read_name(name): self.numbers.get(name) for name in self.names}

    def sample(self, start: int, stop: int) -> list[Any]:
        """Return forward's arguments for samples `[start, stop)`, floats as float32."""
        values: dict[str, Any] = {
            name: self.numbers[name] if name in self.numbers else to_tensor(array[start:stop])
            for name, array in zip(self.names, self.inputs, strict=True)
        }
        if self.layout is None:
            return list(values.values())
        return self.layout.fill(lambda slot: values[slot.name])

    def batches(
        self, batch_size: int, limit: int | None = None
    ) -> Iterator[tuple[list[Any], Tensor | None]]:
        """Yield `(arguments, label)` in file order, at most `limit` samples in all."""
        stop = self.samples if limit is None else min(limit, self.samples)
        for start in range(0, stop, batch_size):
            end = min(start + batch_size, stop)
            label = None if self.label is None else to_tensor(self.label[start:end])
            yield self.sample(start, end), label

    def check_calibration(self, limit: int) -> None:
        """Raise BadCalibrationData where the first `limit` samples cannot give ranges.

        One sample is enough if its values differ. Some arrays may be constant, such as a state that
        starts from zeros or a mask, but not all of them.
        """
        constant: dict[str, float] = {}
        varies = False
        stop = min(limit, self.samples)
        for name, array in zip(self.names, self.inputs, strict=True):
            if name in self.numbers:
                continue
            lowest, highest = np.inf, -np.inf
            for index in range(stop):
                sample = array[index]
                if not sample.size or sample.dtype.kind == "c":
                    varies = varies or sample.dtype.kind == "c"
                    continue
                low, high = float(sample.min()), float(sample.max())
                if sample.dtype.kind == "f":
                    _check_finite(name, index, low, high)
                lowest, highest = min(lowest, low), max(highest, high)
            varies = varies or lowest < highest
            if np.isfinite(lowest):
                constant[name] = lowest
        if varies:
            return
        if not constant:
            told = "', '".join(self.names)
            raise BadCalibrationData(
                f"Array '{told}' holds no values in samples 0 to {stop - 1}; activation ranges "
                "cannot be found from nothing. Calibrate with real samples."
            )
        name = next((n for n in constant if self._array(n).dtype.kind == "f"), next(iter(constant)))
        raise BadCalibrationData(
            f"Array '{name}' is constant: samples 0 to {stop - 1} all hold {constant[name]:g}, and "
            "no other array varies. Calibrate with real samples."
        )

    def _array(self, name: str) -> np.ndarray:
        return self.inputs[self.names.index(name)]

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


def _check_finite(name: str, index: int, low: float, high: float) -> None:
    """Raise BadCalibrationData where a sample's extremes are no float32 numbers.

    numpy's minimum and maximum are NaN as soon as one element is.
    """
    if not np.isfinite(low) or not np.isfinite(high):
        raise BadCalibrationData(
            f"Array '{name}', sample {index}, holds NaN or infinite values; activation ranges "
            "cannot be found from it. Clean or drop that sample."
        )
    if max(-low, high) > _FLOAT32_MAX:
        raise BadCalibrationData(
            f"Array '{name}', sample {index}, holds {max(-low, high):.3g} in magnitude, which "
            "becomes infinite in float32, as models compute in. Scale or drop that sample."
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
    for name in found:
        if name != "label" and read_name(name) is None:
            close = get_close_matches(name, ["input", "input_0", "label"], 1)
            hint = f"did you mean '{close[0]}'?" if close else "remove it."
            raise InvalidDataset(
                f"Array '{name}' has no meaning here; arrays are named 'input' (or 'input_0', "
                f"'input_1.key', …) and 'label': {hint}"
            )
    try:
        names = order_names(name for name in found if name != "label")
    except Misfit as misfit:
        raise as_error(misfit) from misfit
    if not names:
        if found:
            raise InvalidDataset("There is no array named 'input' or 'input_0'.")
        raise EmptyDataset("The dataset holds no arrays.")
    return names


def as_error(misfit: Misfit) -> CompressError:
    """Return the engine's error for arrays that do not fit."""
    known = {"shape_mismatch": ShapeMismatch, "bad_signature": BadSignature}
    return known.get(misfit.code, InvalidDataset)(misfit.detail)


def _only_value(slot: Slot, array: np.ndarray) -> Number:
    """Return the number that all samples share."""
    first = array[0]
    other = np.flatnonzero(array != first)
    if other.size:
        raise ShapeMismatch(
            f"Argument '{slot.argument}' of forward takes a Python {slot.type}, which the model's "
            f"control flow may hang on: '{slot.name}' must be the same for all samples, but it is "
            f"{first} and, in sample {other[0]}, {array[other[0]]}. Make a dataset for each value."
        )
    value: Number = {"int": int, "float": float, "bool": bool}[slot.type](first)
    return value
