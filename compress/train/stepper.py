"""One step of training: forward, loss, backward, update; in parts where memory wants it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.errors import InvalidSpec, OutOfMemory
from compress.quantize.islands import keeps_state, renew_islands
from compress.spec.training import TrainingConfig
from compress.train.data import TrainingData
from compress.train.figures import TOTAL
from compress.train.machine import Machine
from compress.train.objective import Batch, Loss, Objective
from compress.train.optimizing import Optimizer, rate_at
from compress.train.refusing import tell_refusals


class Stepper:
    """Does steps.

    Attributes:
        parts: In how many parts the samples of a step are run.
    """

    def __init__(
        self,
        trainee: nn.Module,
        objective: Objective,
        data: TrainingData,
        config: TrainingConfig,
        machine: Machine,
        warn: Callable[[str], None],
    ) -> None:
        """Take models that are on the machine; for the rest see `fit`."""
        self._trainee, self._objective, self._data = trainee, objective, data
        self._config, self._machine, self._warn = config, machine, warn
        self._pristine = _with_state(trainee)
        self._optimizer = Optimizer([trainee, objective], config)
        self.parts = config.gradient_accumulation

    def state(self) -> dict[str, Any]:
        """Return all that is to be kept, beside the models."""
        return {"optimizer": self._optimizer.state(), "parts": self.parts}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._optimizer.load(state["optimizer"])
        self.parts = state["parts"]

    def learn(self, batch: Batch, step: int, steps: int) -> dict[str, Tensor]:
        """Do one step; return its losses by name, the whole one as TOTAL.

        Raises:
            InvalidSpec: BatchNorm would learn from one sample.
            ModelFailed: The model does not run in train mode.
            OutOfMemory: Not even two samples at a time fit on the GPU.
        """
        while True:
            self._optimizer.forget()
            try:
                losses = [self._backward(part) for part in batch.parts(self.parts)]
                break
            except torch.OutOfMemoryError:
                pass  # what the error holds on to must go first
            self._halve(step, len(batch))
        self._optimizer.step(rate_at(step, steps, self._config))
        total = torch.stack([loss.total.detach() for loss in losses]).sum()
        return {TOTAL: total} | {
            name: torch.stack([loss.parts[name] for loss in losses]).sum()
            for name in losses[0].parts
        }

    def complete(self, batch: Batch) -> Batch:
        """Add the teacher's answers, where they are needed and not remembered."""
        if batch.answers is not None or not self._objective.needs_teacher:
            return batch
        assert self._data.teacher is not None
        return replace(batch, answers=self._data.teacher.answer(batch.inputs))

    def renew(self) -> None:
        """Let the model's state between calls be as it was before the first."""
        if self._pristine is not None:
            assert isinstance(self._trainee, fx.GraphModule)
            renew_islands(self._trainee, self._pristine)

    def _backward(self, part: Batch) -> Loss:
        self.renew()  # a step knows nothing of the one before
        part = self.complete(part)
        with tell_refusals("The model does not run in training"):
            try:
                with self._machine.computing():
                    output = self._trainee(*part.inputs)
                loss: Loss = self._objective(output, part)
                loss.total.backward()  # type: ignore[no-untyped-call]
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise InvalidSpec(
                    f"The model's BatchNorm cannot learn from batches of {len(part)} sample: use a "
                    "larger batch_size, or less gradient_accumulation."
                ) from error
        return loss

    def _halve(self, step: int, samples: int) -> None:
        """Run steps in twice as many parts from now on.

        Raises:
            OutOfMemory: They have two samples already.
        """
        torch.cuda.empty_cache()
        if self.parts >= samples // 2:
            raise OutOfMemory(
                "The GPU has not enough memory to train on two samples at a time; use device "
                "'cpu', a smaller model, or a GPU with more memory."
            )
        self.parts = min(2 * self.parts, samples // 2)
        self._warn(
            f"The GPU's memory is too small for step {step}: from here on, the samples of a "
            f"step are run in {self.parts} parts and their gradients added up."
        )


def _with_state(model: nn.Module) -> fx.GraphModule | None:
    """Return a copy of a graph that keeps state between calls; None of any other."""
    if isinstance(model, fx.GraphModule) and keeps_state(model):
        return copy.deepcopy(model)
    return None
