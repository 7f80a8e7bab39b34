"""Models of `transformers`, from a configuration and with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

HEADS: dict[bool, dict[str, int]] = {
    True: {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
           "intermediate_size": 3072},
    False: {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 64},
}  # fmt: skip


class Tokens(nn.Module):
    """A model that takes token ids alone and answers with its first output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids)[0]


class Signal(nn.Module):
    """A model that takes images or sound alone and answers with its first output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, signal: Tensor) -> Tensor:
        return self.model(signal)[0]


def bert(full: bool, attention: str) -> nn.Module:
    from transformers import BertConfig, BertModel

    vocabulary = 30522 if full else 100
    config = BertConfig(
        vocab_size=vocabulary, return_dict=False, attn_implementation=attention, **HEADS[full]
    )
    return BertModel(config)


def distilbert(full: bool) -> nn.Module:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    sizes = {} if full else {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 2,
                             "hidden_dim": 64}  # fmt: skip
    config = DistilBertConfig(return_dict=False, attn_implementation="sdpa", **sizes)
    return DistilBertForSequenceClassification(config)


def gpt2(full: bool, attention: str) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {}
    if not full:
        sizes = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64,
                 "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
    config = GPT2Config(use_cache=False, attn_implementation=attention, **sizes)
    return Tokens(GPT2LMHeadModel(config))


def t5_encoder(full: bool) -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    sizes = {} if full else {"vocab_size": 100, "d_model": 32, "d_kv": 16, "d_ff": 64,
                             "num_layers": 2, "num_heads": 2}  # fmt: skip
    return T5EncoderModel(T5Config(return_dict=False, **sizes))


def vit(full: bool, attention: str) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    side, patch = (224, 16) if full else (32, 8)
    config = ViTConfig(
        image_size=side, patch_size=patch, num_labels=10, attn_implementation=attention,
        **HEADS[full],
    )  # fmt: skip
    return Signal(ViTForImageClassification(config))


def deit(full: bool) -> nn.Module:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    side, patch = (224, 16) if full else (32, 8)
    config = DeiTConfig(
        image_size=side, patch_size=patch, num_labels=10, attn_implementation="sdpa",
        **HEADS[full],
    )  # fmt: skip
    return Signal(DeiTForImageClassificationWithTeacher(config))


def swin(full: bool) -> nn.Module:
    """In the small one the second stage's windows do not fill the image, so it is padded."""
    from transformers import SwinConfig, SwinForImageClassification

    sizes: dict[str, Any] = {}
    if not full:
        sizes = {"image_size": 40, "patch_size": 2, "embed_dim": 16, "depths": [2, 2],
                 "num_heads": [2, 4], "window_size": 4}  # fmt: skip
    return Signal(SwinForImageClassification(SwinConfig(num_labels=10, **sizes)))


def wav2vec2(full: bool) -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    sizes: dict[str, Any] = {}
    if not full:
        sizes = {**HEADS[False], "vocab_size": 32, "conv_dim": (16, 16, 16),
                 "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3),
                 "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}  # fmt: skip
    config = Wav2Vec2Config(attn_implementation="sdpa", **sizes)
    return Signal(Wav2Vec2ForCTC(config))


def whisper_encoder(full: bool) -> nn.Module:
    """Whisper base; it takes spectrograms of one length only."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    sizes = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8,
             "encoder_ffn_dim": 2048, "num_mel_bins": 80}  # fmt: skip
    if not full:
        sizes = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2,
                 "encoder_ffn_dim": 64, "num_mel_bins": 16, "max_source_positions": 50}  # fmt: skip
    config = WhisperConfig(return_dict=False, attn_implementation="sdpa", **sizes)
    return WhisperEncoder(config)


def resnet(full: bool) -> nn.Module:
    """Of another author than `residual.py`: its blocks sit in dataclass outputs."""
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes: dict[str, Any] = {}
    if not full:
        sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2]}
    return ResNetForImageClassification(ResNetConfig(num_labels=10, return_dict=False, **sizes))


def clip(full: bool) -> nn.Module:
    """Both towers; answers with the logits of every image for every text, and back."""
    from transformers import CLIPConfig, CLIPModel

    text: dict[str, Any] = {}
    vision: dict[str, Any] = {}
    if not full:
        text = {**HEADS[False], "vocab_size": 100, "max_position_embeddings": 32,
                "bos_token_id": 98, "eos_token_id": 99}  # fmt: skip
        vision = {**HEADS[False], "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision)
    return CLIPPair(CLIPModel(config))


class CLIPPair(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.model(input_ids=input_ids, pixel_values=pixel_values)
        return outputs[0], outputs[1]


class MeanPooled(nn.Module):
    """A sentence's embedding: the mean of its tokens', of length one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        pooled = (tokens * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
        return torch.nn.functional.normalize(pooled, p=2.0, dim=1)
