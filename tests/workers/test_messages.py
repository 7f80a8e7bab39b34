from __future__ import annotations

import json
from typing import Any

import pytest

from workers.messages import (
    BadMessage,
    Failed,
    Finished,
    Happened,
    MessageReader,
    Progressed,
    StageBegan,
)


def line(**content: Any) -> bytes:
    return json.dumps(content).encode() + b"\n"


def test_messages_are_read_however_the_pipe_cuts_them() -> None:
    stream = (
        line(kind="stage", stage="lift", message="a")
        + line(kind="progress", fraction=0.25, message="b")
        + line(kind="event", type="metrics", message="c", data={"loss": 1.5}, level="info")
        + line(kind="result", result={"x": [1, "ü"]})
    )
    expected = [
        StageBegan("lift", "a"),
        Progressed(0.25, "b"),
        Happened("metrics", "c", {"loss": 1.5}, "info"),
        Finished({"x": [1, "ü"]}),
    ]
    for size in (1, 7, 64, len(stream)):
        reader = MessageReader()
        chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
        assert [message for chunk in chunks for message in reader.feed(chunk)] == expected


def test_what_json_or_a_database_cannot_hold_is_made_harmless() -> None:
    reader = MessageReader()
    result = rb'{"a": NaN, "b": [Infinity, 1e999], "c\u0000": "x\u0000\ud800"}'
    (message,) = reader.feed(b'{"kind": "result", "result": ' + result + b"}\n")
    assert message == Finished({"a": None, "b": [None, None], "c": "x?"})


def test_progress_is_held_between_none_and_all() -> None:
    reader = MessageReader()
    sent = line(kind="progress", fraction=7, message="") + line(
        kind="progress", fraction=-1, message=""
    )
    assert [message.fraction for message in reader.feed(sent)] == [1.0, 0.0]  # type: ignore[union-attr]


def test_an_error_keeps_its_code_and_only_a_known_stage() -> None:
    error = {"code": "shape_mismatch", "message": "m", "stage": "nonsense", "retryable": "yes"}
    (message,) = MessageReader().feed(line(kind="error", error=error))
    assert isinstance(message, Failed)
    assert (message.failure.code, message.failure.stage) == ("shape_mismatch", None)
    assert message.failure.retryable is False
    assert message.failure.details is None


def test_an_error_brings_figures_that_belong_to_it() -> None:
    error = {"code": "constraint_unmet", "message": "m", "stage": None, "retryable": False}
    best = {"best": {"size_bytes": 1000, "sqnr_db": 9.5}}
    (message,) = MessageReader().feed(line(kind="error", error={**error, "details": best}))
    assert isinstance(message, Failed)
    assert message.failure.details == best
    (message,) = MessageReader().feed(line(kind="error", error={**error, "details": "text"}))
    assert isinstance(message, Failed)
    assert message.failure.details is None


@pytest.mark.parametrize(
    "sent",
    [
        b"not json\n",
        b"[]\n",
        b"\xff\xfe\n",
        line(kind="status", status="succeeded"),
        line(kind="stage", stage="drop table", message=""),
        line(kind="progress", fraction="x", message=""),
        line(kind="event", type="status", message="", data=None, level="info"),
        line(kind="event", type="log", message="", data=[1], level="info"),
        line(kind="result", result=[1]),
        line(kind="error", error={"code": "x"}),
        b"[" * 5000 + b"]" * 5000 + b"\n",
        b'{"kind": "result", "result": ' + b'{"a":' * 40 + b"1" + b"}" * 41 + b"\n",
    ],
)  # fmt: skip
def test_anything_else_is_refused(sent: bytes) -> None:
    with pytest.raises(BadMessage):
        list(MessageReader().feed(sent))


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    reader = MessageReader()
    for _ in range(32):
        assert list(reader.feed(b"x" * 2**20)) == []
    with pytest.raises(BadMessage):
        list(reader.feed(b"x"))


def test_long_texts_are_cut() -> None:
    (message,) = MessageReader().feed(line(kind="stage", stage="load", message="x" * 10**6))
    assert isinstance(message, StageBegan)
    assert len(message.message) == 2000
