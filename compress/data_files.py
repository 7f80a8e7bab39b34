"""The two dataset file formats, read into memory maps. Names and meaning are data.py's matter."""

from __future__ import annotations

import json
import lzma
import math
import shutil
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np

from compress.errors import InvalidDataset, ObjectArrays

_SAFETENSORS_HEADER_MAX_BYTES = 100 * 2**20
_SAFETENSORS_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "|i1", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip

# numpy reads the header as Python source, so damage shows as whatever the tokenizer trips over
_DAMAGED_HEADER = (ValueError, TypeError, KeyError, SyntaxError, RecursionError, TokenError)
_DAMAGED_ARCHIVE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError,
    OSError, ValueError, RuntimeError,
)  # fmt: skip


def read_npz(path: Path, scratch: Path) -> dict[str, np.ndarray]:
    """Map the arrays of an npz; deflated ones are first unpacked into `scratch`.

    Raises:
        InvalidDataset: Damaged, encrypted, doubled or foreign entries.
        ObjectArrays: An entry whose elements are pickled objects.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                if name == entry.filename:
                    raise InvalidDataset(f"Entry '{name}' of the npz is not an .npy array.")
                if name in arrays:
                    raise InvalidDataset(f"Array '{name}' is in the npz twice.")
                arrays[name] = _map_entry(path, archive, entry, name, scratch)
    except _DAMAGED_ARCHIVE as error:
        raise InvalidDataset(f"The npz cannot be read: {_plain(error)}.") from error
    return arrays


def _map_entry(
    path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, scratch: Path
) -> np.ndarray:
    if entry.flag_bits & 0x1:
        raise InvalidDataset(f"Array '{name}' is encrypted; store it plainly.")
    if entry.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as file:
            file.seek(entry.header_offset)
            header = file.read(30)
            if len(header) < 30 or header[:4] != b"PK\x03\x04":
                raise InvalidDataset(f"Array '{name}' has a damaged zip header.")
            # the local header's own lengths count: its extra field may differ from the directory's
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            start = entry.header_offset + 30 + name_length + extra_length
            if start + entry.file_size > path.stat().st_size:
                raise InvalidDataset(f"Array '{name}' reaches beyond the end of the file.")
            return _map_npy(file, path, start, entry.file_size, name)
    with (
        archive.open(entry) as packed,
        tempfile.NamedTemporaryFile(dir=scratch, suffix=".npy", delete=False) as unpacked,
    ):
        shutil.copyfileobj(packed, unpacked, 1 << 20)
    unpacked_path = Path(unpacked.name)
    with unpacked_path.open("rb") as file:
        return _map_npy(file, unpacked_path, 0, unpacked_path.stat().st_size, name)


def _map_npy(file: BinaryIO, path: Path, start: int, size_bytes: int, name: str) -> np.ndarray:
    """Map the npy image at `[start, start + size_bytes)` of an open file."""
    file.seek(start)
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise InvalidDataset(f"Array '{name}' has npy version {version}, not 1.0 or 2.0.")
    except _DAMAGED_HEADER as error:
        raise InvalidDataset(f"Array '{name}' has a damaged npy header.") from error
    if dtype.hasobject:
        raise ObjectArrays(
            f"Array '{name}' holds pickled Python objects, which are never loaded. Save it with a "
            "numeric dtype, all samples of one shape."
        )
    offset = file.tell()
    if any(length < 0 for length in shape):
        raise InvalidDataset(f"Array '{name}' has a negative axis length.")
    if math.prod(shape) * dtype.itemsize != start + size_bytes - offset:
        raise InvalidDataset(
            f"Array '{name}' declares {math.prod(shape) * dtype.itemsize} bytes but holds "
            f"{start + size_bytes - offset}."
        )
    return _map(path, offset, dtype, shape, "F" if fortran else "C")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Map the tensors of a safetensors file.

    Source: https://github.com/huggingface/safetensors#format

    Raises:
        InvalidDataset: Damaged, or an element type that numpy has not.
    """
    total = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(total - 8, _SAFETENSORS_HEADER_MAX_BYTES):
            raise InvalidDataset("The file is neither npz nor safetensors.")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InvalidDataset("The file is neither npz nor safetensors.") from error
    if not isinstance(header, dict):
        raise InvalidDataset("The safetensors header is not an object.")
    header.pop("__metadata__", None)
    return {
        name: _map_tensor(path, name, entry, 8 + length, total) for name, entry in header.items()
    }


def _map_tensor(path: Path, name: str, entry: Any, base: int, total: int) -> np.ndarray:
    try:
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError) as error:
        raise InvalidDataset(f"Tensor '{name}' has a damaged safetensors header.") from error
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise InvalidDataset(f"Tensor '{name}' has a damaged safetensors header.")
    if not isinstance(code, str) or code not in _SAFETENSORS_DTYPES:
        raise InvalidDataset(f"Tensor '{name}' has element type {code}; store it as float32.")
    dtype = np.dtype(_SAFETENSORS_DTYPES[code])
    if end - begin != math.prod(shape) * dtype.itemsize or base + end > total:
        raise InvalidDataset(f"Tensor '{name}' does not fit its bytes; the file may be cut short.")
    return _map(path, base + begin, dtype, tuple(shape), "C")


def _map(
    path: Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any
) -> np.ndarray:
    if math.prod(shape) == 0:  # an empty map is refused by the system
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order=order)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("doubled key")
    return found


def _plain(error: Exception) -> str:
    """Return the error's text without a path in it."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text or type(error).__name__).rstrip(".")
