"""Transformers over patches, written so that they script: ViT, Swin, and MLP-Mixer without any."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compress.zoo.blocks import Permute


class FeedForward(nn.Sequential):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(hidden, width),
            nn.Dropout(0.1),
        )


class Attention(nn.Module):
    """Self-attention, one projection for query, key and value; softmax written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.attn_drop = nn.Dropout(0.1)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((query * self.scale) @ key.transpose(-2, -1)).softmax(dim=-1)
        x = (self.attn_drop(weights) @ value).transpose(1, 2).reshape(batch, length, width)
        return self.proj(x)


class ViTBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FeedForward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Dosovitskiy et al. 2020; positions are resampled for images of another size."""

    def __init__(
        self,
        side: int = 224,
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.grid = side // patch
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + self.grid**2, width) * 0.02)
        self.blocks = nn.Sequential(*(ViTBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def positions(self, rows: int, columns: int) -> Tensor:
        patches = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid))
        patches = F.interpolate(patches, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)
        positions = self.positions(x.size(2), x.size(3))
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.size(0), -1, -1), x], dim=1) + positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class WindowAttention(nn.Module):
    """Attention inside windows, shifted by half a window in every second block."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(
            torch.randn((2 * window - 1) ** 2, heads) * 0.02
        )
        places = torch.stack(
            torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        ).flatten(1)
        apart = (places[:, :, None] - places[:, None, :]).permute(1, 2, 0) + window - 1
        index = (apart[..., 0] * (2 * window - 1) + apart[..., 1]).flatten()
        self.register_buffer("relative_position_index", index)

    def bias(self) -> Tensor:
        area = self.window * self.window
        table = self.relative_position_bias_table[self.relative_position_index]
        return table.view(area, area, -1).permute(2, 0, 1).contiguous().unsqueeze(0)

    def mask(self, x: Tensor, rows: int, columns: int, shift: int) -> Tensor:
        """-100 between places that only the shift brought into one window."""
        window = self.window
        regions = x.new_zeros((rows, columns))
        count = 0
        for top, bottom in ((0, -window), (-window, -shift), (-shift, rows)):
            for left, right in ((0, -window), (-window, -shift), (-shift, columns)):
                regions[top:bottom, left:right] = count
                count += 1
        regions = regions.view(rows // window, window, columns // window, window)
        regions = regions.permute(0, 2, 1, 3).reshape(-1, window * window)
        apart = regions.unsqueeze(1) - regions.unsqueeze(2)
        return apart.masked_fill(apart != 0, -100.0).masked_fill(apart == 0, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        window, area = self.window, self.window * self.window
        right, below = (window - width % window) % window, (window - height % window) % window
        x = F.pad(x, (0, 0, 0, right, 0, below))
        rows, columns = x.size(1), x.size(2)
        shift = 0 if window >= rows else self.shift
        if shift > 0:
            x = torch.roll(x, shifts=(-shift, -shift), dims=(1, 2))
        count = (rows // window) * (columns // window)
        x = x.view(batch, rows // window, window, columns // window, window, channels)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch * count, area, channels)
        qkv = self.qkv(x).reshape(x.size(0), area, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query = query * (channels // self.heads) ** -0.5
        weights = query.matmul(key.transpose(-2, -1)) + self.bias()
        if shift > 0:
            mask = self.mask(x, rows, columns, shift)
            weights = weights.view(batch, count, self.heads, area, area)
            weights = weights + mask.unsqueeze(1).unsqueeze(0)
            weights = weights.view(-1, self.heads, area, area)
        weights = F.dropout(F.softmax(weights, dim=-1), p=0.1, training=self.training)
        x = self.proj(weights.matmul(value).transpose(1, 2).reshape(x.size(0), area, channels))
        x = x.view(batch, rows // window, columns // window, window, window, channels)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, channels)
        if shift > 0:
            x = torch.roll(x, shifts=(shift, shift), dims=(1, 2))
        return x[:, :height, :width, :].contiguous()


class SwinBlock(nn.Module):
    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.attn = WindowAttention(width, heads, window, shift)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        self.mlp = FeedForward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Half as large, twice as wide; an odd size is padded."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.size(1), x.size(2)
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        quarters = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduction(self.norm(torch.cat(quarters, -1)))


class Swin(nn.Module):
    """Liu et al. 2021; by default the tiny one."""

    def __init__(
        self,
        width: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (3, 6, 12, 24),
        window: int = 7,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Sequential(
                nn.Conv2d(3, width, 4, 4), Permute([0, 2, 3, 1]), nn.LayerNorm(width, eps=1e-5)
            )
        ]
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            if stage > 0:
                layers.append(PatchMerging(width))
                width *= 2
            layers.append(
                nn.Sequential(
                    *(
                        SwinBlock(width, count, window, 0 if index % 2 == 0 else window // 2)
                        for index in range(depth)
                    )
                )
            )
        self.features = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.features(image)).permute(0, 3, 1, 2)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class MixerBlock(nn.Module):
    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.mlp_tokens = FeedForward(patches, width // 2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp_channels = FeedForward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class MLPMixer(nn.Module):
    """Tolstikhin et al. 2021; by default B/16. The image's size is fixed."""

    def __init__(
        self,
        side: int = 224,
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(
            *(MixerBlock((side // patch) ** 2, width) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(dim=1))
