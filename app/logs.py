"""Logging: one line per event, plain or JSON, each with the id of its request."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

request_id_var: ContextVar[str | None] = ContextVar("request_id", default=None)

_CONTROLS = {
    code: repr(chr(code))[1:-1] for code in (*range(0x09), *range(0x0A, 0x20), *range(0x7F, 0xA0))
}
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object per line: at, level, logger, message, request_id, and the extras."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _extras(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class PlainFormatter(logging.Formatter):
    """`time level logger message key=value …`."""

    def format(self, record: logging.LogRecord) -> str:
        extras = "".join(f" {key}={value}" for key, value in _extras(record).items())
        return f"{super().format(record)}{extras}"

    def formatMessage(self, record: logging.LogRecord) -> str:
        # what a client sent must neither look like a line of ours nor steer a terminal
        record.message = record.message.translate(_CONTROLS)
        return super().formatMessage(record)


def configure_logging(level: str, style: Literal["plain", "json"]) -> None:
    """Send all log lines to stderr in the given style."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter()
        if style == "json"
        else PlainFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _extras(record: logging.LogRecord) -> dict[str, object]:
    extras = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    extras.pop("color_message", None)  # uvicorn's second copy of its message
    request_id = request_id_var.get()
    if request_id is not None:
        extras.setdefault("request_id", request_id)
    return extras
