"""Small models and data that customers send, and the bodies of the jobs they want done."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.faults.chaos.desk import Desk


@dataclass(frozen=True)
class Goods:
    """Ids of what lies in the service."""

    net: str
    student: str
    plain: str
    """A model in which there is nothing to compress."""
    small: str
    labelled: str

    def body(self, errand: str) -> dict[str, Any]:
        """Return what to submit for an errand."""
        quantize: dict[str, Any] = {
            "calibration": {"dataset_id": self.small, "samples": 16, "batch_size": 8}
        }
        train: dict[str, Any] = {
            "training_dataset_id": self.labelled,
            "evaluation": {"dataset_id": self.labelled, "metric": "top1"},
        }
        learn = {"student_model_id": self.student, "learning_rate": 0.01, "batch_size": 16}
        match errand:
            case "convert":
                return {"method": "convert", "model_id": self.net, **quantize}
            case "distill":
                distill = {"method": "distill", "model_id": self.net, **train}
                return distill | {"config": learn | {"epochs": 60}}
            case "time out":
                distill = {"method": "distill", "model_id": self.net, **train}
                return distill | {"config": learn | {"epochs": 100_000}, "timeout_s": 3}
            case "nothing to do":
                return {"method": "ptq", "model_id": self.plain, **quantize}
        return {"method": "ptq", "model_id": self.net, **quantize}


OUTCOMES = {
    "ptq": {"succeeded"},
    "convert": {"succeeded"},
    "distill": {"succeeded"},
    "own data": {"succeeded"},
    "time out": {"failed:timeout"},
    "nothing to do": {"failed:nothing_to_compress"},
    "cancel": {"succeeded", "cancelled"},
}
"""Errands, and how they must end."""


def bring(desk: Desk) -> Goods:
    """Upload what all customers use."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 32), nn.ReLU(),
        nn.Linear(32, 10),
    )  # fmt: skip
    student = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10)
    )
    example = torch.zeros(2, 1, 8, 8)
    numbers = np.random.default_rng(0)
    labels = numbers.integers(0, 10, 512)
    return Goods(
        net=upload(desk, "models", _script(net, example)),
        student=upload(desk, "models", _script(student, example)),
        plain=upload(desk, "models", _script(nn.Sequential(nn.ReLU(), nn.Tanh()), example)),
        small=upload(desk, "datasets", images(1, 32)),
        labelled=upload(desk, "datasets", images(2, 512, label=labels)),
    )


def images(seed: int, samples: int, **arrays: Any) -> bytes:
    """Return a dataset that no other seed makes."""
    numbers = np.random.default_rng(seed)
    pixels = numbers.standard_normal((samples, 1, 8, 8), dtype=np.float32)
    buffer = io.BytesIO()
    np.savez(buffer, input=pixels, **arrays)
    return buffer.getvalue()


def upload(desk: Desk, kind: str, content: bytes, key: str | None = None) -> str:
    """Upload a file, again until it is there; only with a key is it surely there once."""
    answer = desk.ask(
        "POST", f"/v1/{kind}", {201}, files={"file": ("file", content)}, data={"name": "chaos"},
        headers={"Idempotency-Key": key} if key else {},
    )  # fmt: skip
    return str(answer.json()["id"])


def _script(net: nn.Module, example: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(net.eval(), example), buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()
