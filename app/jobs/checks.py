"""What a submit can check by itself, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.datasets.repository import find_dataset
from app.datasets.tables import Dataset
from app.jobs.bodies import AnyJob, DistillJob, TrainingJob
from app.jobs.refusals import refuse
from app.jobs.training_checks import check_training
from app.models.repository import find_model
from app.models.tables import Model
from app.settings import LimitSettings
from app.system.repository import list_devices, list_live_workers
from compress.spec import needs_calibration
from compress.spec.arguments import ForwardArgument, bind_arrays, check_number, check_signature
from compress.spec.declared import read_declared
from compress.spec.gpu import find_contradiction, needs_gpu
from compress.spec.names import Misfit, Place, read_name

_MODEL = "/model_id"


def check_job(
    session: Session, project_id: str, request: AnyJob, limits: LimitSettings
) -> dict[str, str]:
    """Check that the job can run as far as rows tell; return its datasets by role.

    Raises:
        Unprocessable: model_not_found, dataset_not_found, bad_signature, shape_mismatch,
            label_mismatch, inputs_unknown, device_unavailable, invalid_request.
    """
    if request.timeout_s is not None and request.timeout_s > limits.timeout_s_max:
        detail = f"At most {limits.timeout_s_max} seconds on this server."
        raise refuse("invalid_request", "/timeout_s", detail)
    models = {
        pointer: _find_model(session, project_id, model_id, pointer)
        for pointer, model_id in _models_of(request)
    }
    datasets: dict[str, Dataset] = {}
    pointers: dict[str, str] = {}
    for role, dataset_id, pointer in _datasets_of(request):
        dataset = find_dataset(session, project_id, dataset_id, lock="share")
        if dataset is None:
            raise refuse("dataset_not_found", pointer, "There is no such dataset.")
        datasets[role], pointers[role] = dataset, pointer
    _check_inputs_known(request, datasets, models[_MODEL])
    for where, model in models.items():
        arguments = _read_signature(model, where)
        for role, dataset in datasets.items():
            whose = "" if where == _MODEL else "The student: "
            _check_arrays(model, arguments, dataset, pointers[role], whose)
    _check_labels(request, datasets)
    if isinstance(request, TrainingJob):
        check_training(request, datasets["training"])
    _check_device(session, request)
    return {role: dataset.id for role, dataset in datasets.items()}


def _models_of(request: AnyJob) -> Iterator[tuple[str, str]]:
    """Yield where each model is named, and its id."""
    yield _MODEL, request.model_id
    if isinstance(request, DistillJob) and request.config.student_model_id is not None:
        yield "/config/student_model_id", request.config.student_model_id


def _datasets_of(request: AnyJob) -> Iterator[tuple[str, str, str]]:
    """Yield the role of each dataset, its id, and where it is named."""
    for role in ("calibration", "evaluation"):
        if (given := getattr(request, role)) is not None:
            yield role, given.dataset_id, f"/{role}/dataset_id"
    if isinstance(request, TrainingJob):
        yield "training", request.training_dataset_id, "/training_dataset_id"


def _find_model(session: Session, project_id: str, model_id: str, pointer: str) -> Model:
    model = find_model(session, project_id, model_id, lock="share")
    if model is None:
        raise refuse("model_not_found", pointer, "There is no such model.")
    return model


def _check_inputs_known(request: AnyJob, datasets: Mapping[str, Dataset], model: Model) -> None:
    if request.calibration is None and needs_calibration(request.config):
        raise refuse(
            "inputs_unknown",
            "/calibration",
            f"Method '{request.method}', so configured, finds activation ranges on data: give a "
            "calibration dataset, a few hundred samples like those the model will see.",
        )
    if not datasets and not model.inputs:
        raise refuse(
            "inputs_unknown",
            "/calibration",
            "TorchScript names no shapes. Give a calibration or evaluation dataset, or upload the "
            'model with its `inputs`, as [{"name": "x", "shape": ["batch", 3, 224, 224]}].',
        )


def _read_signature(model: Model, pointer: str) -> list[ForwardArgument]:
    arguments = [ForwardArgument(**argument) for argument in model.arguments]
    try:
        check_signature(arguments)
    except Misfit as misfit:
        raise refuse(misfit.code, pointer, misfit.detail) from misfit
    return arguments


def _check_arrays(
    model: Model,
    arguments: Sequence[ForwardArgument],
    dataset: Dataset,
    pointer: str,
    whose: str,
) -> None:
    arrays = {array["name"]: array for array in dataset.arrays if array["name"] != "label"}
    try:
        layout = bind_arrays(arguments, list(arrays))
        for slot in layout.slots:
            check_number(slot, arrays[slot.name]["dtype"], arrays[slot.name]["shape"])
    except Misfit as misfit:
        raise refuse(misfit.code, pointer, whose + misfit.detail) from misfit
    declared: dict[Place | None, Any] = {
        read_declared(arguments, each["name"]): each for each in model.inputs or []
    }
    for slot in layout.slots:
        wanted, array = declared.get(read_name(slot.name)), arrays[slot.name]
        if slot.type == "Tensor" and wanted and not _fits(array["shape"], wanted):
            raise refuse(
                "shape_mismatch",
                pointer,
                f"{whose}{slot.name} has the shape {array['shape']}; the model's input "
                f"{wanted['name']} was declared as {wanted['shape']}.",
            )


def _fits(shape: list[int], declared: Mapping[str, Any]) -> bool:
    expected = list(declared["shape"])
    if len(shape) != len(expected):
        return False
    # the first axis is the sample: batches are cut from it, so a fixed number there binds nothing
    pairs = list(zip(shape, expected, strict=True))[1:]
    return all(isinstance(want, str) or have == want for have, want in pairs)


def _check_labels(request: AnyJob, datasets: Mapping[str, Dataset]) -> None:
    if request.evaluation is None or request.evaluation.metric in (None, "agreement"):
        return
    if not datasets["evaluation"].has_labels:
        raise refuse(
            "label_mismatch",
            "/evaluation/metric",
            f"The metric {request.evaluation.metric} needs labels, and the dataset has no array "
            "`label`. Add one, or use the metric `agreement`.",
        )


def _check_device(session: Session, request: AnyJob) -> None:
    if not needs_gpu(request.device, request.backend):
        return
    if request.backend == "cuda":
        found = find_contradiction(request.method, request.config, request.formats, request.device)
        if found is not None:
            raise refuse("invalid_request", f"/{found[0]}", found[1])
    devices = list_devices(list_live_workers(session))
    if not any(device.startswith("cuda") for device in devices):
        raise refuse(
            "device_unavailable",
            "/device" if request.device == "cuda" else "/backend",
            "No worker with a CUDA device is running; use `auto` or `cpu`."
            if request.backend != "cuda"
            else "No worker with a CUDA device is running, and files for backend `cuda` are made "
            "and measured on one; use another backend.",
        )
