"""Real files to upload: traced and scripted nets, npz and safetensors."""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from starlette.testclient import TestClient
from torch import Tensor, nn

from app.settings import Settings
from tests.compress import zoo
from tests.compress.structured import Structured


def saved(module: torch.jit.ScriptModule) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer.getvalue()


@lru_cache
def scripted_cnn() -> bytes:
    """One argument, `image` [batch, 1, height, width]; 10 classes."""
    return saved(torch.jit.script(zoo.small_cnn()))


@lru_cache
def traced_cnn() -> bytes:
    return saved(torch.jit.trace(zoo.small_cnn(), torch.rand(2, 1, 8, 8)))


class TwoInputs(nn.Module):
    """Two tensors, one of them with a default, and a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.second = nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, a: Tensor, b: Tensor | None = None, twice: bool = False) -> Tensor:
        out = self.first(a)
        if b is not None:
            out = out + self.second(b)
        return out * 2 if twice else out


@lru_cache
def two_inputs() -> bytes:
    return saved(torch.jit.script(TwoInputs().eval()))


class TextInput(nn.Module):
    def forward(self, x: Tensor, mode: str) -> Tensor:
        return x if mode == "as is" else -x


@lru_cache
def text_input() -> bytes:
    return saved(torch.jit.script(TextInput()))


@lru_cache
def structured() -> bytes:
    return saved(torch.jit.script(Structured()))


def npz(**arrays: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def safetensors(**arrays: np.ndarray[Any, Any]) -> bytes:
    content: bytes = save(arrays)
    return content


def images(count: int = 12) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).random((count, 1, 8, 8), dtype=np.float32)


def labels(count: int = 12) -> np.ndarray[Any, Any]:
    return np.arange(count) % 10


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def upload(client: TestClient, kind: str, content: bytes, **fields: str) -> dict[str, Any]:
    answer = client.post(
        f"/v1/{kind}", files={"file": ("f", content)}, data={"name": "sample", **fields}
    )
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def files_in(settings: Settings) -> list[Path]:
    """All blobs that are stored."""
    return [path for path in (settings.data_dir / "blobs").rglob("*") if path.is_file()]
