"""Learning rates go as torch's own schedules do; biases and normalisations do not decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from compress.errors import InvalidSpec
from compress.spec.training import TrainingConfig
from compress.train.optimizing import Optimizer, check_rates, rate_at
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


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_vectors_do_not_decay(kind: Any) -> None:
    model = runs.net()
    optimizer = Optimizer([model], TrainingConfig(optimizer=kind, weight_decay=0.3))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 1.0)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.1)
    for name, value in model.named_parameters():
        decays = name in ("0.weight", "6.weight")
        assert bool((value < 1).all() if decays else (value == 1).all()), name


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_weights_learn_as_torchs_do_however_they_lie(kind: Any) -> None:
    config = TrainingConfig(optimizer=kind, weight_decay=0.1, gradient_clip=0.5)
    ours, theirs = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(3, 4, 3, bias=False)
    theirs.load_state_dict(ours.state_dict())
    ours.to(memory_format=torch.channels_last)
    optimizer = Optimizer([ours], config)
    plain: torch.optim.Optimizer = (
        torch.optim.SGD(theirs.parameters(), 0.1, 0.9, weight_decay=0.1, nesterov=True)
        if kind == "sgd"
        else torch.optim.AdamW(theirs.parameters(), 0.1, weight_decay=0.1)
    )
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(4):
        optimizer.forget()
        plain.zero_grad()
        ours(images.contiguous(memory_format=torch.channels_last)).square().sum().backward()
        theirs(images).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step(0.1)
        plain.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-4, atol=1e-5)
    assert ours.weight.is_contiguous(memory_format=torch.channels_last)


def test_forgotten_gradients_take_no_memory() -> None:
    layer = nn.Conv2d(3, 4, 3, bias=False).to(memory_format=torch.channels_last)
    optimizer = Optimizer([layer], TrainingConfig())
    layer(torch.ones(1, 3, 8, 8)).sum().backward()
    optimizer.step(0.1)
    assert all(each.grad is not None for each in (layer.weight, *optimizer._views))
    optimizer.forget()
    assert all(each.grad is None for each in (layer.weight, *optimizer._views))


def test_a_state_goes_on_as_if_nothing_had_been() -> None:
    def model() -> nn.Module:
        return runs.net().to(memory_format=torch.channels_last)

    def steps(trained: nn.Module, optimizer: Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.forget()
            trained(torch.ones(4, 1, 8, 8)).square().sum().backward()
            optimizer.step(1e-2)

    whole, parted, resumed = model(), model(), model()
    steps(whole, Optimizer([whole], TrainingConfig()), 4)
    first, second = (Optimizer([each], TrainingConfig()) for each in (parted, resumed))
    steps(parted, first, 2)
    resumed.load_state_dict(parted.state_dict())
    second.load(first.state())
    steps(resumed, second, 2)
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)


def test_an_absurd_rate_is_warned_of() -> None:
    assert check_rates(TrainingConfig(), 10) is None
    assert check_rates(TrainingConfig(optimizer="sgd", learning_rate=0.5), 10) is None
    assert "very high for adamw" in str(check_rates(TrainingConfig(learning_rate=10.0), 10))
    assert "hardly change" in str(check_rates(TrainingConfig(learning_rate=1e-12), 10))
