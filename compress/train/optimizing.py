"""Optimizers and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from compress.errors import InvalidSpec
from compress.spec.training import TrainingConfig

_MOMENTUM = 0.9
_RISE_SHARE, _START_SHARE, _END_SHARE = 0.3, 1 / 25, 1 / 25e4
"""Of one_cycle: steps until the height, and the rates around it; torch's defaults."""
_ABSURD = {"sgd": 5.0, "adamw": 0.1}
_NEGLIGIBLE = 1e-9


class Optimizer:
    """Changes all parameters that learn by their gradients.

    torch's fused kernels copy what is not contiguous, there and back: each weight of a convolution
    that lies pixel by pixel, its gradient and both its means, at each step. They are given views
    that are contiguous.
    """

    def __init__(self, modules: Iterable[nn.Module], config: TrainingConfig) -> None:
        """Take what learns.

        Vectors, which biases and normalisations are, do not decay.

        Args:
            modules: On the device that they are trained on, laid out as they will stay.
            config: Which optimizer, and how long gradients may be.
        """
        learning = {
            id(parameter): parameter
            for module in modules for parameter in module.parameters() if parameter.requires_grad
        }  # fmt: skip
        self._clip = config.gradient_clip
        self._taken = [(parameter, *_as_it_lies(parameter)) for parameter in learning.values()]
        self._views = [view for _, view, _ in self._taken]
        groups = [
            {"params": [p for p in self._views if p.dim() > 1],
             "weight_decay": config.weight_decay},
            {"params": [p for p in self._views if p.dim() <= 1], "weight_decay": 0.0},
        ]  # fmt: skip
        groups = [group for group in groups if group["params"]]
        self._torchs: torch.optim.Optimizer = (
            torch.optim.SGD(
                groups, config.learning_rate, momentum=_MOMENTUM, nesterov=True, fused=True
            )
            if config.optimizer == "sgd"
            else torch.optim.AdamW(groups, config.learning_rate, fused=True)
        )

    def forget(self) -> None:
        """Drop all gradients."""
        for parameter, view, _ in self._taken:
            parameter.grad = view.grad = None

    def step(self, rate: float) -> None:
        """Go a step at a learning rate."""
        for parameter, view, order in self._taken:
            if order is not None:
                view.grad = None if parameter.grad is None else parameter.grad.permute(order)
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._views, self._clip)
        for group in self._torchs.param_groups:
            group["lr"] = rate
        self._torchs.step()

    def state(self) -> dict[str, Any]:
        """Return all that is to be kept."""
        return self._torchs.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._torchs.load_state_dict(state)


def _as_it_lies(parameter: nn.Parameter) -> tuple[nn.Parameter, list[int] | None]:
    """Return a contiguous view and the order of its axes; the parameter and None if it is one."""
    if not parameter.is_contiguous():
        order = sorted(range(parameter.dim()), key=parameter.stride, reverse=True)
        view = parameter.detach().permute(order)
        if view.is_contiguous():
            return nn.Parameter(view), order
    return parameter, None


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
