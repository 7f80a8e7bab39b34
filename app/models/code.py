"""Reads the code in a TorchScript file: classes, what forward takes, which operators are called."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from app.errors import Unprocessable
from app.syntax import parse_source

MAX_TYPE_CHARACTERS = 500
MAX_FIELDS = 500  # of all named tuples that forward takes
_CLASS_NAME = re.compile(r"__torch__[\w.]+")


@dataclass(frozen=True)
class ModuleClass:
    """What a scan keeps of a class.

    Attributes:
        parameters: Their names.
        forward: What it takes.
        fields: Field to type, of a named tuple.
    """

    parameters: frozenset[str]
    forward: ast.arguments | None
    fields: dict[str, str] | None


def parse(name: str, source: bytes) -> ast.Module:
    try:
        return parse_source(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise bad_code(name) from error


def bad_code(name: str) -> Unprocessable:
    return Unprocessable(
        f"The code of the model ({name!a}) is not as torch.jit writes it; export the model again.",
        code="bad_code",
    )


def read_classes(name: str, tree: ast.Module) -> dict[str, ModuleClass]:
    """Return classes by full name: `__torch__/zoo.py` holds `__torch__.zoo.Net`."""
    module = ".".join(PurePosixPath(name).with_suffix("").parts)
    return {
        f"{module}.{node.name}": ModuleClass(
            _read_parameter_names(node), _find_forward(node), _read_fields(node)
        )
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


def _find_forward(node: ast.ClassDef) -> ast.arguments | None:
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "forward":
            return statement.args
    return None


def _read_fields(node: ast.ClassDef) -> dict[str, str] | None:
    """Return the fields of a named tuple, or None for another class."""
    if not any(isinstance(base, ast.Name) and base.id == "NamedTuple" for base in node.bases):
        return None
    declared = [each for each in node.body if isinstance(each, ast.AnnAssign)][:MAX_FIELDS]
    return {
        each.target.id: _show_type(each.annotation)
        for each in declared
        if isinstance(each.target, ast.Name)
    }


def list_arguments(
    top: ModuleClass | None, classes: dict[str, ModuleClass]
) -> list[dict[str, Any]]:
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
    described = []
    for index, argument in enumerate(arguments):
        kind = _show_type(argument.annotation)
        facts = {"name": argument.arg, "type": kind, "has_default": index >= required}
        fields = _named_tuples(kind, classes)
        described.append(facts | ({"fields": fields} if fields else {}))
    return described


def _named_tuples(kind: str, classes: dict[str, ModuleClass]) -> dict[str, dict[str, str]]:
    """Return the fields of all named tuples in a type, and of those in their fields."""
    found: dict[str, dict[str, str]] = {}
    waiting = [kind]
    while waiting and sum(map(len, found.values())) < MAX_FIELDS:
        for name in _CLASS_NAME.findall(waiting.pop()):
            fields = classes[name].fields if name in classes else None
            if fields and name not in found:
                found[name] = fields
                waiting.extend(fields.values())
    return found


def _show_type(annotation: ast.expr | None) -> str:
    if annotation is None:
        return "Tensor"
    try:
        text = ast.unparse(annotation)
    except RecursionError as error:
        raise bad_code("forward") from error
    if len(text) > MAX_TYPE_CHARACTERS:
        raise bad_code("forward")
    return text


def count_operators(tree: ast.Module) -> Counter[str]:
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
