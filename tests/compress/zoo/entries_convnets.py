"""Convolutional nets over images."""

from __future__ import annotations

from functools import partial

from torch import nn

from tests.compress.zoo import dense_prediction, hugging_face
from tests.compress.zoo.classic import VGG, ConvNeXt, DenseNet, SqueezeNet
from tests.compress.zoo.entry import Entry
from tests.compress.zoo.inception import GoogLeNet, InceptionV3
from tests.compress.zoo.inputs import floats, images
from tests.compress.zoo.mobile import (
    EfficientNet,
    MobileNetV1,
    MobileNetV2,
    MobileNetV3,
    ShuffleNetV2,
)
from tests.compress.zoo.others import VideoNet
from tests.compress.zoo.residual import RegNet, ResNet

# a net over images of 64 and 96 in small, of 224 and 192 as published
image_net = partial(Entry, inputs=images(), extent=64, other=96, full_extent=224, full_other=192)


def resnet18(full: bool) -> nn.Module:
    if full:
        return ResNet([2, 2, 2, 2], bottleneck=False)
    return ResNet([1, 1, 1, 1], bottleneck=False, width=16, classes=10)


def resnet50(full: bool) -> nn.Module:
    if full:
        return ResNet([3, 4, 6, 3], bottleneck=True)
    return ResNet([1, 2, 1, 1], bottleneck=True, width=8, classes=10)


def wide_resnet50(full: bool) -> nn.Module:
    if full:
        return ResNet([3, 4, 6, 3], bottleneck=True, base_width=128)
    return ResNet([1, 1, 1, 1], bottleneck=True, base_width=128, width=8, classes=10)


def resnext50(full: bool) -> nn.Module:
    if full:
        return ResNet([3, 4, 6, 3], bottleneck=True, groups=32, base_width=4)
    return ResNet([1, 1, 1, 1], bottleneck=True, groups=4, base_width=16, width=8, classes=10)


def regnet(full: bool) -> nn.Module:
    return RegNet() if full else RegNet((16, 24, 32), (1, 1, 2), classes=10)


def densenet(full: bool) -> nn.Module:
    return DenseNet() if full else DenseNet((2, 3, 2), growth=8, classes=10)


def convnext(full: bool) -> nn.Module:
    return ConvNeXt() if full else ConvNeXt((16, 32), (1, 2), classes=10)


def unet(full: bool) -> nn.Module:
    return dense_prediction.UNet() if full else dense_prediction.UNet(width=8, levels=2)


def retinanet(full: bool) -> nn.Module:
    if full:
        return dense_prediction.RetinaNet()
    return dense_prediction.RetinaNet(width=16, stem=8, depth=1, classes=5, anchors=3)


def yolo(full: bool) -> nn.Module:
    return dense_prediction.YoloNet() if full else dense_prediction.YoloNet(width=4, classes=3)


def autoencoder(full: bool) -> nn.Module:
    return dense_prediction.ConvAutoencoder(32 if full else 8)


ENTRIES = [
    image_net(name="resnet18", build=resnet18),
    image_net(name="resnet50", build=resnet50),
    image_net(name="wide_resnet50", build=wide_resnet50),
    image_net(name="resnext50", build=resnext50),
    image_net(name="hf_resnet", build=hugging_face.resnet, hows=("trace",)),
    image_net(name="regnet", build=regnet),
    image_net(name="mobilenet_v1", build=lambda full: MobileNetV1(full=full)),
    image_net(name="mobilenet_v2", build=lambda full: MobileNetV2(full=full)),
    image_net(name="mobilenet_v3", build=lambda full: MobileNetV3(full=full)),
    image_net(name="efficientnet", build=lambda full: EfficientNet(full=full)),
    image_net(name="shufflenet_v2", build=lambda full: ShuffleNetV2(full=full)),
    image_net(name="vgg16", build=lambda full: VGG(full=full)),
    image_net(name="squeezenet", build=lambda full: SqueezeNet(full=full)),
    image_net(name="densenet121", build=densenet),
    image_net(name="convnext", build=convnext),
    image_net(
        name="googlenet",
        build=lambda full: GoogLeNet(slim=1 if full else 8),
        unused=("aux1.", "aux2."),
    ),
    Entry(
        name="inception_v3",
        build=lambda full: InceptionV3(slim=1 if full else 8),
        inputs=images(),
        extent=96,
        other=112,
        full_extent=299,
        full_other=224,
        unused=("AuxLogits.",),
    ),
    Entry(
        name="unet",
        build=unet,
        inputs=images(),
        extent=32,
        other=45,
        full_extent=256,
        full_other=189,
    ),
    image_net(name="retinanet", build=retinanet, full_extent=320, full_other=288),
    image_net(name="yolo", build=yolo, full_extent=320, full_other=288),
    image_net(name="autoencoder", build=autoencoder, extent=32, other=48),
    Entry(
        name="video_net",
        build=lambda full: VideoNet(64 if full else 4),
        inputs=floats(("batch", 3, 8, "extent", "extent")),
        extent=16,
        other=24,
        full_extent=56,
        full_other=48,
    ),
]
