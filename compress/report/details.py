"""What a report lists below its headline: layers, what lifting found, free-form tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compress.report.formats import bytes_text, decibels, shorten, significant
from compress.result import Layer, Result

MAX_ROWS = 3000
OPEN_ROWS = 40
"""Longer tables of layers are folded in."""
_OPEN_LISTED = 12
_MAX_LISTED = 200
_NAME_LENGTH = 120
_REASON_LENGTH = 400


def layer_row(layer: Layer) -> dict[str, Any]:
    return {
        "name": shorten(layer.name, _NAME_LENGTH),
        "type": shorten(layer.type, 60),
        "precision": layer.precision,
        "before": bytes_text(layer.size_bytes[0]),
        "after": bytes_text(layer.size_bytes[1]),
        "sqnr": decibels(layer.sqnr_db),
        "reason": shorten(layer.reason or "", _REASON_LENGTH),
    }


def lift_view(lift: Mapping[str, Any]) -> dict[str, Any]:
    islands = [
        {**island, "name": shorten(str(island["name"]), _NAME_LENGTH),
         "reason": shorten(str(island["reason"]), _REASON_LENGTH)}
        for island in lift.get("islands", [])
    ]  # fmt: skip
    return {
        "islands": islands[:_MAX_LISTED],
        "islands_left_out": max(0, len(islands) - _MAX_LISTED),
        "guards": [shorten(str(guard), 300) for guard in lift.get("guards", [])[:_MAX_LISTED]],
        "guards_left_out": max(0, len(lift.get("guards", [])) - _MAX_LISTED),
        "dynamic": [
            f"{name}: {', '.join(map(str, axes)) or 'none'}"
            for name, axes in lift.get("dynamic_dims", {}).items()
        ],
        "state": [shorten(str(name), _NAME_LENGTH) for name in lift.get("state", [])],
        "methods_dropped": list(lift.get("methods_dropped", [])),
    }


def environment_rows(result: Result) -> list[tuple[str, str]]:
    environment = result.environment
    return [
        ("Processor", environment.cpu),
        ("Instruction sets", ", ".join(environment.isa) or "none of those that matter"),
        ("Threads", str(environment.threads)),
        ("PyTorch", environment.torch),
        ("Device", environment.device),
        ("Parameters", f"{result.baseline.parameters:,}".replace(",", " ")),
    ]


def sections(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return free-form JSON as tables: one for each mapping or list of such, one for the rest."""
    found, single = [], []
    for name, value in content.items():
        label = str(name).replace("_", " ")
        if isinstance(value, Mapping):
            found.append(_table(label, ["", ""], value.items()))
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            columns = list(dict.fromkeys(str(key) for row in value for key in row))
            rows = ([row.get(column) for column in columns] for row in value)
            found.append(_table(label, columns, rows))
        else:
            single.append((label, value))
    return ([_table("", ["", ""], single)] if single else []) + found


def _table(label: str, columns: list[str], rows: Iterable[Iterable[Any]]) -> dict[str, Any]:
    kept = [
        [
            bytes_text(cell)
            if column.endswith("bytes") and isinstance(cell, int)
            else shorten(plain(cell), _NAME_LENGTH)
            for column, cell in zip(columns, row, strict=True)
        ]
        for row in rows
    ]
    return {
        "label": label,
        "columns": [column.replace("_", " ").removesuffix(" bytes") for column in columns],
        "rows": kept[:MAX_ROWS],
        "folded": len(kept) > _OPEN_LISTED,
    }


def plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return significant(value, 4)
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "none"
    return "none" if value is None else str(value)
