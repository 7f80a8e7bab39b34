"""Random changes to training samples, all drawn from one seed per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from compress.errors import InvalidSpec
from compress.spec.training import Augmentation
from compress.structure import map_tensors, tensors_in
from compress.train.objective import Batch

_NOISE = 0.05
"""Of the values' standard deviation in the batch."""
_PAD_SHARE = 8
_MIXUP_ALPHA = 0.2
"""Both parameters of the Beta distribution that weights are drawn from."""


def check_augmentations(kinds: Sequence[Augmentation], inputs: Sequence[Any]) -> None:
    """Raise InvalidSpec where the inputs are not such as can be changed so."""
    tensors = tensors_in(list(inputs))
    told = ", ".join(str(list(tensor.shape)) for tensor in tensors)
    if {"flip", "crop"} & set(kinds) and not any(map(_is_image, tensors)):
        raise InvalidSpec(
            f"Augmentations 'flip' and 'crop' are for images [batch, channels, height, width], and "
            f"inputs are {told}; leave them out."
        )
    if "noise" in kinds and not any(tensor.is_floating_point() for tensor in tensors):
        raise InvalidSpec("Augmentation 'noise' needs float inputs; leave it out.")
    if "mixup" in kinds and not all(tensor.is_floating_point() for tensor in tensors):
        raise InvalidSpec("Augmentation 'mixup' needs inputs that are all floats; leave it out.")


def augment(batch: Batch, kinds: Sequence[Augmentation], seed: Sequence[int]) -> Batch:
    """Return a changed copy of a batch on the processor; all images of a sample change alike.

    Source of mixup: Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018.

    Args:
        batch: Without the teacher's answers, which change with the samples.
        kinds: In any order; they are applied in a fixed one.
        seed: What the random numbers are drawn from.
    """
    numbers = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(int(numbers.integers(2**63)))
    samples = len(batch)
    inputs = batch.inputs
    if "flip" in kinds:
        turned = torch.rand(samples, generator=generator) < 0.5
        inputs = _images(inputs, lambda image: _flip(image, turned))
    if "crop" in kinds:
        places = torch.rand((2, samples), generator=generator)
        inputs = _images(inputs, lambda image: _crop(image, places))
    if "noise" in kinds:
        inputs = _floats(inputs, lambda value: _noise(value, generator))
    if "mixup" not in kinds:
        return replace(batch, inputs=inputs)
    weight = float(numbers.beta(_MIXUP_ALPHA, _MIXUP_ALPHA))
    order = torch.randperm(samples, generator=generator)
    inputs = _floats(inputs, lambda value: weight * value + (1 - weight) * value[order])
    other = None if batch.label is None else batch.label[order]
    return replace(batch, inputs=inputs, other_label=other, mixed=weight)


def _images(inputs: list[Any], change: Any) -> list[Any]:
    return [
        map_tensors(value, lambda one: change(one) if _is_image(one) else one) for value in inputs
    ]


def _floats(inputs: list[Any], change: Any) -> list[Any]:
    return [
        map_tensors(value, lambda one: change(one) if one.is_floating_point() else one)
        for value in inputs
    ]


def _is_image(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.shape[-1] > 1


def _flip(image: Tensor, turned: Tensor) -> Tensor:
    return torch.where(turned[:, None, None, None], image.flip(3), image)


def _crop(image: Tensor, places: Tensor) -> Tensor:
    """Pad by an eighth of each side with zeros, and cut the old size out at a random place."""
    height, width = image.shape[2:]
    pad_y, pad_x = -(-height // _PAD_SHARE), -(-width // _PAD_SHARE)
    padded = F.pad(image, (pad_x, pad_x, pad_y, pad_y))
    tops = (places[0] * (2 * pad_y + 1)).long().tolist()
    lefts = (places[1] * (2 * pad_x + 1)).long().tolist()
    return torch.stack([
        one[:, top : top + height, left : left + width]
        for one, top, left in zip(padded, tops, lefts, strict=True)
    ])  # fmt: skip


def _noise(value: Tensor, generator: torch.Generator) -> Tensor:
    # strides count: they decide which number goes where
    drawn = torch.randn(value.shape, generator=generator, dtype=value.dtype)
    return value + drawn * (_NOISE * value.std())
