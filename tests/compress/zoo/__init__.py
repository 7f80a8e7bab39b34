"""Real network architectures with seeded weights.

Written out here, or taken from `transformers` and from packages that hold trained models. BatchNorm
statistics are random, since fresh ones (mean 0, variance 1) would hide a normalisation that was
lost or folded wrongly.

The functions here build the few nets that most tests use; `registry.ENTRIES` holds the whole zoo.
"""

from __future__ import annotations

import torch
from torch import nn

from tests.compress.zoo.blocks import settle
from tests.compress.zoo.mobile import MobileNetV2
from tests.compress.zoo.residual import ResNet
from tests.compress.zoo.small import (
    MLP,
    DenseNet,
    InceptionBlock,
    SENet,
    ShuffleNet,
    SmallCNN,
    UNet,
)


def mlp(features: int = 16, classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return settle(MLP(features, classes=classes))


def small_cnn(channels: int = 1, classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return settle(SmallCNN(channels, classes))


def resnet18(classes: int = 1000) -> nn.Module:
    torch.manual_seed(0)
    return settle(ResNet([2, 2, 2, 2], bottleneck=False, classes=classes))


def resnet50(classes: int = 1000) -> nn.Module:
    torch.manual_seed(0)
    return settle(ResNet([3, 4, 6, 3], bottleneck=True, classes=classes))


def mobilenet_v2(classes: int = 1000, *, full: bool = True) -> nn.Module:
    """`full=False` keeps three blocks: the same operators in a fraction of the time."""
    torch.manual_seed(0)
    return settle(MobileNetV2(classes, full=full))


def senet() -> nn.Module:
    torch.manual_seed(0)
    return settle(SENet())


def inception_block() -> nn.Module:
    torch.manual_seed(0)
    return settle(InceptionBlock())


def unet() -> nn.Module:
    torch.manual_seed(0)
    return settle(UNet())


def densenet() -> nn.Module:
    torch.manual_seed(0)
    return settle(DenseNet())


def shufflenet() -> nn.Module:
    torch.manual_seed(0)
    return settle(ShuffleNet())
