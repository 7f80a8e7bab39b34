"""The engine's errors: one tree, each with a stable code and a sentence that says what to do.

CompressError
├── ModelError          the uploaded model is at fault
│   ├── InvalidModel          not loadable as TorchScript                 invalid_model
│   ├── BadSignature          no forward, or one that cannot be called    bad_signature
│   ├── BadOutput             forward returns something unusable          bad_output
│   ├── ModelFailed           the model itself raised on valid input      model_failed
│   ├── RunTimeout            one call of the model does not end          run_timeout
│   ├── UnsupportedOperator   holds what cannot be lifted yet             unsupported_operator
│   ├── LiftMismatch          lifted and original disagree                lift_mismatch
│   ├── StudentMismatch       student and teacher do not fit              student_mismatch
│   ├── NothingToTrain        no parameter that could learn               nothing_to_train
│   └── NothingToCompress     no layer left that could be compressed      nothing_to_compress
├── DataError           the dataset is at fault
│   ├── InvalidDataset        not readable as npz or safetensors          invalid_dataset
│   ├── ShapeMismatch         arrays do not fit the model                 shape_mismatch
│   ├── LabelMismatch         labels do not fit inputs or outputs         label_mismatch
│   ├── EmptyDataset          no samples                                  empty_dataset
│   ├── ObjectArrays          pickled objects in an npz                   object_arrays_not_allowed
│   ├── BadCalibrationData    NaN, infinite, constant or too few          bad_calibration_data
│   ├── BadTrainingData       NaN, infinite or too few                    bad_training_data
│   └── BadEvaluationData     NaN, or figures that are no numbers         bad_evaluation_data
├── SpecError           the request is at fault
│   ├── InvalidSpec           a field has no meaning here                 invalid_spec
│   ├── InputsUnknown         no dataset and no shapes                    inputs_unknown
│   └── DeviceUnavailable     no such device                              device_unavailable
├── TrainingDiverged    the loss is no number any more                training_diverged
├── ConstraintUnmet     no plan keeps the bound that was set              constraint_unmet
├── ExportFailed        an artifact did not match when loaded afresh      export_failed
└── OutOfMemory         the job did not fit                               out_of_memory
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class CompressError(Exception):
    """Base of all errors the engine raises on purpose.

    Attributes:
        code: Stable, snake_case; clients branch on it.
        retryable: Whether running the same job again can help.
        message: What went wrong and what the user can do; no paths, no stack.
        details: Figures that belong to it, as plain JSON types, or None.
    """

    code = "compress_error"
    retryable = False

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class ModelError(CompressError):
    """The uploaded model is at fault."""

    code = "model_error"


class InvalidModel(ModelError):
    """The file does not load as TorchScript."""

    code = "invalid_model"


class BadSignature(ModelError):
    """The model has no forward, or one whose arguments cannot be given."""

    code = "bad_signature"


class BadOutput(ModelError):
    """Forward returns something that cannot be compared or exported."""

    code = "bad_output"


class ModelFailed(ModelError):
    """The model itself raised on the samples given."""

    code = "model_failed"


class RunTimeout(ModelError):
    """One call of the model took so long that it may never end."""

    code = "run_timeout"


class UnsupportedOperator(ModelError):
    """The model holds an operator, or a use of one, that cannot be lifted yet."""

    code = "unsupported_operator"


class LiftMismatch(ModelError):
    """The lifted graph and the original disagree; names the first node that differs."""

    code = "lift_mismatch"


class StudentMismatch(ModelError):
    """What the student takes or answers does not fit the teacher; the message tells both shapes."""

    code = "student_mismatch"


class NothingToTrain(ModelError):
    """The model has no parameter that training could change."""

    code = "nothing_to_train"


class NothingToCompress(ModelError):
    """No layer could be compressed."""

    code = "nothing_to_compress"


class DataError(CompressError):
    """The dataset is at fault."""

    code = "data_error"


class InvalidDataset(DataError):
    """The file cannot be read as npz or safetensors."""

    code = "invalid_dataset"


class ShapeMismatch(DataError):
    """The arrays do not fit the model."""

    code = "shape_mismatch"


class LabelMismatch(DataError):
    """Labels do not fit the inputs or the outputs."""

    code = "label_mismatch"


class EmptyDataset(DataError):
    """The dataset holds no samples."""

    code = "empty_dataset"


class ObjectArrays(DataError):
    """An array of the npz holds pickled Python objects."""

    code = "object_arrays_not_allowed"


class BadCalibrationData(DataError):
    """Calibration data is NaN, infinite, constant or too small."""

    code = "bad_calibration_data"


class BadTrainingData(DataError):
    """Training data holds NaN, or is too small to learn from."""

    code = "bad_training_data"


class BadEvaluationData(DataError):
    """Evaluation data holds NaN, or makes the original answer what no metric can use."""

    code = "bad_evaluation_data"


class SpecError(CompressError):
    """The request is at fault."""

    code = "spec_error"


class InvalidSpec(SpecError):
    """A field of the spec has no meaning here."""

    code = "invalid_spec"


class InputsUnknown(SpecError):
    """Neither a dataset nor declared shapes tell what the model eats."""

    code = "inputs_unknown"


class DeviceUnavailable(SpecError):
    """The device asked for is not there."""

    code = "device_unavailable"


class ExportFailed(CompressError):
    """An artifact, loaded afresh, did not match the model in memory."""

    code = "export_failed"


class OutOfMemory(CompressError):
    """The job needed more memory than there is."""

    code = "out_of_memory"


class TrainingDiverged(CompressError):
    """The loss became infinite or NaN; `details` holds the step and the learning rate."""

    code = "training_diverged"


class ConstraintUnmet(CompressError):
    """No plan keeps the bound that was set; `details` holds the best found and its figures."""

    code = "constraint_unmet"
