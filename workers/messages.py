"""Lines from a job's process, read as what they are: the words of a program we do not trust."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from compress.spec import Stage
from workers.failures import Failure

_LINE_BYTES = 32 * 2**20
_TEXT_CHARACTERS = 2000
_DEPTH = 32
_STAGES = frozenset(get_args(Stage))
_EVENT_TYPES = frozenset(("metrics", "log"))
_LEVELS = frozenset(("debug", "info", "warning", "error"))


class BadMessage(Exception):
    """The process sent something that the engine never sends."""


@dataclass(frozen=True)
class StageBegan:
    """A new stage began."""

    stage: str
    message: str


@dataclass(frozen=True)
class Progressed:
    """`fraction` of the whole job is done."""

    fraction: float
    message: str


@dataclass(frozen=True)
class Happened:
    """An event worth keeping."""

    type: str
    message: str
    data: Mapping[str, Any] | None
    level: str


@dataclass(frozen=True)
class Finished:
    """The engine's result."""

    result: Mapping[str, Any]


@dataclass(frozen=True)
class Failed:
    """The engine's error."""

    failure: Failure


Message = StageBegan | Progressed | Happened | Finished | Failed


class MessageReader:
    """Cuts what a pipe yields into messages."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """Yield the messages that `chunk` completes.

        Raises:
            BadMessage: a line is not a message, or too long.
        """
        self._rest += chunk
        *lines, rest = self._rest.split(b"\n") if b"\n" in chunk else [self._rest]
        self._rest = rest
        if len(rest) > _LINE_BYTES:
            raise BadMessage("a line without end")
        for line in lines:
            try:
                content = _plain(json.loads(line, parse_constant=lambda _name: None))
                yield _message(content)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise BadMessage(f"not a message: {bytes(line[:200])!r}") from error


def _message(content: Mapping[str, Any]) -> Message:
    kind = content["kind"]
    if kind == "stage" and content["stage"] in _STAGES:
        return StageBegan(content["stage"], _text(content["message"]))
    if kind == "progress":
        fraction = float(content["fraction"])
        return Progressed(min(max(fraction, 0.0), 1.0), _text(content["message"]))
    if kind == "event" and content["type"] in _EVENT_TYPES and content["level"] in _LEVELS:
        data = content["data"]
        if data is not None and not isinstance(data, dict):
            raise BadMessage("event data")
        return Happened(content["type"], _text(content["message"]), data, content["level"])
    if kind == "result" and isinstance(content["result"], dict):
        return Finished(content["result"])
    if kind == "error":
        error = content["error"]
        details = error.get("details")
        return Failed(
            Failure(
                _text(error["code"])[:64],
                _text(error["message"]),
                stage=error["stage"] if error["stage"] in _STAGES else None,
                retryable=error["retryable"] is True,
                details=details if isinstance(details, dict) else None,
            )
        )
    raise BadMessage(f"unknown message {str(kind)[:40]}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value[:_TEXT_CHARACTERS]


def _plain(value: Any, depth: int = 0) -> Any:
    """Return what every database can store as JSON: finite numbers, texts without NUL."""
    if depth > _DEPTH:
        raise ValueError("too deep")
    if isinstance(value, dict):
        return {_plain(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, str):
        # lone surrogates cannot be encoded; PostgreSQL refuses NUL
        return value.replace("\0", "").encode("utf-8", "replace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return None  # 1e999
    return value
