"""Traces, as a collector receives them from real processes."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.flow.conftest import Service
from tests.flow.test_main_job import finish, npz, script_bytes, upload

pytestmark = pytest.mark.flow

STAGES = ("fetch", "load", "lift", "convert", "export", "evaluate", "benchmark", "store")


class Collector(ThreadingHTTPServer):
    """Takes what exporters send, and keeps (service, span)."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        super().__init__(("127.0.0.1", 0), _Receiver)


class _Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces"
        for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {each.key: each.value.string_value for each in sent.resource.attributes}
            for scope in sent.scope_spans:
                self.server.spans += [(names["service.name"], span) for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_one_trace_goes_from_the_clients_span_through_the_request_to_each_stage_of_the_job(
    collector: Collector, start_service: Callable[..., Service]
) -> None:
    service = start_service(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.server_port}",
        OTEL_BSP_SCHEDULE_DELAY="200",
    )
    trace_id, span_id = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    model = script_bytes(torch.jit.script(torch.nn.Linear(4, 3).eval()))
    with service.client() as client:
        given = upload(client, "models", model, "net")
        data = upload(client, "datasets", npz(input=np.ones((8, 4), np.float32)), "data")
        body = {
            "method": "convert", "model_id": given["id"], "config": {"precision": "fp16"},
            "evaluation": {"dataset_id": data["id"]},
        }  # fmt: skip
        header = {"traceparent": f"00-{trace_id}-{span_id}-01"}
        answer = client.post("/v1/jobs", json=body, headers=header)
        assert answer.status_code == 202, answer.text
        done = finish(client, answer.json())
        client.get("/healthz")
    deadline = time.monotonic() + 20
    while not any(name.startswith("job ") for name in _names(collector, trace_id)):
        assert time.monotonic() < deadline, _names(collector, trace_id)
        time.sleep(0.1)
    spans = [each for each in collector.spans if each[1].trace_id.hex() == trace_id]
    [request] = [span for service, span in spans if service == "tersor-api"]
    assert request.name == "POST /v1/jobs"
    assert request.parent_span_id.hex() == span_id
    [whole] = [span for _, span in spans if span.name == "job convert"]
    assert whole.parent_span_id == request.span_id
    told = {each.key: each.value for each in whole.attributes}
    assert told["tersor.job_id"].string_value == done["id"]
    assert told["tersor.attempt"].int_value == 1
    assert told["tersor.status"].string_value == done["status"]
    is_error = whole.status.code == Status.STATUS_CODE_ERROR
    assert is_error == (done["status"] == "failed")
    stages = [span for _, span in spans if span.parent_span_id == whole.span_id]
    stages.sort(key=lambda span: span.start_time_unix_nano)
    assert done["status"] == "succeeded", done["error"]
    assert tuple(span.name for span in stages) == STAGES
    for span in stages:
        assert whole.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= whole.end_time_unix_nano
    assert not any("healthz" in span.name for _, span in collector.spans)


def _names(collector: Collector, trace_id: str) -> list[str]:
    return [span.name for _, span in list(collector.spans) if span.trace_id.hex() == trace_id]
