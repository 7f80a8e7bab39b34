"""Settings from the environment, one class per concern. The README's table lists them."""

from __future__ import annotations

import os
from functools import cached_property, lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class DatabaseSettings(BaseSettings):
    """`TERSOR_DATABASE_*`."""

    model_config = SettingsConfigDict(env_prefix="TERSOR_DATABASE_")

    url: str | None = None
    """SQLAlchemy URL; default: SQLite in the data folder. `postgresql+psycopg://…` to scale out."""
    busy_timeout_s: float = 20.0
    """How long a write waits for another one; PostgreSQL ends a transaction idle for so long."""
    pool_size: int = 10


class BrokerSettings(BaseSettings):
    """`TERSOR_BROKER_*`."""

    model_config = SettingsConfigDict(env_prefix="TERSOR_BROKER_")

    url: str | None = None
    """Celery URL of Redis or Valkey; default: the socket of the embedded one."""


class StorageSettings(BaseSettings):
    """`TERSOR_STORAGE_*`."""

    model_config = SettingsConfigDict(env_prefix="TERSOR_STORAGE_")

    url: str | None = None
    """`file:///folder`; default: `blobs` in the data folder."""


class LimitSettings(BaseSettings):
    """`TERSOR_LIMIT_*`: what one request may ask for."""

    model_config = SettingsConfigDict(env_prefix="TERSOR_LIMIT_")

    upload_bytes: int = 16 * 2**30
    upload_stall_s: Annotated[float, Field(gt=0)] = 60.0
    """A request whose body stops coming for so long is given up."""
    upload_expires_s: Annotated[float, Field(gt=0)] = 24 * 3600.0
    """A resumable upload that gets nothing for so long is removed."""
    dataset_declared_bytes: int = 64 * 2**30
    """Bytes that a dataset's arrays claim, checked before anything is read."""
    json_bytes: int = 2**20
    timeout_s_default: int = 3600
    timeout_s_max: int = 7 * 24 * 3600
    wait_s_max: int = 60
    """Longest `Prefer: wait`."""
    waiting: Annotated[int, Field(ge=0)] = 1000
    """Requests that wait for a job or follow its events, of one API process at once."""
    waiting_per_project: Annotated[int, Field(ge=0)] = 500
    preflight_wait_s: float = 15.0


class AuditSettings(BaseSettings):
    """`TERSOR_AUDIT_*`."""

    model_config = SettingsConfigDict(env_prefix="TERSOR_AUDIT_")

    kept_days: Annotated[float, Field(gt=0)] = 90.0


def _parse_networks(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(ip_network(each.strip()) for each in value.split(",") if each.strip())


class WebhookSettings(BaseSettings):
    """`TERSOR_WEBHOOK_*`."""

    model_config = SettingsConfigDict(env_prefix="TERSOR_WEBHOOK_")

    private_networks: Annotated[
        tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_parse_networks)
    ] = ()
    """With commas: networks that webhooks may go to although they are not public."""
    timeout_s: Annotated[float, Field(gt=0)] = 15.0
    """For one try, from the look-up of the name to the answer's status."""


class WorkerSettings(BaseSettings):
    """`TERSOR_WORKER_*`."""

    model_config = SettingsConfigDict(env_prefix="TERSOR_WORKER_")

    lease_s: float = 30.0
    """A running job whose supervisor is silent for so long is taken over."""
    heartbeat_s: float = 5.0
    sweep_s: float = 5.0
    resend_after_s: float = 10.0
    """A job queued for so long without a message gets another one."""
    max_attempts: int = 3
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1)
    """Threads of one job's computation."""
    memory_bytes: int = 0
    """Limit of a job's memory; 0 for a worker's share of three quarters of the machine's."""
    nice: int = 5
    """Politeness of job processes towards the API."""


class Settings(BaseSettings):
    """All settings. `TERSOR_DATA_DIR` is the folder of everything that needs no server."""

    model_config = SettingsConfigDict(env_prefix="TERSOR_")

    data_dir: Path = Path("tersor-data")
    log_level: str = "INFO"
    log_format: Literal["plain", "json"] = "plain"
    metrics: Literal["key", "open", "off"] = "key"
    """Who may read /metrics: keys with the scope admin, everybody, or nobody."""
    sandbox: Literal["on", "require", "off"] = "on"
    """Walls around jobs: what the kernel has; all of them or no work; limits alone, to debug."""

    @cached_property
    def database(self) -> DatabaseSettings:
        return DatabaseSettings()

    @cached_property
    def broker(self) -> BrokerSettings:
        return BrokerSettings()

    @cached_property
    def storage(self) -> StorageSettings:
        return StorageSettings()

    @cached_property
    def limits(self) -> LimitSettings:
        return LimitSettings()

    @cached_property
    def audit(self) -> AuditSettings:
        return AuditSettings()

    @cached_property
    def webhook(self) -> WebhookSettings:
        return WebhookSettings()

    @cached_property
    def worker(self) -> WorkerSettings:
        return WorkerSettings()

    @property
    def database_url(self) -> str:
        return self.database.url or f"sqlite:///{self.data_dir.resolve() / 'tersor.db'}"

    @property
    def broker_url(self) -> str:
        return self.broker.url or f"redis+socket://{self.data_dir.resolve() / 'broker/broker.sock'}"

    @property
    def storage_url(self) -> str:
        return self.storage.url or f"file://{self.data_dir.resolve() / 'blobs'}"


class InvalidSettings(Exception):
    """A variable of the environment holds what its setting cannot be."""


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return the process's settings, read once.

    Raises:
        InvalidSettings: A value is wrong; the message names the variable.
    """
    try:
        settings = Settings()
        for group in ("database", "broker", "storage", "limits", "audit", "webhook", "worker"):
            getattr(settings, group)  # all are read now, so that a wrong one is told at the start
    except ValidationError as error:
        prefix = _PREFIXES[error.title]
        fault = error.errors(include_input=False, include_url=False)[0]
        name = prefix + "_".join(str(step) for step in fault["loc"]).upper()
        raise InvalidSettings(f"{name} is not valid: {fault['msg']}.") from None
    return settings


_PREFIXES = {
    group.__name__: str(group.model_config["env_prefix"])
    for group in (
        Settings,
        DatabaseSettings,
        BrokerSettings,
        StorageSettings,
        LimitSettings,
        AuditSettings,
        WebhookSettings,
        WorkerSettings,
    )
}
