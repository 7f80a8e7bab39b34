"""What the database says at the moment of a scrape; the same from every API process."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.db import Database, utc_now
from app.jobs.repository import count_unfinished
from app.jobs.tables import Job, spelled_out
from app.metrics import jobs
from app.metrics.tables import Counter
from app.storage import BlobStore
from app.system.repository import list_live_workers

log = logging.getLogger(__name__)


class Snapshot(Collector):
    """Looks anew whenever it is collected."""

    def __init__(self, database: Database, store: BlobStore) -> None:
        self._database = database
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Yield all families, or only that the database does not answer."""
        families: list[Metric] = []
        try:
            with self._database.read() as session:
                families += [*_queues(session), *_workers(session), *_finished(session)]
        except SQLAlchemyError as error:
            log.warning("no figures of the database: %s", error)
            families = []
        up = GaugeMetricFamily("tersor_database_up", "Whether the database answers.")
        up.add_metric([], float(bool(families)))
        free = GaugeMetricFamily("tersor_storage_free_bytes", "Room left in the storage.")
        free.add_metric([], float(self._store.free_bytes()))
        yield from (up, free, *families)


def _queues(session: Session) -> Iterator[Metric]:
    counts = GaugeMetricFamily("tersor_jobs", "Unfinished jobs.", labels=("queue", "status"))
    for queue, by_status in count_unfinished(session).items():
        for status, count in by_status.items():
            counts.add_metric([queue, status], count)
    yield counts
    ages = GaugeMetricFamily(
        "tersor_queue_oldest_seconds", "Age of the oldest queued job.", labels=("queue",)
    )
    now = utc_now()
    for queue in ("cpu", "gpu", "inspect"):
        oldest: datetime | None = session.scalar(
            select(func.min(Job.created_at)).where(
                Job.status == spelled_out("queued"), Job.queue == queue
            )
        )
        age_s = 0.0 if oldest is None else (now - oldest).total_seconds()
        ages.add_metric([queue], max(0.0, age_s))
    yield ages


def _workers(session: Session) -> Iterator[Metric]:
    slots = GaugeMetricFamily(
        "tersor_worker_slots", "Jobs that a worker runs at a time.", labels=("worker", "queues")
    )
    layers = GaugeMetricFamily(
        "tersor_sandbox_layer", "Whether a wall around jobs stands.", labels=("worker", "layer")
    )
    for worker in list_live_workers(session):
        slots.add_metric([worker.id, ",".join(worker.queues)], worker.slots)
        for layer, stands in sorted(worker.info.get("sandbox", {}).items()):
            layers.add_metric([worker.id, layer], float(bool(stands)))
    yield slots
    yield layers


def _finished(session: Session) -> Iterator[Metric]:
    values: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for row in session.scalars(select(Counter).order_by(Counter.name, Counter.labels)):
        values[row.name][tuple(json.loads(row.labels))] = row.value
    for metric in jobs.METRICS:
        if metric.buckets:
            yield _show_histogram(metric, values[metric.name], values[f"{metric.name}_sum"])
        else:
            counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in values[metric.name].items():
                counter.add_metric(labels, value)
            yield counter


def _show_histogram(
    metric: jobs.Metric,
    counts: dict[tuple[str, ...], float],
    sums: dict[tuple[str, ...], float],
) -> Metric:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    bounds = [*map(repr, metric.buckets), "+Inf"]
    for labels, total in sums.items():
        so_far, buckets = 0.0, []
        for bound in bounds:
            so_far += counts.get((*labels, bound), 0.0)
            buckets.append((bound, so_far))
        family.add_metric(labels, buckets, total)
    return family
