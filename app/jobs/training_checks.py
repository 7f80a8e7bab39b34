"""What a submit can tell of a job that trains: are there labels, and enough samples?"""

from __future__ import annotations

from app.datasets.tables import Dataset
from app.jobs.bodies import DistillJob, QatJob
from app.jobs.refusals import refuse
from compress.spec.training import held_out


def check_training(request: QatJob | DistillJob, training: Dataset) -> None:
    """Compare a job's config with the dataset that it learns from.

    Raises:
        Unprocessable: label_mismatch, invalid_request.
    """
    if not training.has_labels:
        if isinstance(request, QatJob) and request.config.loss != "distill":
            raise refuse(
                "label_mismatch",
                "/config/loss",
                f"The loss {request.config.loss} needs labels, and the training dataset has no "
                "array `label`. Add one, or use the loss distill, which needs none.",
            )
        if isinstance(request, DistillJob) and request.config.finetune_epochs > 0:
            raise refuse(
                "label_mismatch",
                "/config/finetune_epochs",
                "Fine-tuning goes by labels alone, and the training dataset has no array `label`. "
                "Add one, or leave finetune_epochs out.",
            )
    config = request.config
    kept = held_out(training.samples, config.validation_fraction)
    if config.batch_size > training.samples - kept:
        raise refuse(
            "invalid_request",
            "/config/batch_size",
            f"A batch of {config.batch_size} is larger than the data: of {training.samples} "
            f"samples, validation_fraction keeps {kept} back. Lower batch_size, or add samples.",
        )
