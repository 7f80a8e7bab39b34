"""Reads what a model's code calls, and refuses what is not on the list.

torch gives code the names `torch` (all of aten) and `ops` (every namespace that is loaded), and any
value's method may be an operator too: `"/etc/passwd".from_file()`. So a call must name what it
calls: `torch.x`, `ops.space.x`, a method, or a name bound to code of the model. Everything else,
such as an operator under another name, is nothing that torch.jit.save writes.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from app.errors import Unprocessable
from app.models.code import bad_code
from app.models.operators import ATEN, NEVER_METHODS, PRIM, WORDS
from app.models.pickled import class_not_allowed
from app.syntax import parse_source

MAX_NODES = 500_000
MAX_DEPTH = 200
_NODES = frozenset({
    ast.Module, ast.ClassDef, ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.AnnAssign,
    ast.AugAssign, ast.Return, ast.Expr, ast.Pass, ast.If, ast.For, ast.While, ast.With,
    ast.withitem, ast.Break, ast.Continue, ast.Raise, ast.Assert, ast.Call, ast.keyword, ast.Name,
    ast.Attribute, ast.Subscript, ast.Slice, ast.Constant, ast.Tuple, ast.List, ast.Dict,
    ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp,
})  # fmt: skip
_MARKS = (ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop)
_ROOTS = ("torch", "ops")
_NO_GRAD = "__torch__/torch/autograd/grad_mode"
_HINTS = {
    "print": "Take print out of the model.",
    "aten::manual_seed": "Jobs set the seed; take this out of the model.",
    "aten::set_grad_enabled": "Use `with torch.no_grad():` instead.",
}
_PYTHON_CALL = re.compile(rb"\^\s*\w")
_STRANGE = re.compile(rb"[^\n\x20-\x7e]")


@dataclass
class Calls:
    """What code calls.

    Attributes:
        operators: Name, as `aten::conv2d`, to the number of calls.
        methods: Of objects, that are no operators on the list; the model must define them.
        defined: Functions, methods and classes of the model.
    """

    operators: Counter[str] = field(default_factory=Counter)
    methods: set[str] = field(default_factory=set)
    defined: set[str] = field(default_factory=set)

    def add(self, other: Calls) -> None:
        """Add what another piece of code calls."""
        self.operators += other.operators
        self.methods |= other.methods
        self.defined |= other.defined

    def check_methods(self) -> None:
        """Refuse methods that are neither the model's nor on the list; last, when all are known.

        Raises:
            Unprocessable: `operation_not_allowed`.
        """
        for name in sorted(self.methods & NEVER_METHODS | self.methods - self.defined):
            raise _not_allowed(f"the method {name}")


def parse(name: str, source: bytes) -> ast.Module:
    """Return the tree of a file of code.

    Raises:
        Unprocessable: bad_code; operation_not_allowed where it calls Python.
    """
    if found := _STRANGE.search(source):  # which two parsers could read differently
        raise bad_code(name, f"it holds the byte {found[0]!r}")
    try:
        return parse_source(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if _PYTHON_CALL.search(source):
            raise _not_allowed(
                "a Python function (of torch.autograd.Function or @torch.jit.ignore)"
            ) from error
        raise bad_code(name) from error


def read_calls(name: str, tree: ast.Module) -> Calls:
    """Return what a file of code calls.

    Raises:
        Unprocessable: operation_not_allowed, class_not_allowed, code_too_complex, bad_code.
    """
    calls = Calls()
    waiting: list[tuple[ast.AST, int, _Function]] = [(tree, 0, _Function(tree))]
    count = 0
    while waiting:
        node, depth, function = waiting.pop()
        kind = type(node)
        count += 1
        if depth > MAX_DEPTH or count > MAX_NODES:
            raise _too_complex(name)
        if kind not in _NODES:
            raise bad_code(name, f"it holds a {kind.__name__}")
        below: Iterable[ast.AST]
        if isinstance(node, ast.Call):
            below = _read_call(name, node, function, calls)
        else:
            below = ast.iter_child_nodes(node)
            if isinstance(node, ast.Name):
                below = ()
                if node.id in _ROOTS:
                    raise _not_allowed(f"{node.id} itself, not one of its operators")
            elif isinstance(node, ast.Attribute):
                below = (node.value,)
                if node.attr == "classes" and _is_torchbind(node):
                    raise class_not_allowed("__torch__.torch.classes")
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                calls.defined.add(node.name)
                function = _Function(node) if kind is ast.FunctionDef else function
        waiting.extend((each, depth + 1, function) for each in below
                       if not isinstance(each, _MARKS))  # fmt: skip
    return calls


class _Function:
    """A function, and what the names mean that it binds."""

    def __init__(self, tree: ast.AST) -> None:
        self._tree = tree

    @cached_property
    def bound(self) -> dict[str, bool]:
        """Each name that is bound, and whether it only ever means code of the model.

        `_0 = __torch__.zoo.helper` is how torch shortens what it calls.
        """
        short = set()
        stored = []
        bound = {}
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                stored.append(node)
            elif isinstance(node, ast.Assign) and len(node.targets) == 1 and _is_own(node.value):
                short.add(node.targets[0])
            elif isinstance(node, ast.arg):
                bound[node.arg] = False
        for node in stored:
            bound[node.id] = bound.get(node.id, True) and node in short
        return bound


def _read_call(name: str, call: ast.Call, function: _Function, calls: Calls) -> list[ast.expr]:
    """Note what is called; return the expressions in the call that are still to be read."""
    below = [*call.args, *(keyword.value for keyword in call.keywords)]
    if isinstance(call.func, ast.Name) and call.func.id == "fork" and call.args:
        _read_callee(name, call.args[0], function, calls)
    inner = _read_callee(name, call.func, function, calls)
    return below if inner is None else [*below, inner]


def is_of_torch(name: str) -> bool:
    """Return whether the file is torch's own code for `with torch.no_grad()`."""
    return name.startswith(_NO_GRAD)


def _read_callee(name: str, callee: ast.expr, function: _Function, calls: Calls) -> ast.expr | None:
    """Note what is called; return an expression in it that is still to be read."""
    if operator := _operator(callee):
        space, _, short = operator.partition("::")
        allowed = short in {"aten": ATEN, "prim": PRIM}.get(space, ())
        if not allowed and not (short == "set_grad_enabled" and is_of_torch(name)):
            raise _not_allowed(operator)
        calls.operators[operator] += 1
        return None
    if isinstance(callee, ast.Name):
        if not function.bound.get(callee.id, callee.id in WORDS):
            raise _not_allowed(callee.id)
        return None
    if isinstance(callee, ast.Attribute):
        _note_method(callee.attr, calls)
        return callee.value
    if (
        isinstance(callee, ast.Call)
        and isinstance(callee.func, ast.Name)
        and callee.func.id == "getattr"
        and len(callee.args) == 2
        and isinstance(callee.args[1], ast.Constant)
    ):
        _note_method(str(callee.args[1].value), calls)
        return callee
    raise _not_allowed("something without a name")


def _note_method(name: str, calls: Calls) -> None:
    if name not in ATEN and name != "__new__":
        calls.methods.add(name)


def _operator(function: ast.expr) -> str | None:
    """Return `aten::x` for `torch.x`, `space::x` for `ops.space.x`."""
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


def _is_own(value: ast.expr) -> bool:
    depth = 0
    while isinstance(value, ast.Attribute) and depth < MAX_DEPTH:
        value = value.value
        depth += 1
    return isinstance(value, ast.Name) and value.id == "__torch__" and depth > 0


def _is_torchbind(node: ast.Attribute) -> bool:
    owner = node.value
    return (
        isinstance(owner, ast.Attribute)
        and owner.attr == "torch"
        and isinstance(owner.value, ast.Name)
        and owner.value.id == "__torch__"
    )


def _not_allowed(what: str) -> Unprocessable:
    if "::" in what and not what.startswith(("aten::", "prim::")):
        hint = "Operators of other libraries are not here; write the model with torch's own."
    else:
        hint = _HINTS.get(what, "Take it out of the model and export it again.")
    return Unprocessable(
        f"The model calls {what[:100]}, which is not on the list of what models may call. {hint}",
        code="operation_not_allowed",
    )


def _too_complex(name: str) -> Unprocessable:
    return Unprocessable(
        f"The code of the model ({name!a}) is nested over {MAX_DEPTH} levels deep, or has over "
        f"{MAX_NODES} parts. Split it into modules.",
        code="code_too_complex",
    )
