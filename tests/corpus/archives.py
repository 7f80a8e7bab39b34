"""Zips that lie: about names, sizes, where things are, and how much there is."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib

from tests.corpus.case import ROOT, Case, model, parts, patched, zipped

DATA = f"{ROOT}/data.pkl"
WEIGHT = f"{ROOT}/data/0"


def _renamed(new: str) -> bytes:
    return zipped(parts() | {new: b"x"})


def _doubled(first: str, second: str) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return zipped([*parts().items(), (first, b"a"), (second, b"b")])


def _directory(content: bytes) -> int:
    return int(struct.unpack_from("<L", content, len(content) - 6)[0])


def _local_name() -> bytes:
    """The directory says version, the entry's own header says versioM."""
    return patched(model(), b"archive/version", b"archive/versioM")


def _central_size() -> bytes:
    content = model()
    at = content.index(b"PK\x01\x02")
    return content[: at + 24] + struct.pack("<L", 1) + content[at + 28 :]


def _method() -> bytes:
    content = model()
    at = content.index(b"PK\x01\x02")
    return content[: at + 10] + struct.pack("<H", 8) + content[at + 12 :]


def _flag(bit: int) -> bytes:
    content = model()
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.index(mark) + offset
        content = content[:at] + struct.pack("<H", bit) + content[at + 2 :]
    return content


def _overlapping() -> bytes:
    """Two entries of the directory are the same bytes of the file: a bomb, multiplied."""
    content = zipped(parts() | {WEIGHT: bytes(99), f"{ROOT}/data/1": bytes(99)})
    first = content.index(b"PK\x01\x02", content.index(b"archive/data/0", _directory(content)) - 46)
    second = content.index(b"archive/data/1", _directory(content)) - 46
    where = content[first + 42 : first + 46]
    return content[: second + 42] + where + content[second + 46 :]


def _gap() -> bytes:
    """Bytes that belong to no entry, before the directory."""
    content = model()
    start = _directory(content)
    end = struct.pack("<LH", start + 7, 0)
    return content[:start] + b"hidden!" + content[start:-6] + end


def _second_directory() -> bytes:
    """A 64-bit record that leads some readers to another directory."""
    content = model()
    end = content[-22:]
    count, size, start = struct.unpack_from("<HLL", end, 10)
    other = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    return content[:-22] + other + locator + end


def _descriptor() -> bytes:
    """Sizes that follow the data, and others than the directory's."""
    content = _flag(8)
    at = content.index(b"PK\x03\x04") + 14
    return content[:at] + bytes(12) + content[at + 12 :]


def _lying_bomb(claims: int | None) -> bytes:
    """64 MiB of zeros in 64 KiB; `claims` is the size told."""
    content = zipped(parts() | {DATA: bytes(65 * 2**20)}, packed=DATA)
    if claims is None:
        return content
    size = struct.pack("<L", 65 * 2**20)
    for _ in range(2):
        content = patched(content, size, struct.pack("<L", claims))
    return content


def _many(count: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in parts().items():
            archive.writestr(name, data)
        for index in range(count):
            archive.writestr(f"{ROOT}/data/{index}", b"")
    return content.getvalue()


def _checksum() -> bytes:
    content = zipped(parts() | {WEIGHT: b"weights!"})
    return patched(content, b"weights!", b"weightz!")


def _unicode_path() -> bytes:
    """An extra field that renames the entry, for those who read it."""
    other = b"archive/other"
    extra = struct.pack("<BL", 1, zlib.crc32(b"archive/version")) + other
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in parts().items():
            info = zipfile.ZipInfo(name)
            if name.endswith("/version"):
                info.extra = struct.pack("<2H", 0x7075, len(extra)) + extra
            archive.writestr(info, content)
    return buffer.getvalue()


def _without(name: str) -> bytes:
    return zipped({key: value for key, value in parts().items() if not key.endswith(name)})


CASES = [
    Case("nothing", "not_a_zip", lambda: b""),
    Case("text", "not_a_zip", lambda: b"hello" * 99),
    Case("empty archive", "empty_archive", lambda: zipped({})),
    Case("cut off", "corrupt_archive", lambda: model()[:-30]),
    Case("junk behind", "not_canonical", lambda: model() + b"junk"),
    Case("comment", "not_canonical", lambda: model()[:-2] + b"\x04\x00junk"),
    Case("another zip behind", "not_canonical", lambda: model() + model("return x")),
    Case("junk before", "not_canonical", lambda: b"PK\x03\x04" + model()),
    Case("name in header differs", "not_canonical", _local_name),
    Case("size in directory differs", "not_canonical", _central_size),
    Case("method in directory differs", "not_canonical", _method),
    Case("encrypted", "not_canonical", lambda: _flag(1)),
    Case("overlapping entries", "not_canonical", _overlapping),
    Case("bytes between", "not_canonical", _gap),
    Case("second directory", "not_canonical", _second_directory),
    Case("descriptor lies", "not_canonical", _descriptor),
    Case("renamed by an extra field", "not_canonical", _unicode_path),
    Case("wrong checksum", "corrupt_entry", _checksum),
    Case("bomb", "code_too_large", lambda: _lying_bomb(None)),
    Case("bomb that claims little", "corrupt_entry", lambda: _lying_bomb(100)),
    Case("compressed tensor", "compressed_tensor",
         lambda: zipped(parts() | {WEIGHT: bytes(2**24)}, packed=WEIGHT)),
    Case("many entries", "too_many_entries", lambda: _many(20_001)),
    Case("entry twice", "duplicate_entry", lambda: _doubled(WEIGHT, WEIGHT)),
    Case("entry in two cases", "duplicate_entry",
         lambda: _doubled(f"{ROOT}/code/__torch__/a.py", f"{ROOT}/code/__torch__/A.py")),
    Case("up and out", "illegal_entry_name", lambda: _renamed(f"{ROOT}/../../etc/cron.d/x")),
    Case("absolute", "illegal_entry_name", lambda: _renamed("/etc/cron.d/x")),
    Case("backslash", "illegal_entry_name", lambda: _renamed(f"{ROOT}\\code\\x.py")),
    Case("NUL", "illegal_entry_name",
         lambda: _renamed(f"{ROOT}/dataA0").replace(b"/dataA0", b"/data\x000")),
    Case("right to left", "illegal_entry_name", lambda: _renamed(f"{ROOT}/data/\u202e0")),
    Case("10 kB name", "illegal_entry_name", lambda: _renamed(f"{ROOT}/code/{'a' * 10_000}.py")),
    Case("two roots", "multiple_roots", lambda: _renamed("other/data/0")),
    Case("unknown entry", "unexpected_entry", lambda: _renamed(f"{ROOT}/bytecode.pkl")),
    Case("much beside the model", "unexpected_entry",
         lambda: zipped(parts() | {f"{ROOT}/extra/x": bytes(2**21)})),
    Case("no code", "not_torchscript", lambda: _without("attack.py")),
    Case("no pickle", "not_torchscript", lambda: _without("data.pkl")),
    Case("no version", "unsupported_version", lambda: _without("version")),
    Case("version of the future", "unsupported_version",
         lambda: zipped(parts() | {f"{ROOT}/version": b"11\n"})),
    Case("big-endian", "unsupported_version",
         lambda: zipped(parts() | {f"{ROOT}/byteorder": b"big"})),
    Case("much code", "code_too_large",
         lambda: zipped(parts(code=b"#" * (2 * 2**20 + 1)))),
]  # fmt: skip
