"""One attack, and the parts that models are put together from."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

ROOT = "archive"


@dataclass(frozen=True)
class Case:
    """A file that must be refused with `code`."""

    name: str
    code: str
    build: Callable[[], bytes]

    def __str__(self) -> str:
        return self.name


def module_pickle(attributes: bytes = b"", cls: str = "Net") -> bytes:
    """The pickle of an object of `__torch__.attack.Net`; `attributes` are keys and values."""
    return (
        b"\x80\x02c__torch__.attack\n" + cls.encode() + b"\n)\x81}(" + text("training") + b"\x89"
        + attributes + b"ub."
    )  # fmt: skip


def text(value: str) -> bytes:
    """The opcode that pushes a string."""
    return b"X" + struct.pack("<L", len(value)) + value.encode()


def number(value: int) -> bytes:
    """The opcode that pushes a whole number."""
    if 0 <= value < 2**31:
        return b"J" + struct.pack("<l", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def storage(key: str, numel: int, kind: str = "FloatStorage") -> bytes:
    """The opcodes that push a storage."""
    return (
        b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu")
        + number(numel) + b"tQ"
    )  # fmt: skip


def tensor(held: bytes, shape: list[int], strides: list[int], offset: int = 0) -> bytes:
    """The opcodes that push a tensor over a storage."""
    sizes = (b"(" + b"".join(map(number, each)) + b"t" for each in (shape, strides))
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + held + number(offset) + b"".join(sizes)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


def class_code(body: str, *, declared: str = "", methods: str = "", forward: str = "") -> str:
    """A file of code with one module, `Net`, whose forward takes `x` and does `body`."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return (
        "class Net(Module):\n  __parameters__ = []\n  __buffers__ = []\n  training : bool\n"
        f"{declared}"
        + (forward or "  def forward(self: __torch__.attack.Net,\n    x: Tensor) -> Tensor:\n")
        + lines
        + methods
    )


def parts(
    body: str = "return torch.relu(x)",
    *,
    data: bytes | None = None,
    code: bytes | None = None,
    records: Mapping[str, bytes] | None = None,
    **more: str,
) -> dict[str, bytes]:
    """The entries of a small TorchScript file."""
    return {
        f"{ROOT}/data.pkl": module_pickle() if data is None else data,
        f"{ROOT}/code/__torch__/attack.py": class_code(body, **more).encode()
        if code is None
        else code,
        f"{ROOT}/constants.pkl": b"\x80\x02).",
        f"{ROOT}/version": b"3\n",
        f"{ROOT}/byteorder": b"little",
        **{f"{ROOT}/{name}": content for name, content in (records or {}).items()},
    }


def zipped(entries: Mapping[str, bytes] | list[tuple[str, bytes]], *, packed: str = "") -> bytes:
    """A zip of entries, stored; the one named `packed` deflated."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items() if isinstance(entries, Mapping) else entries:
            info = zipfile.ZipInfo(name)
            method = zipfile.ZIP_DEFLATED if name == packed else zipfile.ZIP_STORED
            archive.writestr(info, content, method)
    return buffer.getvalue()


def model(body: str = "return torch.relu(x)", **given: str) -> bytes:
    """A whole TorchScript file whose forward does `body`."""
    return zipped(parts(body, **given))  # type: ignore[arg-type]


def patched(content: bytes, old: bytes, new: bytes, at: int = 0) -> bytes:
    """The bytes with one place overwritten: the first `old` at or after `at`."""
    found = content.index(old, at)
    assert len(old) == len(new)
    return content[:found] + new + content[found + len(new) :]
