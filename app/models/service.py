"""Taking models in and letting them go."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import or_, select

from app.audit.repository import record
from app.db import Database, utc_now
from app.errors import Conflict, FieldError, Unprocessable
from app.fields import is_id
from app.ids import new_id
from app.incoming import LabelsField, NameField, check_digest, keep_content, read_field
from app.jobs.tables import FINISHED, Artifact, Job
from app.models import repository
from app.models.packing import repacked
from app.models.scan import scan_model
from app.models.schemas import InputsField, ModelFromArtifact, ModelFromUpload
from app.models.tables import Model
from app.multipart import Upload
from app.storage import BlobStore
from app.storage_files import StagedBlob
from app.storage_repository import release_content
from app.uploads.service import take_upload
from compress.spec import TensorSpec
from compress.spec.arguments import ForwardArgument
from compress.spec.declared import bind_declared
from compress.spec.names import Misfit

FIELDS = frozenset({"name", "inputs", "labels", "sha256"})


def add_upload(database: Database, store: BlobStore, project_id: str, upload: Upload) -> Model:
    """Scan an uploaded file and keep it.

    Raises:
        Unprocessable: the fields or the file do not fit; nothing is stored.
    """
    check_digest(upload.sha256, upload.fields.get("sha256"))
    name = read_field(upload, "name", NameField, is_json=False, default=None)
    labels = read_field(upload, "labels", LabelsField, is_json=True, default={})
    inputs = None
    if "inputs" in upload.fields:
        inputs = read_field(upload, "inputs", InputsField, is_json=True, default=None)
    return _add(database, store, project_id, upload.staged, upload.sha256, name, inputs, labels)


def add_artifact(
    database: Database, store: BlobStore, project_id: str, request: ModelFromArtifact
) -> Model:
    """Make a model of an artifact's bytes.

    Raises:
        Unprocessable: `artifact_not_found`, or the artifact is no TorchScript model.
    """
    with database.read() as session:
        artifact = (
            session.get(Artifact, request.artifact_id)
            if is_id(request.artifact_id, "art")
            else None
        )
    if artifact is None or artifact.project_id != project_id:
        raise Unprocessable(
            "There is no such artifact.",
            code="artifact_not_found",
            errors=[FieldError("/artifact_id", "There is no such artifact.")],
        )
    with store.stage() as staged:
        for chunk in store.read(artifact.storage_key):
            staged.write(chunk)
        sha256 = staged.finish()
        return _add_described(database, store, project_id, staged, sha256, request)


def add_part(
    database: Database, store: BlobStore, project_id: str, request: ModelFromUpload
) -> Model:
    """Make a model of a finished upload, which is gone then; if refused, it stays.

    Raises:
        Unprocessable: `upload_not_found`, `upload_incomplete`, or the file does not fit.
    """
    with take_upload(database, store, project_id, request.upload_id) as staged:
        sha256 = staged.finish()
        check_digest(sha256, request.sha256)
        return _add_described(database, store, project_id, staged, sha256, request)


def _add_described(
    database: Database,
    store: BlobStore,
    project_id: str,
    staged: StagedBlob,
    sha256: str,
    request: ModelFromArtifact | ModelFromUpload,
) -> Model:
    return _add(
        database, store, project_id, staged, sha256, request.name, request.inputs, request.labels
    )


def remove_model(database: Database, store: BlobStore, project_id: str, model_id: str) -> None:
    """Remove a model; its bytes too, once nothing else has the same.

    Raises:
        Conflict: `in_use` by a job that has not finished.
    """
    with database.write() as session:
        model = repository.get_model(session, project_id, model_id, lock="update")
        user = session.scalar(
            select(Job.id)
            .where(
                or_(Job.model_id == model_id, Job.student_model_id == model_id),
                Job.status.not_in(FINISHED),
            )
            .limit(1)
        )
        if user is not None:
            raise Conflict(f"{user} needs this model; cancel it or wait for it.", code="in_use")
        session.delete(model)
        record(session, "model.delete", project_id, model_id)
    release_content(database, store, model.sha256)


def check_inputs(inputs: list[TensorSpec], arguments: list[dict[str, Any]]) -> None:
    """Compare declared inputs with forward's arguments.

    Raises:
        Unprocessable: `bad_signature`.
    """
    try:
        bind_declared([ForwardArgument(**argument) for argument in arguments], inputs)
    except Misfit as misfit:
        detail = (
            f"{misfit.detail} Declare inputs by the names of forward's arguments: "
            f"{', '.join(argument['name'] for argument in arguments) or 'it takes none'}."
        )
        raise Unprocessable(
            detail, code="bad_signature", errors=[FieldError("/inputs", detail)]
        ) from misfit


def _add(
    database: Database,
    store: BlobStore,
    project_id: str,
    staged: StagedBlob,
    sha256: str,
    name: str,
    inputs: list[TensorSpec] | None,
    labels: dict[str, str],
) -> Model:
    facts = scan_model(staged.path)
    if inputs is not None:
        check_inputs(inputs, facts.arguments)

    def keep(blob: StagedBlob, blob_sha256: str) -> Model:
        model = Model(
            id=new_id("mdl"),
            project_id=project_id,
            name=name,
            status="ready",
            size_bytes=blob.size_bytes,
            sha256=blob_sha256,
            inputs=None if inputs is None else [asdict(each) for each in inputs],
            arguments=facts.arguments,
            operators=facts.operators,
            parameters=facts.parameters,
            labels=labels,
            created_at=utc_now(),
        )
        return keep_content(database, store, blob, blob_sha256, model, "model.create")

    if facts.is_canonical:
        return keep(staged, sha256)
    # one file under one hash: what jobs read, what is served, and what `sha256` tells are the same
    with repacked(staged.path, store) as written:
        return keep(written, written.finish())
