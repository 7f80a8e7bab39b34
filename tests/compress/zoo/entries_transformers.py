"""Transformers over images, tokens and sound."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from tests.compress.zoo import hugging_face, language, published
from tests.compress.zoo.entry import Entry
from tests.compress.zoo.inputs import draw, floats, images, masked, seeded, tokens
from tests.compress.zoo.vision_transformers import MLPMixer, Swin, ViT

# sequences of 16 and 11 tokens in small, of 128 and 100 as published
text_net = partial(Entry, extent=16, other=11, full_extent=128, full_other=100)
# `transformers` gives the size of the example to the trace; its code does not script
hugging_text = partial(text_net, hows=("trace",))
hugging_image = partial(
    Entry,
    inputs=images(),
    extent=32,
    other=None,
    full_extent=224,
    full_other=None,
    hows=("trace",),
)


def vit(full: bool) -> nn.Module:
    return ViT() if full else ViT(side=32, patch=8, width=32, depth=2, heads=2, classes=10)


def swin(full: bool) -> nn.Module:
    return Swin() if full else Swin(16, (2, 2), (2, 4), window=4, classes=10)


def mixer(full: bool) -> nn.Module:
    return MLPMixer() if full else MLPMixer(side=32, patch=8, width=32, depth=2, classes=10)


def gpt(full: bool) -> nn.Module:
    return language.GPT() if full else language.GPT(100, 64, width=32, depth=2, heads=2)


def bert(full: bool) -> nn.Module:
    return language.Bert() if full else language.Bert(100, width=32, depth=2, heads=2, context=64)


def encoder(full: bool) -> nn.Module:
    return language.TorchEncoder() if full else language.TorchEncoder(32, 2, 2, 100)


def encoder_norm_first(full: bool) -> nn.Module:
    sizes = (512, 8, 6, 10000) if full else (32, 2, 2, 100)
    return language.TorchEncoder(*sizes, norm_first=True, activation="gelu")


def encoder_masked(full: bool) -> nn.Module:
    return language.TorchEncoderMasked() if full else language.TorchEncoderMasked(32, 2, 2, 100)


def attention(full: bool) -> nn.Module:
    return language.TorchAttention() if full else language.TorchAttention(32, 4, 16)


def transformer(full: bool) -> nn.Module:
    return language.TorchTransformer() if full else language.TorchTransformer(32, 2, 1)


def pairs(full: bool, batch: int, extent: int) -> list[Any]:
    """Texts that end with the token that ends texts, and images."""
    generator = seeded(batch, extent)
    side, end = (224, 49407) if full else (32, 99)
    ids = draw(end - 1, [batch, extent], generator)
    ids[:, -1] = end
    return [ids, torch.randn(batch, 3, side, side, generator=generator)]


ENTRIES = [
    Entry(
        name="vit", build=vit, inputs=images(), extent=32, other=48, full_extent=224,
        full_other=192,
    ),
    Entry(
        name="swin", build=swin, inputs=images(), extent=64, other=88, full_extent=224,
        full_other=192,
    ),
    hugging_image(name="mlp_mixer", build=mixer, hows=("trace", "script")),
    hugging_image(name="hf_vit_sdpa", build=partial(hugging_face.vit, attention="sdpa")),
    hugging_image(name="hf_vit_eager", build=partial(hugging_face.vit, attention="eager")),
    hugging_image(name="hf_deit", build=hugging_face.deit),
    hugging_image(name="hf_swin", build=hugging_face.swin, extent=40),
    text_net(name="gpt", build=gpt, inputs=tokens(full=50257)),
    text_net(name="bert", build=bert, inputs=masked()),
    hugging_text(
        name="hf_bert_sdpa", build=partial(hugging_face.bert, attention="sdpa"), inputs=masked()
    ),
    hugging_text(
        name="hf_bert_eager", build=partial(hugging_face.bert, attention="eager"), inputs=masked()
    ),
    hugging_text(name="hf_distilbert", build=hugging_face.distilbert, inputs=masked()),
    hugging_text(
        name="hf_gpt2_sdpa",
        build=partial(hugging_face.gpt2, attention="sdpa"),
        inputs=tokens(full=50257),
    ),
    hugging_text(
        name="hf_gpt2_eager",
        build=partial(hugging_face.gpt2, attention="eager"),
        inputs=tokens(full=50257),
    ),
    hugging_text(name="hf_t5_encoder", build=hugging_face.t5_encoder, inputs=masked(full=32128)),
    hugging_text(name="hf_clip", build=hugging_face.clip, inputs=pairs, full_extent=64,
                 full_other=48),
    hugging_text(
        name="minilm",
        build=lambda full: published.minilm(),
        inputs=masked(30522),
        unused=("model.pooler.",),
    ),
    Entry(
        name="hf_wav2vec2",
        build=hugging_face.wav2vec2,
        inputs=floats(("batch", "extent")),
        extent=800,
        other=1000,
        full_extent=16000,
        full_other=12000,
        hows=("trace",),
        unused=("model.wav2vec2.masked_spec_embed",),
    ),
    Entry(
        name="hf_whisper_encoder",
        build=hugging_face.whisper_encoder,
        inputs=floats(("batch", 16, "extent"), full=(("batch", 80, "extent"),)),
        extent=100,
        other=None,
        full_extent=3000,
        full_other=None,
        hows=("trace",),
    ),
    text_net(name="transformer_encoder", build=encoder, inputs=tokens()),
    text_net(name="transformer_encoder_norm_first", build=encoder_norm_first, inputs=tokens()),
    text_net(
        name="transformer_encoder_masked",
        build=encoder_masked,
        inputs=masked(full=10000, mask=torch.logical_not),
    ),
    text_net(
        name="multihead_attention",
        build=attention,
        inputs=floats(
            ("batch", "extent", 32),
            ("batch", 9, 16),
            full=(("batch", "extent", 256), ("batch", 50, 128)),
        ),
    ),
    text_net(
        name="transformer",
        build=transformer,
        inputs=floats(
            ("batch", 9, 32),
            ("batch", "extent", 32),
            full=(("batch", 50, 512), ("batch", "extent", 512)),
        ),
    ),
]  # fmt: skip
