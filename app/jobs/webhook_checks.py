"""What a submit can check of a job's webhook."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from app.jobs.bodies import WebhookTarget
from app.jobs.refusals import refuse
from app.webhooks.secrets import list_secrets
from app.webhooks.targets import Network, TargetRefused, check_url


def check_webhook(
    session: Session,
    project_id: str,
    webhook: WebhookTarget | None,
    private_networks: Sequence[Network],
) -> None:
    """Check that the webhook can be signed, and does not name an address it must not go to.

    Raises:
        Unprocessable: webhook_refused, webhook_secret_missing.
    """
    if webhook is None:
        return
    try:
        check_url(webhook.url, private_networks)
    except TargetRefused as refused:
        raise refuse("webhook_refused", "/webhook/url", f"Not there: {refused}.") from refused
    if not list_secrets(session, project_id):
        raise refuse(
            "webhook_secret_missing",
            "/webhook",
            "Webhooks are signed, and the project has no secret. Make one: "
            "POST /v1/webhooks/secret.",
        )
