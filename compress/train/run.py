"""One run of the training loop: its steps, its epochs, and all that must survive a kill."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import TrainingDiverged
from compress.progress import Progress
from compress.spec.training import TrainingConfig
from compress.train.checkpoint import CheckpointFile, fingerprint
from compress.train.data import TrainingData
from compress.train.figures import Figures
from compress.train.loading import Loader
from compress.train.machine import Machine
from compress.train.objective import Objective
from compress.train.optimizing import rate_at
from compress.train.stepper import Stepper
from compress.train.telling import Teller
from compress.train.validation import Ranking, validate

_START = -1
"""In place of an epoch's row: what training began with."""


class Run:
    """A run under way. What `_state` gives decides on how it goes on, and nothing else does.

    Attributes:
        step: Steps done.
        curve: A row per epoch.
        figures: Losses and speed.
    """

    def __init__(
        self,
        trainee: nn.Module,
        objective: Objective,
        data: TrainingData,
        config: TrainingConfig,
        machine: Machine,
        steps: int,
        phase: str,
        progress: Progress,
        on_step: Callable[[int, float], None],
    ) -> None:
        """Move all to the machine, and stand before the first step; for the rest see `fit`."""
        self._trainee, self._objective, self._data = trainee, objective, data
        self._config, self._machine, self._progress = config, machine, progress
        self._steps, self._phase, self._on_step = steps, phase, on_step
        self._per_epoch = data.batches_per_epoch(config.batch_size)
        self._initial = _digest(trainee)
        machine.place(trainee)
        machine.place(objective)
        self._stepper = Stepper(trainee, objective, data, config, machine, progress.warn)
        self._ranking = Ranking(config)
        self.step = 0
        self.curve: list[dict[str, Any]] = []
        self._start: dict[str, Any] | None = None
        self.figures = Figures(machine.device)

    def fingerprint(self, seed: int) -> str:
        """Return a digest of what decides on the run."""
        settings = {**asdict(self._config), "checkpoint_every_s": None}
        added = [tuple(value.shape) for value in self._objective.state_dict().values()]
        return fingerprint(
            settings, seed, self._machine, self._initial, added, self._data.facts()
        )  # fmt: skip

    def resume(self, file: CheckpointFile) -> int | None:
        """Go on from a checkpoint, if there is one; return the step that it had come to."""
        state = file.load()
        if file.refused is not None:
            self._progress.warn(
                f"The checkpoint cannot be used ({file.refused}); training starts anew."
            )
        if state is None:
            return None
        self._trainee.load_state_dict(state["model"])
        self._objective.load_state_dict(state["objective"])
        self._stepper.load(state["stepper"])
        self._ranking.load(state["ranking"])
        self.figures.load(state["figures"])
        self.step, self.curve = state["step"], state["curve"]
        self._start = state["start"]
        torch.set_rng_state(state["rng"])
        if self._machine.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self._machine.device)
        self._progress.note(f"Training goes on from step {self.step} of {self._steps}.")
        return self.step

    def train(self, file: CheckpointFile, teller: Teller) -> None:
        """Do the steps that are left, and save what became of them."""
        if self.step >= self._steps or self._ranking.is_stopped:
            return
        config = self._config
        if self.step == 0 and config.keep == "best":
            self._judge_start()
        loader = Loader(self._data, self._machine, config.batch_size, config.augment)
        self._to_train_mode()
        with closing(loader.steps(self.step, self._steps)) as batches:
            for batch in batches:
                self._on_step(self.step, self.step / self._per_epoch)
                losses = self._stepper.learn(batch, self.step, self._steps)
                self.figures.add(self.step, losses, len(batch))
                if self._machine.device.type != "cuda":  # there, asking would make each step wait
                    self._check_numbers()
                self.step += 1
                teller.step(self.step, self.figures.clock_s())
                if self.step % self._per_epoch == 0 or self.step == self._steps:
                    self._end_epoch(teller)
                    if self._ranking.is_stopped:
                        break
                    if file.is_due(0.0):
                        self._save(file)
                    self._to_train_mode()
                    continue
                if teller.is_due():
                    self._check_numbers()
                    teller.tell(self.step, self._row(), is_epoch=False)
                if file.is_due(config.checkpoint_every_s):
                    self._check_numbers()
                    self._save(file)
        self._save(file)

    def keep(self) -> None:
        """Leave the model in eval mode, with the weights to keep.

        Raises:
            TrainingDiverged: They are no numbers, or give none.
        """
        if self._ranking.weights is not None:
            if self._ranking.row == _START:
                self._check_weights()  # nothing was learned, it may be for that
            self._trainee.load_state_dict(self._ranking.weights)
            if self._ranking.row == _START:
                self._progress.warn(
                    "No epoch did better on the samples kept back than the weights that training "
                    "began with, so those are kept. A lower learning_rate, or more epochs, may win."
                )
        self._check_kept()
        self._stepper.renew()
        self._trainee.eval()

    def _check_kept(self) -> None:
        """Raise TrainingDiverged if the last step, whose loss nobody saw, has spoiled the model."""
        judged = self.kept_row()["validation_loss"]
        if judged is not None and not math.isfinite(judged):
            raise self._diverged(self.step)
        self._check_weights()

    def _check_weights(self) -> None:
        learned = [each for each in self._trainee.parameters() if each.requires_grad]
        if not all(bool(torch.isfinite(each).all()) for each in learned):
            raise self._diverged(self.step)

    def kept_row(self) -> dict[str, Any]:
        """Return the row of the curve whose weights are kept, or that of epoch 0."""
        if self._ranking.weights is None:
            return self.curve[-1]
        if self._ranking.row == _START:
            assert self._start is not None
            return self._start
        return self.curve[self._ranking.row]

    def _judge_start(self) -> None:
        """Let the weights that training begins with be the best, until an epoch does better."""
        if len(self._data.validation):
            self._start = {
                "phase": self._phase, "loss": None, "parts": {}, "images_per_s": None,
                "learning_rate": None, **self._judge(_START), "epoch": 0, "step": 0,
            }  # fmt: skip

    def _judge(self, row: int) -> dict[str, Any]:
        """Run the model on the samples kept back, and rank it."""
        verdict = validate(
            self._trainee,
            self._objective,
            self._data,
            self._machine,
            max(1, self._config.batch_size // self._stepper.parts),
            self._stepper.complete,
        )
        self._ranking.take(verdict, row, self._trainee)
        return {"validation_loss": verdict.loss, "accuracy": verdict.accuracy}

    def _end_epoch(self, teller: Teller) -> None:
        """Judge the epoch, note it, and decide whether to go on."""
        self._check_numbers()
        self.figures.pause()
        row = {**self._row(), "epoch": len(self.curve) + 1, "step": self.step}
        if len(self._data.validation):
            began = time.monotonic()
            row |= self._judge(len(self.curve))
            teller.validated(time.monotonic() - began)
        self.curve.append(row)
        teller.tell(self.step, row, is_epoch=True)
        self.figures.begin_epoch()

    def _row(self) -> dict[str, Any]:
        return {
            "phase": self._phase,
            **self.figures.epoch(),
            "learning_rate": rate_at(self.step - 1, self._steps, self._config),
            "validation_loss": None,
            "accuracy": None,
        }

    def _to_train_mode(self) -> None:
        self._trainee.train()
        self._objective.train()
        self.figures.run()

    def _check_numbers(self) -> None:
        """Raise TrainingDiverged if a step's loss was no number."""
        bad = self.figures.first_bad()
        if bad is None:
            return
        raise self._diverged(bad)

    def _diverged(self, step: int) -> TrainingDiverged:
        rate = rate_at(min(step, self._steps - 1), self._steps, self._config)
        advice = (
            "Use a lower learning_rate, more warmup_steps, or a gradient_clip of 1."
            if step > 0
            else "Nothing was learned before, so it is no matter of the learning rate: look for "
            "infinite or huge values in the training data and in the teacher's answers."
        )
        return TrainingDiverged(
            f"The loss became infinite or NaN at step {step}, at a learning rate of {rate:.3g}. "
            f"{advice}",
            {"step": step, "learning_rate": rate},
        )

    def _save(self, file: CheckpointFile) -> None:
        is_gpu = self._machine.device.type == "cuda"
        file.save({
            "model": self._trainee.state_dict(),
            "objective": self._objective.state_dict(),
            "stepper": self._stepper.state(),
            "ranking": self._ranking.state(),
            "figures": self.figures.state(),
            "step": self.step,
            "curve": self.curve,
            "start": self._start,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self._machine.device) if is_gpu else None,
        })  # fmt: skip


def _digest(model: nn.Module) -> str:
    """Return a digest of all weights."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
