"""Job specs: plain frozen dataclasses, free of torch, shared by the API and the engine.

The API turns them into JSON Schema and validates requests with them; the engine reads them.
They are therefore the single place where a method's fields, defaults and bounds are written.
Docstrings under a field become its description in the JSON Schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le, Len, Predicate

Format = Literal["torchscript"]
Backend = Literal["x86", "x86_vnni"]
Device = Literal["auto", "cpu", "cuda"]
Metric = Literal["top1", "top5", "mse", "mae", "agreement"]
Stage = Literal[
    "fetch", "load", "lift", "calibrate", "train", "convert", "export", "evaluate", "benchmark",
    "store",
]  # fmt: skip
LayerPrecision = Literal["int8", "fp32"]

# control characters and lone surrogates go into no database, file or terminal
Text = Annotated[str, Len(1, 200), Predicate(str.isprintable)]

Number = bool | Annotated[int, Ge(-(2**63)), Le(2**63 - 1)] | Annotated[float, Predicate(isfinite)]

# pydantic reads this attribute from a plain dataclass; the engine itself needs no pydantic.
_CONFIG: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, kw_only=True)
class PtqConfig:
    """Post-training quantization: weights and activations to int8, scales from calibration."""

    __pydantic_config__: ClassVar[Any] = _CONFIG

    mode: Literal["static"] = "static"
    """`static`: int8 weights and activations, scales fixed from calibration data."""
    weight_dtype: Literal["int8"] = "int8"
    """Number format of quantized weights."""
    granularity: Literal["per_channel", "per_tensor"] = "per_channel"
    """One weight scale per output channel, or one per tensor."""
    observer: Literal["histogram", "minmax"] = "histogram"
    """How activation ranges are found: `histogram` minimises the expected squared error, `minmax`
    takes the extremes seen."""
    overrides: Mapping[Text, LayerPrecision] = field(default_factory=dict)
    """Layer name pattern (shell style, as `features.0.*`) to precision; the last match wins."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Formats and half precision only; no calibration of scales."""

    __pydantic_config__: ClassVar[Any] = _CONFIG

    precision: Literal["fp32", "fp16"] = "fp32"
    """Number format of weights and computation in the artifact."""


Config = PtqConfig | ConvertConfig
Method = Literal["ptq", "convert"]
METHODS: dict[str, type[PtqConfig] | type[ConvertConfig]] = {
    "ptq": PtqConfig,
    "convert": ConvertConfig,
}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input of forward, for jobs without a dataset: `shape` is `["batch", 3, 224, 224]`."""

    __pydantic_config__: ClassVar[Any] = _CONFIG

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
            on a processor without AVX512-VNNI.
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
