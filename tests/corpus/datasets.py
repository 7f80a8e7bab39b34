"""Datasets that lie about what they hold."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import Any

import numpy as np
from numpy.lib import format as npy

from tests.corpus.case import Case


def _saved(**arrays: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _good() -> np.ndarray[Any, Any]:
    return np.ones((4, 3), np.float32)


def _npy(shape: str, descr: str = "'<f4'", data: bytes = bytes(48)) -> bytes:
    """A .npy whose header says what it is told to."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return npy.MAGIC_PREFIX + b"\x01\x00" + struct.pack("<H", len(header)) + header + data


def _npz(*entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def _told(shape: str, descr: str = "'<f4'") -> bytes:
    return _npz(("input.npy", _npy(shape, descr)))


def _bomb() -> bytes:
    """100 MiB of zeros in 100 KiB."""
    content = _npy("(4, 6553600)", data=bytes(100 * 2**20))
    return _npz(("input.npy", content), method=zipfile.ZIP_DEFLATED)


def _renamed_entry() -> bytes:
    """Two entries of one name: `inpuT` becomes `input` after the zip was written."""
    content = _npz(("input.npy", _npy("(4, 3)")), ("inpuT.npy", _npy("(4, 3)")))
    return content.replace(b"inpuT", b"input")


def _safetensors(header: Any, data: bytes = bytes(48)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(**fields: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]} | fields


def _one(**fields: Any) -> bytes:
    return _safetensors({"input": _entry(**fields)})


_OBJECTS = np.array([{"a": 1}, None], dtype=object)
CASES = [
    Case("nothing", "invalid_dataset", lambda: b""),
    Case("text", "invalid_dataset", lambda: b"hello" * 9),
    Case("objects", "object_arrays_not_allowed", lambda: _saved(input=_OBJECTS)),
    Case("objects as labels", "object_arrays_not_allowed",
         lambda: _saved(input=_good(), label=_OBJECTS)),
    Case("header that is a program", "corrupt_entry",
         lambda: _told("__import__('os').system('true')")),
    Case("header without end", "corrupt_entry", lambda: _told("(" * 300)),
    Case("header of 60 kB", "corrupt_entry", lambda: _told(f"(4, {'1' * 60_000})")),
    Case("terabytes", "dataset_too_large", lambda: _told("(4, 1000000000000)")),
    Case("more than a number holds", "dataset_too_large", lambda: _told("(2**63, 2**63)".replace(
        "2**63", str(2**63)))),
    Case("bomb", "dataset_too_large", _bomb),
    Case("negative shape", "shape_mismatch", lambda: _told("(-4, 3)")),
    Case("fewer bytes than told", "corrupt_entry", lambda: _told("(4, 4)")),
    Case("more bytes than told", "corrupt_entry", lambda: _told("(4, 2)")),
    Case("text elements", "unsupported_dtype", lambda: _told("(4,)", "'<U3'")),
    Case("records", "unsupported_dtype", lambda: _told("(4,)", "[('a', '<f4'), ('b', '<f8')]")),
    Case("other byte order", "unsupported_dtype", lambda: _told("(4, 3)", "'>f4'")),
    Case("entry twice", "duplicate_array", _renamed_entry),
    Case("up and out", "unknown_array", lambda: _npz(("../../input.npy", _npy("(4, 3)")))),
    Case("right to left", "unknown_array", lambda: _npz(("\u202einput.npy", _npy("(4, 3)")))),
    Case("no array", "invalid_dataset", lambda: _npz(("input.npy", _npy("(4, 3)")), ("x.py", b""))),
    Case("only labels", "empty_dataset", lambda: _saved(label=np.arange(4))),
    Case("no samples", "empty_dataset", lambda: _saved(input=np.ones((0, 3), np.float32))),
    Case("labels of others", "label_mismatch", lambda: _saved(input=_good(), label=np.arange(5))),
    Case("one number", "shape_mismatch", lambda: _saved(input=np.float32(1))),  # type: ignore[arg-type]
    Case("cut off", "corrupt_archive", lambda: _saved(input=_good())[:-9]),
    Case("junk behind", "not_canonical", lambda: _saved(input=_good()) + b"junk"),
    Case("junk before", "not_canonical", lambda: b"PK\x03\x04" + _saved(input=_good())),
    Case("header longer than the file", "invalid_safetensors",
         lambda: struct.pack("<Q", 2**40) + b"{}"),
    Case("header that is no JSON", "invalid_safetensors", lambda: _safetensors(b"{input: 1}")),
    Case("deep JSON", "invalid_safetensors",
         lambda: _safetensors(b'{"input":' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
    Case("a list", "invalid_safetensors", lambda: _safetensors(b"{}[]")),
    Case("name twice", "duplicate_array", lambda: _safetensors(
        b'{"input":{"dtype":"F32","shape":[4,3],"data_offsets":[0,48]},'
        b'"input":{"dtype":"F32","shape":[4,3],"data_offsets":[0,48]}}')),
    Case("offsets beyond the file", "invalid_safetensors",
         lambda: _one(shape=[400, 3], data_offsets=[0, 4800])),
    Case("offsets that do not fit", "invalid_safetensors", lambda: _one(data_offsets=[0, 44])),
    Case("offsets backwards", "invalid_safetensors", lambda: _one(data_offsets=[48, 0])),
    Case("offsets with a gap", "invalid_safetensors", lambda: _one(data_offsets=[4, 52])),
    Case("overlapping", "invalid_safetensors",
         lambda: _safetensors({"input": _entry(), "label": _entry()})),
    Case("bytes behind", "invalid_safetensors",
         lambda: _safetensors({"input": _entry()}, bytes(60))),
    Case("shape of words", "invalid_safetensors", lambda: _one(shape=["4", 3])),
    Case("shape of booleans", "invalid_safetensors", lambda: _one(shape=[True, 12])),
    Case("huge shape", "invalid_safetensors", lambda: _one(shape=[2**62, 2**62])),
    Case("unknown type", "unsupported_dtype", lambda: _one(dtype="F8_E4M3")),
    Case("type that is no word", "unsupported_dtype", lambda: _one(dtype=[])),
    Case("safetensors without arrays", "empty_dataset", lambda: _safetensors({}, b"")),
]  # fmt: skip
