from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.prune import prune
from compress.prune.importance import by_answers, by_weights
from compress.prune.tracing import Traced, trace
from tests.compress.prune.test_prune import lifted


class Pair(nn.Module):
    """Each channel of the first layer is read by the second alone."""

    def __init__(self, *, bends: bool = False) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 16, 3), nn.BatchNorm2d(16)
        self.second, self.bends = nn.Conv2d(16, 3, 3), bends

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.first(image))
        return self.second(F.relu(x) if self.bends else x)


IMAGES = torch.randn(5, 2, 9, 9, generator=torch.Generator().manual_seed(1))


def of_first(traced: Traced, scores: Tensor) -> Tensor:
    return scores[traced.classes.of(traced.layers["first"].outputs)]


def test_weights_count_in_what_makes_scales_and_reads_a_channel() -> None:
    whole = lifted(Pair(), IMAGES)
    traced = trace(whole, [IMAGES])
    makes = whole.get_parameter("first.weight").detach().square().sum((1, 2, 3))
    scales = whole.get_parameter("norm.weight").detach().square()
    reads = whole.get_parameter("second.weight").detach().square().sum((0, 2, 3))
    expected = sum(each.double() / each.mean() for each in (makes, scales, reads))
    torch.testing.assert_close(of_first(traced, by_weights(whole, traced)), expected)


def test_where_nothing_bends_a_score_is_how_far_the_answers_move() -> None:
    whole = lifted(Pair(), IMAGES)
    traced = trace(whole, [IMAGES])
    whole.get_parameter("second.weight").data[1:] = 0  # of one answer the estimate is exact
    head = whole.get_submodule("second")
    small = IMAGES[:, :, :5, :5]  # and of one place
    with torch.no_grad():
        read = whole.get_submodule("norm")(whole.get_submodule("first")(small))
        moves = [
            head(read) - head(read * (torch.arange(16) != channel).view(-1, 1, 1))
            for channel in range(16)
        ]
    expected = torch.stack([each.double().square().sum() for each in moves])
    scores = of_first(traced, by_answers(whole, traced, [[small[:2]], [small[2:]]]))
    torch.testing.assert_close(
        scores / scores.mean(), expected / expected.mean(), rtol=1e-5, atol=1e-5
    )


def test_a_channel_that_moves_no_answer_comes_last_though_its_weights_are_large() -> None:
    whole = lifted(Pair(bends=True), IMAGES)
    with torch.no_grad():
        whole.get_parameter("first.weight")[3] *= 100
        whole.get_parameter("norm.bias")[3] = -1e6  # never passes the relu
    traced = trace(whole, [IMAGES])
    assert int(of_first(traced, by_answers(whole, traced, [[IMAGES]])).argmin()) == 3
    assert int(of_first(traced, by_weights(whole, traced)).argmin()) != 3
    kept = prune(whole, [IMAGES], 0.5, batches=[[IMAGES]]).graph_module
    assert float(kept.get_parameter("norm.bias").detach().min()) > -1e6


def test_scoring_leaves_gradients_and_hooks_behind_nowhere() -> None:
    whole = lifted(Pair(), IMAGES)
    by_answers(whole, trace(whole, [IMAGES]), [[IMAGES]])
    assert all(parameter.grad is None for parameter in whole.parameters())
    assert not any(module._forward_pre_hooks for module in whole.modules())


def test_scores_do_not_hang_on_which_parameters_are_frozen() -> None:
    whole = lifted(Pair(bends=True), IMAGES)
    traced = trace(whole, [IMAGES])
    free = by_answers(whole, traced, [[IMAGES]])
    for parameter in whole.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(by_answers(whole, traced, [[IMAGES]]), free)
