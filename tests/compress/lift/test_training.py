"""What is lifted can learn: gradients, live BatchNorm and dropout, and an untouched original."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from compress.lift import lift
from tests.compress.lift.exported import HOWS, How, export, net, net_input


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", ["mlp", "small_cnn", "resnet18", "mobilenet_v2", "densenet"])
def test_a_gradient_reaches_every_parameter(name: str, how: How) -> None:
    model = net(name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # as deployed files often are
    given = net_input(name)
    lifted = lift(export(model, [given], how), [given], verify=False).graph_module
    lifted(given).pow(2).sum().backward()
    unreached = [
        key for key, parameter in lifted.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]  # fmt: skip
    assert unreached == []


@pytest.mark.parametrize("how", HOWS)
def test_train_mode_brings_batch_norm_and_dropout_to_life(how: How) -> None:
    given = net_input("mlp", batch=32)
    model = net("mlp")
    lifted = lift(export(model, [given], how), [given], verify=False).graph_module
    before = {key: value.clone() for key, value in lifted.state_dict().items()}
    lifted.train()
    first, second = lifted(given), lifted(given)
    assert not torch.equal(first, second)  # dropout drew twice
    after = lifted.state_dict()
    assert int(after["net.4.num_batches_tracked"]) == 2
    assert not torch.equal(after["net.4.running_mean"], before["net.4.running_mean"])
    assert not torch.equal(after["net.4.running_var"], before["net.4.running_var"])


@pytest.mark.parametrize("how", HOWS)
def test_training_matches_the_original_class(how: How) -> None:
    given = net_input("small_cnn", batch=8)
    model = net("small_cnn")
    model.dropout.p = 0.0
    lifted = lift(export(model, [given], how), [given], verify=False).graph_module
    model.train()
    lifted.train()
    model(given).pow(2).mean().backward()
    lifted(given).pow(2).mean().backward()
    for (name, right), (mine_name, mine) in zip(
        sorted(model.named_parameters()), sorted(lifted.named_parameters()), strict=True
    ):
        assert name == mine_name
        torch.testing.assert_close(mine.grad, right.grad)


@pytest.mark.parametrize("how", HOWS)
def test_the_original_is_left_as_it_was(how: How) -> None:
    given = net_input("mlp", batch=8)
    original = export(net("mlp"), [given], how)
    before = {key: value.clone() for key, value in original.state_dict().items()}
    lifted = lift(original, [given])
    lifted.graph_module.train()
    loss = lifted.graph_module(given).sum()
    loss.backward()
    torch.optim.SGD(lifted.graph_module.parameters(), lr=0.1).step()
    assert lifted.original is original
    assert all(torch.equal(value, before[key]) for key, value in original.state_dict().items())
    assert all(parameter.grad is None for parameter in original.parameters())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.relu(self.mix(self.embed(tokens)))
        return self.head(torch.relu(self.mix(x)))


@pytest.mark.parametrize("how", HOWS)
def test_tied_weights_and_a_module_called_twice_stay_one(how: How) -> None:
    tokens = torch.randint(0, 11, (2, 5))
    lifted = lift(export(Tied(), [tokens], how), [tokens])
    graph_module = lifted.graph_module
    assert graph_module.get_submodule("head").weight is graph_module.get_submodule("embed").weight
    calls = [node for node in graph_module.graph.nodes if node.target == "mix"]
    assert len(calls) == 2
    assert lifted.report.modules == {"embed": "Embedding", "mix": "Linear", "head": "Linear"}


def test_batch_norm_traced_in_train_mode_goes_on_by_its_batch() -> None:
    """The lifted model answers as the file does, which is not as the model would in eval mode."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    given, more = torch.randn(4, 3, 8, 8), torch.randn(2, 3, 9, 9)
    traced = torch.jit.trace(model, given, check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    file = torch.jit.load(buffer).eval()
    before = file.state_dict()["1.running_mean"].clone()
    report = lift(file, [given]).report
    assert torch.equal(file.state_dict()["1.running_mean"], before)  # the original is untouched
    assert report.islands == []
    assert report.parameters_lifted == report.parameters
    lifted = lift(file, [given]).graph_module
    assert {name for name, _ in lifted.named_parameters()} == {
        "0.weight", "0.bias", "1.weight", "1.bias",
    }  # fmt: skip
    for images in (given, more):
        torch.testing.assert_close(lifted(images), file(images))
        assert not torch.allclose(lifted(images), model.eval()(images), atol=1e-2)
    lifted(given).pow(2).sum().backward()
    assert all(parameter.grad is not None for parameter in lifted.parameters())
    torch.testing.assert_close(torch.jit.script(lifted)(more), file(more))
