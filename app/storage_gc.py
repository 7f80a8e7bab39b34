"""What lies in the storage and belongs to nothing: looked for, and removed if asked to.

Deleting and ending jobs clean up after themselves; this finds what a crash, or a database restored
from a backup, left behind. Young files are left alone: the row that refers to one may be on its
way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.datasets.tables import Dataset
from app.db import Database
from app.jobs.tables import FINISHED, Artifact, Job
from app.models.tables import Model
from app.storage import BlobStore, StoredFile, content_key
from app.storage_repository import release_content

YOUNG_S = 3600.0


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        garbage: Files that belong to nothing.
        missing: Keys that rows refer to, and that are not there.
    """

    garbage: tuple[StoredFile, ...]
    missing: tuple[str, ...]

    @property
    def garbage_bytes(self) -> int:
        """How much room removing the garbage would give."""
        return sum(file.size_bytes for file in self.garbage)


def look(database: Database, store: BlobStore, young_s: float = YOUNG_S) -> Report:
    """Compare files with rows; nothing is changed."""
    # files first: one that is stored meanwhile has its row before the rows are read, or is young
    files = {file.key: file for file in store.list_files()}
    with database.read() as session:
        wanted = set(list_referenced(session))
        unfinished = set(session.scalars(select(Job.id).where(Job.status.not_in(FINISHED))))
    garbage = tuple(
        file
        for key, file in sorted(files.items())
        if key not in wanted and file.age_s >= young_s and _owner(key) not in unfinished
    )
    return Report(garbage, tuple(sorted(key for key in wanted if not store.has(key))))


def remove(database: Database, store: BlobStore, files: Iterable[StoredFile]) -> None:
    """Remove garbage that `look` has found."""
    for file in files:
        if _owner(file.key) is None:
            release_content(database, store, file.key.rpartition("/")[2])  # unless used by now
        else:
            store.delete(file.key)


def list_referenced(session: Session) -> list[str]:
    """Return the keys of all files that rows refer to."""
    contents = [*session.scalars(select(Model.sha256)), *session.scalars(select(Dataset.sha256))]
    return [*map(content_key, set(contents)), *session.scalars(select(Artifact.storage_key))]


def _owner(key: str) -> str | None:
    """Return the job that a file belongs to; None for content of models and datasets."""
    kind, _, rest = key.partition("/")
    return rest.partition("/")[0] if kind == "jobs" else None
