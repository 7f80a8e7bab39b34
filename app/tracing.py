"""Optional OpenTelemetry traces: a request, and the stages of the job that it submitted.

Off unless OTEL_EXPORTER_OTLP_ENDPOINT says where they go; the SDK reads the other OTEL_* variables,
as for sampling. Without a collector, spans are the no-operations of OpenTelemetry's API.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from opentelemetry import propagate, trace
from opentelemetry.context import Context

if TYPE_CHECKING:  # workers come here too, and need no web framework
    from fastapi import FastAPI

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_UNTRACED = "healthz,readyz,metrics"
_PARENT = "traceparent"  # of W3C's Trace Context


def start_tracing(service: str) -> bool:
    """Send this process's spans to the collector that the environment names.

    Args:
        service: What the process calls itself, unless OTEL_SERVICE_NAME says otherwise.

    Returns:
        Whether there is one.
    """
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return False
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning('no traces are sent: run pip install "tersor[tracing]"')
        return False
    name = os.environ.get("OTEL_SERVICE_NAME") or service
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return True


def trace_requests(app: FastAPI) -> None:
    """Make a span of each request to `app`, but for those of monitors."""
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    FastAPIInstrumentor.instrument_app(
        app, excluded_urls=_UNTRACED, exclude_spans=["receive", "send"]
    )


def current_traceparent() -> str | None:
    """Return the span that we are in, as a header's value; None outside of any."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get(_PARENT)


def context_of(traceparent: str | None) -> Context:
    """Return the context that `current_traceparent` told of."""
    return propagate.extract({} if traceparent is None else {_PARENT: traceparent})
