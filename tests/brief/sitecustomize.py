"""Lets jobs of real processes measure for tenths of a second: the tests ask how jobs end.

Python imports a module of this name as it starts, here from PYTHONPATH, which workers hand on to
the processes of their jobs. The demo, which a test runs too, measures as long as users' jobs do.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

SHARES_S = {"RACE_SHARE_S": 0.1, "THROUGHPUT_SHARE_S": 0.03}


class Brief(MetaPathFinder):
    """Changes the shares of time as their module is loaded."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == "compress.benchmark" else None
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_brief(module: ModuleType) -> None:
            load(module)
            assert vars(module).keys() >= SHARES_S.keys()
            vars(module).update(SHARES_S)

        spec.loader.exec_module = load_brief  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Brief())
