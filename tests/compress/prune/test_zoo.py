"""Pruned architectures answer exactly as the whole ones would if no layer read what is gone."""

from __future__ import annotations

import pytest
import torch

from compress.errors import NothingToCompress
from compress.lift import lift
from compress.lift.compare import relative_error
from compress.prune import prune
from tests.compress.prune.oracle import pruned_and_deaf
from tests.compress.zoo.entry import export, load
from tests.compress.zoo.registry import ENTRIES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the models' own
]

# How many times fewer parameters half of the channels make; a class's or token's width stays.
SAMPLE = {
    "resnet18": 3.9,  # residuals
    "resnext50": 3.7,  # groups that are cut at the same places
    "regnet": 3.4,  # whole groups, squeeze and excite
    "mobilenet_v2": 2.0,  # depthwise
    "mobilenet_v3": 2.9,
    "efficientnet": 2.2,
    "shufflenet_v2": 2.1,  # halves and shuffles
    "densenet121": 3.5,  # concatenation
    "googlenet": 2.4,
    "vgg16": 2.8,  # maps that are flattened into a linear layer
    "unet": 3.9,  # transposed convolutions, concatenation of padded maps
    "retinanet": 3.7,  # group norm, a pyramid, several answers
    "autoencoder": 2.4,  # instance norm, PReLU
    "video_net": 2.3,
    "convnext": 1.5,  # layer norm, a scale for each channel
    "vit": 1.6,  # packed heads
    "hf_swin": 1.8,  # windows, biases of heads that are looked up
    "hf_gpt2_eager": 1.6,  # weights used by functions, transposed
    "hf_bert_sdpa": 1.2,
    "transformer": 1.5,  # torch's own attention
    "vae": 1.9,
    "pointnet": 2.8,
}


@pytest.mark.parametrize("name", SAMPLE)
def test_pruned_nets_answer_as_whole_ones_deaf_to_what_is_cut(name: str) -> None:
    entry = ENTRIES[name]
    how = entry.hows[0]
    example = entry.example()
    whole = lift(load(export(entry.model(), example, how)), example, verify=False).graph_module
    pruned, deaf = pruned_and_deaf(whole, example, 0.5)
    report = pruned.report
    assert report.parameters_before / report.parameters_after > SAMPLE[name]
    assert report.parameters_after == sum(
        parameter.numel() for parameter in pruned.graph_module.parameters()
    )
    for batch, extent in entry.sizes(how):
        given = entry.inputs(False, batch, extent)
        with torch.no_grad():
            error = relative_error(pruned.graph_module(*given), deaf(*given))
        assert error < 2e-6, f"{batch} x {extent}"


@pytest.mark.parametrize("name", ["lstm_tagger", "offset_bag", "graph_net"])
def test_nets_without_a_channel_to_cut_are_refused(name: str) -> None:
    entry = ENTRIES[name]
    example = entry.example()
    whole = lift(load(export(entry.model(), example, "trace")), example, verify=False).graph_module
    with pytest.raises(NothingToCompress, match=r"can lose a channel \(.*student model"):
        prune(whole, example, 0.5)
