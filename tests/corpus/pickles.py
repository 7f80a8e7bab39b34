"""Pickles that call, lie about bytes, or hold each other without end."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable

from tests.corpus.case import (
    Case,
    module_pickle,
    number,
    parts,
    storage,
    tensor,
    text,
    zipped,
)

FLOATS = {"data/0": bytes(16)}  # four of them


class _System:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch /tmp/tersor-was-here",)


def _with(data: bytes, **records: bytes) -> bytes:
    return zipped(parts(data=data, records=FLOATS | records))


def _holding(value: bytes) -> bytes:
    """A model with an attribute `w`."""
    return _with(module_pickle(text("w") + value))


def _tensor(shape: list[int], strides: list[int], offset: int = 0, numel: int = 4) -> bytes:
    return _holding(tensor(storage("0", numel), shape, strides, offset))


def _in_constants(content: bytes) -> bytes:
    return zipped(parts(records=FLOATS) | {"archive/constants.pkl": content})


def _deep(levels: int) -> bytes:
    return _holding(b")" + b"\x85" * levels)


def _cycle() -> bytes:
    return _holding(b"]q\x05h\x05a")


CASES = [
    Case("os.system", "forbidden_global", lambda: _with(pickle.dumps(_System(), 2))),
    Case("os.system in constants", "forbidden_global",
         lambda: _in_constants(pickle.dumps(_System(), 2))),
    Case("builtins eval", "forbidden_global",
         lambda: _holding(b"cbuiltins\neval\n" + text("1") + b"\x85R")),
    Case("pickled subclass", "forbidden_global",
         lambda: _holding(b"ctorch._tensor\n_rebuild_from_type_v2\n)R")),
    Case("quantized tensor", "forbidden_global",
         lambda: _holding(b"ctorch._utils\n_rebuild_qtensor\n)R")),
    Case("remote reference", "forbidden_global",
         lambda: _holding(b"ctorch.distributed.rpc\nrref\n)R")),
    Case("C++ object", "class_not_allowed",
         lambda: _holding(b"c__torch__.torch.classes.quantized\nConv2dPackedParamsBase\n)\x81)b")),
    Case("function by number", "corrupt_pickle", lambda: _holding(number(0) + b")R")),
    Case("built twice", "corrupt_pickle",
         lambda: _holding(b"c__torch__.attack\nNet\n)\x81}b}b")),
    Case("remembered unbuilt", "corrupt_pickle",
         lambda: _holding(b"c__torch__.attack\nNet\n)\x81q\x09}b")),
    Case("mark as a value", "corrupt_pickle", lambda: _holding(b"(\x85")),
    Case("attribute that is missing", "corrupt_pickle",
         lambda: _with(module_pickle().replace(b"training", b"draining"))),
    Case("class that is missing", "corrupt_pickle",
         lambda: _with(module_pickle(cls="Other"))),
    Case("protocol 4", "corrupt_pickle", lambda: _with(pickle.dumps({"a": 1}, 4))),
    Case("a word behind the end", "corrupt_pickle", lambda: _with(module_pickle() + b"N.")),
    Case("no end", "corrupt_pickle", lambda: _with(module_pickle()[:-1])),
    Case("empty", "corrupt_pickle", lambda: _with(b"")),
    Case("string longer than the file", "corrupt_pickle",
         lambda: _holding(b"X\xff\xff\xff\x7fabc")),
    Case("memo that was never set", "corrupt_pickle", lambda: _holding(b"h\x63")),
    Case("no module", "not_torchscript", lambda: _with(b"\x80\x02}.")),
    Case("deep", "pickle_too_deep", lambda: _deep(5000)),
    Case("cycle", "pickle_too_deep", _cycle),
    Case("many steps", "pickle_too_large", lambda: _holding(b"(" + b"N" * 600_000 + b"l")),
    Case("storage larger than its record", "storage_size_mismatch",
         lambda: _tensor([4], [1], numel=2**20)),
    Case("storage smaller than its record", "storage_size_mismatch",
         lambda: _tensor([2], [1], numel=2)),
    Case("storage of negative size", "corrupt_pickle", lambda: _tensor([2], [1], numel=-4)),
    Case("storage of another type", "storage_size_mismatch",
         lambda: _holding(tensor(storage("0", 4, "DoubleStorage"), [4], [1]))),
    Case("storage read again and again", "storage_size_mismatch",
         lambda: _holding(b"(" + tensor(storage("0", 4), [4], [1]) * 9 + b"t")),
    Case("storage elsewhere", "missing_record",
         lambda: _holding(tensor(storage("../../x", 4), [4], [1]))),
    Case("record that is not there", "missing_record",
         lambda: _holding(tensor(storage("7", 4), [4], [1]))),
    Case("tensor beyond its storage", "invalid_tensor", lambda: _tensor([5], [1])),
    Case("tensor that steps beyond", "invalid_tensor", lambda: _tensor([2, 2], [3, 1])),
    Case("tensor that begins beyond", "invalid_tensor", lambda: _tensor([1], [1], offset=4)),
    Case("tensor that begins before", "corrupt_pickle", lambda: _tensor([1], [1], offset=-1)),
    Case("negative stride", "corrupt_pickle", lambda: _tensor([2], [-1], offset=3)),
    Case("shape without strides", "corrupt_pickle", lambda: _tensor([2, 2], [1])),
    Case("giant of one element", "invalid_tensor", lambda: _tensor([2**40, 2**20], [0, 0])),
    Case("tensor in constants beyond", "missing_record",
         lambda: _in_constants(b"\x80\x02" + tensor(storage("0", 4), [9], [1]) + b"\x85.")),
]  # fmt: skip
