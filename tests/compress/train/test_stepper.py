"""A step: its parts add up to it, it begins without state, and its faults are told."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compress.errors import InvalidSpec, ModelFailed, OutOfMemory
from compress.lift import lift
from compress.spec.training import TrainingConfig
from compress.train.data import TrainingData
from compress.train.distill import make_trainable
from compress.train.objective import Batch, Loss
from compress.train.stepper import Stepper
from tests.compress.sinks import Recorder
from tests.compress.train import runs


def test_samples_of_a_step_in_parts_give_the_step() -> None:
    def trained(parts: int) -> dict[str, Tensor]:
        model = runs.net(norm=False)
        config = TrainingConfig(
            epochs=2, batch_size=48, gradient_accumulation=parts, optimizer="sgd",
            learning_rate=0.1, validation_fraction=0, amp="off",
        )  # fmt: skip
        # 100 samples: a ragged last step of 4
        runs.train(model, runs.digit_data(100, fraction=0), config)
        return dict(model.state_dict())

    whole = trained(1)
    for parts in (2, 5):
        for name, value in trained(parts).items():
            torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-6)


def test_batch_norm_that_gets_single_samples_is_told() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    with pytest.raises(InvalidSpec, match="BatchNorm cannot learn from batches of 1 sample"):
        runs.train(model, runs.digit_data(), TrainingConfig(batch_size=1, epochs=1))


def test_a_model_that_cannot_learn_says_why() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x.flatten(1)).exp()
            return y.mul_(2).exp_().mul_(y)

    with pytest.raises(ModelFailed, match=r"does not run in training; it says: .*inplace"):
        runs.train(InPlace(), runs.digit_data(), TrainingConfig(epochs=1))


def test_out_of_gpu_memory_the_samples_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's error, raised here for batches above 10 samples."""
    learn, sink = Stepper._backward, Recorder()

    def limited(self: Stepper, part: Batch) -> Loss:
        if len(part) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return learn(self, part)

    monkeypatch.setattr(Stepper, "_backward", limited)
    config = TrainingConfig(epochs=1, batch_size=32, validation_fraction=0)
    model, data = runs.net(norm=False), runs.digit_data(fraction=0)
    whole = copy.deepcopy(model)
    runs.train(model, data, config, sink=sink)
    assert [w for w in sink.warnings if "run in 4 parts" in w]
    monkeypatch.setattr(Stepper, "_backward", learn)
    runs.train(whole, data, config)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-5)

    def never(self: Stepper, part: Batch) -> Loss:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Stepper, "_backward", never)
    with pytest.raises(OutOfMemory, match="two samples at a time"):
        runs.train(runs.net(), data, config)


class Streaming(nn.Module):
    """Adds what came before, which holds on to the step before unless state begins anew."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("before", torch.zeros(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.before = self.layer(x).mean(0, keepdim=True) + self.before
        return self.layer(x) + self.before


def test_a_model_that_keeps_state_begins_each_step_without() -> None:
    example = torch.randn(4, 6)
    graph = lift(torch.jit.script(Streaming().eval()), [example]).graph_module
    make_trainable(graph)
    fresh = copy.deepcopy(graph)
    data = TrainingData.split(runs.rows(), 0, 0)
    config = TrainingConfig(epochs=2, batch_size=32, validation_fraction=0)
    runs.train(graph, data, config)
    assert not torch.equal(graph.get_submodule("layer").weight, fresh.get_submodule("layer").weight)
    fresh.load_state_dict(graph.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(graph(example), fresh(example))
