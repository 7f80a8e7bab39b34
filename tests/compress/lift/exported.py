"""Models as they arrive: exported by trace or script, written to a file, read back."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from compress.lift import Lifted, lift
from tests.compress import zoo

How = Literal["trace", "script"]
HOWS: tuple[How, ...] = ("trace", "script")

NETS = (
    "mlp", "small_cnn", "resnet18", "mobilenet_v2", "senet", "inception_block", "unet", "densenet",
    "shufflenet",
)  # fmt: skip
WEIGHTED = {"mlp": 3, "small_cnn": 4, "resnet18": 21, "mobilenet_v2": 11, "unet": 6}


def export(model: nn.Module, inputs: Sequence[Tensor], how: How) -> torch.jit.ScriptModule:
    """Through the bytes of a file, so that nothing of the Python class is left."""
    if how == "trace":
        module = torch.jit.trace(model, tuple(inputs), check_trace=False)
    else:
        module = torch.jit.script(model)
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer).eval()


def net(name: str) -> nn.Module:
    # three of MobileNetV2's seventeen blocks hold all its operators
    return zoo.mobilenet_v2(full=False) if name == "mobilenet_v2" else getattr(zoo, name)()


@functools.cache
def lifted_net(name: str, how: How) -> Lifted:
    """Lifted once for all tests that only look at it."""
    return lift(export(net(name), [net_input(name)], how), [net_input(name)], verify=False)


def net_input(name: str, batch: int = 2, side: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(batch * 1000 + side)
    if name == "mlp":
        return torch.randn(batch, 16, generator=generator)
    channels = 1 if name == "small_cnn" else 3
    return torch.randn(batch, channels, side, side, generator=generator)
