"""A layer's weights by input and by output channel, whatever its kind and groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (*CONVOLUTIONS, nn.Linear)


class Channels:
    """The weight `[out, in / groups, …]` of a convolution or Linear.

    Attributes:
        layer: Whose weight it is.
        groups: Of a convolution; 1 else.
    """

    def __init__(self, layer: nn.Module) -> None:
        assert isinstance(layer, LAYERS)
        self.layer = layer
        self.groups = 1 if isinstance(layer, nn.Linear) else layer.groups

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        layer = self.layer
        return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return int(self.layer.weight.shape[0])

    def output_peaks(self) -> Tensor:
        """Return the largest magnitude in the weights of each output channel, `[out]`."""
        return self._grouped().abs().amax((2, 3)).flatten()

    def input_peaks(self) -> Tensor:
        """Return the largest magnitude in the weights of each input channel, `[in]`."""
        return self._grouped().abs().amax((1, 3)).flatten()

    def scale_outputs(self, factors: Tensor) -> None:
        """Multiply each output channel, weights and bias; `factors` is `[out]`."""
        grouped = self._grouped()
        scaled = grouped * factors.view(self.groups, -1, 1, 1).to(grouped.dtype)
        self._set(scaled)
        if self.layer.bias is not None:
            bias = self.layer.bias.detach() * factors.to(grouped.dtype)
            self.layer.bias = nn.Parameter(bias, requires_grad=False)

    def scale_inputs(self, factors: Tensor) -> None:
        """Multiply the weights of each input channel; `factors` is `[in]`."""
        grouped = self._grouped()
        self._set(grouped * factors.view(self.groups, 1, -1, 1).to(grouped.dtype))

    def _grouped(self) -> Tensor:
        """Return `[groups, out / groups, in / groups, taps]`."""
        weight = self.layer.weight.detach()
        return weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)

    def _set(self, grouped: Tensor) -> None:
        # a new one: the old may be read elsewhere, too
        weight = grouped.reshape(self.layer.weight.shape).contiguous()
        self.layer.weight = nn.Parameter(weight, requires_grad=False)


def channel_means(output: Tensor, layer: nn.Module) -> Tensor:
    """Return the mean of each channel of a layer's output over all else, `[channels]`, float64.

    Args:
        output: `[…, features]` of a Linear, `[samples, channels, …]` of a convolution.
        layer: Float or int8; a Linear has `in_features`.
    """
    axis = output.dim() - 1 if hasattr(layer, "in_features") else 1
    others = [each for each in range(output.dim()) if each != axis]
    return output.double().mean(others) if others else output.double()


def is_peaky(peaks: Tensor) -> Tensor:
    """Which channels have weights at all, `[channels]` of bool."""
    return peaks > torch.finfo(torch.float32).tiny
