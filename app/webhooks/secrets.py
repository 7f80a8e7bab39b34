"""Secrets that webhooks are signed with. Source: Standard Webhooks, "Symmetric signatures"."""

from __future__ import annotations

import base64
import secrets
from datetime import timedelta

from sqlalchemy.orm import Session

from app.db import utc_now
from app.webhooks.tables import WebhookSecret

_PREFIX = "whsec_"
_SECRET_BYTES = 32
PREVIOUS_KEPT_S = 24 * 3600.0


def renew_secret(session: Session, project_id: str) -> WebhookSecret:
    """Give the project a new secret; the one before signs beside it for a day."""
    fresh = _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
    row = session.get(WebhookSecret, project_id, with_for_update=True)
    if row is None:
        row = WebhookSecret(project_id=project_id, secret=fresh, previous=None)
        session.add(row)
    else:
        row.previous, row.secret = row.secret, fresh
    row.changed_at = utc_now()
    session.flush()
    return row


def list_secrets(session: Session, project_id: str) -> list[str]:
    """Return the secrets to sign with, the newest first."""
    row = session.get(WebhookSecret, project_id)
    if row is None:
        return []
    is_young = utc_now() - row.changed_at < timedelta(seconds=PREVIOUS_KEPT_S)
    return [row.secret, *([row.previous] if row.previous and is_young else [])]
