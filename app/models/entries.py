"""Which entries a TorchScript file may have: their names, their sizes, how they are packed."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from app.archives import Archive
from app.errors import Unprocessable
from app.zip_directory import STORED, Entry

MAX_CODE_BYTES = 2 * 2**20
MAX_PACKED_BYTES = 64 * 2**20
MAX_EXTRA_BYTES = 2**20  # of what somebody stored beside the model, which nobody reads
EXPORT = (
    "Make a TorchScript file from the model in eval mode: "
    "torch.jit.trace(model, example).save('model.pt'), or torch.jit.script(model).save('model.pt')."
)
_PICKLE = re.compile(r"(data|constants|traced_inputs)\.pkl")
_RECORD = re.compile(r"(data|constants|traced_inputs)/(\d{1,9})")
_CODE = re.compile(r"code/((?:\w+/)*\w+\.py)")
_DEBUG = re.compile(r"code/(?:\w+/)*\w+\.py\.debug_pkl")
_SMALL = re.compile(
    r"(?:\.data/)?version|byteorder|\.data/serialization_id|\.format_version|\.storage_alignment"
)
_EXTRA = re.compile(r"extra/[\w.-]+(?:/[\w.-]+)*")
_NAME = re.compile(r"[\x21-\x7e]{1,1000}")


@dataclass(frozen=True)
class Contents:
    """The entries of one file, by what they are.

    Attributes:
        pickles: `data`, `constants`, `traced_inputs` to the pickle.
        records: The same to tensors' bytes by key: `data/7` is `records["data"]["7"]`.
        code: Path below `code/` to source.
        debug: Where in the original source each line came from.
        small: Path to version and byte order.
        others: Looked at by nobody.
    """

    pickles: dict[str, Entry] = field(default_factory=dict)
    records: dict[str, dict[str, Entry]] = field(default_factory=dict)
    code: dict[str, Entry] = field(default_factory=dict)
    debug: list[Entry] = field(default_factory=list)
    small: dict[str, Entry] = field(default_factory=dict)
    others: list[Entry] = field(default_factory=list)


def sort_entries(archive: Archive) -> Contents:
    """Put each entry where it belongs.

    Raises:
        Unprocessable: empty_archive, not_torchscript, illegal_entry_name, duplicate_entry,
            multiple_roots, unexpected_entry, compressed_tensor, code_too_large.
    """
    entries = [entry for entry in archive.entries if not _is_folder(entry)]
    if not entries:
        raise Unprocessable(f"The archive is empty. {EXPORT}", code="empty_archive")
    _check_names(entries)
    root = _find_root([entry.name for entry in entries])
    contents = Contents()
    for entry in entries:
        if not entry.name.startswith(f"{root}/"):
            raise Unprocessable(
                f"The archive has entries beside the folder {root!a}: {entry.name!a}. {EXPORT}",
                code="multiple_roots",
            )
        _sort(entry, entry.name.removeprefix(f"{root}/"), contents)
    _check_sizes(contents)
    return contents


def not_torchscript(what: str) -> Unprocessable:
    """Return the error for another kind of file."""
    return Unprocessable(f"The file is not TorchScript. {what} {EXPORT}", code="not_torchscript")


def _is_folder(entry: Entry) -> bool:
    return entry.name.endswith("/") and entry.size_bytes == 0


def _check_names(entries: list[Entry]) -> None:
    for entry in entries:
        parts = entry.name.split("/")
        if not _NAME.fullmatch(entry.name) or "\\" in entry.name or {"", ".", ".."} & set(parts):
            raise Unprocessable(
                f"The archive has an entry with the name {entry.name[:100]!a}, which torch never "
                f"gives. {EXPORT}",
                code="illegal_entry_name",
            )
    # torch looks names up without regard to case, and takes one of them
    for name, count in Counter(entry.name.casefold() for entry in entries).items():
        if count > 1:
            raise Unprocessable(
                f"The archive has the entry {name!a} {count} times, upper and lower case being "
                f"the same. {EXPORT}",
                code="duplicate_entry",
            )


def _find_root(names: list[str]) -> str:
    for name in names:
        root, _, rest = name.partition("/")
        if rest == "data.pkl" and f"{root}/constants.pkl" in names:
            if any(each.startswith(f"{root}/code/") for each in names):
                return root
            raise not_torchscript("It has no code: the export did not finish.")
    if any(name.endswith("/data.pkl") for name in names):
        raise not_torchscript(
            "It was written by torch.save (a state_dict or a pickled module), which holds the "
            "weights but not the model's code."
        )
    if any(name.endswith(("models/model.json", "archive_format")) for name in names):
        raise not_torchscript("It is a torch.export archive (.pt2).")
    if any(name.endswith(".npy") for name in names):
        raise not_torchscript("It is a NumPy .npz file; upload data to /v1/datasets.")
    raise not_torchscript("It is some other zip file.")


def _sort(entry: Entry, path: str, contents: Contents) -> None:
    if found := _PICKLE.fullmatch(path):
        contents.pickles[found[1]] = entry
    elif found := _RECORD.fullmatch(path):
        contents.records.setdefault(found[1], {})[found[2]] = entry
    elif found := _CODE.fullmatch(path):
        contents.code[found[1]] = entry
    elif _DEBUG.fullmatch(path):
        contents.debug.append(entry)
    elif _SMALL.fullmatch(path):
        contents.small[path.removeprefix(".data/")] = entry
    elif _EXTRA.fullmatch(path):
        contents.others.append(entry)
    else:
        raise Unprocessable(
            f"The archive has an entry that TorchScript files do not have: {path!a}. {EXPORT}",
            code="unexpected_entry",
        )


def _check_sizes(contents: Contents) -> None:
    """Refuse what unpacks to more than a scan should hold or read."""
    for records in contents.records.values():
        for entry in records.values():
            if entry.method != STORED:
                raise Unprocessable(
                    f"The tensor {entry.name!a} is compressed; torch stores tensors as they are, "
                    f"and reads no others. {EXPORT}",
                    code="compressed_tensor",
                )
    code_bytes = sum(entry.size_bytes for entry in contents.code.values())
    held = (*contents.pickles.values(), *contents.code.values(), *contents.debug)
    packed_bytes = sum(entry.size_bytes for entry in held)
    other_bytes = sum(entry.size_bytes for entry in (*contents.others, *contents.small.values()))
    if code_bytes > MAX_CODE_BYTES or packed_bytes > MAX_PACKED_BYTES:
        raise Unprocessable(
            f"The model's code unpacks to {code_bytes} bytes, and with its pickles to "
            f"{packed_bytes}; at most {MAX_CODE_BYTES} and {MAX_PACKED_BYTES} are taken.",
            code="code_too_large",
        )
    if other_bytes > MAX_EXTRA_BYTES:
        raise Unprocessable(
            f"The archive holds {other_bytes} bytes beside the model (extra files); at most "
            f"{MAX_EXTRA_BYTES} are taken. Save the model without _extra_files.",
            code="unexpected_entry",
        )
