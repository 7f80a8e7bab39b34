"""Types that fields of configs are written with."""

from __future__ import annotations

from math import isfinite
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len, Predicate

LayerPrecision = Literal["int8", "fp16", "bf16", "fp32"]
Observer = Literal["histogram", "minmax", "percentile", "mse", "entropy"]
Granularity = Literal["per_channel", "per_tensor", "per_group"]

# control characters and lone surrogates go into no database, file or terminal
Text = Annotated[str, Len(1, 200), Predicate(str.isprintable)]

Number = bool | Annotated[int, Ge(-(2**63)), Le(2**63 - 1)] | Annotated[float, Predicate(isfinite)]

# pydantic reads this attribute from a plain dataclass; the engine itself needs no pydantic.
CONFIG: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


class Strict:
    """Tells pydantic, which need not be there, to take no text for a number or a truth value."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        schema = handler(source)
        schema["strict"] = True
        return schema


Flag = Annotated[bool, Strict()]
