"""Projects, and what belongs to one as a whole: keys, webhooks, the audit log."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from tersor.parsing import parse
from tersor.transport import Transport, path_of
from tersor.views import AuditEvent, Delivery, Key, Project, WebhookSecret


class Keys:
    """API keys; `client.keys`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        name: str = "key",
        *,
        scopes: tuple[str, ...] | None = None,
        project_id: str | None = None,
        expires_at: datetime | None = None,
    ) -> Key:
        """Make a key; the answer's `key` is the secret, shown this once.

        Args:
            name: What it is for.
            scopes: Of `read`, `write`, `admin`; none that the asking key lacks. Read and write
                by default.
            project_id: Another project; needs the scope `admin`.
            expires_at: When it stops to work, with a time zone; at the latest when the asking
                key does, which is the default.
        """
        body = {
            "name": name,
            "scopes": list(scopes) if scopes else None,
            "project_id": project_id,
            "expires_at": expires_at.isoformat() if expires_at else None,
        }
        body = {field: value for field, value in body.items() if value is not None}
        return parse(Key, self._transport.create("/v1/keys", body).json())

    def list(self, limit: int | None = None, *, project_id: str | None = None) -> Iterator[Key]:
        """Yield keys, newest first, without their secrets."""
        for item in self._transport.pages("/v1/keys", {"project_id": project_id}, limit):
            yield parse(Key, item)

    def revoke(self, key_id: str) -> None:
        """Revoke a key, at once and for good."""
        self._transport.delete(path_of("keys", key_id))


class Projects:
    """Projects; `client.projects`. All but looking at your own needs the scope `admin`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, name: str, **bounds: int | None) -> Project:
        """Make a project, with the bounds of `change`."""
        body = {"name": name, **_change(bounds)}
        return parse(Project, self._transport.create("/v1/projects", body).json())

    def list(self, limit: int | None = None) -> Iterator[Project]:
        """Yield all projects, newest first."""
        for item in self._transport.pages("/v1/projects", {}, limit):
            yield parse(Project, item)

    def get(self, project_id: str) -> Project:
        """Look at your project or, as an admin, at any: its limits, and what it uses now."""
        return parse(Project, self._transport.get(path_of("projects", project_id)).json())

    def change(self, project_id: str, **bounds: int | None) -> Project:
        """Set what a project is bound by and return it, without its usage.

        Args:
            project_id: Any project.
            bounds: Limits `stored_bytes`, `unfinished_jobs` and `requests_per_s`, and
                `expires_after_s`, the age in seconds at which finished jobs and unused files are
                removed. What is not named stays; None takes a bound away.
        """
        body = _change(bounds)
        return parse(Project, self._transport.patch(path_of("projects", project_id), body).json())


class Webhooks:
    """The project's webhooks; `client.webhooks`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def renew_secret(self) -> WebhookSecret:
        """Make the secret that messages are signed with, shown this once.

        The one before, if any, signs beside it for a day.
        """
        return parse(WebhookSecret, self._transport.post("/v1/webhooks/secret").json())

    def list(self, limit: int | None = None, *, job_id: str | None = None) -> Iterator[Delivery]:
        """Yield the messages about jobs, newest first, with what became of them."""
        for item in self._transport.pages("/v1/webhooks", {"job_id": job_id}, limit):
            yield parse(Delivery, item)


class Audit:
    """Who changed what; `client.audit`. Needs a key with the scope `admin`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(
        self, limit: int | None = None, *, project_id: str | None = None, key_id: str | None = None
    ) -> Iterator[AuditEvent]:
        """Yield changes of all projects, newest first, or those in a project or by a key."""
        params = {"project_id": project_id, "key_id": key_id}
        for item in self._transport.pages("/v1/audit", params, limit):
            yield parse(AuditEvent, item)


def _change(bounds: dict[str, int | None]) -> dict[str, Any]:
    limits = {name: value for name, value in bounds.items() if name != "expires_after_s"}
    body: dict[str, Any] = {"limits": limits} if limits else {}
    if "expires_after_s" in bounds:
        body["expires_after_s"] = bounds["expires_after_s"]
    return body
