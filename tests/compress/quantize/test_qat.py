from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.errors import InvalidSpec, NothingToCompress
from compress.lift import lift
from compress.quantize import quantize_static
from compress.quantize.engines import engine_for
from compress.quantize.fx_layers import is_int8, product_inside
from compress.quantize.qat import QatModel, prepare_qat
from compress.quantize.qat_modules import RoundedLayer, RoundedValue, RoundedWeight
from compress.spec import Backend, PtqConfig, QatConfig
from tests.compress import zoo
from tests.compress.quantize.test_islands import GIVEN, Branches
from tests.compress.zoo.entry import export, load

NETS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (zoo.mlp, (16,)),
    (zoo.small_cnn, (1, 8, 8)),
    (zoo.inception_block, (3, 32, 32)),
    (zoo.densenet, (3, 32, 32)),
    (lambda: zoo.mobilenet_v2(10, full=False), (3, 32, 32)),
]


def images(samples: int = 16, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, *(shape or (1, 8, 8)), generator=generator)


def prepared(model: nn.Module, data: Tensor, backend: Backend = "x86", **config: Any) -> QatModel:
    graph_module = fx.symbolic_trace(model.eval())
    made = prepare_qat(graph_module, [data[:2]], [[data]], QatConfig(**config), backend=backend)
    made.module.requires_grad_()
    return made


def learn(model: QatModel, data: Tensor, *, steps: int = 8, rate: float = 3e-3) -> None:
    """Train towards random answers: weights, norms and step sizes all move."""
    shape = answers(model.module, data).shape
    target = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(model.module.train().parameters(), rate)
    for step in range(steps):
        if step == steps // 2:
            model.find_ranges([[data]])
            model.freeze_batch_norm()
        optimizer.zero_grad()
        F.mse_loss(model.module(data), target).backward()
        optimizer.step()
    model.module.eval()


def answers(model: nn.Module, *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model(*inputs)
    return answer


def rounded_layers(model: QatModel) -> Iterator[tuple[str, RoundedLayer]]:
    for name, module in model.module.named_modules():
        if isinstance(module, RoundedLayer):
            yield name, module


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["x86", "arm"])
@pytest.mark.parametrize(("build", "shape"), NETS)
def test_it_begins_where_calibration_alone_ends(
    build: Callable[[], nn.Module], shape: tuple[int, ...], backend: Backend
) -> None:
    model, data = build(), images(16, *shape)
    with engine_for(backend):
        alone = quantize_static(
            fx.symbolic_trace(model.eval()), [data[:2]], [[data]], PtqConfig(), backend=backend
        )
        trained = prepared(model, data, backend)
        before = answers(trained.module, data)
        converted = trained.convert({})
        wanted = answers(alone.graph_module, data)
        assert torch.equal(answers(converted.graph_module, data), wanted)
    assert [layer.name for layer in converted.layers] == [layer.name for layer in alone.layers]
    assert [layer.precision for layer in converted.layers] == [
        layer.precision for layer in alone.layers
    ]
    if backend == "x86":
        assert torch.equal(before, wanted)
    else:  # qnnpack rounds biases, too
        assert float((before - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weight_dtype", "granularity"),
    [("int8", "per_channel"), ("int8", "per_tensor"), ("int4", "per_channel")],
)
@pytest.mark.parametrize(("build", "shape"), NETS)
def test_after_training_the_int8_graph_answers_as_the_trained_one(
    build: Callable[[], nn.Module], shape: tuple[int, ...], weight_dtype: str, granularity: str
) -> None:
    data = images(16, *shape)
    model = prepared(build(), data, weight_dtype=weight_dtype, granularity=granularity)
    before = answers(model.module, data)
    learn(model, data)
    wanted = answers(model.module, data)
    assert not torch.allclose(wanted, before, atol=1e-2)
    found = answers(model.convert({}).graph_module, data)
    # a sum of floats in another order falls on the other side of a tie once in a hundred thousand
    assert float((found - wanted).norm() / wanted.norm()) < 1e-2
    assert float((found == wanted).float().mean()) > 0.9


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_scales_and_integers_are_the_trained_ones_bit_for_bit(granularity: str) -> None:
    data = images()
    model = prepared(zoo.small_cnn(), data, granularity=granularity)
    learn(model, data)
    trained = {name: copy.deepcopy(module) for name, module in rounded_layers(model)}
    ranges = {
        (float(module.scale), int(module.zero_point))
        for module in model.module.modules() if isinstance(module, RoundedValue)
    }  # fmt: skip
    converted = model.convert({}).graph_module
    assert list(trained) == ["conv1", "conv2", "fc1", "fc2"]
    for name, module in trained.items():
        layer: Any = converted.get_submodule(name)
        weight = layer.weight()
        assert isinstance(module.rounding, RoundedWeight)
        steps = module.rounding.scale.detach()
        per_channel = granularity == "per_channel"
        found = weight.q_per_channel_scales() if per_channel else torch.tensor([weight.q_scale()])
        assert torch.equal(found.float(), steps)
        with torch.no_grad():
            rounded, bias = module.folded()
        assert torch.equal(weight.dequantize(), rounded)
        assert bias is not None
        assert torch.equal(layer.bias().detach(), bias)
        assert (float(torch.tensor(layer.scale)), int(layer.zero_point)) in ranges


def test_four_bits_are_sixteen_integers_a_channel_and_said_to_be_stored_in_bytes() -> None:
    data = images()
    model = prepared(zoo.small_cnn(), data, weight_dtype="int4")
    learn(model, data)
    result = model.convert({}, [[data[:1]]])
    eight = {layer.name: layer for layer in prepared(zoo.small_cnn(), data).convert({}).layers}
    for layer in result.layers:
        integers = result.graph_module.get_submodule(layer.name).weight().int_repr()  # type: ignore[operator]
        assert int(integers.min()) >= -8
        assert int(integers.max()) <= 7
        assert layer.precision == "int4"
        assert layer.size_bytes == eight[layer.name].size_bytes
        assert layer.sqnr_db is not None


def test_overrides_keep_layers_float_or_at_eight_bits() -> None:
    data = images()
    overrides = {"conv1": "int8", "conv2": "fp32", "fc2": "fp16"}
    model = prepared(zoo.small_cnn(), data, weight_dtype="int4", overrides=overrides)
    learn(model, data)
    wanted = answers(model.module, data)
    result = model.convert({})
    assert {layer.name: layer.precision for layer in result.layers} == {
        "conv1": "int8", "conv2": "fp32", "fc1": "int4", "fc2": "fp16",
    }  # fmt: skip
    assert result.layers[1].reason == "override 'conv2' keeps it fp32"
    first = result.graph_module.get_submodule("conv1").weight().int_repr()  # type: ignore[operator]
    assert int(first.abs().max()) > 100
    assert torch.allclose(answers(result.graph_module, data), wanted, rtol=1e-2, atol=1e-2)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="'conv9' matches no layer"):
        prepared(zoo.small_cnn(), images(), overrides={"conv9": "fp32"})


def test_a_model_of_nothing_but_float_layers_has_nothing_to_compress() -> None:
    with pytest.raises(NothingToCompress):
        prepared(zoo.small_cnn(), images(), overrides={"*": "fp32"}).convert({})


def test_depthwise_weights_have_seven_bits_where_full_activations_would_overflow() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 128, 1), nn.Conv2d(128, 128, 3, groups=128), nn.Flatten())
    data = images()
    model = prepared(net, data, "x86_vnni")
    learn(model, data)
    converted = model.convert({}).graph_module
    first, second = (
        converted.get_submodule(name).weight().int_repr().abs().max()  # type: ignore[operator]
        for name in ("0", "1")
    )
    assert int(first) > 64
    assert int(second) <= 64


@pytest.mark.slow
def test_a_state_dict_holds_all_that_training_changes() -> None:
    data = images()
    model, other = (prepared(zoo.small_cnn(), data) for _ in range(2))
    learn(model, 3 * data)
    other.module.load_state_dict(model.module.state_dict())
    assert torch.equal(answers(other.module, data), answers(model.module, data))
    converted = (each.convert({}).graph_module for each in (model, other))
    assert torch.equal(*(answers(each, data) for each in converted))


def test_ranges_follow_what_activations_have_become() -> None:
    data = images()
    model = prepared(zoo.small_cnn(), data)
    ranges = [module for module in model.module.modules() if isinstance(module, RoundedValue)]
    before = [float(module.scale) for module in ranges]
    model.module.train()
    model.find_ranges([[2 * data]])
    assert model.module.training
    after = [float(module.scale) for module in ranges]
    assert after[0] == pytest.approx(2 * before[0], rel=1e-3)
    assert all(a > b for a, b in zip(after, before, strict=True))


def test_frozen_steps_stay_while_weights_move() -> None:
    data = images()
    model = prepared(zoo.small_cnn(), data)
    model.freeze_steps(True)
    learn(model, data)
    for _, module in rounded_layers(model):
        assert isinstance(module.rounding, RoundedWeight)
        assert torch.equal(module.rounding.factor, torch.ones_like(module.rounding.factor))
    model.freeze_steps(False)
    learn(model, data)
    factors = [m.factor for m in model.module.modules() if isinstance(m, RoundedWeight)]
    assert all(bool((factor != 1).any()) for factor in factors)


def test_frozen_norms_keep_their_statistics() -> None:
    data = images()
    model = prepared(zoo.small_cnn(), data)
    norms = [m for m in model.module.modules() if isinstance(m, nn.BatchNorm2d)]
    means = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    model.module.train()
    model.freeze_batch_norm()
    model.module(data)
    assert all(torch.equal(n.running_mean, m) for n, m in zip(norms, means, strict=True))  # type: ignore[arg-type]
    model.module.train()
    model.module(data)
    assert not any(torch.equal(n.running_mean, m) for n, m in zip(norms, means, strict=True))  # type: ignore[arg-type]


class Attentive(nn.Module):
    """Parts that stay float, one layer that is called twice, and weights that are shared."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.twice = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.same = nn.Linear(8, 8)
        self.same.weight = self.embed.weight
        self.free = nn.Parameter(torch.randn(8, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        return self.same(F.linear(x, self.free))


def test_float_parts_repeated_layers_and_shared_weights_learn_too() -> None:
    torch.manual_seed(0)
    net, data = Attentive(), images(16, 8)
    model = prepared(net, data)
    before = {name: value.clone() for name, value in model.module.named_parameters()}
    assert {"norm.weight", "twice.layer.weight", "free"} <= before.keys()
    assert "same.layer.weight" not in before  # is the one of embed
    learn(model, data)
    after = dict(model.module.named_parameters())
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    wanted = answers(model.module, data)
    converted = model.convert({}).graph_module
    found = answers(converted, data)
    assert float((found - wanted).norm() / wanted.norm()) < 2e-2
    assert torch.equal(converted.get_submodule("norm").weight, after["norm.weight"])  # type: ignore[arg-type]
    assert all(is_int8(converted.get_submodule(name)) for name in ("embed", "twice", "same"))


class Repeating(nn.Module):
    """Calls a layer twice; the first answers are ten times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x) + self.layer(x / 10))


def test_one_scale_spans_all_answers_of_a_layer_that_is_called_twice() -> None:
    torch.manual_seed(0)
    net, data = Repeating().eval(), images(64, 8)
    alone = quantize_static(fx.symbolic_trace(net), [data], [[data]], PtqConfig()).graph_module
    wanted = answers(net, data)
    assert float((answers(alone, data) - wanted).norm() / wanted.norm()) < 0.05
    model = prepared(net, data)
    assert torch.equal(answers(model.module, data), answers(alone, data))


def test_what_stays_torchscript_is_trained_around() -> None:
    lifted = lift(load(export(Branches().eval(), [GIVEN], "script")), [GIVEN])
    (island,) = lifted.report.islands
    model = prepare_qat(lifted.graph_module, [GIVEN], [[GIVEN]], QatConfig())
    model.module.get_submodule("first").requires_grad_()
    learn(model, GIVEN)
    wanted = answers(model.module, GIVEN)
    result = model.convert({island.name: island.reason})
    assert [(row.name, row.precision) for row in result.layers] == [
        ("first", "int8"), (island.name, "fp32"),
    ]  # fmt: skip
    assert result.layers[1].reason == island.reason
    assert torch.allclose(answers(result.graph_module, GIVEN), wanted, atol=1e-4)


def test_the_float_graph_is_left_as_it_is() -> None:
    data, net = images(), zoo.small_cnn().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model = prepared(net, data)
    learn(model, data)
    model.convert({})
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert isinstance(product_inside(net.conv1), nn.Conv2d)  # type: ignore[arg-type]
