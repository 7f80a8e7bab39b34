"""The thread in every worker that makes good what died: messages, owners, files, and old rows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

from sqlalchemy import delete, select, update
from sqlalchemy.exc import SQLAlchemyError

from app.audit.repository import forget_old
from app.db import Database, utc_now, wake
from app.idempotency.repository import forget_answers
from app.jobs.repository import delete_jobs
from app.jobs.tables import FINISHED, Job, WorkerSeen, spelled_out
from app.metrics.tally import tally_jobs
from app.projects.retention import remove_expired
from app.queue import QueueName
from app.settings import Settings
from app.storage import BlobStore, artifact_prefix
from app.uploads.expiry import remove_expired as remove_expired_uploads
from app.uploads.expiry import remove_orphans
from workers import endings
from workers.checkpoints import checkpoints_folder, remove_checkpoints
from workers.expiries import Expiries, Owned
from workers.failures import worker_lost
from workers.identity import is_known_dead, own_name
from workers.job_folder import remove_folder, work_folder
from workers.lease import LeaseLost, database_now, list_late

log = logging.getLogger(__name__)

_WORKER_KEPT_S = 600.0
_STAGED_KEPT_S = 60.0
_PREFLIGHT_KEPT_S = 24 * 3600.0
_ROWS_AT_ONCE = 200  # of what is removed in one transaction: others wait for it


class Sweeper:
    """Looks around every `sweep_s`. What fails is logged, and tried again the next time."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: BlobStore,
        *,
        queues: Sequence[str],
        slots: int,
        running: Callable[[], frozenset[str]],
        machine: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._queues = tuple(queues)
        self._slots = slots
        self._running = running
        self._machine = machine
        self._started_at = utc_now()
        self._stopped = threading.Event()
        self._poked = threading.Event()
        self._expiries = Expiries(settings.worker.sweep_s, settings.worker.heartbeat_s)
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Begin to sweep."""
        self._thread.start()

    def poke(self) -> None:
        """Sweep now."""
        self._poked.set()

    def stop(self, timeout_s: float) -> None:
        """End, and take this worker off the list of those alive."""
        self._stopped.set()
        self._poked.set()
        self._thread.join(timeout_s)

    def sweep(self) -> None:
        """Do every duty once; one that fails does not keep the others from being done."""
        duties = (
            self.show_up,
            self.release_dead,
            self.send_again,
            self.remove_leftovers,
            self.remove_checkpoints,
            self.remove_uploads,
            self.forget_workers,
            self.forget_preflights,
            self.forget_audit_events,
            self.forget_answers,
            self.tally_jobs,
            self.remove_expired,
        )
        for duty in duties:
            try:
                duty()
            except (SQLAlchemyError, OSError) as error:
                log.warning("sweeper: %s failed: %s", duty.__name__, error)
            except Exception:  # a sweeper that ended would not be missed by anyone
                log.exception("sweeper: %s failed", duty.__name__)

    def show_up(self) -> None:
        """Write that this worker is alive, and what it has."""
        with self._database.write() as session:
            session.merge(
                WorkerSeen(
                    id=own_name(),
                    queues=list(self._queues),
                    slots=self._slots,
                    info=dict(self._machine()),
                    started_at=self._started_at,
                    seen_at=database_now(session),
                )
            )

    def release_dead(self) -> None:
        """Give jobs of dead owners back to the queue, or end them after too many attempts."""
        with self._database.read() as session:
            now = database_now(session)
            rows = session.execute(
                select(Job.id, Job.fence, Job.owner, Job.lease_expires_at).where(
                    Job.status == "running"
                )
            ).all()
        running = [Owned(*row) for row in rows]
        expired = {
            each for each in running if each.lease_expires_at is None or each.lease_expires_at < now
        }
        self._expiries.look(now, expired)
        for owned in running:
            if is_known_dead(owned.owner):
                self._release(owned, "its worker ended", lambda _now: True)
            elif owned in expired:
                self._release(
                    owned,
                    "its worker was not heard of in time",
                    partial(self._expiries.means_death, owned),
                )

    def send_again(self) -> None:
        """Send messages for jobs that wait too long while this worker has a free slot.

        Only for as many jobs as it could start: its slots go on to the next job by themselves,
        so more messages would only pile up in the broker.
        """
        free = self._slots - len(self._running())
        if free <= 0:
            return
        with self._database.read() as session:
            now = database_now(session)
            late = now - timedelta(seconds=self._settings.worker.resend_after_s)
            job_ids = list_late(session, self._queues, late, free)
        if not job_ids:
            return
        with self._database.write() as session:
            sent = session.execute(
                update(Job)
                .where(
                    Job.id.in_(job_ids),
                    Job.status == "queued",
                    Job.message_sent_at < late,  # another sweeper may have been quicker
                    Job.cancel_requested_at.is_(None),
                )
                .values(message_sent_at=now)
                .returning(Job.id, Job.queue)
                .execution_options(synchronize_session=False)
            ).all()
            for job_id, queue in sent:
                wake(session, job_id, cast(QueueName, queue))
        for job_id, _queue in sent:
            log.info("wake-up message sent again", extra={"job_id": job_id})

    def remove_leftovers(self) -> None:
        """Remove folders of attempts that nobody runs any more, and half-written blobs."""
        if removed := self._store.remove_abandoned(_STAGED_KEPT_S):
            log.info("%d half-written files removed", removed)
        folder = work_folder(self._settings)
        if not folder.exists():
            return
        # listed before the rows are read: a folder made later cannot be mistaken for a leftover
        names = {path.name for path in folder.iterdir()} - self._running()
        if not names:
            return
        job_ids = {name.rpartition("-")[0] for name in names}
        with self._database.read() as session:
            alive = {
                f"{job_id}-{fence}"
                for job_id, fence in session.execute(
                    select(Job.id, Job.fence).where(Job.id.in_(job_ids), Job.status == "running")
                )
            }
        for name in names - alive - self._running():
            remove_folder(folder / name)
            log.info("leftover folder %s removed", name)

    def remove_checkpoints(self) -> None:
        """Remove checkpoints of jobs that have ended: no attempt will go on from them."""
        folder = checkpoints_folder(self._settings)
        job_ids = [path.name for path in folder.iterdir()] if folder.exists() else []
        if not job_ids:
            return
        with self._database.read() as session:
            unfinished = session.scalars(
                select(Job.id).where(Job.id.in_(job_ids), Job.status.not_in(FINISHED))
            ).all()
        for job_id in set(job_ids).difference(unfinished):
            remove_checkpoints(self._settings, job_id)
            log.info("checkpoints removed", extra={"job_id": job_id})

    def remove_uploads(self) -> None:
        """Remove uploads whose next piece never came."""
        if removed := remove_expired_uploads(self._database, self._store):
            log.info("%d unfinished uploads expired", removed)
        if removed := remove_orphans(self._database, self._store):
            log.info("%d parts of uploads removed that nobody knew", removed)

    def forget_workers(self) -> None:
        """Remove workers from the list that are known to be dead, or silent for long."""
        with self._database.read() as session:
            silent_since = database_now(session) - timedelta(seconds=_WORKER_KEPT_S)
            workers = session.execute(select(WorkerSeen.id, WorkerSeen.seen_at)).all()
        gone = [
            worker_id
            for worker_id, seen_at in workers
            if worker_id != own_name() and (seen_at < silent_since or is_known_dead(worker_id))
        ]
        if gone:
            self._forget(gone)

    def forget_preflights(self) -> None:
        """Remove preflights that ended long ago: they are answers to a question, not jobs."""
        with self._database.read() as session:
            over = Job.finished_at < database_now(session) - timedelta(seconds=_PREFLIGHT_KEPT_S)
            old = session.scalars(
                select(Job.id)
                .where(Job.kind == spelled_out("preflight"), over)
                .limit(_ROWS_AT_ONCE)
            ).all()
        if old:
            with self._database.write() as session:
                delete_jobs(session, old)

    def forget_audit_events(self) -> None:
        """Remove what the audit log has kept for long enough."""
        forget_old(self._database, self._settings.audit.kept_days, _ROWS_AT_ONCE)

    def forget_answers(self) -> None:
        """Remove answers that were kept, for requests sent again, for a day."""
        forget_answers(self._database, _ROWS_AT_ONCE)

    def tally_jobs(self) -> None:
        """Count jobs that have ended, for /metrics."""
        tally_jobs(self._database, _ROWS_AT_ONCE)

    def remove_expired(self) -> None:
        """Remove what projects keep no longer."""
        if removed := remove_expired(self._database, self._store, _ROWS_AT_ONCE):
            log.info("%d expired jobs, models and datasets removed", removed)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._poked.clear()
            self.sweep()
            self._poked.wait(self._settings.worker.sweep_s)
        try:
            self._forget([own_name()])
        except SQLAlchemyError as error:
            log.warning("sweeper: %s", error)

    def _forget(self, worker_ids: Sequence[str]) -> None:
        with self._database.write() as session:
            session.execute(delete(WorkerSeen).where(WorkerSeen.id.in_(worker_ids)))

    def _release(self, owned: Owned, reason: str, sure: Callable[[datetime], bool]) -> None:
        max_attempts = self._settings.worker.max_attempts
        try:
            with self._database.write() as session:
                still = session.scalar(
                    select(Job.id)
                    .where(
                        Job.id == owned.job_id,
                        Job.fence == owned.fence,
                        # a heartbeat that came in between keeps the job
                        Job.lease_expires_at == owned.lease_expires_at,
                    )
                    # a row that someone is just writing is not abandoned, and not waited for:
                    # a worker frozen in mid-write must not hold up the release of other jobs
                    .with_for_update(skip_locked=True)
                )
                if still is None or not sure(database_now(session)):
                    return
                status = endings.try_again(
                    session, owned.job_id, owned.fence, reason=reason,
                    max_attempts=max_attempts, failure=worker_lost(max_attempts),
                )  # fmt: skip
        except LeaseLost:
            return
        log.warning("job %s: %s", status, reason, extra={"job_id": owned.job_id})
        for fence in range(1, owned.fence + 1):
            self._store.delete_tree(artifact_prefix(owned.job_id, fence))
