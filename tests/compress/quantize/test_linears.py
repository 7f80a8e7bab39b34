"""Products of parameters become layers, where nothing else reads the weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from compress.lift import lift
from compress.mixed.compose import Composer
from compress.quantize import quantize_dynamic, quantize_static, quantize_weight_only
from compress.quantize.drafting import Quantized
from compress.quantize.linears import linears_, with_linears
from compress.spec import MixedConfig, PtqConfig
from tests.compress.zoo.formats import breach, case_of, write
from tests.compress.zoo.registry import ENTRIES


class Conv1D(nn.Module):
    """As in transformers: weight `[in, out]`."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inside, outside) / inside**0.5)
        self.bias = nn.Parameter(torch.randn(outside))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view((*x.size()[:-1], self.weight.size(1)))


class Net(nn.Module):
    """`first` is called twice, `twin` shares its weight, `read` is also read by itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twin, self.read = Conv1D(64, 64), Conv1D(64, 64), Conv1D(64, 64)
        self.twin.weight = self.first.weight
        self.partner = Conv1D(64, 64)
        self.partner.weight = self.read.weight
        self.last = Conv1D(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twin(torch.relu(self.first(torch.relu(self.first(x)))))
        x = self.partner(self.read(x)) * self.read.weight[0]
        return self.last(torch.relu(x))


@pytest.fixture
def lifted() -> tuple[Net, fx.GraphModule, Tensor]:
    net, x = Net().eval(), torch.randn(3, 7, 64)
    return net, lift(torch.jit.trace(net, x), [x]).graph_module, x


def test_layers_bear_the_names_of_what_they_replace_and_answer_alike(
    lifted: tuple[Net, fx.GraphModule, Tensor],
) -> None:
    net, graph_module, x = lifted
    model = with_linears(graph_module)
    assert _linears(graph_module) == []
    assert _linears(model) == ["first", "first", "twin", "last"]
    assert torch.equal(model.get_submodule("last").weight, net.last.weight.t())
    torch.testing.assert_close(model(x), net(x))
    torch.testing.assert_close(model(x[:1, :2]), net(x[:1, :2]))
    assert with_linears(model) is model


def test_what_is_tied_stays_tied_and_what_is_read_by_itself_stays(
    lifted: tuple[Net, fx.GraphModule, Tensor],
) -> None:
    _, model, _ = lifted
    linears_(model)
    assert model.get_submodule("first").weight is model.get_submodule("twin").weight
    assert model.get_submodule("first").bias is not model.get_submodule("twin").bias
    for name in ("read", "partner"):
        assert not isinstance(model.get_submodule(name), nn.Linear)


def _linears(model: fx.GraphModule) -> list[str]:
    calls = [str(node.target) for node in model.graph.nodes if node.op == "call_module"]
    return [name for name in calls if isinstance(model.get_submodule(name), nn.Linear)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dynamic", "weight_only", "static", "mixed"])
def test_every_way_makes_them_int8(lifted: tuple[Net, fx.GraphModule, Tensor], kind: str) -> None:
    net, graph_module, x = lifted
    made = _quantized(kind, graph_module, x)
    assert {layer.name: layer.precision for layer in made.layers} == {
        "first": "int8", "twin": "int8", "last": "int8"
    }  # fmt: skip
    noise = (made.graph_module(x) - net(x)).square().sum() / net(x).square().sum()
    assert 10 * torch.log10(noise) < -25
    assert with_linears(graph_module) is not graph_module  # was left as it is


def _quantized(kind: str, graph_module: fx.GraphModule, x: Tensor) -> Quantized:
    if kind == "dynamic":
        return quantize_dynamic(graph_module, PtqConfig(mode="dynamic"), example_inputs=[x])
    if kind == "weight_only":
        return quantize_weight_only(graph_module, PtqConfig(mode="weight_only"))
    if kind == "static":
        return quantize_static(graph_module, [x], [[x]], PtqConfig())
    composer = Composer(
        graph_module, [x], lambda: [[x]], MixedConfig(), backend="x86", islands={}, probes=[]
    )
    assert composer.names == ["first", "twin", "last"]
    return composer.build(dict.fromkeys(composer.names, "int8"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_gpt2_becomes_int8_by_dynamic_quantization(tmp_path: Path) -> None:
    case = case_of("hf_gpt2_eager")
    assert breach("hf_gpt2_eager", ("torchscript", "dynamic"),
                  write(case, ("torchscript", "dynamic"), tmp_path)) is None  # fmt: skip
    layers = case.compressed("dynamic").layers
    products = [layer for layer in layers if layer.type == "Linear"]
    assert len(products) == 2 * 4 + 1
    assert {layer.precision for layer in products} == {"int8"}
    floats = sum(value.nbytes for value in ENTRIES["hf_gpt2_eager"].model().parameters())
    assert sum(layer.size_bytes[1] for layer in layers) < 0.5 * floats
