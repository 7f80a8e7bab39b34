"""One job from claim to end: the only place that writes the end of a job that has an owner."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.db import Database
from app.errors import StorageFull
from app.jobs.tables import FINISHED, Job
from app.logs import request_id_var
from app.settings import Settings
from app.storage import BlobStore, artifact_prefix
from workers import endings
from workers.artifacts import BadOutput, StoredResult, store_result
from workers.checkpoints import remove_checkpoints
from workers.failures import Failure, crashed, describe, ending, worker_lost
from workers.heartbeat import Heartbeat
from workers.identity import own_name
from workers.job_folder import InputsGone, fill, find_files, job_folder
from workers.lease import Claim, LeaseLost, claim
from workers.memory import memory_per_job
from workers.persist import GaveUp, persist
from workers.spawner import Spawner, ZygoteLost
from workers.tracing import AttemptTrace
from workers.watch import Bounds, Outcome, Watch

log = logging.getLogger(__name__)

_ZYGOTE_TIMEOUT_S = 60.0

End = Callable[[Session], str]


class Supervisor:
    """Runs the jobs of some queues, one at a time in each thread that calls it."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: BlobStore,
        spawner: Spawner,
        queues: Sequence[str],
        slots: int,
        stopping: threading.Event,
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._spawner = spawner
        self._queues = tuple(queues)
        self._stopping = stopping
        self._memory_bytes = memory_per_job(settings, slots)
        self._lock = threading.Lock()
        self._running: set[str] = set()

    @property
    def running(self) -> frozenset[str]:
        """Names (`<job>-<fence>`) of the attempts that run in this process."""
        with self._lock:
            return frozenset(self._running)

    def work_off(self) -> None:
        """Run jobs until none waits.

        A message says only that there is work; which job is next, the table says. So a doubled
        message finds nothing, and a lost one is made good by whoever is awake.
        """
        while not self._stopping.is_set():
            # unclaimed, a job can wait for another worker; claimed, it could not
            if not self._spawner.wait_ready(_ZYGOTE_TIMEOUT_S):
                log.error("the zygote does not start; jobs stay queued")
                return
            if self._stopping.is_set():
                return
            try:
                with self._database.write() as session:
                    claimed = claim(
                        session, self._queues, own_name(), self._settings.worker.lease_s
                    )
            except SQLAlchemyError as error:
                log.warning("cannot claim, the sweeper will wake us again: %s", error)
                return
            if claimed is None:
                return
            self._run(claimed)

    def _run(self, claimed: Claim) -> None:
        token = request_id_var.set(claimed.request_id)
        try:
            self._run_known(claimed)
        finally:
            request_id_var.reset(token)

    def _run_known(self, claimed: Claim) -> None:
        log.info("job started, attempt %d", claimed.attempt, extra={"job_id": claimed.job_id})
        worker = self._settings.worker
        trace = AttemptTrace(claimed)
        heartbeat = Heartbeat(
            self._database, claimed, lease_s=worker.lease_s, heartbeat_s=worker.heartbeat_s,
            on_stage=trace.stage,
        )  # fmt: skip
        status = "lost"
        with self._lock:
            self._running.add(claimed.name)
        heartbeat.start()
        try:
            end = self._attempt(claimed, heartbeat)
            heartbeat.stop()
            status = self._finish(claimed, heartbeat, end)
        except (LeaseLost, GaveUp) as error:
            log.warning("job left: %s", type(error).__name__, extra={"job_id": claimed.job_id})
            self._delete_unless_ours(claimed)
        finally:
            heartbeat.stop()
            trace.end(status)
            with self._lock:
                self._running.discard(claimed.name)

    def _attempt(self, claimed: Claim, heartbeat: Heartbeat) -> End:
        """Return the write that ends the attempt; its folder is gone by then.

        Raises:
            LeaseLost: there is nothing to write.
        """
        stage: str | None = "fetch"
        try:
            with job_folder(self._settings, claimed) as folder:
                self._fetch(claimed, folder)
                outcome, stage = self._watch(claimed, folder, heartbeat)
                if outcome.reason == "result":
                    stage = "store"
                    heartbeat.report_stage("store", "storing artifacts")
                    stored = store_result(
                        self._store, claimed, outcome.result or {}, folder, heartbeat
                    )
                    return _succeed(claimed, stored)
                return self._end_for(claimed, outcome, stage)
        except (InputsGone, BadOutput) as error:
            return _fail(claimed, error.failure.at(stage))
        except (StorageFull, OSError) as error:
            failure = describe(error)
            log.warning(
                "job failed: %s", error, extra={"job_id": claimed.job_id},
                exc_info=failure.code == "internal_error",
            )  # fmt: skip
            return _fail(claimed, failure.at(stage))
        except ZygoteLost:
            return self._again(claimed, "its process could not be started", None, stage)
        except (LeaseLost, GaveUp):
            raise
        except Exception as error:
            log.exception("job failed", extra={"job_id": claimed.job_id})
            return _fail(claimed, describe(error).at(stage))

    def _fetch(self, claimed: Claim, folder: Path) -> None:
        files = persist(
            self._database, lambda session: find_files(session, claimed),
            self._stopping, claimed.job_id,
        )  # fmt: skip
        fill(folder, claimed, files, self._store, self._settings, self._memory_bytes)

    def _watch(
        self, claimed: Claim, folder: Path, heartbeat: Heartbeat
    ) -> tuple[Outcome, str | None]:
        events_read, events_write = os.pipe()
        output_read, output_write = os.pipe()
        try:
            try:
                child = self._spawner.spawn(folder, events_write, output_write)
            finally:
                os.close(events_write)
                os.close(output_write)
            bounds = Bounds(claimed.timeout_s, self._memory_bytes)
            watch = Watch(child, events_read, output_read, heartbeat, bounds, self._stopping)
            outcome = watch.until_end()
        finally:
            os.close(events_read)
            os.close(output_read)
        if outcome.output and outcome.reason in ("error", "crashed"):
            log.warning("output of the job:\n%s", outcome.output, extra={"job_id": claimed.job_id})
        return outcome, watch.stage

    def _end_for(self, claimed: Claim, outcome: Outcome, stage: str | None) -> End:
        match outcome.reason:
            case "lost":
                raise LeaseLost(claimed.job_id)
            case "stopping":
                return lambda session: endings.give_back(
                    session, claimed.job_id, claimed.fence, "the worker was stopped"
                )
            case "cancelled":
                return lambda session: endings.cancel(session, claimed.job_id, claimed.fence)
            case "error" if outcome.failure is not None:
                return _fail(claimed, outcome.failure.at(stage))
        reason = f"its process ended without a result ({ending(outcome.status)})"
        return self._again(claimed, reason, outcome.status, stage)

    def _again(self, claimed: Claim, reason: str, status: int | None, stage: str | None) -> End:
        # without a status, the zygote went with it: not the model's doing
        attempts = claimed.attempt
        failure = worker_lost(attempts) if status is None else crashed(status, attempts)
        return lambda session: endings.try_again(
            session,
            claimed.job_id,
            claimed.fence,
            reason=reason,
            max_attempts=self._settings.worker.max_attempts,
            failure=failure.at(stage),
        )

    def _finish(self, claimed: Claim, heartbeat: Heartbeat, end: End) -> str:
        """Write the end, remove what it leaves behind, and return the job's status."""

        def write(session: Session) -> str:
            heartbeat.write_rest(session)
            return end(session)

        status = persist(self._database, write, self._stopping, claimed.job_id)
        log.info("job %s", status, extra={"job_id": claimed.job_id})
        if status in FINISHED:
            remove_checkpoints(self._settings, claimed.job_id)
        self._delete_artifacts(claimed, claimed.fence - (status == "succeeded"))
        return status

    def _delete_unless_ours(self, claimed: Claim) -> None:
        """Remove what was stored in vain; a commit that we never heard of may have kept it."""
        try:
            with self._database.read() as session:
                job = session.get(Job, claimed.job_id)
        except SQLAlchemyError as error:
            log.warning("database away: %s", error, extra={"job_id": claimed.job_id})
            return  # whoever ends the job removes the files of all earlier fences
        if job is None or job.fence != claimed.fence or job.status != "succeeded":
            self._delete_artifacts(claimed, claimed.fence)

    def _delete_artifacts(self, claimed: Claim, up_to_fence: int) -> None:
        """Remove what attempts stored that did not succeed."""
        for fence in range(1, up_to_fence + 1):
            try:
                self._store.delete_tree(artifact_prefix(claimed.job_id, fence))
            except OSError as error:
                log.warning("cannot delete: %s", error, extra={"job_id": claimed.job_id})


def _succeed(claimed: Claim, stored: StoredResult) -> End:
    return lambda session: endings.succeed(
        session, claimed.job_id, claimed.fence, stored.result, stored.rows
    )


def _fail(claimed: Claim, failure: Failure) -> End:
    return lambda session: endings.fail(session, claimed.job_id, claimed.fence, failure)
