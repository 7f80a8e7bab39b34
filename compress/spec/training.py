"""Configs of the methods that train: distillation and quantization-aware training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Len, Lt

from compress.spec.fields import CONFIG, LayerPrecision, Strict, Text

Augmentation = Literal["none", "flip", "crop", "noise", "mixup"]

DEFAULT_EPOCHS = 10


def held_out(samples: int, fraction: float) -> int:
    """Return how many of a dataset's samples are kept back: at least one, if any."""
    return max(1, round(fraction * samples)) if fraction > 0 else 0


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained, whatever for."""

    __pydantic_config__: ClassVar[Any] = CONFIG

    epochs: Annotated[int, Ge(1), Le(100_000), Strict()] | None = None
    """Passes over the training data; 10 where `steps` is not given either."""
    steps: Annotated[int, Ge(1), Le(2**31), Strict()] | None = None
    """Steps of the optimizer, in place of `epochs`."""
    batch_size: Annotated[int, Ge(1), Le(65_536), Strict()] = 64
    """Samples of one step."""
    gradient_accumulation: Annotated[int, Ge(1), Le(1024), Strict()] = 1
    """Parts that a step's samples are run in one after another, for want of memory."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """`sgd` has Nesterov's momentum of 0.9."""
    learning_rate: Annotated[float, Gt(0), Le(1e6), Strict()] = 1e-3
    """At the height of the schedule."""
    weight_decay: Annotated[float, Ge(0), Le(1e6), Strict()] = 0.01
    """Of weights; biases and normalisations have none."""
    schedule: Literal["constant", "cosine", "one_cycle"] = "cosine"
    """How the learning rate goes: `cosine` falls to nothing, `one_cycle` rises and falls."""
    warmup_steps: Annotated[int, Ge(0), Le(2**31), Strict()] = 0
    """Steps in which the learning rate first rises from nothing."""
    gradient_clip: Annotated[float, Gt(0), Le(1e6), Strict()] | None = None
    """Longest gradient, in the Euclidean norm of all parameters together."""
    amp: Literal["auto", "off", "bf16"] = "auto"
    """Compute in bfloat16 where it is safe; `auto` does so where the processor is made for it."""
    validation_fraction: Annotated[float, Ge(0), Le(0.5), Strict()] = 0.1
    """Share of the training samples kept back, to judge each epoch by. The evaluation dataset
    plays no part in training, so that its figures stay true."""
    keep: Literal["best", "last"] = "best"
    """Weights that the model ends with: of the epoch judged best, those that training began with
    among them, or of the last one."""
    early_stopping: Annotated[int, Ge(1), Le(100_000), Strict()] | None = None
    """Stop after so many epochs without a better one."""
    augment: Annotated[tuple[Augmentation, ...], Len(0, 5)] = ()
    """Changes to training images: `flip` left to right, `crop` after padding by an eighth, `noise`,
    `mixup` of two samples and their targets."""
    checkpoint_every_s: Annotated[float, Gt(0), Le(86_400), Strict()] = 30.0
    """A job whose worker dies goes on from the last checkpoint."""

    def __post_init__(self) -> None:
        """Raise ValueError where settings contradict each other."""
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        if self.validation_fraction == 0 and self.early_stopping is not None:
            raise ValueError("early_stopping needs a validation_fraction above 0")
        if self.gradient_accumulation > self.batch_size:
            raise ValueError("gradient_accumulation is at most batch_size")
        if "none" in self.augment and len(self.augment) > 1:
            raise ValueError("augment none goes with no other")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainingConfig):
    """Distillation: the job's model teaches a smaller one, uploaded or cut out of the teacher."""

    __pydantic_config__: ClassVar[Any] = CONFIG

    student_model_id: Text | None = None
    """The model that learns; without one, `prune` makes it."""
    prune: Annotated[float, Gt(0), Lt(1), Strict()] | None = None
    """Share of the teacher's channels to cut, for a student made of what is left."""
    temperature: Annotated[float, Gt(0), Le(1000), Strict()] = 5.0
    """Softens the teacher's answers; T of Hinton et al."""
    alpha: Annotated[float, Ge(0), Le(1), Strict()] = 0.7
    """Weight of the teacher's answers; the labels have the rest. Without labels it counts as 1."""
    loss: Literal["kl_ce", "kl", "mse", "dist"] = "kl_ce"
    """What the student's answers are compared by. `kl_ce`: divergence from the teacher's softened
    classes, and cross-entropy with the labels; `kl`: the first alone; `mse`: squared distance of
    the answers, and of the labels where they are floats; `dist`: correlation between and within
    classes (Huang et al.), and the labels. Classes lie on axis 1, or on the last one of sequences
    `[batch, length, classes]`, whose every token is a sample."""
    feature_layers: Mapping[Text, Text] = field(default_factory=dict)
    """Names of layers whose outputs are compared too: the teacher's to the student's."""
    feature_loss: Literal["fitnet", "attention", "relational"] = "fitnet"
    """`fitnet`: squared distance after a learned projection; `attention`: of spatial attention
    maps; `relational`: of distances and angles between the samples of a batch."""
    feature_weight: Annotated[float, Gt(0), Le(1e6), Strict()] = 1.0
    """Weight of the features beside the answers."""
    finetune_epochs: Annotated[int, Ge(0), Le(100_000), Strict()] = 0
    """Further epochs on the labels alone, at a tenth of the learning rate."""

    def __post_init__(self) -> None:
        """Raise ValueError where settings contradict each other."""
        super().__post_init__()
        if (self.student_model_id is None) == (self.prune is None):
            raise ValueError("give student_model_id or prune: one of them makes the student")


@dataclass(frozen=True, kw_only=True)
class QatConfig(TrainingConfig):
    """Quantization-aware training: int8 or int4 weights and int8 activations learn to be that."""

    __pydantic_config__: ClassVar[Any] = CONFIG

    learning_rate: Annotated[float, Gt(0), Le(1e6), Strict()] = 5e-4
    """At the height of the schedule. The model is trained already: 1e-3 for few hundred steps, 1e-4
    for many thousands or for a transformer."""
    weight_decay: Annotated[float, Ge(0), Le(1e6), Strict()] = 0.0
    """Of weights; biases and normalisations have none."""
    amp: Literal["auto", "off", "bf16"] = "auto"
    """`auto` computes in float32, since bfloat16 has fewer digits than the scales; with `bf16`,
    accuracies told while training are only near those of the files."""
    loss: Literal["distill", "task", "both"] = "distill"
    """`distill`: stay close to the float model, for which no labels are needed; `task`: the labels;
    `both`: the mean of the two."""
    temperature: Annotated[float, Gt(0), Le(1000), Strict()] = 4.0
    """Softens the float model's answers."""
    weight_dtype: Literal["int8", "int4"] = "int8"
    """Number format of weights. `int4` weights are stored and computed as int8 by formats that
    have no kernel for them: smaller once packed or zipped, not faster."""
    granularity: Literal["per_channel", "per_tensor"] = "per_channel"
    """One weight scale per output channel, or one per tensor."""
    freeze_observers_after: Annotated[float, Ge(0), Strict()] | None = None
    """Epochs after which the ranges of activations stay as they are; default three quarters."""
    freeze_batch_norm_after: Annotated[float, Ge(0), Strict()] | None = None
    """Epochs after which BatchNorm goes by its running statistics; default half."""
    overrides: Mapping[Text, LayerPrecision] = field(default_factory=dict)
    """Layer name pattern (shell style, as `features.0.*`) to precision; the last match wins."""
