"""Taking datasets in and letting them go."""

from __future__ import annotations

from sqlalchemy import select

from app.audit.repository import record
from app.datasets import repository
from app.datasets.scan import scan_dataset
from app.datasets.schemas import DatasetFromUpload
from app.datasets.tables import Dataset
from app.db import Database, utc_now
from app.errors import Conflict
from app.ids import new_id
from app.incoming import LabelsField, NameField, check_digest, keep_content, read_field
from app.jobs.tables import FINISHED, Job, JobDataset
from app.multipart import Upload
from app.storage import BlobStore
from app.storage_files import StagedBlob
from app.storage_repository import release_content
from app.uploads.service import take_upload

FIELDS = frozenset({"name", "labels", "sha256"})


def add_upload(
    database: Database, store: BlobStore, project_id: str, upload: Upload, limit_bytes: int
) -> Dataset:
    """Scan an uploaded file and keep it.

    Raises:
        Unprocessable: the fields or the file do not fit; nothing is stored.
    """
    check_digest(upload.sha256, upload.fields.get("sha256"))
    name = read_field(upload, "name", NameField, is_json=False, default=None)
    labels = read_field(upload, "labels", LabelsField, is_json=True, default={})
    return _add(
        database, store, project_id, upload.staged, upload.sha256, name, labels, limit_bytes
    )


def add_part(
    database: Database,
    store: BlobStore,
    project_id: str,
    request: DatasetFromUpload,
    limit_bytes: int,
) -> Dataset:
    """Make a dataset of a finished upload, which is gone then; if refused, it stays.

    Raises:
        Unprocessable: `upload_not_found`, `upload_incomplete`, or the file does not fit.
    """
    with take_upload(database, store, project_id, request.upload_id) as staged:
        sha256 = staged.finish()
        check_digest(sha256, request.sha256)
        return _add(
            database, store, project_id, staged, sha256, request.name, request.labels, limit_bytes
        )


def remove_dataset(database: Database, store: BlobStore, project_id: str, dataset_id: str) -> None:
    """Remove a dataset; its bytes too, once nothing else has the same.

    Raises:
        Conflict: `in_use` by a job that has not finished.
    """
    with database.write() as session:
        dataset = repository.get_dataset(session, project_id, dataset_id, lock="update")
        user = session.scalar(
            select(Job.id)
            .join(JobDataset, JobDataset.job_id == Job.id)
            .where(JobDataset.dataset_id == dataset_id, Job.status.not_in(FINISHED))
            .limit(1)
        )
        if user is not None:
            raise Conflict(f"{user} needs this dataset; cancel it or wait for it.", code="in_use")
        session.delete(dataset)
        record(session, "dataset.delete", project_id, dataset_id)
    release_content(database, store, dataset.sha256)


def _add(
    database: Database,
    store: BlobStore,
    project_id: str,
    staged: StagedBlob,
    sha256: str,
    name: str,
    labels: dict[str, str],
    limit_bytes: int,
) -> Dataset:
    facts = scan_dataset(staged.path, limit_bytes)
    dataset = Dataset(
        id=new_id("dst"),
        project_id=project_id,
        name=name,
        format=facts.format,
        size_bytes=staged.size_bytes,
        sha256=sha256,
        samples=facts.samples,
        arrays=facts.arrays,
        has_labels=facts.has_labels,
        labels=labels,
        created_at=utc_now(),
    )
    return keep_content(database, store, staged, sha256, dataset, "dataset.create")
