"""Reads a TorchScript file without torch: what forward takes, which operators, how many weights.

Nothing of the file is run, and nothing is left for torch to be surprised by: names, sizes, pickles,
code and weights are compared with what torch.jit.save writes. A file that cannot be TorchScript is
refused with a sentence that says what it is instead and how to make one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.archives import Archive, open_archive
from app.errors import Unprocessable
from app.models.calls import Calls, is_of_torch, parse, read_calls
from app.models.code import ModuleClass, list_arguments, read_classes
from app.models.entries import EXPORT, MAX_CODE_BYTES, Contents, not_torchscript, sort_entries
from app.models.pickled import Instance, corrupt_pickle
from app.models.tensors import check_tensors, count_parameters
from app.models.unpickling import check_literals, read_objects

__all__ = ["MAX_CODE_BYTES", "ModelFacts", "scan_model"]

MAX_VERSION = 10  # of the format, as torch 2.13 writes and reads it
_ZIP = b"PK\x03\x04"
_EMPTY_ZIP = b"PK\x05\x06"
_MANGLE = re.compile(rb"___torch_mangle_\d+")


@dataclass(frozen=True)
class ModelFacts:
    """What a scan found out.

    Attributes:
        arguments: Of forward, without self: `[{name, type, has_default}]`, and `fields` where the
            type holds named tuples: `{full name: {field: type}}`.
        operators: Operator name, as `aten::conv2d`, to its number of calls in the code.
        parameters: Elements of all parameters, shared ones once; buffers do not count.
        is_canonical: The file holds the model and nothing else, as torch or Tersor wrote it.
    """

    arguments: list[dict[str, Any]]
    operators: dict[str, int]
    parameters: int
    is_canonical: bool


def scan_model(path: Path) -> ModelFacts:
    """Check that the file is a whole TorchScript archive and describe it.

    Raises:
        Unprocessable: see `REFUSALS`.
    """
    _check_start(path)
    with open_archive(path, "model") as archive:
        contents = sort_entries(archive)
        top, instances = _read_pickles(archive, contents)
        classes, operators = _read_code(archive, contents, top)
        _check_attributes(instances, classes)
        _check_rest(archive, contents)
        return ModelFacts(
            arguments=list_arguments(classes.get(top.cls), classes),
            operators=operators,
            parameters=count_parameters(top, classes),
            is_canonical=archive.is_plain,
        )


REFUSALS = (
    "not_a_zip", "empty_archive", "not_torchscript", "corrupt_archive", "not_canonical",
    "too_many_entries", "corrupt_entry", "illegal_entry_name", "duplicate_entry", "multiple_roots",
    "unexpected_entry", "compressed_tensor", "code_too_large", "unsupported_version",
    "corrupt_pickle", "pickle_too_large", "pickle_too_deep", "forbidden_global",
    "class_not_allowed", "missing_record", "storage_size_mismatch", "invalid_tensor",
    "bad_code", "code_too_complex", "operation_not_allowed", "bad_signature",
)  # fmt: skip
"""Codes with which a scan refuses."""


def _check_start(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise Unprocessable(f"The file is empty (0 bytes). {EXPORT}", code="not_a_zip")
    if start.startswith(_EMPTY_ZIP):
        raise Unprocessable(f"The archive is empty. {EXPORT}", code="empty_archive")
    if start.startswith(_ZIP):
        return
    if start.startswith(b"\x80"):
        what = "It looks like a pickle, as old versions of torch.save wrote. "
    elif start.startswith(b"\x93NUMPY"):
        what = "It is a NumPy array. "
    elif start[8:9] == b"{":
        what = "It looks like safetensors, which hold weights without the model's code. "
    else:
        what = ""
    raise Unprocessable(
        f"The file is not a TorchScript archive (those are zip files). {what}{EXPORT}",
        code="not_a_zip",
    )


def _read_pickles(archive: Archive, contents: Contents) -> tuple[Instance, list[Instance]]:
    """Check all pickles and the sizes that they claim; return the model, and all its objects."""
    found = {}
    for name, entry in contents.pickles.items():
        pickled = read_objects(f"{name}.pkl", archive.read(entry))
        if name != "traced_inputs":  # torch keeps their shapes alone, and does not read them again
            check_tensors(name, pickled, contents.records.get(name, {}))
        found[name] = pickled
    top = found["data"].root
    if not isinstance(top, Instance):
        raise not_torchscript("Its data.pkl holds no module.")
    return top, found["data"].instances


def _check_attributes(instances: list[Instance], classes: dict[str, ModuleClass]) -> None:
    """Refuse objects that lack what their class declares; those with a __setstate__ say it so."""
    for instance in instances:
        known = classes.get(instance.cls)
        if known is None or (
            isinstance(instance.state, dict) and known.attributes - instance.state.keys()
        ):
            raise corrupt_pickle("data.pkl")


def _read_code(
    archive: Archive, contents: Contents, top: Instance
) -> tuple[dict[str, ModuleClass], dict[str, int]]:
    """Return classes by full name, and operators.

    Traced models repeat a class for every layer. Code that differs only in the number that torch
    puts into a class's name is read once, unless it says types of what forward takes.
    """
    classes: dict[str, ModuleClass] = {}
    calls = Calls()
    known: dict[tuple[bytes, bool], tuple[dict[str, ModuleClass], Calls]] = {}
    for name, entry in contents.code.items():
        source = archive.read(entry)
        module = name.removesuffix(".py").replace("/", ".")
        has_types = b"NamedTuple" in source or top.cls.startswith(f"{module}.")
        alike = (_MANGLE.sub(b"", source), is_of_torch(name))
        if alike not in known or has_types:
            tree = parse(name, source)  # one tree at a time: they are far larger than the code
            known[alike] = read_classes(tree), read_calls(name, tree)
        found, called = known[alike]
        classes |= {f"{module}.{each}": facts for each, facts in found.items()}
        calls.add(called)
    calls.check_methods()
    return classes, dict(sorted(calls.operators.items()))


def _check_rest(archive: Archive, contents: Contents) -> None:
    """Check version and byte order, and read everything else through for its checksum."""
    small = {name: archive.read(entry) for name, entry in contents.small.items()}
    version = small.get("version", b"")
    if not version.strip().isdigit() or not 1 <= int(version[:9]) <= MAX_VERSION:
        raise Unprocessable(
            f"The file is of version {version[:20]!a}; 1 to {MAX_VERSION} are read. Export the "
            "model with a torch between 1.6 and 2.13.",
            code="unsupported_version",
        )
    if small.get("byteorder", b"little") != b"little":
        raise Unprocessable(
            "The file was written on a big-endian machine. Save it on another.",
            code="unsupported_version",
        )
    for entry in contents.debug:
        check_literals(entry.name, archive.read(entry))
    records = (entry for each in contents.records.values() for entry in each.values())
    for entry in (*records, *contents.others):
        archive.verify(entry)
