"""Webhooks: where a job's end is told, and the outbox it waits in for `workers/webhooks.py`."""
