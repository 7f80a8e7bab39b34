"""Reads a TorchScript file without torch: what forward takes, which operators, how many weights.

Nothing of the file is run. A file that cannot be TorchScript is refused with a sentence that says
what it is instead and how to make one.
"""

from __future__ import annotations

import ast
import zipfile
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from app.archives import open_archive, read_entry
from app.errors import Unprocessable
from app.models.pickled import Instance, as_tensor, read_objects
from app.syntax import parse_source

MAX_CODE_BYTES = 2 * 2**20
MAX_OPERATORS = 5000  # distinct ones; torch has some 3000
MAX_TYPE_CHARACTERS = 500
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
        arguments: Of forward, without self: `[{name, type, has_default}]`.
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
    classes: dict[str, _Class] = {}
    operators: Counter[str] = Counter()
    for name, source in sources.items():  # one tree at a time: they are far larger than the code
        tree = _parse(name, source)
        classes |= _read_classes(name, tree)
        operators += _count_operators(tree)
        if len(operators) > MAX_OPERATORS:
            raise _bad_code(name)
    top = read_objects(pickled)
    if not isinstance(top, Instance):
        raise _not_torchscript("Its data.pkl holds no module.")
    return ModelFacts(
        arguments=_list_arguments(classes.get(top.cls)),
        operators=dict(sorted(operators.items())),
        parameters=_count_parameters(top, classes),
    )


@dataclass(frozen=True)
class _Class:
    """What a scan keeps of a class: names of its parameters, and what its forward takes."""

    parameters: frozenset[str]
    forward: ast.arguments | None


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


def _parse(name: str, source: bytes) -> ast.Module:
    try:
        return parse_source(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _bad_code(name) from error


def _bad_code(name: str) -> Unprocessable:
    return Unprocessable(
        f"The code of the model ({name!a}) is not as torch.jit writes it; export the model again.",
        code="bad_code",
    )


def _read_classes(name: str, tree: ast.Module) -> dict[str, _Class]:
    """Return classes by full name: `__torch__/zoo.py` holds `__torch__.zoo.Net`."""
    module = ".".join(PurePosixPath(name).with_suffix("").parts)
    return {
        f"{module}.{node.name}": _Class(_read_parameter_names(node), _find_forward(node))
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


def _find_forward(node: ast.ClassDef) -> ast.arguments | None:
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "forward":
            return statement.args
    return None


def _list_arguments(top: _Class | None) -> list[dict[str, Any]]:
    if top is None or top.forward is None:
        raise Unprocessable(
            "The model has no forward method, so it cannot be run. Export a module whose forward "
            "takes the inputs.",
            code="bad_signature",
        )
    given = top.forward
    if given.vararg or given.kwarg or given.kwonlyargs:
        raise Unprocessable(
            "The model's forward takes *args, **kwargs or keyword-only arguments; give each input "
            "an argument of its own.",
            code="bad_signature",
        )
    arguments = [*given.posonlyargs, *given.args][1:]
    required = len(arguments) - len(given.defaults)
    return [
        {
            "name": argument.arg,
            "type": _show_type(argument.annotation),
            "has_default": index >= required,
        }
        for index, argument in enumerate(arguments)
    ]


def _show_type(annotation: ast.expr | None) -> str:
    if annotation is None:
        return "Tensor"
    try:
        text = ast.unparse(annotation)
    except RecursionError as error:
        raise _bad_code("forward") from error
    if len(text) > MAX_TYPE_CHARACTERS:
        raise _bad_code("forward")
    return text


def _count_operators(tree: ast.Module) -> Counter[str]:
    counts: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := _operator_name(node.func)):
            counts[name] += 1
    return counts


def _operator_name(function: ast.expr) -> str | None:
    if not isinstance(function, ast.Attribute):
        return None
    owner = function.value
    if isinstance(owner, ast.Name) and owner.id == "torch":
        return f"aten::{function.attr}"
    if (
        isinstance(owner, ast.Attribute)
        and isinstance(owner.value, ast.Name)
        and owner.value.id == "ops"
    ):
        return f"{owner.attr}::{function.attr}"
    return None


def _count_parameters(top: Instance, classes: dict[str, _Class]) -> int:
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


def _read_parameter_names(node: ast.ClassDef) -> frozenset[str]:
    for statement in node.body:
        if (
            isinstance(statement, ast.Assign)
            and isinstance(statement.targets[0], ast.Name)
            and statement.targets[0].id == "__parameters__"
            and isinstance(statement.value, ast.List)
        ):
            return frozenset(
                item.value
                for item in statement.value.elts
                if isinstance(item, ast.Constant) and isinstance(item.value, str)
            )
    return frozenset()
