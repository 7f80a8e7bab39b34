"""Transformers over tokens, written so that they script, and those that torch brings along."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CausalAttention(nn.Module):
    """Masked by a buffer, in the manner of the first GPT-2 code."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        seen = torch.ones(context, context).tril().view(1, 1, context, context)
        self.register_buffer("bias", seen)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.size()
        query, key, value = self.c_attn(x).split(width, dim=2)
        shape = (batch, length, self.heads, width // self.heads)
        query = query.view(shape).transpose(1, 2)
        key = key.view(shape).transpose(1, 2)
        value = value.view(shape).transpose(1, 2)
        scores = (query @ key.transpose(-2, -1)) * (1.0 / math.sqrt(key.size(-1)))
        scores = scores.masked_fill(self.bias[:, :, :length, :length] == 0, float("-inf"))
        x = F.softmax(scores, dim=-1) @ value
        return self.c_proj(x.transpose(1, 2).contiguous().view(batch, length, width))


class GPTBlock(nn.Module):
    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CausalAttention(width, heads, context)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        hidden = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + self.mlp["c_proj"](hidden)


class GPT(nn.Module):
    """Radford et al. 2019, the small one; the output shares the embedding's weight."""

    def __init__(
        self,
        vocabulary: int = 50257,
        context: int = 1024,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(context, width)
        self.drop = nn.Dropout(0.1)
        self.h = nn.ModuleList(GPTBlock(width, heads, context) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(0, tokens.size(1), dtype=torch.long, device=tokens.device)
        x = self.drop(self.wte(tokens) + self.wpe(places))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class BertAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.dense = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), self.heads, x.size(2) // self.heads).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(
            self.value(x)
        )  # fmt: skip
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.dense(context.transpose(1, 2).reshape(x.size(0), -1, x.size(2)))


class BertLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = BertAttention(width, heads)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.intermediate = nn.Linear(width, 4 * width)
        self.output = nn.Linear(4 * width, width)
        self.output_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x, mask))
        return self.output_norm(x + self.output(F.gelu(self.intermediate(x))))


class Bert(nn.Module):
    """Devlin et al. 2018 as a classifier; `token_type_ids` may be left out."""

    def __init__(
        self,
        vocabulary: int = 30522,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        context: int = 512,
        classes: int = 2,
    ) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, width, padding_idx=0)
        self.position_embeddings = nn.Embedding(context, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.register_buffer("position_ids", torch.arange(context).unsqueeze(0))
        self.layer = nn.ModuleList(BertLayer(width, heads) for _ in range(depth))
        self.pooler = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.classifier = nn.Linear(width, classes)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        x = self.norm(x + self.position_embeddings(self.position_ids[:, : input_ids.size(1)]))
        mask = attention_mask[:, None, None, :].to(x.dtype)
        mask = (1.0 - mask) * -10000.0
        for layer in self.layer:
            x = layer(x, mask)
        return self.classifier(self.pooler(x[:, 0]))


class SinePositions(nn.Module):
    """Vaswani et al. 2017."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        places = torch.arange(context).unsqueeze(1)
        rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        table = torch.zeros(1, context, width)
        table[0, :, 0::2] = torch.sin(places * rates)
        table[0, :, 1::2] = torch.cos(places * rates)
        self.register_buffer("pe", table)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pe[:, : x.size(1)]


class TorchEncoder(nn.Module):
    """`nn.TransformerEncoder`: exported in eval mode it holds one fused operator per layer."""

    def __init__(
        self,
        width: int = 512,
        heads: int = 8,
        depth: int = 6,
        vocabulary: int = 10000,
        *,
        norm_first: bool = False,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = SinePositions(width, 512)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, activation=activation, batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(
            layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.positions(self.embedding(tokens))).mean(dim=1))


class TorchEncoderMasked(TorchEncoder):
    """With padding: the mask goes into the fused operator."""

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        x = self.positions(self.embedding(tokens))
        return self.head(self.encoder(x, src_key_padding_mask=padding)[:, 0])


class TorchAttention(nn.Module):
    """`nn.MultiheadAttention` over a sequence by itself, then over another one."""

    def __init__(self, width: int = 256, heads: int = 8, kv_width: int = 128) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(
            width, heads, kdim=kv_width, vdim=kv_width, batch_first=True
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.self_attention(x, x, x, need_weights=False)[0]
        attended, weights = self.cross_attention(self.norm(x), memory, memory)
        assert weights is not None
        return x + attended, weights


class TorchTransformer(nn.Module):
    """`nn.Transformer`, encoder and decoder, with a causal mask for the target."""

    def __init__(self, width: int = 512, heads: int = 8, depth: int = 6) -> None:
        super().__init__()
        self.transformer = nn.Transformer(
            width, heads, depth, depth, 4 * width, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, 10)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        length = target.size(1)
        later = torch.ones(length, length, device=target.device, dtype=torch.bool).triu(1)
        return self.head(self.transformer(source, target, tgt_mask=later))
