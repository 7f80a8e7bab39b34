"""The folder of one attempt: input files, the order, and what the engine makes.

work/<job>-<fence>/inputs/   hard links to the blobs
                   out/      what the engine makes
                   scratch/  the process's home and temporary files
                   order.json
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.datasets.tables import Dataset
from app.jobs.tables import Job, JobDataset
from app.models.tables import Model
from app.settings import Settings
from app.storage import BlobStore, content_key
from app.storage_files import raise_if_full
from compress.spec import TrainingConfig
from workers.checkpoints import take_over
from workers.failures import Failure
from workers.lease import Claim
from workers.order import Order, spec_from_request
from workers.sandbox import Limits

_FREE_FILE_BYTES = 2**30
_FILE_BYTES_PER_MODEL_BYTE = 4


class InputsGone(Exception):
    """A model or dataset of the job is no longer there."""

    failure = Failure(
        "inputs_gone",
        "The job's model or dataset is no longer stored. Upload it again and submit a new job.",
    )


@dataclass(frozen=True)
class JobFiles:
    """What a job reads: role to content hash and file suffix, and the model's declared inputs.

    `model_bytes` is the size of all its models.
    """

    files: Mapping[str, tuple[str, str]]
    model_inputs: tuple[Mapping[str, Any], ...]
    model_bytes: int


def work_folder(settings: Settings) -> Path:
    """Return the folder of all attempts on this host."""
    return settings.data_dir.resolve() / "work"


@contextmanager
def job_folder(settings: Settings, claim: Claim) -> Iterator[Path]:
    """Make the attempt's folder, and remove it at the end, whatever happens."""
    folder = work_folder(settings) / claim.name
    try:
        try:
            for part in ("inputs", "out", "scratch"):
                (folder / part).mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise_if_full(error)
            raise
        yield folder
    finally:
        remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Remove an attempt's folder; a sweeper may be at it too."""
    shutil.rmtree(folder, ignore_errors=True)


def find_files(session: Session, claim: Claim) -> JobFiles:
    """Look up what the job reads.

    Raises:
        InputsGone: a model or dataset is not there.
    """
    model = session.get(Model, claim.model_id)
    student_id = session.scalar(select(Job.student_model_id).where(Job.id == claim.job_id))
    student = session.get(Model, student_id) if student_id is not None else None
    datasets = session.execute(
        select(JobDataset.role, Dataset.sha256, Dataset.format)
        .join_from(JobDataset, Dataset, Dataset.id == JobDataset.dataset_id, isouter=True)
        .where(JobDataset.job_id == claim.job_id)
    ).all()
    if (
        model is None
        or (student_id is not None and student is None)
        or any(row.sha256 is None for row in datasets)
    ):
        raise InputsGone
    models = {"model": model} | ({"student": student} if student is not None else {})
    return JobFiles(
        files={role: (each.sha256, ".pt") for role, each in models.items()}
        | {row.role: (row.sha256, f".{row.format}") for row in datasets},
        model_inputs=tuple(model.inputs or ()),
        model_bytes=sum(each.size_bytes for each in models.values()),
    )


def fill(
    folder: Path,
    claim: Claim,
    job_files: JobFiles,
    store: BlobStore,
    settings: Settings,
    memory_bytes: int,
) -> Order:
    """Bring the inputs into the folder and write the order; the job may use `memory_bytes`.

    Raises:
        InputsGone: a blob is not in the storage.
        StorageFull: there is no room.
    """
    names = {}
    try:
        for role, (sha256, suffix) in job_files.files.items():
            names[role] = f"{role}{suffix}"
            store.fetch(content_key(sha256), folder / "inputs" / names[role])
        spec = spec_from_request(claim.spec, settings.worker.threads)
        trains = claim.kind == "job" and isinstance(spec.config, TrainingConfig)
        order = Order(
            kind=claim.kind,
            spec=spec,
            inputs=names,
            model_inputs=job_files.model_inputs,
            limits=Limits(
                memory_bytes=memory_bytes,
                cpu_s=(claim.timeout_s + 10) * max(2, os.cpu_count() or 1),
                file_bytes=_FREE_FILE_BYTES + _FILE_BYTES_PER_MODEL_BYTE * job_files.model_bytes,
            ),
            nice=settings.worker.nice,
            checkpoints=str(take_over(settings, claim)) if trains else None,
            sandbox=settings.sandbox,
        )
        order.save(folder)
    except FileNotFoundError as error:
        raise InputsGone from error
    except OSError as error:
        raise_if_full(error)
        raise
    return order


def output_file(folder: Path, name: str) -> Path | None:
    """Return the file `name` that the engine made, or None if that is not a plain file there."""
    path = folder / "out" / name
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(name) > 200:
        return None
    try:
        return path if stat.S_ISREG(path.lstat().st_mode) else None
    except OSError:
        return None
