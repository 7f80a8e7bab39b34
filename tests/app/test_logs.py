from __future__ import annotations

import logging

import pytest

from app.logs import PlainFormatter


@pytest.mark.parametrize(
    ("sent", "logged"),
    [
        ("a\n2026-01-01 ERROR app: not so", "a\\n2026-01-01 ERROR app: not so"),
        ("a\r\x00b", "a\\r\\x00b"),
        ("\x1b[2Jgone\x9b1m", "\\x1b[2Jgone\\x9b1m"),
        ("日本\tkept", "日本\tkept"),
    ],
)
def test_what_a_client_sends_neither_forges_lines_nor_steers_a_terminal(
    sent: str, logged: str
) -> None:
    record = logging.LogRecord("app", logging.INFO, "", 0, "%s", (f"GET /{sent}",), None)
    assert PlainFormatter("%(message)s").format(record) == f"GET /{logged}"
