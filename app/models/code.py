"""Reads the classes in a TorchScript file's code, and what forward takes."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

from app.errors import Unprocessable

MAX_TYPE_CHARACTERS = 500
MAX_FIELDS = 500  # of all named tuples that forward takes
_CLASS_NAME = re.compile(r"__torch__[\w.]+")


@dataclass(frozen=True)
class ModuleClass:
    """What a scan keeps of a class.

    Attributes:
        attributes: Names of what each object must have.
        parameters: Their names.
        forward: What it takes.
        fields: Field to type, of a named tuple.
    """

    attributes: frozenset[str]
    parameters: frozenset[str]
    forward: ast.arguments | None
    fields: dict[str, str] | None


def bad_code(name: str, why: str = "") -> Unprocessable:
    return Unprocessable(
        f"The code of the model ({name!a}) is not as torch.jit writes it{why and ': '}{why}; "
        "export the model again.",
        code="bad_code",
    )


def read_classes(tree: ast.Module) -> dict[str, ModuleClass]:
    """Return the classes of a file by their names in it."""
    return {
        node.name: ModuleClass(
            _read_attributes(node),
            _read_parameter_names(node),
            _find_forward(node),
            _read_fields(node),
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


def _read_attributes(node: ast.ClassDef) -> frozenset[str]:
    """Return what is declared: `weight : Tensor`, or `__annotations__["0"] = Tensor`."""
    names = set()
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and statement.value is None:
            if isinstance(statement.target, ast.Name):
                names.add(statement.target.id)
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Subscript):
            key = statement.targets[0].slice
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                names.add(key.value)
    return frozenset(names)


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
