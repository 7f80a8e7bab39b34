"""The client: `Client().jobs.submit("ptq", model)`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from tersor.access import find_access
from tersor.files import Datasets, Models
from tersor.jobs import Jobs
from tersor.parsing import parse
from tersor.projects import Audit, Keys, Projects, Webhooks
from tersor.spec import Data, job_body
from tersor.transport import Transport, path_of
from tersor.views import Dataset, MethodInfo, Model, Preflight, System


class Client:
    """A synchronous client of one service, with one key. Safe to share between threads.

    Args:
        base_url: Address of the service; else `TERSOR_URL`, else the last `tersor up` of this
            user, else http://127.0.0.1:8080.
        api_key: Key; else `TERSOR_API_KEY`, else the one that `tersor up` wrote for that address.
        timeout_s: Longest silence of the service before a request is given up.
        transport: Another way to the service, for tests.
        sleep: How to pause between tries, for tests.

    Raises:
        ConfigurationError: The address or key cannot be one.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._transport = Transport(find_access(base_url, api_key), timeout_s, transport, sleep)
        self.models = Models(self._transport)
        self.datasets = Datasets(self._transport)
        self.jobs = Jobs(self._transport)
        self.keys = Keys(self._transport)
        self.projects = Projects(self._transport)
        self.webhooks = Webhooks(self._transport)
        self.audit = Audit(self._transport)

    @property
    def url(self) -> str:
        """Address of the service."""
        return self._transport.url

    def preflight(
        self,
        method: str,
        model_id: str | Model,
        *,
        calibration: Data = None,
        evaluation: Data = None,
        training: Dataset | str | None = None,
        student: Model | str | None = None,
        config: Mapping[str, Any] | None = None,
        timeout_s: float = 120.0,
        **fields: Any,
    ) -> Preflight:
        """Ask, without a job, what a job could compress and whether its data fits the model.

        Takes the arguments of `jobs.submit`. `timeout_s` is the longest wait for the answer; what
        comes back unfinished (`finished` is False) can be looked at again by its `id`.
        """
        body = job_body(
            method, model_id, calibration=calibration, evaluation=evaluation, training=training,
            student=student, config=config, **fields,
        )  # fmt: skip
        deadline = time.monotonic() + timeout_s
        # the service waits up to 15 s before it answers that it is not done yet
        answer = self._transport.post("/v1/preflight", body, timeout_s=60.0)
        found = parse(Preflight, answer.json())
        while not found.finished and time.monotonic() < deadline:
            self._transport.sleep(0.5)
            answer = self._transport.get(path_of("preflight", found.id))
            found = parse(Preflight, answer.json())
        return found

    def methods(self) -> list[MethodInfo]:
        """Return the methods that the service offers, with their schemas."""
        page = self._transport.get("/v1/methods").json()
        return [parse(MethodInfo, item) for item in page["data"]]

    def method_schema(self, method: str) -> dict[str, Any]:
        """Return the JSON Schema of a method's config, with defaults."""
        schema: dict[str, Any] = self._transport.get(path_of("methods", method, "schema")).json()
        return schema

    def system(self) -> System:
        """Return version, devices, workers, queue lengths and limits."""
        return parse(System, self._transport.get("/v1/system").json())

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
