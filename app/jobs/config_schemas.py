"""JSON Schema and defaults of what methods' configs may hold."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any

from pydantic import GetJsonSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, to_jsonable_python

from compress.spec import METHODS


@dataclass(frozen=True)
class Described:
    """Describes the fields that a config inherits: pydantic reads its own docstrings alone."""

    config: type

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for base in filter(is_dataclass, self.config.__mro__[1:]):
            for name, field in TypeAdapter(base).json_schema()["properties"].items():
                properties[name].setdefault("description", field.get("description", ""))
        return schema


def config_schema(method: str) -> dict[str, Any]:
    """Return the JSON Schema of a method's config, with every default."""
    config = METHODS[method]
    described: Any = Annotated[config, Described(config)]
    schema = TypeAdapter(described).json_schema()
    for name, value in config_defaults(method).items():  # also those that a factory makes
        schema["properties"][name]["default"] = value
    return schema


def config_defaults(method: str) -> dict[str, Any]:
    """Return the default of each field: a config as a whole may need one that has none."""
    return {
        field.name: to_jsonable_python(
            field.default if field.default_factory is MISSING else field.default_factory()
        )
        for field in fields(METHODS[method])
    }
