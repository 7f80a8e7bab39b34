"""Reads a TorchScript file without torch: what forward takes, which operators, how many weights.

Nothing of the file is run. A file that cannot be TorchScript is refused with a sentence that says
what it is instead and how to make one.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from app.archives import open_archive, read_entry
from app.errors import Unprocessable
from app.models.code import (
    ModuleClass,
    bad_code,
    count_operators,
    list_arguments,
    parse,
    read_classes,
)
from app.models.pickled import Instance, as_tensor, read_objects

MAX_CODE_BYTES = 2 * 2**20
MAX_OPERATORS = 5000  # distinct ones; torch has some 3000
MAX_PACKED_BYTES = 64 * 2**20
_ZIP = b"PK\x03\x04"
_EMPTY_ZIP = b"PK\x05\x06"
_EXPORT = (
    "Make a TorchScript file from the model in eval mode: "
    "torch.jit.trace(model, example).save('model.pt'), or torch.jit.script(model).save('model.pt')."
)


@dataclass(frozen=True)
class ModelFacts:
    """What a scan found out.

    Attributes:
        arguments: Of forward, without self: `[{name, type, has_default}]`, and `fields` where the
            type holds named tuples: `{full name: {field: type}}`.
        operators: Operator name, as `aten::conv2d`, to its number of calls in the code.
        parameters: Elements of all parameters, shared ones once; buffers do not count.
    """

    arguments: list[dict[str, Any]]
    operators: dict[str, int]
    parameters: int


def scan_model(path: Path) -> ModelFacts:
    """Check that the file is a whole TorchScript archive and describe it.

    Raises:
        Unprocessable: not_a_zip, empty_archive, not_torchscript, corrupt_archive, corrupt_entry,
            code_too_large, bad_code, corrupt_pickle, bad_signature, too_many_entries.
    """
    _check_start(path)
    with open_archive(path, "model") as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        if not infos:
            raise Unprocessable(f"The archive is empty. {_EXPORT}", code="empty_archive")
        root = _find_root(infos)
        _check_sizes(infos, root)
        sources: dict[str, bytes] = {}
        pickled = b""
        for info in infos:
            keep = info.filename == f"{root}/data.pkl" or _is_code(info, root)
            content = b"".join(
                chunk for chunk in read_entry(archive, info) if keep
            )  # the rest is read through for its checksum
            if info.filename == f"{root}/data.pkl":
                pickled = content
            elif keep:
                sources[info.filename.removeprefix(f"{root}/code/")] = content
    classes: dict[str, ModuleClass] = {}
    operators: Counter[str] = Counter()
    for name, source in sources.items():  # one tree at a time: they are far larger than the code
        tree = parse(name, source)
        classes |= read_classes(name, tree)
        operators += count_operators(tree)
        if len(operators) > MAX_OPERATORS:
            raise bad_code(name)
    top = read_objects(pickled)
    if not isinstance(top, Instance):
        raise _not_torchscript("Its data.pkl holds no module.")
    return ModelFacts(
        arguments=list_arguments(classes.get(top.cls), classes),
        operators=dict(sorted(operators.items())),
        parameters=_count_parameters(top, classes),
    )


def _check_start(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise Unprocessable(f"The file is empty (0 bytes). {_EXPORT}", code="not_a_zip")
    if start.startswith(_EMPTY_ZIP):
        raise Unprocessable(f"The archive is empty. {_EXPORT}", code="empty_archive")
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
        f"The file is not a TorchScript archive (those are zip files). {what}{_EXPORT}",
        code="not_a_zip",
    )


def _find_root(infos: list[zipfile.ZipInfo]) -> str:
    names = [info.filename for info in infos]
    for name in names:
        root, _, rest = name.partition("/")
        if rest == "data.pkl" and f"{root}/constants.pkl" in names:
            if any(each.startswith(f"{root}/code/") for each in names):
                return root
            raise _not_torchscript("It has no code: the export did not finish.")
    if any(name.endswith("/data.pkl") for name in names):
        raise _not_torchscript(
            "It was written by torch.save (a state_dict or a pickled module), which holds the "
            "weights but not the model's code."
        )
    if any(name.endswith(("models/model.json", "archive_format")) for name in names):
        raise _not_torchscript("It is a torch.export archive (.pt2).")
    if any(name.endswith(".npy") for name in names):
        raise _not_torchscript("It is a NumPy .npz file; upload data to /v1/datasets.")
    raise _not_torchscript("It is some other zip file.")


def _not_torchscript(what: str) -> Unprocessable:
    return Unprocessable(f"The file is not TorchScript. {what} {_EXPORT}", code="not_torchscript")


def _is_code(info: zipfile.ZipInfo, root: str) -> bool:
    return info.filename.startswith(f"{root}/code/") and info.filename.endswith(".py")


def _check_sizes(infos: list[zipfile.ZipInfo], root: str) -> None:
    """Refuse archives that unpack to more than a scan should hold or read."""
    code_bytes = sum(info.file_size for info in infos if _is_code(info, root))
    packed_bytes = sum(
        info.file_size
        for info in infos
        if info.compress_type != zipfile.ZIP_STORED or info.filename == f"{root}/data.pkl"
    )
    if code_bytes > MAX_CODE_BYTES or packed_bytes > MAX_PACKED_BYTES:
        raise Unprocessable(
            f"The model's code unpacks to {code_bytes} bytes and all packed entries to "
            f"{packed_bytes}; at most {MAX_CODE_BYTES} and {MAX_PACKED_BYTES} are taken.",
            code="code_too_large",
        )


def _count_parameters(top: Instance, classes: dict[str, ModuleClass]) -> int:
    tensors = set()
    seen: set[int] = set()
    waiting = [top]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        known = classes.get(module.cls)
        for name, value in module.attributes.items():
            if isinstance(value, Instance):
                waiting.append(value)
            elif known and name in known.parameters and (tensor := as_tensor(value)):
                tensors.add(tensor)
    return sum(prod(tensor.shape) for tensor in tensors)
