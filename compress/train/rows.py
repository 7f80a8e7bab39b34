"""Rows of arrays in files, read without mapping the whole file into memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MAPPED_BYTES = 1 << 28
"""Files up to this size are read by their map. Its pages count as memory of the process, however
many of them Linux maps around a byte: random reads of 4 GB were seen to take 2.8 GB."""

Gather = Callable[[np.ndarray], np.ndarray]


class RowReader:
    """Gathers rows of arrays of one length; for as many threads as you like."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = dict(arrays)
        self._gathers = {name: _gather(array) for name, array in arrays.items()}

    def read(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Return rows as new tensors; float64 and float16 become float32, which models eat."""
        found = {}
        for name, gather in self._gathers.items():
            rows = gather(indices)
            kind = np.dtype(np.float32) if rows.dtype.kind == "f" else rows.dtype.newbyteorder("=")
            found[name] = torch.from_numpy(np.ascontiguousarray(rows, dtype=kind))
        return found

    def slice(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return neighbouring rows of one array as they are in the file."""
        gather = self._gathers[name]
        if isinstance(gather, _File):
            return gather.slice(start, min(stop, len(self._arrays[name])))
        return np.asarray(self._arrays[name][start:stop])


class _File:
    """Reads rows of a mapped array from its file."""

    def __init__(self, array: np.memmap[Any, Any]) -> None:
        self._file = open(str(array.filename), "rb", buffering=0)  # noqa: SIM115, PTH123
        self._offset = array.offset
        self._dtype, self._shape = array.dtype, array.shape[1:]
        self._row_bytes = array[:1].nbytes

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        rows = np.empty((len(indices), *self._shape), self._dtype)
        places = rows.reshape(len(rows), -1).view(np.uint8)
        for place, index in zip(places, indices.tolist(), strict=True):
            self._read(place.data, index)
        return rows

    def slice(self, start: int, stop: int) -> np.ndarray:
        rows = np.empty((max(0, stop - start), *self._shape), self._dtype)
        if rows.size:
            self._read(rows.reshape(-1).view(np.uint8).data, start)
        return rows

    def _read(self, into: memoryview, row: int) -> None:
        at, done = self._offset + row * self._row_bytes, 0
        while done < len(into):
            count = os.preadv(self._file.fileno(), [into[done:]], at + done)
            if count == 0:
                raise OSError("a dataset's file became shorter while it was read")
            done += count


def _gather(array: np.ndarray) -> Gather:
    if (
        isinstance(array, np.memmap)
        and array.filename is not None
        and array.nbytes > _MAPPED_BYTES
        and array.flags.c_contiguous
    ):
        return _File(array)
    held = np.asarray(array)
    return lambda indices: held[indices]
