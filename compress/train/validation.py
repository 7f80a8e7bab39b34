"""How an epoch is judged: on samples that were kept back, in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.measure.outputs import primary_output
from compress.measure.quality import IGNORED
from compress.spec.training import TrainingConfig
from compress.train.data import TrainingData
from compress.train.loading import Loader
from compress.train.losses import class_rows
from compress.train.machine import Machine
from compress.train.objective import Batch, Objective
from compress.train.refusing import tell_refusals


@dataclass(frozen=True)
class Verdict:
    """Figures of an epoch.

    Attributes:
        loss: The objective's.
        accuracy: Share of labels that the model says, where they are class ids.
    """

    loss: float
    accuracy: float | None

    def beats(self, other: Verdict | None) -> bool:
        """Whether it is better: by accuracy, and by the loss where that is equal or unknown."""
        if other is None:
            return self.loss == self.loss
        if self.accuracy is not None and other.accuracy is not None:
            return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)
        return self.loss < other.loss


class Ranking:
    """Which epoch is the best so far, and whether it was long ago.

    Attributes:
        weights: Of the model after the best epoch, on the processor; None to keep the last.
        row: Index of that epoch.
        is_stopped: Whether it is time to stop early.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self._keeps = config.keep == "best"
        self._patience = config.early_stopping
        self._best: Verdict | None = None
        self._stale = 0
        self.weights: dict[str, Tensor] | None = None
        self.row = 0
        self.is_stopped = False

    def take(self, verdict: Verdict, row: int, model: nn.Module) -> None:
        """Take in how an epoch was judged."""
        if verdict.beats(self._best):
            self._best, self.row, self._stale = verdict, row, 0
            if self._keeps:
                self.weights = {
                    name: value.detach().to("cpu", copy=True)
                    for name, value in model.state_dict().items()
                }
        else:
            self._stale += 1
        self.is_stopped = self._patience is not None and self._stale >= self._patience

    def state(self) -> dict[str, Any]:
        """Return all that is to be kept."""
        return {
            "best": None if self._best is None else asdict(self._best),
            "stale": self._stale,
            "weights": self.weights,
            "row": self.row,
            "is_stopped": self.is_stopped,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._best = None if state["best"] is None else Verdict(**state["best"])
        self._stale, self.weights = state["stale"], state["weights"]
        self.row, self.is_stopped = state["row"], state["is_stopped"]


def validate(
    model: nn.Module,
    objective: Objective,
    data: TrainingData,
    machine: Machine,
    batch_size: int,
    complete: Callable[[Batch], Batch],
) -> Verdict:
    """Run the model over the samples kept back.

    Args:
        model: On the machine; left in eval mode.
        objective: Its loss; left in eval mode.
        data: The samples.
        machine: How to compute.
        batch_size: Samples per call.
        complete: Adds the teacher's answers to a batch, where needed.
    """
    model.eval()
    objective.eval()
    classes = data.has_classes
    labels = _count_labels(data) if classes else 1
    loss = torch.zeros((), device=machine.device, dtype=torch.float64)
    hits = torch.zeros((), device=machine.device, dtype=torch.int64)
    loader = Loader(data, machine, batch_size)
    with torch.no_grad():
        for indices, batch in loader.every(data.validation):
            share = len(indices) / len(data.validation)
            label_share: float | Tensor = share
            if classes and batch.label is not None:
                label_share = (batch.label != IGNORED).sum() / labels
            whole = complete(replace(batch, share=share, label_share=label_share))
            with tell_refusals("The model does not run on samples that are kept back"):
                with machine.computing():
                    output = model(*whole.inputs)
                loss += objective(output, whole).total
            if classes and batch.label is not None:
                said = class_rows(primary_output(output), batch.label).argmax(1)
                hits += (said == batch.label.reshape(-1)).sum()
    return Verdict(float(loss), int(hits) / labels if classes else None)


def _count_labels(data: TrainingData) -> int:
    assert data.dataset.label is not None
    return max(1, int(np.count_nonzero(data.dataset.label[data.validation] != IGNORED)))
