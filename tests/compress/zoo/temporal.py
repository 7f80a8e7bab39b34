"""Convolutions over time: TCN, WaveNet, and a keyword spotter with its spectrogram inside."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


class CausalConv(nn.Conv1d):
    """Sees the past only."""

    def __init__(self, inside: int, outside: int, kernel: int, dilation: int = 1) -> None:
        super().__init__(inside, outside, kernel, dilation=dilation)
        self.past = (kernel - 1) * dilation

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(F.pad(input, (self.past, 0)), self.weight, self.bias)


class Chomp(nn.Module):
    """Cuts off what padding on both sides put at the end."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, inside: int, outside: int, kernel: int, dilation: int) -> None:
        super().__init__()
        padding = (kernel - 1) * dilation
        self.net = nn.Sequential(
            weight_norm(nn.Conv1d(inside, outside, kernel, padding=padding, dilation=dilation)),
            Chomp(padding),
            nn.ReLU(),
            nn.Dropout(0.2),
            weight_norm(nn.Conv1d(outside, outside, kernel, padding=padding, dilation=dilation)),
            Chomp(padding),
            nn.ReLU(),
            nn.Dropout(0.2),
        )
        self.downsample: nn.Module | None = None
        if inside != outside:
            self.downsample = nn.Conv1d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        return F.relu(self.net(x) + identity)


class TCN(nn.Module):
    """Bai et al. 2018; weights are normalised, hence kept as direction and length."""

    def __init__(
        self, features: int = 16, width: int = 64, levels: int = 6, classes: int = 10
    ) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *(
                TemporalBlock(features if level == 0 else width, width, 3, 2**level)
                for level in range(levels)
            )
        )
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.linear(self.network(x)[:, :, -1]), dim=1)


class WaveNetBlock(nn.Module):
    def __init__(self, width: int, skip: int, dilation: int) -> None:
        super().__init__()
        self.filter = CausalConv(width, width, 2, dilation)
        self.gate = CausalConv(width, width, 2, dilation)
        self.residual = nn.Conv1d(width, width, 1)
        self.skip = nn.Conv1d(width, skip, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gated = torch.tanh(self.filter(x)) * torch.sigmoid(self.gate(x))
        return x + self.residual(gated), self.skip(gated)


class WaveNet(nn.Module):
    """Van den Oord et al. 2016: gated dilated convolutions, all skips added up."""

    def __init__(
        self, width: int = 64, skip: int = 128, blocks: int = 20, levels: int = 256
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(levels, width)
        self.blocks = nn.ModuleList(
            WaveNetBlock(width, skip, 2 ** (index % 10)) for index in range(blocks)
        )
        self.last = nn.Conv1d(width, skip, 1)
        self.out1 = nn.Conv1d(skip, skip, 1)
        self.out2 = nn.Conv1d(skip, levels, 1)

    def forward(self, samples: Tensor) -> Tensor:
        x = self.embedding(samples).transpose(1, 2)
        total = torch.zeros(1, device=x.device)
        for block in self.blocks:
            x, skip = block(x)
            total = total + skip
        total = total + self.last(x)
        return self.out2(F.relu(self.out1(F.relu(total))))


class KeywordSpotter(nn.Module):
    """Depthwise separable convolutions over the spectrogram that it computes itself."""

    def __init__(self, width: int = 64, window: int = 400, keywords: int = 12) -> None:
        super().__init__()
        self.window, self.hop = window, window // 2
        self.register_buffer("hann", torch.hann_window(window))
        bins = window // 2 + 1
        self.conv = nn.Sequential(
            nn.Conv1d(bins, width, 3, padding=1),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Conv1d(width, width, 9, padding=4, groups=width),
            nn.Conv1d(width, width, 1),
            nn.BatchNorm1d(width),
            nn.Hardtanh(0.0, 6.0),
            nn.AdaptiveAvgPool1d(1),
        )
        self.head = nn.Linear(width, keywords)

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = torch.stft(
            waveform, self.window, self.hop, window=self.hann, return_complex=True
        )
        power = torch.log(spectrum.abs().pow(2) + 1e-6)
        return self.head(self.conv(power).squeeze(2))
