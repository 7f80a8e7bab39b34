"""Looks from the outside, once all is quiet, at whether every job ended right, once."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import select, text

from app import storage_gc
from app.jobs.tables import FINISHED, Artifact, Job
from app.storage import LocalBlobStore
from tests.faults.chaos.customers import check_artifacts
from tests.faults.chaos.desk import Desk
from tests.faults.chaos.house import MAX_ATTEMPTS, House
from tests.faults.chaos.ledger import Ledger, Order, say

_STAGED_S = 75.0  # the sweeper removes what is half written after a minute
_SETTLING_S = 15.0


class Inspection:
    """Complains of all that is not as it should be."""

    def __init__(self, house: House, ledger: Ledger, desk: Desk) -> None:
        self._house = house
        self._ledger = ledger
        self._desk = desk
        self._complain = ledger.complain

    def wait_until_quiet(self, timeout_s: float = 240.0) -> None:
        """Wait until no job is queued or running."""
        deadline = time.monotonic() + timeout_s
        while left := self._unfinished():
            if time.monotonic() > deadline:
                for job_id, status in left:
                    self._complain(f"{job_id} is still {status}")
                return
            self._house.watch()
            time.sleep(0.3)

    def look(self) -> None:
        """Look at everything that can be seen while the service runs."""
        jobs = self._list_jobs()
        self._match(jobs)
        for job in jobs.values():
            self._follow(job)
        self._compare_rows(jobs)
        self._compare_metrics()
        self._look_at_files()
        self._read_logs()

    def _unfinished(self) -> list[tuple[str, str]]:
        with self._house.database.read() as session:
            rows = session.execute(select(Job.id, Job.status).where(Job.status.not_in(FINISHED)))
            return [(row.id, row.status) for row in rows]

    def _list_jobs(self) -> dict[str, dict[str, Any]]:
        return {job["id"]: job for job in self._pages("/v1/jobs", 200)}

    def _pages(self, url: str, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after: dict[str, Any] = {}
        while True:
            page = self._desk.ask("GET", url, {200}, params={"limit": limit, **after}).json()
            found += page["data"]
            if not page["has_more"]:
                return found
            after = {"after": page["next_after"]}

    def _match(self, jobs: dict[str, dict[str, Any]]) -> None:
        """Each order has its one job, and each job its order."""
        by_number: dict[int, list[str]] = {}
        for job_id, job in jobs.items():
            by_number.setdefault(int(job["labels"]["order"]), []).append(job_id)
        for order in self._ledger.orders:
            found = by_number.pop(order.number, [])
            if order.maybe and len(found) <= 1:
                order.job_id = found[0] if found else None
                self._ledger.count("cut and not asked again: " + ("came" if found else "not come"))
            if order.job_id is None and found:
                self._complain(f"order {order.number} made {found}, and nobody was told")
            elif order.job_id is not None and found != [order.job_id] * (not order.deleted):
                self._complain(f"order {order.number} is {order.job_id}, but made {found}")
            if found:
                self._judge(order, self._desk.ask("GET", f"/v1/jobs/{found[0]}", {200}).json())
            elif order.ended:
                self._judge(order, order.ended)
        for number, ids in by_number.items():
            self._complain(f"jobs {ids} of an order {number} that nobody made")

    def _judge(self, order: Order, job: dict[str, Any]) -> None:
        ending = job["status"] + (f":{job['error']['code']}" if job["error"] else "")
        self._ledger.count(f"job {order.errand}: {ending}")
        if order.ended is not None and order.ended | {"queue_position": None} != job:
            self._complain(f"{job['id']} changed after its end")
        if ending in order.outcomes:
            return
        lost = {fault_id for fault in self._ledger.faults for fault_id in fault.victims}
        hits = sum(f"{job['id']}-{fence}" in lost for fence in range(1, 10 * MAX_ATTEMPTS))
        given_up = ending in ("failed:worker_lost", "failed:model_crashed")
        if not (given_up and hits >= MAX_ATTEMPTS):
            self._complain(
                f"{job['id']} ({order.errand}) ended {ending}, not {order.outcomes}; "
                f"{hits} of its attempts were hit"
            )

    def _follow(self, job: dict[str, Any]) -> None:
        """The events of a job tell one life, with one end."""
        events = [
            event["data"] | {"level": event["level"]}
            for event in self._pages(f"{job['urls']['events']}", 500)
            if event["type"] == "status"
        ]
        states = [event["status"] for event in events]
        name = job["id"]
        if [each for each in states if each in FINISHED] != [job["status"]]:
            self._complain(f"{name} is {job['status']}, and its events say {states}")
        body, end = states[:-1], states[-1]
        expected = ["queued", "running"] * (len(body) // 2 + 1)
        if body != expected[: len(body)] or (body[-1] == "queued" and end != "cancelled"):
            self._complain(f"{name} lived a strange life: {states}")
        self._ledger.count("attempts", states.count("running"))
        self._ledger.count("attempts after the first", max(0, states.count("running") - 1))
        hit = {each for fault in self._ledger.faults for each in fault.victims}
        fence = 0
        for event in events:
            fence += event["status"] == "running"
            if event["status"] == "queued" and event["level"] == "warning":
                self._ledger.count("attempts lost")
                if f"{name}-{fence}" not in hit:
                    self._ledger.count("attempts lost to a fault that hit others")
        if job["status"] == "succeeded":
            check_artifacts(self._desk, self._ledger, self._full(name))

    def _full(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self._desk.ask("GET", f"/v1/jobs/{job_id}", {200}).json()
        if (job["result"].get("training") or {}).get("resumed_from_step"):
            self._ledger.count("trainings that went on from a checkpoint")
        return job

    def _compare_rows(self, jobs: dict[str, dict[str, Any]]) -> None:
        with self._house.database.read() as session:
            rows = session.scalars(select(Job)).all()
            artifacts = session.scalars(select(Artifact)).all()
            if session.get_bind().dialect.name == "sqlite":
                for check in ("integrity_check", "foreign_key_check"):
                    if (found := session.execute(text(f"PRAGMA {check}")).all()) not in (
                        [], [("ok",)],
                    ):  # fmt: skip
                        self._complain(f"SQLite: {check}: {found}")
        by_id = {row.id: row for row in rows}
        if {row.id for row in rows if row.kind == "job"} != set(jobs):
            self._complain("the table of jobs and the API's list differ")
        for row in rows:
            if row.owner is not None or row.lease_expires_at is not None:
                self._complain(f"{row.id} has ended and has an owner: {row.owner}")
            if not 0 <= row.attempt <= min(row.fence, MAX_ATTEMPTS):
                self._complain(f"{row.id}: attempt {row.attempt} at fence {row.fence}")
        for artifact in artifacts:
            owner = by_id.get(artifact.job_id)
            if owner is None or owner.status != "succeeded":
                self._complain(f"{artifact.id} belongs to no job that succeeded")
            elif not artifact.storage_key.startswith(f"jobs/{owner.id}/{owner.fence}/"):
                self._complain(f"{artifact.id} is of another attempt: {artifact.storage_key}")

    def _compare_metrics(self) -> None:
        """What ended is counted for /metrics once, also of what has been deleted since."""
        counted = 0.0
        wanted = sum(order.job_id is not None for order in self._ledger.orders)
        deadline = time.monotonic() + _SETTLING_S
        while time.monotonic() < deadline:
            text = self._desk.ask("GET", "/metrics", {200}).text
            counted = sum(
                float(line.rpartition(" ")[2])
                for line in text.splitlines()
                if line.startswith("tersor_jobs_finished_total") and 'kind="job"' in line
            )
            if counted == wanted:
                return
            time.sleep(0.5)
        self._complain(f"/metrics counts {counted:.0f} jobs that ended, of {wanted}")

    def _look_at_files(self) -> None:
        store = self._house.store
        assert isinstance(store, LocalBlobStore)
        data = self._house.data_dir
        for folder, within_s in (
            (data / "work", _SETTLING_S),
            (data / "checkpoints", _SETTLING_S),
            (store.root / "parts", _SETTLING_S),
            (store.root / "staging", _STAGED_S),
        ):
            deadline = time.monotonic() + within_s
            while folder.exists() and (left := sorted(each.name for each in folder.iterdir())):
                if time.monotonic() > deadline:
                    self._complain(f"left in {folder.name}: {left[:5]}")
                    break
                self._house.watch()
                time.sleep(0.2)
        report = storage_gc.look(self._house.database, store, young_s=0.0)
        self._ledger.count("files that only gc removes", len(report.garbage))
        for file in report.garbage:
            say(f"only gc removes {file.key}")
        if report.missing:
            self._complain(f"files that rows name are gone: {report.missing[:5]}")
        storage_gc.remove(self._house.database, store, report.garbage)
        if again := storage_gc.look(self._house.database, store, young_s=0.0).garbage:
            self._complain(f"garbage that stays: {[file.key for file in again[:5]]}")

    def _read_logs(self) -> None:
        """Nothing that anybody did was a surprise to the code."""
        for path in (*self._house.logs.iterdir(), *(self._house.data_dir / "logs").iterdir()):
            for line in path.read_text(errors="replace").splitlines():
                expected = "output of the job" in line  # what a job says that fails as it should
                if "Traceback (most recent call last)" in line and not expected:
                    self._ledger.count("stack traces in the logs")
                    say(f"{path.name}: {line[:300]} … {line[-300:]}")
