"""Optimizers and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from compress.errors import InvalidSpec
from compress.spec.training import TrainingConfig

_MOMENTUM = 0.9
_RISE_SHARE, _START_SHARE, _END_SHARE = 0.3, 1 / 25, 1 / 25e4
"""Of one_cycle: steps until the height, and the rates around it; torch's defaults."""
_ABSURD = {"sgd": 5.0, "adamw": 0.1}
_NEGLIGIBLE = 1e-9


def make_optimizer(modules: Iterable[nn.Module], config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimizer of all parameters that learn.

    Vectors, which biases and normalisations are, do not decay.

    Args:
        modules: On the device that they are trained on.
        config: Which optimizer.
    """
    learning = {
        id(parameter): parameter
        for module in modules for parameter in module.parameters() if parameter.requires_grad
    }  # fmt: skip
    groups = [
        {"params": [p for p in learning.values() if p.dim() > 1],
         "weight_decay": config.weight_decay},
        {"params": [p for p in learning.values() if p.dim() <= 1], "weight_decay": 0.0},
    ]  # fmt: skip
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, config.learning_rate, momentum=_MOMENTUM, nesterov=True, fused=True
        )
    return torch.optim.AdamW(groups, config.learning_rate, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def rate_at(step: int, steps: int, config: TrainingConfig) -> float:
    """Return the learning rate of a step.

    Source of one_cycle: Smith and Topin, Super-Convergence, 2018. Of cosine: Loshchilov and
    Hutter, SGDR, 2017, without restarts.

    Args:
        step: From 0.
        steps: In all.
        config: Which schedule.
    """
    rate = config.learning_rate
    if step < config.warmup_steps:
        return rate * (step + 1) / (config.warmup_steps + 1)
    step, steps = step - config.warmup_steps, steps - config.warmup_steps
    if config.schedule == "cosine":
        return rate * _between(1.0, 0.0, step / steps)
    if config.schedule == "one_cycle":
        height = _RISE_SHARE * steps - 1
        if step <= height:
            return rate * _between(_START_SHARE, 1.0, step / height)
        return rate * _between(1.0, _END_SHARE, (step - height) / max(1.0, steps - 1 - height))
    return rate


def check_rates(config: TrainingConfig, steps: int) -> str | None:
    """Return a sentence where the learning rate is most likely a mistake, else None.

    Raises:
        InvalidSpec: Training would end before the warm-up does.
    """
    if config.warmup_steps >= steps:
        raise InvalidSpec(
            f"warmup_steps {config.warmup_steps} leaves none of the {steps} steps; use fewer."
        )
    rate = config.learning_rate
    if rate > _ABSURD[config.optimizer]:
        return (
            f"learning_rate {rate:g} is very high for {config.optimizer}: training may diverge. "
            f"Usual are {'0.01 to 0.5' if config.optimizer == 'sgd' else '0.0001 to 0.01'}."
        )
    if rate < _NEGLIGIBLE:
        return f"learning_rate {rate:g} is so small that training will hardly change the model."
    return None


def _between(start: float, end: float, share: float) -> float:
    """Go from one value to another along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
