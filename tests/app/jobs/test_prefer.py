from __future__ import annotations

import pytest
from starlette.requests import Request

from app.jobs.prefer import wait_preference


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("wait=30", 30),
        ("wait=0", 0),
        ("wait=9999", 60),
        ("respond-async, wait=5", 5),
        ("Wait = 5", 5),
        ('wait="7"', 7),
        ("wait=-1", None),
        ("wait=abc", None),
        ("nowait=5", None),
        ("wait", None),
        ("", None),
    ],
)
def test_wait_is_read_and_bounded(header: str, seconds: int | None) -> None:
    scope = {"type": "http", "headers": [(b"prefer", header.encode())]}
    assert wait_preference(Request(scope), 60) == seconds
