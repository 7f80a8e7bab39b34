"""How close outputs are to those of the original: SQNR, cosine, agreement of the top class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.errors import BadOutput
from compress.measure.outputs import class_axis, output_tensors, primary_output
from compress.result import Fidelity

SQNR_LIMIT_DB = 200.0
"""Reported where no difference at all was seen, since JSON has no infinity."""


@dataclass
class NoiseMeter:
    """Signal and noise power, summed over batches in float64.

    Attributes:
        signal: Sum of squares of the reference.
        other: Sum of squares of what is compared.
        product: Sum of products of both.
        noise: Sum of squared differences.
        elements: Numbers compared.
    """

    signal: float = 0.0
    other: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    elements: int = 0

    def add(self, reference: Tensor, compared: Tensor) -> None:
        """Take in one pair of tensors of equal shape."""
        a, b = reference.detach().double().flatten(), compared.detach().double().flatten()
        self.signal += float(a @ a)
        self.other += float(b @ b)
        self.product += float(a @ b)
        difference = a - b
        self.noise += float(difference @ difference)
        self.elements += a.numel()

    @property
    def sqnr_db(self) -> float:
        """`10 log10(signal power / noise power)`, within +-SQNR_LIMIT_DB."""
        if self.noise == 0:
            return SQNR_LIMIT_DB
        if not math.isfinite(self.noise) or self.signal == 0:
            return -SQNR_LIMIT_DB
        ratio_db = 10 * math.log10(self.signal / self.noise)
        return max(-SQNR_LIMIT_DB, min(SQNR_LIMIT_DB, ratio_db))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both, as long vectors; 1 where both are zero."""
        norms = math.sqrt(self.signal * self.other)
        if norms == 0:
            return 1.0 if self.signal == self.other else 0.0
        cosine = self.product / norms
        return max(-1.0, min(1.0, cosine)) if math.isfinite(cosine) else 0.0


class FidelityMeter:
    """Compares all output tensors of two models, batch by batch."""

    def __init__(self) -> None:
        self._noise = NoiseMeter()
        self._agreeing = 0
        self._decisions = 0

    def add(self, reference: Any, compared: Any) -> None:
        """Take in the outputs of both models for one batch.

        Raises:
            BadOutput: The outputs differ in number or shape.
        """
        left, right = output_tensors(reference), output_tensors(compared)
        if [t.shape for t in left] != [t.shape for t in right]:
            raise BadOutput("The artifact's outputs differ from the original's in shape.")
        for a, b in zip(left, right, strict=True):
            if a.is_floating_point():
                self._noise.add(a, b)
        first, second = primary_output(reference), primary_output(compared)
        axis = class_axis(first)
        if axis is not None:
            same = first.argmax(axis) == second.argmax(axis)
            self._agreeing += int(same.sum())
            self._decisions += same.numel()

    def report(self) -> Fidelity:
        """Return what was seen so far."""
        return Fidelity(
            sqnr_db=self._noise.sqnr_db,
            cosine=self._noise.cosine,
            top1_agreement=self._agreeing / self._decisions if self._decisions else None,
        )


def noise_fraction(fidelity: Fidelity) -> float:
    """Return noise power as a fraction of signal power."""
    return float(torch.tensor(10.0, dtype=torch.float64) ** (-fidelity.sqnr_db / 10))
