"""Parses Python source into a tree, one thread at a time."""

from __future__ import annotations

import ast
import threading
import warnings

# CPython 3.11 counts the depth of a tree it builds in the interpreter, not in the thread: two
# threads at once end in "SystemError: AST constructor recursion depth mismatch".
AST_LOCK = threading.Lock()


def parse_source(source: bytes) -> ast.Module:
    """Return the tree of a module.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: it is none.
    """
    with AST_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return ast.parse(source)
