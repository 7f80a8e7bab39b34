"""Spans of one attempt at a job: its own, and below it one of each stage.

The worker makes them from what the job's process tells: that one speaks to no network.
"""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode

from app.tracing import context_of
from workers.lease import Claim

_tracer = trace.get_tracer("tersor")


class AttemptTrace:
    """An attempt under way, as a part of the trace of the request that submitted the job."""

    def __init__(self, claimed: Claim) -> None:
        """Begin the attempt's span, and that of its first stage."""
        self._whole = _tracer.start_span(
            f"{claimed.kind} {claimed.method}",
            context_of(claimed.traceparent),
            attributes={
                "tersor.job_id": claimed.job_id,
                "tersor.method": claimed.method,
                "tersor.attempt": claimed.attempt,
            },
        )
        self._inside = trace.set_span_in_context(self._whole)
        self._stage: Span = _tracer.start_span("fetch", self._inside)

    def stage(self, name: str) -> None:
        """A new stage began."""
        self._stage.end()
        self._stage = _tracer.start_span(name, self._inside)

    def end(self, status: str) -> None:
        """The attempt is over, and the job has this status; `lost` if another worker has it."""
        self._whole.set_attribute("tersor.status", status)
        if status in ("failed", "lost"):
            for span in (self._stage, self._whole):
                span.set_status(Status(StatusCode.ERROR))
        self._stage.end()
        self._whole.end()
