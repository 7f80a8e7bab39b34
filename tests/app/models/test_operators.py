from __future__ import annotations

import torch

from app.models.operators import ATEN, NEVER_METHODS, PRIM

KNOWN = {schema.name for schema in torch._C._jit_get_all_schemas()}
HARMFUL = {"from_file", "save", "manual_seed", "set_grad_enabled", "set_", "resize_", "set_data"}


def test_what_is_listed_is_in_torch() -> None:
    if torch.__version__.startswith("2.13"):
        assert {name for name in ATEN if f"aten::{name}" not in KNOWN} == set()
    assert len([name for name in PRIM if f"prim::{name}" in KNOWN]) > 30


def test_what_touches_files_or_the_process_is_not_listed() -> None:
    assert {f"aten::{name}" for name in HARMFUL} <= KNOWN
    assert not HARMFUL & ATEN
    assert not NEVER_METHODS & ATEN
    assert HARMFUL - {"manual_seed"} <= NEVER_METHODS


def test_every_operator_that_takes_a_file_name_is_refused() -> None:
    """Should a new torch bring one, this fails, and somebody looks."""
    named = {
        schema.name
        for schema in torch._C._jit_get_all_schemas()
        for argument in schema.arguments
        if "file" in argument.name.lower()
    }
    assert named == {"aten::from_file", "aten::save"}
