"""Learning rates go as torch's own schedules do; biases and normalisations do not decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.errors import InvalidSpec
from compress.spec.training import TrainingConfig
from compress.train.optimizing import check_rates, make_optimizer, rate_at
from tests.compress.train import runs

STEPS = 40


def rates(config: TrainingConfig) -> list[float]:
    return [rate_at(step, STEPS, config) for step in range(STEPS)]


def torchs(make: object) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.2, momentum=0.9)
    schedule = make(optimizer)  # type: ignore[operator]
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_cosine_and_one_cycle_are_torchs() -> None:
    schedulers = torch.optim.lr_scheduler
    assert rates(TrainingConfig(learning_rate=0.2, schedule="cosine")) == pytest.approx(
        torchs(lambda o: schedulers.CosineAnnealingLR(o, STEPS))
    )
    assert rates(TrainingConfig(learning_rate=0.2, schedule="one_cycle")) == pytest.approx(
        torchs(lambda o: schedulers.OneCycleLR(o, 0.2, STEPS, final_div_factor=1e4))
    )
    assert set(rates(TrainingConfig(learning_rate=0.2, schedule="constant"))) == {0.2}


def test_one_cycle_lives_through_very_few_steps() -> None:
    for steps in (1, 2, 3, 4):
        config = TrainingConfig(learning_rate=0.2, schedule="one_cycle")
        found = [rate_at(step, steps, config) for step in range(steps)]
        assert all(0 < rate <= 0.2 for rate in found)


def test_a_warm_up_rises_to_the_height() -> None:
    found = rates(TrainingConfig(learning_rate=1.0, warmup_steps=4))
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[5] < 1
    with pytest.raises(InvalidSpec, match="leaves none of the 4 steps"):
        check_rates(TrainingConfig(warmup_steps=4), 4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_vectors_do_not_decay(optimizer: str) -> None:
    model = runs.net()
    config = TrainingConfig(optimizer=optimizer, weight_decay=0.3)  # type: ignore[arg-type]
    made = make_optimizer([model], config)
    decays = {
        id(parameter): group["weight_decay"]
        for group in made.param_groups
        for parameter in group["params"]
    }
    assert {name: decays[id(p)] for name, p in model.named_parameters()} == {
        "0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0,
        "6.weight": 0.3, "6.bias": 0.0,
    }  # fmt: skip


def test_an_absurd_rate_is_warned_of() -> None:
    assert check_rates(TrainingConfig(), 10) is None
    assert check_rates(TrainingConfig(optimizer="sgd", learning_rate=0.5), 10) is None
    assert "very high for adamw" in str(check_rates(TrainingConfig(learning_rate=10.0), 10))
    assert "hardly change" in str(check_rates(TrainingConfig(learning_rate=1e-12), 10))
