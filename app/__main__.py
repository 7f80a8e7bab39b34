"""Serves the API: `python -m app --host 127.0.0.1 --port 8080 [--fd N]`, one process."""

from __future__ import annotations

import argparse
import ipaddress
import os
import resource
import socket
import sys

import uvicorn
from fastapi import FastAPI

from app.auth.repository import count_live_keys
from app.db import Database, is_schema_current
from app.logs import configure_logging
from app.main import create_app
from app.settings import Settings, get_settings
from app.state import Services
from app.tracing import start_tracing, trace_requests


class _Server(uvicorn.Server):
    """Releases the clients that wait for a job before it waits for them."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        services: Services = self._app.state.services
        await services.waiter.close()
        await super().shutdown(sockets)


def main() -> None:
    """Start the server; exit 2 with a sentence if it must not start."""
    parser = argparse.ArgumentParser(prog="python -m app", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--fd", type=int, help="a listening socket to use instead")
    options = parser.parse_args()
    settings = get_settings()
    configure_logging(settings.log_level, settings.log_format)
    reason = find_reason_not_to_start(settings, is_open=not _is_loopback(options.host, options.fd))
    if reason is not None:
        sys.stderr.write(f"tersor: {reason}\n")
        sys.exit(2)
    _allow_connections()
    app = create_app(settings)
    if start_tracing("tersor-api"):
        trace_requests(app)
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,  # RequestIdMiddleware writes the line, with the request's id
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    # not Config.fd: that takes any descriptor for a UNIX socket
    sockets = None if options.fd is None else [socket.socket(fileno=options.fd)]
    _Server(config, app).run(sockets)


def _allow_connections() -> None:
    """Open as many files as the system lets us: 1024 are soon taken by clients that wait."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def find_reason_not_to_start(settings: Settings, *, is_open: bool) -> str | None:
    """Return why the server must not start: another schema, or open to others without a key."""
    database = Database(settings)
    try:
        if not is_schema_current(database.engine):
            return "the database has another schema; run: python -m app.admin migrate"
        with database.read() as session:
            if is_open and count_live_keys(session) == 0:
                return (
                    "refusing to listen on an address that others can reach while there is no "
                    "key; make one first: python -m app.admin bootstrap"
                )
    finally:
        database.close()
    return None


def _is_loopback(host: str, descriptor: int | None) -> bool:
    if descriptor is not None:
        with socket.socket(fileno=os.dup(descriptor)) as listener:
            if listener.family == socket.AF_UNIX:
                return True
            host = listener.getsockname()[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    main()
