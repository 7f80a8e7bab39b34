"""Where and how a model is computed while it learns: device, bfloat16, layout of images."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.devices import CPU, find_device, move
from compress.measure.environment import read_environment
from compress.measure.outputs import primary_output
from compress.original import REFUSALS
from compress.progress import Progress
from compress.spec import Device
from compress.spec.training import TrainingConfig
from compress.structure import map_tensors
from compress.train.kernels import quick_kernels

_BF16_UNITS = {"avx512_bf16", "amx_bf16"}


@dataclass(frozen=True)
class Machine:
    """How steps are computed.

    Attributes:
        device: Where.
        bf16: Whether under autocast to bfloat16.
        channels_last: Whether images lie in memory channel by channel of each pixel, as
            convolutions are fastest.
    """

    device: torch.device
    bf16: bool = False
    channels_last: bool = False

    def place(self, model: nn.Module) -> None:
        """Move a model there, in place."""
        move(model, self.device)
        _lay_out(model, self.layout)

    @property
    def layout(self) -> torch.memory_format:
        """How images lie."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def arrange(self, inputs: Sequence[Any]) -> list[Any]:
        """Lay images out as the model wants them, on whatever device they are."""

        def lay(value: Tensor) -> Tensor:
            is_image = value.dim() == 4 and value.is_floating_point()
            return _laid_out(value, self.layout) if is_image else value

        return [map_tensors(value, lay) for value in inputs]

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Let models run as chosen: in bfloat16 or not, by the quickest kernels."""
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
        with autocast, quick_kernels(self.device):
            yield


def pick_device(
    asked: Device, models: Sequence[nn.Module], inputs: Sequence[Any], progress: Progress
) -> torch.device:
    """Return the device to train on: a GPU, unless a model does not run there.

    Regions that stay TorchScript may make tensors on the processor, whatever they are given.

    Args:
        asked: `auto` is content with the processor, and says so.
        models: On the processor; left as they are.
        inputs: Of a few samples, on the processor.
        progress: Is told.

    Raises:
        DeviceUnavailable: `cuda` was asked for, and there is none.
    """
    device = find_device(asked)
    if device.type == "cpu" or asked == "cuda":
        return device
    if all(_works(model, inputs, Machine(device)) for model in models):
        return device
    progress.warn("The model does not run on the GPU, so it is trained on the processor.")
    return CPU


def choose_machine(
    model: nn.Module,
    inputs: Sequence[Any],
    config: TrainingConfig,
    device: torch.device,
) -> Machine:
    """Return the quickest way of computing that the model takes; by rule, so always the same.

    A lifted graph may view images in a way that holds for one layout alone, or hold operators
    without a bfloat16 kernel: a step is tried on a copy.

    Args:
        model: On the processor; left as it is.
        inputs: Of a few samples, on the processor.
        config: Whose `amp` is heeded.
        device: Where.
    """
    bf16 = config.amp == "bf16" or (config.amp == "auto" and _has_bf16(device))
    images = any(isinstance(module, nn.Conv2d) for module in model.modules())
    tried = [
        Machine(device, in_bf16, channels_last)
        for in_bf16 in dict.fromkeys((bf16, False))
        for channels_last in dict.fromkeys((images, False))
    ]
    for machine in tried[:-1]:
        if _works(model, inputs, machine):
            return machine
    return tried[-1]


def _works(model: nn.Module, inputs: Sequence[Any], machine: Machine) -> bool:
    learns = any(parameter.requires_grad for parameter in model.parameters())
    trial = copy.deepcopy(model).train(learns)
    machine.place(trial)
    moved = [
        map_tensors(value, lambda each: each.to(machine.device))
        for value in machine.arrange(inputs)
    ]
    devices = [machine.device] if machine.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            with machine.computing():
                loss = primary_output(trial(*moved)).square().mean()
            if learns:
                loss.backward()  # type: ignore[no-untyped-call]
    except (*REFUSALS, ValueError):  # what the model refuses altogether is told when it is run
        return False
    return bool(torch.isfinite(loss))


@contextmanager
def steady(device: torch.device) -> Iterator[None]:
    """Let two runs on one machine give the same numbers, and matrices on a GPU go in TF32."""
    # torch.use_deterministic_algorithms imports a compiler first, which takes seconds
    mode = torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    precision = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    try:
        torch.set_deterministic_debug_mode("warn")
        memory.fill_uninitialized_memory = False
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        with cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
            yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = fills
        torch.set_float32_matmul_precision(precision)


def bring_home(model: nn.Module) -> None:
    """Move a model back to the processor, in place, with weights as they lie in files."""
    Machine(CPU).place(model)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return not _BF16_UNITS.isdisjoint(read_environment(1).isa)


def _lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.dim() == 4:
                tensor.data = _laid_out(tensor.data, layout)


def _laid_out(images: Tensor, layout: torch.memory_format) -> Tensor:
    """Return images as they are to lie in memory, and with strides that say so.

    With a channel alone both layouts are the same memory, and `contiguous` leaves the strides; a
    convolution goes by these, and what follows a first layer of grey images lay the other way.
    """
    images = images.contiguous(memory_format=layout)
    _, channels, height, width = images.shape
    if channels != 1:
        return images
    pixel = (height * width, 1, width, 1)
    plain = (height * width, height * width, width, 1)
    return images.as_strided(images.shape, pixel if layout is torch.channels_last else plain)
