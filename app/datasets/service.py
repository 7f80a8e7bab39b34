"""Taking datasets in and letting them go."""

from __future__ import annotations

from sqlalchemy import select

from app.datasets import repository
from app.datasets.scan import scan_dataset
from app.datasets.tables import Dataset
from app.db import Database, utc_now
from app.errors import Conflict
from app.ids import new_id
from app.jobs.tables import FINISHED, Job, JobDataset
from app.multipart import Upload
from app.storage import BlobStore
from app.storage_repository import release_content
from app.uploads import LabelsField, NameField, check_digest, keep_content, read_field

FIELDS = frozenset({"name", "labels", "sha256"})


def add_upload(
    database: Database, store: BlobStore, project_id: str, upload: Upload, limit_bytes: int
) -> Dataset:
    """Scan an uploaded file and keep it.

    Raises:
        Unprocessable: the fields or the file do not fit; nothing is stored.
    """
    check_digest(upload)
    name = read_field(upload, "name", NameField, is_json=False, default=None)
    labels = read_field(upload, "labels", LabelsField, is_json=True, default={})
    facts = scan_dataset(upload.staged.path, limit_bytes)
    dataset = Dataset(
        id=new_id("dst"),
        project_id=project_id,
        name=name,
        format=facts.format,
        size_bytes=upload.staged.size_bytes,
        sha256=upload.sha256,
        samples=facts.samples,
        arrays=facts.arrays,
        has_labels=facts.has_labels,
        labels=labels,
        created_at=utc_now(),
    )
    return keep_content(database, store, upload.staged, upload.sha256, dataset)


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
    release_content(database, store, dataset.sha256)
