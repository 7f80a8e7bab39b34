"""Answers once: looks for the first answer, or lets the creating transaction keep one.

Source: the Idempotency-Key header as in draft-ietf-httpapi-idempotency-key-header.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Header, Response
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db import Database, utc_now
from app.errors import Conflict, ServiceError
from app.idempotency.tables import FirstAnswer

Row = TypeVar("Row")

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[ -~]{1,255}$",
        description="Of your making; with it, the request sent again gets the first answer.",
    ),
]
_KEPT_HEADERS = ("location", "etag", "upload-offset", "upload-expires", "cache-control")


@dataclass
class _Asked:
    project_id: str
    key: str
    fingerprint: str
    show: Callable[[Session, Any], Response]
    answer: Response | None = None


_asked_var: ContextVar[_Asked | None] = ContextVar("asked", default=None)


class _Repeated(Exception):
    """Another request with the same key was quicker; what this one made is rolled back."""


def answer_once(
    database: Database,
    project_id: str,
    key: str | None,
    question: Any,
    make: Callable[[], Row],
    show: Callable[[Session, Row], Response],
) -> Response:
    """Make something and show it; asked again with the same key, return the first answer.

    Args:
        database: Where answers are kept.
        project_id: Who asks.
        key: `Idempotency-Key`, if the client sent one.
        question: What is asked for, as JSON types: with it a key is compared.
        make: Creates the row; its transaction must call `keep_answer`.
        show: Returns the answer for the row.

    Raises:
        Conflict: `idempotency_conflict`, the key came with another question before.
    """
    if key is None:
        row = make()
        with database.read() as session:
            return show(session, row)
    asked = _Asked(project_id, key, _fingerprint(question), show)
    found = _find(database, asked)
    if found is not None:
        return found
    token = _asked_var.set(asked)
    try:
        make()
    except (_Repeated, ServiceError):
        # refused perhaps for the very thing that the first request, just ended, has made or taken
        found = _find(database, asked)
        if found is None:
            raise
        return found
    finally:
        _asked_var.reset(token)
    assert asked.answer is not None
    return asked.answer


def keep_answer(session: Session, row: Any) -> None:
    """Keep the answer to the present request, if it has a key, in the transaction that creates."""
    asked = _asked_var.get()
    if asked is None:
        return
    answer = asked.show(session, row)
    headers = {name: answer.headers[name] for name in _KEPT_HEADERS if name in answer.headers}
    try:
        session.execute(
            insert(FirstAnswer).values(
                project_id=asked.project_id,
                key=asked.key,
                fingerprint=asked.fingerprint,
                status=answer.status_code,
                headers=headers,
                body=bytes(answer.body).decode(),
                created_at=utc_now(),
            )
        )
    except IntegrityError as error:
        raise _Repeated from error
    asked.answer = answer


def _fingerprint(question: Any) -> str:
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()


def _find(database: Database, asked: _Asked) -> Response | None:
    with database.read() as session:
        first = session.get(FirstAnswer, (asked.project_id, asked.key))
    if first is None:
        return None
    if first.fingerprint != asked.fingerprint:
        raise Conflict(
            "This Idempotency-Key came with another request before. Take a new key for each thing "
            "that you want to create.",
            code="idempotency_conflict",
        )
    headers = {**first.headers, "Idempotency-Replayed": "true"}
    return Response(first.body, first.status, headers=headers, media_type="application/json")
