"""Job specs: plain frozen dataclasses, free of torch, shared by the API and the engine.

The API turns them into JSON Schema and validates requests with them; the engine reads them.
They are therefore the single place where a method's fields, defaults and bounds are written.
Docstrings under a field become its description in the JSON Schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Len

from compress.spec.fields import (
    CONFIG,
    Flag,
    Granularity,
    LayerPrecision,
    Number,
    Observer,
    Strict,
    Text,
)
from compress.spec.training import DistillConfig, QatConfig, TrainingConfig

__all__ = [
    "METHODS",
    "Backend",
    "Config",
    "ConvertConfig",
    "Device",
    "DistillConfig",
    "EngineSpec",
    "Format",
    "Granularity",
    "LayerPrecision",
    "Method",
    "Metric",
    "MixedConfig",
    "Number",
    "Observer",
    "PtqConfig",
    "QatConfig",
    "Stage",
    "TensorSpec",
    "Text",
    "TrainingConfig",
    "needs_calibration",
]

Format = Literal["torchscript", "onnx", "openvino", "pt2"]
Backend = Literal["x86", "x86_vnni", "arm", "cuda"]
Device = Literal["auto", "cpu", "cuda"]
Metric = Literal["top1", "top5", "f1", "mse", "mae", "agreement"]
Stage = Literal[
    "fetch", "load", "lift", "calibrate", "train", "convert", "export", "evaluate", "benchmark",
    "store",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PtqConfig:
    """Post-training quantization: weights, and mostly activations too, to integers."""

    __pydantic_config__: ClassVar[Any] = CONFIG

    mode: Literal["static", "dynamic", "weight_only"] = "static"
    """`static`: int8 weights and activations, scales fixed from calibration data; for convolutional
    nets. `dynamic`: int8 weights, activations scaled anew on each call; for transformers and
    recurrent nets. `weight_only`: weights stored as integers, computed in float."""
    weight_dtype: Literal["int8", "int4"] = "int8"
    """Number format of quantized weights; `int4` with `weight_only` alone."""
    granularity: Granularity = "per_channel"
    """One weight scale per output channel, one per tensor, or, with `weight_only`, one for each
    `group_size` weights of a channel."""
    group_size: Literal[32, 64, 128, 256] = 64
    """Weights that share a scale under `per_group`."""
    observer: Observer = "histogram"
    """How static activation ranges are found: `histogram` minimises the expected squared error,
    `minmax` takes the extremes seen, `percentile` leaves the outermost out, `mse` searches the
    range of least squared error, `entropy` that of least divergence."""
    percentile: Annotated[float, Gt(50), Le(100), Strict()] = 99.99
    """Of values that the observer `percentile` keeps inside the range."""
    equalize: Flag = False
    """Even out the ranges of neighbouring layers' channels first; for depthwise convolutions and
    `per_tensor` weights."""
    bias_correction: Flag = False
    """Take the mean error that quantization leaves in each channel out of the biases."""
    smoothquant: Flag = False
    """Move outliers of activations into the weights behind a normalisation; for transformers."""
    smoothquant_alpha: Annotated[float, Ge(0), Le(1), Strict()] = 0.5
    """How much of the outliers moves: 0 nothing, 1 all."""
    adaround: Flag = False
    """Learn for each weight whether to round it up or down; slow, for what rounding hurts."""
    overrides: Mapping[Text, LayerPrecision] = field(default_factory=dict)
    """Layer name pattern (shell style, as `features.0.*`) to precision; the last match wins."""

    def __post_init__(self) -> None:
        """Raise ValueError where settings contradict each other."""
        weight_only = self.mode == "weight_only"
        _forbid(self.weight_dtype == "int4" and not weight_only, "int4", "weight_only")
        _forbid(self.granularity == "per_group" and not weight_only, "per_group", "weight_only")
        _forbid(self.bias_correction and self.mode != "static", "bias_correction", "static")
        _forbid(self.adaround and self.mode != "static", "adaround", "static")
        _forbid(self.equalize and self.mode != "static", "equalize", "static")
        _forbid(self.smoothquant and weight_only, "smoothquant", "static or dynamic")


@dataclass(frozen=True, kw_only=True)
class MixedConfig:
    """Mixed precision: the cheapest precision of each layer within one bound on the whole.

    Without a bound, the job's `max_accuracy_drop` is it.
    """

    __pydantic_config__: ClassVar[Any] = CONFIG

    max_accuracy_drop: Annotated[float, Ge(0), Le(1), Strict()] | None = None
    """Most that the quality metric may lose: 0.01 is one point."""
    min_sqnr_db: Annotated[float, Ge(-100), Le(200), Strict()] | None = None
    """Least ratio of signal to quantization noise of the outputs, in dB."""
    target_size_bytes: Annotated[int, Ge(1), Le(2**63 - 1), Strict()] | None = None
    """Size that the file may have; within it, the most accurate plan is sought."""
    candidates: Annotated[tuple[LayerPrecision, ...], Len(1, 4)] = ("int8", "fp16", "fp32")
    """Precisions to choose from; fp32 is always one where a layer takes no other."""
    observer: Observer = "histogram"
    """How static activation ranges are found, as for `ptq`."""
    granularity: Literal["per_channel", "per_tensor"] = "per_channel"
    """One weight scale per output channel, or one per tensor."""
    overrides: Mapping[Text, LayerPrecision] = field(default_factory=dict)
    """Layers whose precision is not up for search, by name pattern; the last match wins."""

    def __post_init__(self) -> None:
        """Raise ValueError where more than one bound is given."""
        bounds = (self.max_accuracy_drop, self.min_sqnr_db, self.target_size_bytes)
        if sum(bound is not None for bound in bounds) > 1:
            raise ValueError(
                "give one of max_accuracy_drop, min_sqnr_db and target_size_bytes, not several"
            )


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Formats and half precision only; no calibration of scales."""

    __pydantic_config__: ClassVar[Any] = CONFIG

    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Number format of weights in the artifact."""


def _forbid(is_set: bool, setting: str, mode: str) -> None:
    if is_set:
        raise ValueError(f"mode {mode} alone takes {setting}")


Config = PtqConfig | QatConfig | DistillConfig | MixedConfig | ConvertConfig
Method = Literal["ptq", "qat", "distill", "mixed", "convert"]
METHODS: dict[
    str,
    type[PtqConfig]
    | type[QatConfig]
    | type[DistillConfig]
    | type[MixedConfig]
    | type[ConvertConfig],
] = {
    "ptq": PtqConfig,
    "qat": QatConfig,
    "distill": DistillConfig,
    "mixed": MixedConfig,
    "convert": ConvertConfig,
}


def needs_calibration(config: Config) -> bool:
    """Whether a job cannot do without samples of the model's inputs."""
    if isinstance(config, PtqConfig):
        return config.mode == "static" or config.smoothquant
    return isinstance(config, MixedConfig)


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input of forward, for jobs without a dataset: `shape` is `["batch", 3, 224, 224]`."""

    __pydantic_config__: ClassVar[Any] = CONFIG

    name: Text
    """Name of the argument; `.` and a key behind it for what lies inside a tuple, list or dict."""
    dtype: Literal[
        "float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"
    ] = "float32"
    """Element type."""
    shape: Annotated[tuple[Annotated[int, Ge(1), Le(2**31)] | Text, ...], Len(0, 16)] = ()
    """Axis lengths; a name such as `batch` marks an axis that varies."""
    value: Number | None = None
    """For an argument that is a Python number: which; its `shape` is []. Elsewhere, what every
    element is."""


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """All that the engine needs to know of a job, beside the files.

    Attributes:
        method: Which method runs.
        config: Its configuration; of the type `METHODS[method]`.
        formats: File formats of the artifacts.
        backend: Kind of processor the artifact is for. `x86` is exact on all of them; `x86_vnni`
            uses the whole activation range, some 2 to 6 dB closer to float, but its sums overflow
            on a processor without AVX512-VNNI. `arm` is for torch's qnnpack kernels. `cuda` is for
            NVIDIA's GPUs: weights and activations in 16 bits, measured there.
        device: Where the engine computes.
        metric: Quality metric; None picks `top1` for class labels, `mse` for float targets and
            `agreement` without labels.
        calibration_samples: At most so many samples of the calibration dataset are used.
        calibration_batch_size: Samples per calibration step.
        seed: Seeds every random choice.
        threads: Threads for computation and for latency.
        max_accuracy_drop: Budget for `recommended`, as a fraction (0.01 is one point).
    """

    method: Method = "ptq"
    config: Config = field(default_factory=PtqConfig)
    formats: tuple[Format, ...] = ("torchscript",)
    backend: Backend = "x86"
    device: Device = "auto"
    metric: Metric | None = None
    calibration_samples: int = 256
    calibration_batch_size: int = 32
    seed: int = 0
    threads: int = 1
    max_accuracy_drop: float = 0.01
