"""Training on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.pipeline import run
from compress.result import Inputs
from compress.spec import DistillConfig, EngineSpec, QatConfig
from compress.spec.training import TrainingConfig
from compress.train import loop
from compress.train.objective import labels_alone
from compress.train.stepper import Stepper
from tests.compress import digits
from tests.compress.sinks import Recorder
from tests.compress.train import runs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

CONFIG = TrainingConfig(
    epochs=8, batch_size=32, learning_rate=1e-2, gradient_clip=1.0, checkpoint_every_s=1e-9
)


class Ended(Exception):
    pass


def train(
    checkpoints: Path | None = None, *, end_at: int | None = None
) -> tuple[torch.nn.Module, loop.Trained, runs.Listener]:
    model, sink = runs.net(dropout=0.1), runs.Listener()

    def on_step(step: int, epoch: float) -> None:
        if step == end_at:
            raise Ended

    trained = loop.fit(
        model, labels_alone(), runs.digit_data(), CONFIG,
        phase="distill", seed=0, device=torch.device("cuda"), checkpoints=checkpoints,
        progress=runs.started(sink), on_step=on_step,
    )  # fmt: skip
    return model, trained, sink


def test_a_model_is_trained_and_given_back() -> None:
    model, _, sink = train()
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert sink.figures[-1]["accuracy"] > 0.8


def test_a_run_that_was_ended_goes_on(tmp_path: Path) -> None:
    with pytest.raises(Ended):
        train(tmp_path, end_at=50)
    _, trained, sink = train(tmp_path)
    assert trained.resumed_from
    assert trained.steps == trained.epochs * 9
    assert sink.figures[-1]["accuracy"] > 0.8


LOSSES: dict[str, DistillConfig | QatConfig] = {
    "softened": DistillConfig(student_model_id="s", epochs=2, gradient_clip=1.0),
    "in parts": DistillConfig(
        student_model_id="s", epochs=2, gradient_accumulation=2, optimizer="sgd"
    ),
    "squared": DistillConfig(student_model_id="s", epochs=2, loss="mse"),
    "correlated": DistillConfig(student_model_id="s", epochs=2, loss="dist"),
    "augmented": DistillConfig(
        student_model_id="s", epochs=2, augment=("flip", "crop", "noise", "mixup")
    ),
    "hint": DistillConfig(student_model_id="s", epochs=2, feature_layers={"0": "0"}),
    "attention": DistillConfig(
        student_model_id="s", epochs=2, feature_layers={"0": "0"}, feature_loss="attention"
    ),
    "relational": DistillConfig(
        student_model_id="s", epochs=2, feature_layers={"0": "0"}, feature_loss="relational"
    ),
    "pruned": DistillConfig(prune=0.5, epochs=2, finetune_epochs=1),
    "rounded": QatConfig(epochs=2),
    "rounded, in bfloat16": QatConfig(epochs=2, weight_dtype="int4", loss="both", amp="bf16"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_no_step_waits_for_the_gpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, steps = LOSSES[name], []
    learn = Stepper.learn

    def watched(self: Stepper, *arguments: Any) -> dict[str, torch.Tensor]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            losses = learn(self, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        steps.append(losses)
        return losses

    monkeypatch.setattr(Stepper, "learn", watched)
    pixels, labels, _, _ = digits.images()
    np.savez(tmp_path / "data.npz", input=pixels[:320].numpy(), label=labels[:320].numpy())
    for file, seed in (("model.pt", 0), ("student.pt", 1)):
        torch.jit.trace(runs.net(seed=seed).eval(), pixels[:2]).save(str(tmp_path / file))
    method = "qat" if isinstance(config, QatConfig) else "distill"
    has_student = isinstance(config, DistillConfig) and config.student_model_id
    out = tmp_path / "out"
    out.mkdir()
    run(
        EngineSpec(method=method, config=config, device="cuda"),
        Inputs(
            model=tmp_path / "model.pt",
            student=tmp_path / "student.pt" if has_student else None,
            training=tmp_path / "data.npz",
            evaluation=tmp_path / "data.npz",
        ),
        Recorder(),
        out,
    )
    assert len(steps) >= 10
    assert {loss.device.type for losses in steps for loss in losses.values()} == {"cuda"}
