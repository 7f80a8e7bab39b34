"""The loop does what a plain loop in PyTorch does, and what a plain loop does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.data import Dataset
from compress.errors import (
    InvalidSpec,
    LabelMismatch,
    ModelFailed,
    NothingToTrain,
    TrainingDiverged,
)
from compress.spec.training import TrainingConfig
from compress.train import loop, telling
from compress.train.data import TrainingData
from compress.train.machine import Machine
from compress.train.optimizing import rate_at
from tests.compress.sinks import Recorder
from tests.compress.train import runs


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, right[name]) for name, value in left.items())


def plain_loop(model: nn.Module, data: TrainingData, config: TrainingConfig, steps: int) -> None:
    """As anyone would write it."""
    decaying = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": decaying, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        optimizer: Any = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=1.0)
    pixels = torch.from_numpy(data.dataset.inputs[0])
    assert data.dataset.label is not None
    labels = torch.from_numpy(data.dataset.label)
    model.train()
    for step, indices in enumerate(data.order(0, steps, config.batch_size)):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, config)
        optimizer.zero_grad()
        F.cross_entropy(model(pixels[indices]), labels[indices]).backward()
        if config.gradient_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimizer.step()
    model.eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4},
        {"optimizer": "adamw", "learning_rate": 1e-3, "schedule": "one_cycle"},
        {"optimizer": "sgd", "learning_rate": 0.1, "gradient_clip": 0.5, "warmup_steps": 3},
    ],
)
def test_steps_are_those_of_a_plain_loop(settings: dict[str, Any]) -> None:
    config = TrainingConfig(
        steps=12, batch_size=32, validation_fraction=0, keep="last", amp="off", **settings
    )
    data = runs.digit_data(fraction=0)
    # before a BatchNorm the gradient of a bias is noise, which AdamW makes steps of
    norm = config.optimizer == "sgd"
    model, plain = runs.net(norm=norm), runs.net(norm=norm)
    runs.train(model, data, config)
    plain_loop(plain, data, config, 12)
    for name, value in plain.state_dict().items():
        # layouts and fused steps add in another order
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=2e-5)


def test_two_runs_are_equal_bit_for_bit_and_seeds_differ() -> None:
    config = TrainingConfig(epochs=2, batch_size=32, augment=("crop", "noise", "mixup"))

    def trained(seed: int) -> dict[str, Tensor]:
        model = runs.net(dropout=0.3)
        torch.manual_seed(np.random.randint(1000))  # whatever was drawn before
        runs.train(model, runs.digit_data(seed=seed), config, seed=seed)
        return weights(model)

    first = trained(0)
    assert same(first, trained(0))
    assert not same(first, trained(1))


def test_it_learns_and_tells_each_epoch() -> None:
    sink = runs.Listener()
    config = TrainingConfig(epochs=8, batch_size=32, learning_rate=1e-2)
    trained = runs.train(runs.net(), runs.digit_data(), config, sink=sink)
    assert trained.final["accuracy"] > 0.8
    assert [row["epoch"] for row in trained.curve] == list(range(1, 9))
    assert trained.curve[-1]["loss"] < 0.5 * trained.curve[0]["loss"]
    told = [data for data in sink.figures if data["is_epoch"]]
    assert [data["step"] for data in told] == [9 * epoch for epoch in range(1, 9)]
    assert told[2].keys() >= {
        "phase", "epoch", "epochs", "step", "steps", "loss", "parts", "learning_rate", "accuracy",
        "images_per_s", "eta_s",
    }  # fmt: skip
    assert told[2]["eta_s"] > 0
    assert told[2]["parts"]["labels"] == pytest.approx(told[2]["loss"])
    assert sink.fractions == sorted(sink.fractions)
    assert "epoch 3/8, loss" in next(m for m in sink.messages if m.startswith("epoch 3/8, "))
    assert trained.images_per_s > 0
    assert trained.steps == 72


def test_inside_an_epoch_it_tells_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "EVERY_S", 0.0)
    sink = runs.Listener()
    config = TrainingConfig(epochs=1, batch_size=32)
    runs.train(runs.net(), runs.digit_data(), config, sink=sink)
    between = [data for data in sink.figures if not data["is_epoch"]]
    assert [data["step"] for data in between] == list(range(1, 9))
    assert between[0]["accuracy"] is None


def test_the_best_weights_are_kept_and_no_better_epoch_stops_it() -> None:
    data = runs.digit_data(120)
    config = TrainingConfig(
        epochs=60, batch_size=54, learning_rate=0.05, schedule="constant", early_stopping=3
    )
    model = runs.net()
    trained = runs.train(model, data, config)
    best = max(trained.curve, key=lambda row: (row["accuracy"], -row["validation_loss"]))
    assert trained.final == best
    assert trained.epochs == best["epoch"] + 3 < 60
    batch = data.reader().read(data.validation, with_answers=False)
    with torch.no_grad():
        said = model(*batch.inputs).argmax(1)
    assert float((said == batch.label).float().mean()) == pytest.approx(best["accuracy"])


def test_steps_may_end_in_mid_epoch() -> None:
    config = TrainingConfig(steps=13, batch_size=32, validation_fraction=0)
    trained = runs.train(runs.net(), runs.digit_data(fraction=0), config)
    assert (trained.steps, trained.epochs) == (13, 2)
    assert trained.final["step"] == 13


def test_each_step_is_announced_in_train_mode() -> None:
    model, seen = runs.net(), []
    config = TrainingConfig(epochs=2, batch_size=32)
    runs.train(
        model, runs.digit_data(), config,
        on_step=lambda step, epoch: seen.append((step, epoch, model.training)),
    )  # fmt: skip
    assert [step for step, _, _ in seen] == list(range(18))
    assert seen[9][1] == 1.0
    assert all(training for _, _, training in seen)
    assert not model.training


def test_a_loss_that_is_no_number_tells_step_and_rate() -> None:
    sink = Recorder()
    config = TrainingConfig(
        epochs=3, batch_size=32, optimizer="sgd", learning_rate=1e5, schedule="constant"
    )
    with pytest.raises(
        TrainingDiverged, match=r"at step \d+, at a learning rate of 1e\+05"
    ) as told:
        runs.train(runs.net(norm=False), runs.digit_data(), config, sink=sink)
    assert told.value.details is not None
    assert told.value.details["learning_rate"] == 1e5
    assert any("very high for sgd" in warning for warning in sink.warnings)


@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_a_last_step_that_spoils_the_model_is_told(fraction: float) -> None:
    dataset = runs.rows(label=np.zeros((64, 3), "f4"))
    dataset.inputs[0][:] *= 1e15  # a loss of 1e30 is a number, a weight of 1e39 is none
    config = TrainingConfig(steps=1, batch_size=32, optimizer="sgd", learning_rate=1e9)
    with pytest.raises(TrainingDiverged, match="Use a lower learning_rate"):
        runs.train(nn.Linear(6, 3), TrainingData.split(dataset, fraction, 0), config)


def test_a_loss_that_is_no_number_from_the_start_is_not_blamed_on_the_rate() -> None:
    dataset = runs.rows()
    dataset.inputs[0][:] = np.inf
    data = TrainingData.split(dataset, 0.0, 0)
    with pytest.raises(TrainingDiverged, match=r"at step 0.*no matter of the learning rate"):
        runs.train(nn.Linear(6, 3), data, TrainingConfig(steps=1, batch_size=32))


@pytest.mark.parametrize("kept_back", [False, True])
def test_a_sample_that_the_model_refuses_is_told(kept_back: bool) -> None:
    ids = np.zeros((40, 5), "i8")
    data = TrainingData.split(Dataset([ids], ["input"], np.zeros(40, "i8")), 0.1, 0)
    ids[data.validation[-1] if kept_back else data.training[-1]] = 9
    model = nn.Sequential(nn.Embedding(4, 6), nn.Flatten(), nn.Linear(30, 3))
    with pytest.raises(ModelFailed, match=r"ids that it does not know; it says: index out of"):
        runs.train(model, data, TrainingConfig(epochs=1, batch_size=8))


def test_faults_are_told_before_any_step() -> None:
    data, config = runs.digit_data(), TrainingConfig(epochs=1)
    with pytest.raises(NothingToTrain):
        runs.train(runs.net().requires_grad_(False), data, config)
    with pytest.raises(InvalidSpec, match="batch_size 512 is larger"):
        runs.train(runs.net(), data, TrainingConfig(batch_size=512))
    without = TrainingData(
        type(data.dataset)(data.dataset.inputs, ["input"]), data.training, data.validation, 0
    )
    with pytest.raises(LabelMismatch, match="add an array 'label'"):
        runs.train(runs.net(), without, config)


def test_bfloat16_learns_as_well() -> None:
    config = TrainingConfig(epochs=6, batch_size=32, learning_rate=1e-2, amp="bf16")
    trained = runs.train(runs.net(), runs.digit_data(), config)
    assert trained.final["accuracy"] > 0.8
    assert math.isfinite(trained.final["loss"])


def test_where_no_epoch_is_better_the_weights_before_it_are_kept_and_that_is_told() -> None:
    sink, data = Recorder(), runs.digit_data()
    model = runs.net()
    runs.train(model, data, TrainingConfig(epochs=12, batch_size=32))
    good = weights(model)
    # learns the opposite: other labels for the samples learned from, the same for those kept back
    assert data.dataset.label is not None
    data.dataset.label[data.training] = (data.dataset.label[data.training] + 1) % 10
    config = TrainingConfig(epochs=2, batch_size=32, learning_rate=1e-2, early_stopping=2)
    trained = runs.train(model, data, config, sink=sink)
    assert same(weights(model), good)
    assert (trained.final["epoch"], trained.final["step"], trained.final["loss"]) == (0, 0, None)
    assert trained.final["accuracy"] > max(row["accuracy"] for row in trained.curve)
    assert [row["epoch"] for row in trained.curve] == [1, 2]
    assert any("No epoch did better" in warning for warning in sink.warnings)


def test_bfloat16_that_the_model_does_not_take_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "choose_machine", lambda *_: Machine(runs.CPU))
    sink = Recorder()
    config = TrainingConfig(epochs=1, batch_size=32, amp="bf16")
    runs.train(runs.net(), runs.digit_data(), config, sink=sink)
    assert "The model does not run in bfloat16, so it is trained in float32." in sink.warnings
