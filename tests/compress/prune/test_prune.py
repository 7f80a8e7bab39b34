from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.errors import NothingToCompress
from compress.lift import lift
from compress.lift.compare import relative_error
from compress.prune import Pruned, prune
from tests.compress.lift.exported import How, export
from tests.compress.prune.oracle import pruned_and_deaf
from tests.compress.zoo.blocks import settle


def lifted(model: nn.Module, *inputs: Tensor, script: bool = False) -> fx.GraphModule:
    how: How = "script" if script else "trace"
    return lift(export(settle(model), inputs, how), list(inputs), verify=False).graph_module


def checked(
    model: nn.Module, *inputs: Tensor, others: Sequence[Tensor] = (), script: bool = False
) -> dict[str, tuple[int, int]]:
    """Prune half, compare with the oracle, and return each layer's channels."""
    pruned, deaf = pruned_and_deaf(lifted(model, *inputs, script=script), inputs, 0.5)
    for given in (inputs, *((other,) for other in others)):
        with torch.no_grad():
            assert relative_error(pruned.graph_module(*given), deaf(*given)) < 2e-6
    return {layer.name: layer.channels for layer in pruned.report.layers}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)
        self.branch, self.back = nn.Conv2d(32, 64, 1), nn.Conv2d(64, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(image)))
        return self.head((x + self.back(F.relu(self.branch(x)))).mean([2, 3]))


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def residual(share: float, **options: object) -> tuple[fx.GraphModule, Pruned]:
    whole = lifted(Residual(), IMAGES)
    return whole, prune(whole, [IMAGES], share, **options)  # type: ignore[arg-type]


def test_layers_of_a_residual_lose_the_same_channels_and_answers_keep_theirs() -> None:
    channels = checked(Residual(), IMAGES, others=[torch.randn(1, 3, 20, 24)])
    assert channels == {
        "stem": (32, 16), "branch": (64, 32), "back": (32, 16), "head": (10, 10),
    }  # fmt: skip


def test_names_stay_and_the_given_graph_is_left_alone() -> None:
    whole = lifted(Residual(), IMAGES)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    code = whole.code
    pruned = prune(whole, [IMAGES], 0.5).graph_module
    assert pruned.state_dict().keys() == before.keys()
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.zero_()
    assert whole.code == code
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize(
    ("share", "stem", "branch"), [(0.25, 24, 48), (0.4, 16, 40), (0.5, 16, 32), (0.99, 8, 8)]
)
def test_what_is_left_of_a_layer_is_a_multiple_of_8(share: float, stem: int, branch: int) -> None:
    layers = {layer.name: layer.channels[1] for layer in residual(share)[1].report.layers}
    assert (layers["stem"], layers["branch"]) == (stem, branch)


def test_a_pruned_net_trains_with_live_batch_norm() -> None:
    pruned = residual(0.5)[1].graph_module.train()
    pruned(IMAGES).square().sum().backward()
    assert int(pruned.get_buffer("norm.num_batches_tracked")) == 1
    assert all(each.grad is not None and each.grad.any() for each in pruned.parameters())


def test_frozen_parameters_stay_frozen() -> None:
    whole = lifted(Residual(), IMAGES)
    whole.get_parameter("branch.weight").requires_grad_(False)
    pruned = prune(whole, [IMAGES], 0.5).graph_module
    assert not pruned.get_parameter("branch.weight").requires_grad
    assert pruned.get_parameter("stem.weight").requires_grad


def test_the_same_call_gives_the_same_weights() -> None:
    first, second = (residual(0.5, batches=[[IMAGES]])[1].graph_module for _ in range(2))
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        assert left.shape == right.shape
    whole = lifted(Residual(), IMAGES)
    one, two = (prune(whole, [IMAGES], 0.5, batches=[[IMAGES]]).graph_module for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        residual(share)


def test_a_layer_that_keeps_all_channels_says_why() -> None:
    report = residual(0.5)[1].report
    reasons = {layer.name: layer.reason for layer in report.layers}
    assert reasons["stem"] is None
    assert reasons["head"] == "the model's answer holds it"
    assert report.to_dict()["layers"][0] == {
        "name": "stem", "type": "Conv2d", "channels": (32, 16), "reason": None,
    }  # fmt: skip


def test_a_model_without_weights_is_refused() -> None:
    class Bare(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.relu()

    with pytest.raises(NothingToCompress, match="no convolution or linear layer"):
        prune(lifted(Bare(), IMAGES), [IMAGES], 0.5)


class Grouped(nn.Module):
    def __init__(self, groups: int, *, multiplier: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3)
        self.grouped = nn.Conv2d(32, 32 * multiplier, 3, groups=groups)
        self.last = nn.Conv2d(32 * multiplier, 8, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.last(F.relu(self.grouped(F.relu(self.first(image)))))


@pytest.mark.parametrize(
    ("groups", "multiplier", "left"), [(32, 1, 16), (32, 2, 16), (16, 1, 8), (2, 1, 2), (4, 2, 4)]
)
def test_groups_go_as_a_whole_where_there_are_many_else_thin_alike(
    groups: int, multiplier: int, left: int
) -> None:
    model = Grouped(groups, multiplier=multiplier)
    channels = checked(model, IMAGES, others=[IMAGES[:1]])
    assert channels["first"] == (32, 16)
    assert channels["grouped"] == (32 * multiplier, 16 * multiplier)
    pruned = prune(lifted(model, IMAGES), [IMAGES], 0.5).graph_module
    assert pruned.get_submodule("grouped").groups == left


def test_concatenated_channels_are_cut_each_by_itself() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 32, 1), nn.Conv2d(3, 16, 1)
            self.norm, self.last = nn.BatchNorm2d(51), nn.Conv2d(51, 4, 1)

        def forward(self, image: Tensor) -> Tensor:
            x = torch.cat([self.left(image), image, self.right(image)], 1)
            return self.last(self.norm(x))

    assert checked(Joined(), IMAGES) == {"left": (32, 16), "right": (16, 8), "last": (4, 4)}


def test_parts_of_a_layer_are_cut_each_by_itself() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.left = nn.Conv2d(3, 48, 1), nn.Conv2d(16, 16, 1)
            self.right, self.mixed = nn.Conv2d(32, 4, 1), nn.Conv2d(24, 4, 1)

        def forward(self, image: Tensor) -> Tensor:
            x = F.relu(self.both(image))
            left = x[:, :16] + self.left(x[:, :16])
            return self.mixed(torch.cat([left, x[:, -8:]], 1)) + self.right(x[:, 16:])

    assert checked(Halves(), IMAGES)["left"] == (16, 8)


def test_halves_of_a_gated_linear_unit_lose_the_same_channels() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.last = nn.Conv2d(3, 64, 1), nn.Conv2d(32, 4, 1)

        def forward(self, image: Tensor) -> Tensor:
            return self.last(F.glu(self.wide(image), 1))

    assert checked(Gated(), IMAGES)["wide"] == (64, 32)


def test_flattened_maps_lose_the_columns_of_their_channel() -> None:
    class Flat(nn.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            self.rows = rows
            self.conv, self.head = nn.Conv2d(3, 32, 3, stride=4), nn.Linear(32 * 16, 5)

        def forward(self, image: Tensor) -> Tensor:
            return self.head(F.relu(self.conv(image)).view(self.rows, 512))

    others = [IMAGES[:1], torch.randn(7, 3, 16, 16)]
    assert checked(Flat(-1), IMAGES, others=others)["conv"] == (32, 16)


class Attention(nn.Module):
    """As torch writes it: batch and heads lie in one axis."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.packed, self.out = nn.Linear(24, 96), nn.Linear(32, 24)

    def forward(self, x: Tensor) -> Tensor:
        length, batch, _ = x.shape
        parts = [
            part.reshape(length, batch * self.heads, 8).transpose(0, 1)
            for part in self.packed(x).chunk(3, -1)
        ]
        weights = (torch.bmm(parts[0], parts[1].transpose(1, 2)) / 8**0.5).softmax(-1)
        mixed = torch.bmm(weights, parts[2])
        return self.out(mixed.transpose(0, 1).reshape(length, batch, 32))


@pytest.mark.parametrize("script", [False, True])
def test_whole_heads_go_also_where_they_share_an_axis_with_the_batch(script: bool) -> None:
    others = [torch.randn(7, 5, 24), torch.randn(5, 1, 24)]
    channels = checked(Attention(), torch.randn(5, 3, 24), others=others, script=script)
    assert channels == {"packed": (96, 48), "out": (24, 24)}


def test_a_shuffled_image_keeps_its_squares_together() -> None:
    class Upscaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.last = nn.Conv2d(3, 64, 1), nn.Conv2d(16, 3, 1)

        def forward(self, image: Tensor) -> Tensor:
            return self.last(F.pixel_shuffle(self.wide(image), 2))

    assert checked(Upscaled(), IMAGES, others=[IMAGES[:1]])["wide"] == (64, 32)


class Held(nn.Module):
    """A layer whose channels something reads in its own way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.last = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 4, 1)
        self.other = nn.Conv2d(4, 16, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image)
        if self.kind == "mean":
            x = x - x.mean(1, keepdim=True)
        elif self.kind == "softmax":
            x = x.softmax(1)
        elif self.kind == "strided":
            x = torch.cat([x[:, ::2], x[:, 1::2]], 1)
        elif self.kind == "sorted":
            x = x.sort(1)[0]
        elif self.kind == "counted":
            x = x / x.size(1)
        elif self.kind == "indexed":
            x = x[:, torch.arange(31, -1, -1)]
        return self.other(self.last(x)).mean([2, 3])


@pytest.mark.parametrize("script", [False, True])
@pytest.mark.parametrize("kind", ["mean", "softmax", "strided", "sorted", "indexed"])
def test_channels_are_held_where_something_reads_them_in_its_own_way(
    kind: str, script: bool
) -> None:
    whole = lifted(Held(kind), IMAGES, script=script)
    report = prune(whole, [IMAGES], 0.5).report
    layers = {layer.name: layer for layer in report.layers}
    assert layers["first"].channels == (32, 32)
    assert layers["first"].reason is not None
    assert layers["last"].channels == (4, 2)


def test_channels_are_held_where_their_number_is_computed_with() -> None:
    report = prune(lifted(Held("counted"), IMAGES, script=True), [IMAGES], 0.5).report
    assert report.layers[0].channels == (32, 32)
    assert "computes a size" in str(report.layers[0].reason)


def test_a_check_of_a_number_of_channels_goes_with_them() -> None:
    class Checking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 4, 1)

        def forward(self, image: Tensor) -> Tensor:
            x = self.first(image)
            return self.last(x) if x.size(1) == 32 else x

    assert checked(Checking(), IMAGES, others=[IMAGES[:2]], script=True)["first"] == (32, 16)


def test_weights_that_stand_in_two_places_are_held() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
            self.second.weight = self.first.weight
            self.wide, self.head = nn.Linear(32, 64), nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.wide(self.second(self.first(x).relu()).relu()).relu())

    assert checked(Tied(), torch.randn(3, 32)) == {"wide": (64, 32), "head": (2, 2)}


def test_a_layer_called_twice_is_cut_once_for_both() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.same = nn.Linear(8, 32), nn.Linear(32, 32)
            self.head = nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.same(self.same(self.wide(x).relu()).relu()).relu())

    channels = checked(Again(), torch.randn(3, 8))
    assert channels == {"wide": (32, 16), "same": (32, 16), "head": (2, 2)}


def test_a_parameter_that_scales_channels_goes_with_them() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(32, 1, 1))
            self.register_buffer("shift", torch.randn(1, 32, 1, 1))
            self.first, self.last = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 4, 1)

        def forward(self, image: Tensor) -> Tensor:
            return self.last(self.first(image) * self.scale + self.shift)

    assert checked(Scaled(), IMAGES)["first"] == (32, 16)
    pruned = prune(lifted(Scaled(), IMAGES), [IMAGES], 0.5).graph_module
    assert pruned.get_parameter("scale").shape == (16, 1, 1)
    assert pruned.get_buffer("shift").shape == (1, 16, 1, 1)
