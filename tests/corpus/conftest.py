"""The real app, as tests of the API have it."""

from tests.app.conftest import api, broker, broker_url, client, key, settings

__all__ = ["api", "broker", "broker_url", "client", "key", "settings"]
