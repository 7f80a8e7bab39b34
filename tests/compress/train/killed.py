"""Trains in a process of its own, which its test kills: python -m tests.compress.train.killed."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from compress.lift import lift
from compress.spec.training import TrainingConfig
from compress.train.objective import AnswerObjective
from compress.train.teacher import Teacher
from compress.train.teaching import teach
from tests.compress.train import runs


class Ticking(runs.Listener):
    """Prints, so that the test knows when to kill."""

    def progress(self, fraction: float, message: str) -> None:
        sys.stdout.write(f"{fraction:.3f}\n")
        sys.stdout.flush()


def main(checkpoints: Path, scratch: Path, result: Path) -> None:
    torch.set_num_threads(1)
    scratch.mkdir(parents=True, exist_ok=True)
    pixels = torch.rand(4, 1, 8, 8)
    teacher = lift(torch.jit.trace(runs.net(seed=3).eval(), pixels), [pixels], verify=False)
    config = TrainingConfig(
        epochs=6, batch_size=16, learning_rate=1e-2, checkpoint_every_s=0.05, augment=("crop",)
    )
    sink = Ticking()
    data = teach(
        runs.digit_data(), Teacher(teacher.graph_module), config,
        device=runs.CPU, scratch=scratch, progress=runs.started(sink),
    )  # fmt: skip
    model = runs.net(dropout=0.3)
    trained = runs.train(
        model, data, config, sink=sink, checkpoints=checkpoints,
        objective=AnswerObjective("kl_ce", temperature=2.0, alpha=0.5, has_labels=True),
    )  # fmt: skip
    curve = [
        {key: value for key, value in row.items() if key != "images_per_s"} for row in trained.curve
    ]
    torch.save(
        {"model": model.state_dict(), "curve": curve, "resumed_from": trained.resumed_from}, result
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
