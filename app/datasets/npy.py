"""Reads the header of one .npy entry; the data stays where it is."""

from __future__ import annotations

import io
import tokenize
from dataclasses import dataclass
from math import prod

from app.archives import Archive
from app.datasets.facts import ArrayFacts, refuse_array, unsupported_dtype
from app.errors import Unprocessable
from app.syntax import AST_LOCK
from app.zip_directory import Entry

_HEADER_BYTES = 2**16  # numpy itself reads none longer than 10,000 characters

_DTYPES = frozenset({
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool",
})  # fmt: skip


@dataclass(frozen=True)
class NpyHeader:
    """An array, and how many bytes its header takes."""

    array: ArrayFacts
    header_bytes: int


def read_npy_header(archive: Archive, entry: Entry) -> NpyHeader:
    """Return what the header of an entry `name.npy` says.

    Raises:
        Unprocessable: corrupt_entry, object_arrays_not_allowed, unsupported_dtype.
    """
    from numpy.lib import format as npy  # late: the first upload pays, not every start

    name = entry.name.removesuffix(".npy")
    file = io.BytesIO(archive.read_start(entry, _HEADER_BYTES))
    try:
        with AST_LOCK:  # numpy parses the header as Python
            version = npy.read_magic(file)
            if version == (1, 0):
                shape, _fortran_order, dtype = npy.read_array_header_1_0(file)
            elif version == (2, 0):
                shape, _fortran_order, dtype = npy.read_array_header_2_0(file)
            else:
                raise ValueError("only field names need version 3")
            header_bytes = file.tell()
    except (ValueError, EOFError, OSError, RuntimeError, SyntaxError, TypeError,
            MemoryError, tokenize.TokenError) as error:  # fmt: skip
        raise Unprocessable(
            f"The array {name!a} has no readable .npy header; save it again with numpy.savez.",
            code="corrupt_entry",
        ) from error
    if dtype.hasobject:
        raise refuse_array(
            "object_arrays_not_allowed",
            name,
            f"{name} holds pickled Python objects, which are not read. Make it a numeric array: "
            "all samples of one shape.",
        )
    if dtype.name not in _DTYPES or not dtype.isnative or dtype.subdtype is not None:
        raise unsupported_dtype(name, dtype.str)
    if any(type(length) is not int or length < 0 for length in shape):
        raise refuse_array("shape_mismatch", name, f"{name} has the impossible shape {shape}.")
    array = ArrayFacts(name, dtype.name, shape, prod(shape) * dtype.itemsize)
    return NpyHeader(array, header_bytes)
