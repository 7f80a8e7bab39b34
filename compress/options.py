"""Command-line options of a method's settings, made from the dataclass that declares them."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from compress.errors import InvalidSpec
from compress.spec import Config, LayerPrecision

_PRECISIONS = get_args(LayerPrecision)


def add_options(parser: argparse.ArgumentParser, config: type[Config]) -> None:
    """Add an option for each setting: `smoothquant_alpha` becomes `--smoothquant-alpha`."""
    hints = get_type_hints(config)
    for setting in fields(config):
        flag = f"--{setting.name.replace('_', '-')}"
        default = _default(setting)
        if setting.name == "overrides":
            parser.add_argument(
                "--override", action="append", default=[], metavar="PATTERN=PRECISION",
                help=f"precision of layers ({', '.join(_PRECISIONS)}): 'features.0.*=fp32'",
            )  # fmt: skip
            continue
        if setting.name == "feature_layers":
            parser.add_argument(
                "--feature-layer", action="append", default=[], metavar="TEACHERS=STUDENTS",
                help="layers whose outputs are compared: 'layer3.1.bn2=layer3.0.bn2'",
            )  # fmt: skip
            continue
        if setting.name == "student_model_id":  # a command has files where a service has ids
            parser.add_argument("--student", type=Path, help="TorchScript file; or see --prune")
            continue
        kind = _bare(hints[setting.name])
        shown = "" if default is None else f"default: {_text(default)}"
        if kind is bool:
            parser.add_argument(flag, action="store_true", help=None)
        elif get_origin(kind) is Literal:
            values = get_args(kind)
            parser.add_argument(
                flag, type=type(values[0]), choices=values, default=default, help=shown
            )
        elif get_origin(kind) is tuple:
            choices = get_args(_bare(get_args(kind)[0]))
            parser.add_argument(flag, nargs="+", choices=choices, default=default, help=shown)
        else:
            parser.add_argument(flag, type=kind, default=default, help=shown)


def read_options(options: argparse.Namespace, config: type[Config]) -> Config:
    """Return the settings that options gave.

    Raises:
        InvalidSpec: Settings that contradict each other, or an override that is no pair.
    """
    values: dict[str, Any] = {}
    for setting in fields(config):
        if setting.name == "overrides":
            values["overrides"] = dict(_override(text) for text in options.override)
        elif setting.name == "feature_layers":
            values["feature_layers"] = dict(_pair(text) for text in options.feature_layer)
        elif setting.name == "student_model_id":
            values["student_model_id"] = options.student and options.student.name
        else:
            given = getattr(options, setting.name)
            values[setting.name] = tuple(given) if isinstance(given, list) else given
    try:
        return config(**values)
    except ValueError as error:
        raise InvalidSpec(f"{str(error)[:1].upper()}{str(error)[1:]}.") from error


def _override(text: str) -> tuple[str, Any]:
    pattern, separator, precision = text.rpartition("=")
    if not separator or precision not in _PRECISIONS:
        some = " or ".join(f"PATTERN={each}" for each in _PRECISIONS)
        raise InvalidSpec(f"Override '{text}' is not {some}.")
    return pattern, precision


def _pair(text: str) -> tuple[str, str]:
    teachers, separator, students = text.partition("=")
    if not separator or not teachers or not students:
        raise InvalidSpec(f"Feature layer '{text}' is not TEACHERS=STUDENTS, two names.")
    return teachers, students


def _bare(hint: Any) -> Any:
    """Strip bounds and None from a type."""
    if get_origin(hint) is Annotated:
        return _bare(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return _bare(next(each for each in get_args(hint) if each is not type(None)))
    return hint


def _default(setting: Field[Any]) -> Any:
    return setting.default if setting.default is not MISSING else None


def _text(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)
