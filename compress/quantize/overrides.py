"""Layer name patterns to precisions: which layers a request's `overrides` mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from compress.errors import InvalidSpec
from compress.spec import LayerPrecision


def resolve_overrides(
    overrides: Mapping[str, LayerPrecision], layers: Sequence[str]
) -> dict[str, tuple[str, LayerPrecision]]:
    """Return layer name -> (the last pattern that matches it, its precision).

    Args:
        overrides: Shell-style pattern to precision, in the order given; `*` also crosses dots.
        layers: Dotted names of the weighted layers.

    Raises:
        InvalidSpec: A pattern that matches no layer; names the closest ones.
    """
    resolved: dict[str, tuple[str, LayerPrecision]] = {}
    for pattern, precision in overrides.items():
        matched = [name for name in layers if fnmatchcase(name, pattern)]
        if not matched:
            close = get_close_matches(pattern, layers, 3, 0.3) or list(layers[:3])
            hint = ", ".join(f"'{name}'" for name in close)
            raise InvalidSpec(
                f"Override '{pattern}' matches no layer of the model. Close names: {hint}."
            )
        for name in matched:
            resolved[name] = (pattern, precision)
    return resolved
