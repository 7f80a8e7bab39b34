"""Brings what the engine made into the storage, and its names into the words of the API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.db import utc_now
from app.ids import new_id
from app.jobs.tables import Artifact
from app.storage import BlobStore, artifact_prefix
from workers.failures import Failure
from workers.heartbeat import Heartbeat
from workers.job_folder import output_file
from workers.lease import Claim, LeaseLost

REPORTS = {"manifest.json": "json", "report.html": "html"}
"""Files that come with every job, beside the compressed models: name to format."""
_CURVE = "report.html"
"""Where the curve of a training is drawn."""


class BadOutput(Exception):
    """The process's result does not hold together: it was not the engine that spoke."""

    failure = Failure(
        "model_crashed",
        "The job's process did not return a usable result. Check that the model runs on these "
        "inputs with plain PyTorch.",
    )


@dataclass(frozen=True)
class StoredResult:
    """The `result` of the job as the API shows it, and the rows of its files."""

    result: Mapping[str, Any]
    rows: list[Artifact]


def store_result(
    store: BlobStore, claim: Claim, result: Mapping[str, Any], folder: Path, heartbeat: Heartbeat
) -> StoredResult:
    """Store the files that the result names; size and hash are taken anew from the bytes.

    Raises:
        BadOutput: a file that the result names is not there.
        StorageFull: there is no room.
        LeaseLost: another worker has the job.
    """
    if claim.kind == "preflight":
        return StoredResult(result, [])
    rows: list[Artifact] = []
    reports: list[Mapping[str, Any]] = []
    for report in _artifact_reports(result):
        row = _store(store, claim, folder, report["name"], "model", report["format"], heartbeat)
        row.precision = report["precision"]
        rows.append(row)
        reports.append(
            {
                **report,
                "id": row.id,
                "size_bytes": row.size_bytes,
                "sha256": row.sha256,
                "url": _url(row.id),
            }
        )
    models = {row.name: row.id for row in rows}
    for name, format in REPORTS.items():
        if output_file(folder, name) is not None:
            rows.append(_store(store, claim, folder, name, "report", format, heartbeat))
    told: dict[str, Any] = {
        **result, "artifacts": reports, "recommended": models.get(result.get("recommended", ""))
    }  # fmt: skip
    curve = next((row.id for row in rows if row.name == _CURVE and row.kind == "report"), None)
    if isinstance(training := result.get("training"), dict) and curve is not None:
        told["training"] = {**training, "curve_url": _url(curve)}
    return StoredResult(told, rows)


def _url(artifact_id: str) -> str:
    return f"/v1/artifacts/{artifact_id}/content"


def _artifact_reports(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    reports = result.get("artifacts")
    if not isinstance(reports, list):
        raise BadOutput
    for report in reports:
        if not isinstance(report, dict) or not all(
            isinstance(report.get(name), str) for name in ("name", "format", "precision")
        ):
            raise BadOutput
    return reports


def _store(
    store: BlobStore,
    claim: Claim,
    folder: Path,
    name: str,
    kind: str,
    format: str,
    heartbeat: Heartbeat,
) -> Artifact:
    if heartbeat.lost.is_set():
        raise LeaseLost(claim.job_id)
    source = output_file(folder, name)
    if source is None:
        raise BadOutput
    key = f"{artifact_prefix(claim.job_id, claim.fence)}/{name}"
    size_bytes, sha256 = store.put_file(source, key)
    return Artifact(
        id=new_id("art"),
        job_id=claim.job_id,
        project_id=claim.project_id,
        name=name,
        kind=kind,
        format=format[:16],
        size_bytes=size_bytes,
        sha256=sha256,
        storage_key=key,
        created_at=utc_now(),
    )
