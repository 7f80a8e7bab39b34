"""Layers inside teacher and student, tapped by name, and what their outputs are compared by."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from compress.errors import InvalidSpec, StudentMismatch
from compress.measure.outputs import output_tensors
from compress.train.objective import Batch, Loss, Objective

FeatureKind = Literal["fitnet", "attention", "relational"]
_MOST_ANGLES = 128
"""Samples whose angles are compared: each three of them have one."""
_ANGLE_WEIGHT = 2.0
"""Of angles against distances, as in the paper."""


class Taps:
    """Keeps the last outputs of layers of a graph, as they are computed."""

    def __init__(self, model: fx.GraphModule, names: Sequence[str], whose: str) -> None:
        """Begin to listen.

        Args:
            model: A lifted graph.
            names: Its modules.
            whose: `teacher` or `student`, for messages.

        Raises:
            InvalidSpec: The graph calls no module of that name.
        """
        self.outputs: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        called = dict.fromkeys(
            str(node.target) for node in model.graph.nodes if node.op == "call_module"
        )
        layers = {name: model.get_submodule(name) for name in called}
        for name in dict.fromkeys(names):
            layer = layers.get(name)
            if layer is None or isinstance(layer, torch.jit.ScriptModule):
                raise InvalidSpec(_unknown(name, whose, list(layers)))
            self._hooks.append(layer.register_forward_hook(self._keep(name)))

    def close(self) -> None:
        """Listen no more."""
        for hook in self._hooks:
            hook.remove()

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self.outputs[name] = output_tensors(output)[0]

        return hook


def _unknown(name: str, whose: str, known: list[str]) -> str:
    if name in known:
        return (
            f"Layer '{name}' of the {whose} could not be lifted, so nothing sees its output; name "
            "another one in feature_layers."
        )
    near = difflib.get_close_matches(name, known, 3, cutoff=0.4) or known[:3]
    # whoever names a block means its last layer
    inside = [each for each in known if each.startswith(f"{name}.")][-3:]
    return (
        f"The {whose} has no layer '{name}' that feature_layers could compare; layers of such "
        f"names are: {', '.join(inside or near)}."
    )


class FeatureObjective(Objective):
    """Another loss, and the distance of features beside it."""

    def __init__(
        self,
        base: Objective,
        kind: FeatureKind,
        layers: Mapping[str, str],
        weight: float,
        *,
        taps: Taps,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
    ) -> None:
        """Make the projections that are learned.

        Args:
            base: What the answers are compared by.
            kind: What the features are compared by.
            layers: The teacher's layer to the student's.
            weight: Of the features.
            taps: On the student that is trained.
            student: Features of an example, by the student's layers.
            teacher: By the teacher's.

        Raises:
            StudentMismatch: Features that cannot be compared; both shapes are told.
        """
        super().__init__()
        self.base = base
        self._kind = kind
        self._layers = dict(layers)
        self._weight = weight / len(layers)
        self._taps = taps
        self.projections = nn.ModuleList()
        for theirs, ours in layers.items():
            pair = f"'{ours}' of the student and '{theirs}' of the teacher"
            self.projections.append(_prepare(kind, student[ours], teacher[theirs], pair))
        self.needs_teacher = True
        self.needs_labels = base.needs_labels

    def forward(self, output: Any, batch: Batch) -> Loss:
        """Return the other loss's parts and `features`."""
        assert batch.answers is not None
        compare = {"fitnet": hint, "attention": attention_distance, "relational": relation_distance}
        found = [
            compare[self._kind](
                projection(self._taps.outputs[ours].float()), batch.answers.features[theirs]
            )
            for projection, (theirs, ours) in zip(
                self.projections, self._layers.items(), strict=True
            )
        ]
        features = self._weight * batch.share * torch.stack(found).sum()
        base = self.base(output, batch)
        return Loss(base.total + features, {**base.parts, "features": features.detach()})


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared distance of features of one width, of the coarser one's size.

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, 2015.

    Args:
        student: `[samples, channels, …]`, projected to the teacher's width.
        teacher: `[samples, channels, …]`.
    """
    return F.mse_loss(*_same_size(student, teacher))


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance of unit-length maps of spatial attention, mean over samples.

    A map is the mean of squares over channels. Where both have three axes and agree in the second,
    that is the length of sequences `[samples, length, width]`, as in transformers.

    Source: Zagoruyko and Komodakis, Paying More Attention to Attention, 2017.

    Args:
        student: `[samples, channels, …]`.
        teacher: `[samples, channels, …]`; widths and sizes may differ.
    """
    if student.dim() == 3 and student.shape[1] == teacher.shape[1]:
        student, teacher = student.transpose(1, 2), teacher.transpose(1, 2)
    ours, theirs = _same_size(
        student.square().mean(1, keepdim=True), teacher.square().mean(1, keepdim=True)
    )
    ours, theirs = F.normalize(ours.flatten(1)), F.normalize(theirs.flatten(1))
    return (ours - theirs).square().sum(1).mean()


def relation_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how distances and angles between samples differ, by Huber's loss.

    Distances are in units of their mean; angles are those that two samples form at a third.

    Source: Park et al., Relational Knowledge Distillation, 2019.

    Args:
        student: `[samples, …]`.
        teacher: `[samples, …]`; of any shape.
    """
    ours, theirs = student.flatten(1), teacher.flatten(1)
    if len(ours) < 2:
        return ours.sum() * 0
    distance = F.smooth_l1_loss(_distances(ours), _distances(theirs))
    few_ours, few_theirs = ours[:_MOST_ANGLES], theirs[:_MOST_ANGLES]
    return distance + _ANGLE_WEIGHT * F.smooth_l1_loss(_angles(few_ours), _angles(few_theirs))


def _distances(rows: Tensor) -> Tensor:
    squared = rows.square().sum(1)
    product = rows @ rows.T
    others = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    # the square root has no gradient at 0
    distance = (squared[:, None] + squared - 2 * product).clamp_min(1e-12).sqrt() * others
    return distance / (distance.sum() / others.sum()).clamp_min(1e-12)


def _angles(rows: Tensor) -> Tensor:
    """Cosines `[samples, samples, samples]` of the angles at the first of three."""
    towards = F.normalize(rows[None] - rows[:, None], dim=2)
    return torch.bmm(towards, towards.transpose(1, 2))


def _same_size(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Average the finer of two `[samples, channels, …]` over the places of the coarser."""
    if left.shape[2:] == right.shape[2:]:
        return left, right
    size = [min(a, b) for a, b in zip(left.shape[2:], right.shape[2:], strict=True)]
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(size)]
    return pool(left, size), pool(right, size)  # type: ignore[arg-type]


def _prepare(kind: FeatureKind, student: Tensor, teacher: Tensor, pair: str) -> nn.Module:
    """Return what is done to the student's features first.

    Raises:
        StudentMismatch: They cannot be compared.
    """
    if kind == "relational":
        return nn.Identity()
    told = f"Outputs {list(student.shape)} and {list(teacher.shape)} of layers {pair}"
    ours, theirs = student.shape, teacher.shape
    if len(ours) != len(theirs) or not 2 <= len(ours) <= 5:
        raise StudentMismatch(
            f"{told} have different axes, which '{kind}' cannot compare; choose other layers, or "
            "feature_loss 'relational'."
        )
    if kind == "attention":
        if len(ours) < 3:
            raise StudentMismatch(
                f"{told} have no places that attention could go to; choose layers before the "
                "pooling, or another feature_loss."
            )
        return nn.Identity()
    if len(ours) == 3 and ours[1] == theirs[1]:  # `[samples, length, width]`, as in transformers
        return nn.Identity() if ours == theirs else nn.Linear(ours[2], theirs[2], bias=False)
    if ours[1] == theirs[1]:
        return nn.Identity()
    if len(ours) == 2:
        return nn.Linear(ours[1], theirs[1], bias=False)
    convolution = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(ours)]
    return convolution(ours[1], theirs[1], 1, bias=False)
