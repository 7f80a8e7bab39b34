"""What PyTorch computes slowly on processors while a model learns, computed otherwise."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from compress.train.batch_norm import batch_norm


def quick_kernels(device: torch.device) -> AbstractContextManager[Any]:
    """Let what is called from Python go the quicker way, on a device where there is one."""
    return _OnProcessor() if device.type == "cpu" else nullcontext()


class _OnProcessor(TorchFunctionMode):
    """BatchNorm of images as `batch_norm` says; convolutions in groups out of autocast.

    The gradients of a depthwise convolution in bfloat16 take a processor several times as long as
    in float32, and with them a MobileNet learned more slowly under autocast than without.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return batch_norm(*args, **kwargs)
        if func not in _CONVOLUTIONS or not _has_groups(*args, **kwargs):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_in_float32, args), **{k: _in_float32(v) for k, v in kwargs.items()})


_CONVOLUTIONS = frozenset({torch.conv1d, torch.conv2d, torch.conv3d})


def _has_groups(input: Any, weight: Any, *others: Any, **named: Any) -> bool:
    """Whether arguments of a convolution ask for groups, which come seventh."""
    return bool((others[4] if len(others) > 4 else named.get("groups", 1)) > 1)


def _in_float32(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.is_floating_point()
    return value.float() if is_half else value
