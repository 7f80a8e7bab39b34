"""Reads what a dataset claims to hold, without loading it: npz and safetensors headers.

Every array is checked before its bytes are looked at, so a file that claims terabytes costs
nothing. Checksums of an npz are read through.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, TypeGuard

from app.archives import open_archive
from app.datasets.facts import ArrayFacts, refuse_array, unsupported_dtype
from app.datasets.npy import read_npy_header
from app.errors import Unprocessable
from compress.spec.names import Misfit, order_names, read_name

MAX_SAFETENSORS_HEADER_BYTES = 16 * 2**20
_SAFETENSORS_DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "I64": ("int64", 8),
    "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}  # fmt: skip
_HOW = (
    "Upload a .npz (numpy.savez('data.npz', input=x, label=y)) or a .safetensors file with the "
    "same names."
)


@dataclass(frozen=True)
class DatasetFacts:
    """What a scan found out; `arrays` are the inputs in order, then the label."""

    format: Literal["npz", "safetensors"]
    samples: int
    arrays: list[dict[str, Any]]
    has_labels: bool


def scan_dataset(path: Path, limit_bytes: int) -> DatasetFacts:
    """Check that the file is a whole dataset and describe it; arrays claim up to `limit_bytes`.

    Raises:
        Unprocessable: invalid_dataset, invalid_safetensors, corrupt_archive, corrupt_entry,
            not_canonical, too_many_entries, object_arrays_not_allowed, unsupported_dtype,
            dataset_too_large, duplicate_array, unknown_array, empty_dataset, shape_mismatch,
            label_mismatch.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        kind: Literal["npz", "safetensors"] = "npz"
        arrays = _read_npz(path, limit_bytes)
    elif start[8:9] == b"{":
        kind = "safetensors"
        arrays = _read_safetensors(path, size_bytes, limit_bytes)
    else:
        raise _not_a_dataset(start)
    ordered = _order(arrays)
    samples = _check_lengths(ordered)
    return DatasetFacts(
        format=kind,
        samples=samples,
        arrays=[
            {"name": each.name, "dtype": each.dtype, "shape": list(each.shape)} for each in ordered
        ],
        has_labels=ordered[-1].name == "label",
    )


def _not_a_dataset(start: bytes) -> Unprocessable:
    if not start:
        what = "The file is empty (0 bytes)."
    elif start.startswith(b"\x93NUMPY"):
        what = "The file is a single .npy array; put it into an .npz under the name `input`."
    else:
        what = "The file is neither .npz nor .safetensors."
    return Unprocessable(f"{what} {_HOW}", code="invalid_dataset")


def _read_npz(path: Path, limit_bytes: int) -> list[ArrayFacts]:
    with open_archive(path, "dataset") as archive:
        _check_names([entry.name for entry in archive.entries])
        headers = [read_npy_header(archive, entry) for entry in archive.entries]
        arrays = [header.array for header in headers]
        _check_claims(arrays, limit_bytes)
        for entry, header in zip(archive.entries, headers, strict=True):
            data_bytes = entry.size_bytes - header.header_bytes
            if data_bytes != header.array.size_bytes:
                raise Unprocessable(
                    f"The array {header.array.name!a} has {data_bytes} bytes of data, its header "
                    f"says {header.array.size_bytes}; save it again.",
                    code="corrupt_entry",
                )
        for entry in archive.entries:
            archive.verify(entry)
        return arrays


def _check_names(names: list[str]) -> None:
    _check_unique(names)
    for name in names:
        if not name.endswith(".npy"):
            what = (
                "It looks like a TorchScript model; upload that to /v1/models."
                if any(each.endswith("/constants.pkl") for each in names)
                else _HOW
            )
            raise Unprocessable(
                f"The file is a zip but not an .npz: its entry {name!a} is no .npy array. {what}",
                code="invalid_dataset",
            )
        _check_name(name.removesuffix(".npy"))


def _read_safetensors(path: Path, size_bytes: int, limit_bytes: int) -> list[ArrayFacts]:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > min(size_bytes - 8, MAX_SAFETENSORS_HEADER_BYTES):
            raise _invalid_safetensors("its header claims to be longer than the file or 16 MiB")
        text = file.read(header_bytes)
    try:
        header = json.loads(text, object_pairs_hook=_unique_object)
    except (ValueError, RecursionError) as error:
        raise _invalid_safetensors("its header is not JSON") from error
    if not isinstance(header, dict):
        raise _invalid_safetensors("its header is not a JSON object")
    header.pop("__metadata__", None)
    spans: list[tuple[int, int]] = []
    arrays: list[ArrayFacts] = []
    for name, entry in header.items():
        _check_name(name)
        array, span = _read_safetensors_entry(name, entry)
        arrays.append(array)
        spans.append(span)
    _check_claims(arrays, limit_bytes)
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise _invalid_safetensors("its tensors overlap or leave gaps")
        at = end
    if at != size_bytes - 8 - header_bytes:
        raise _invalid_safetensors("it is cut off, or longer than its header says")
    return arrays


def _read_safetensors_entry(name: str, entry: Any) -> tuple[ArrayFacts, tuple[int, int]]:
    if not isinstance(entry, dict):
        raise _invalid_safetensors(f"the entry {name!a} is not an object")
    shape, offsets, dtype = entry.get("shape"), entry.get("data_offsets"), entry.get("dtype")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise _invalid_safetensors(f"the shape or offsets of {name!a} are not numbers")
    if not isinstance(dtype, str) or dtype not in _SAFETENSORS_DTYPES:
        raise unsupported_dtype(name, str(dtype))
    numpy_name, itemsize = _SAFETENSORS_DTYPES[dtype]
    array = ArrayFacts(name, numpy_name, tuple(shape), prod(shape) * itemsize)
    if offsets[1] - offsets[0] != array.size_bytes:
        raise _invalid_safetensors(f"the offsets of {name!a} do not fit its shape")
    return array, (offsets[0], offsets[1])


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        type(each) is int and 0 <= each < 2**63 for each in value
    )


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_unique([name for name, _value in pairs])
    return dict(pairs)


def _check_unique(names: list[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise refuse_array(
                "duplicate_array", name, f"The name {name!a} is there {count} times."
            )


def _check_name(name: str) -> None:
    if name != "label" and read_name(name) is None:
        raise refuse_array(
            "unknown_array",
            name,
            f"There is an array named {name!a}. Name the arrays `input`, or `input_0`, `input_1` "
            "… in the order of forward's arguments (`input_1.KEY` for a part of a tuple, list or "
            "dict), and `label`; leave others out.",
        )


def _check_claims(arrays: list[ArrayFacts], limit_bytes: int) -> None:
    claimed = sum(array.size_bytes for array in arrays)
    if claimed > limit_bytes:
        raise Unprocessable(
            f"The arrays claim {claimed} bytes; this server takes {limit_bytes}. Upload a sample "
            "of the data.",
            code="dataset_too_large",
        )


def _order(arrays: list[ArrayFacts]) -> list[ArrayFacts]:
    by_name = {array.name: array for array in arrays}
    inputs = [name for name in by_name if name != "label"]
    if not inputs:
        raise Unprocessable(f"The file holds no array named `input`. {_HOW}", code="empty_dataset")
    try:
        ordered = order_names(inputs)
    except Misfit as misfit:
        if not misfit.name:
            raise Unprocessable(misfit.detail, code=misfit.code) from misfit
        raise refuse_array(misfit.code, misfit.name, misfit.detail) from misfit
    labels = [by_name["label"]] if "label" in by_name else []
    return [*(by_name[name] for name in ordered), *labels]


def _check_lengths(arrays: list[ArrayFacts]) -> int:
    for array in arrays:
        if not array.shape:
            raise refuse_array(
                "shape_mismatch",
                array.name,
                f"{array.name} is a single number; its first axis must be the sample.",
            )
        if 0 in array.shape:
            raise refuse_array(
                "empty_dataset", array.name, f"{array.name} has no elements: {array.shape}."
            )
    samples = arrays[0].shape[0]
    for array in arrays[1:]:
        if array.shape[0] != samples:
            raise refuse_array(
                "label_mismatch" if array.name == "label" else "shape_mismatch",
                array.name,
                f"{array.name} has {array.shape[0]} samples, {arrays[0].name} has {samples}.",
            )
    return samples


def _invalid_safetensors(why: str) -> Unprocessable:
    return Unprocessable(
        f"The file is not valid safetensors: {why}. Save it again with safetensors.",
        code="invalid_safetensors",
    )
