"""Whole networks: what is lifted computes the same, under the same names, for other sizes too."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.jit._fuser import optimized_execution

from compress.lift import lift
from tests.compress import zoo
from tests.compress.lift.exported import (
    HOWS,
    NETS,
    WEIGHTED,
    How,
    export,
    lifted_net,
    net,
    net_input,
)

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")  # upstream's deprecations, hundreds of them
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", NETS)
class TestNet:
    def test_computes_the_same_at_other_batch_and_image_sizes(self, name: str, how: How) -> None:
        model = net(name)
        lifted = lifted_net(name, how).graph_module
        for batch, side in ((2, 64), (1, 64), (5, 64), (2, 96)):
            given = net_input(name, batch, side)
            with torch.no_grad():
                torch.testing.assert_close(lifted(given), model(given), rtol=1e-5, atol=1e-6)

    def test_keeps_every_name_of_the_state(self, name: str, how: How) -> None:
        model = net(name)
        lifted = lifted_net(name, how)
        state = lifted.graph_module.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
        assert lifted.report.parameters_lifted == lifted.report.parameters

    def test_forms_the_modules_again(self, name: str, how: How) -> None:
        model = net(name)
        report = lifted_net(name, how).report
        kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
        wanted = {
            path: type(module).__name__
            for path, module in model.named_modules()
            if isinstance(module, kinds)
        }
        assert wanted.items() <= report.modules.items()
        if name in WEIGHTED:
            weighted = [kind for kind in report.modules.values() if kind in ("Conv2d", "Linear",
                        "ConvTranspose2d")]  # fmt: skip
            assert len(weighted) == WEIGHTED[name]

    def test_leaves_no_raw_operator_and_no_guard(self, name: str, how: How) -> None:
        lifted = lifted_net(name, how)
        assert lifted.report.guards == []
        raw = [n for n in lifted.graph_module.graph.nodes if "aten" in str(n.target)]
        assert raw == []

    def test_can_be_exported_again(self, name: str, how: How) -> None:
        model = net(name)
        given, more = net_input(name), net_input(name, 5)
        lifted = lifted_net(name, how).graph_module
        with torch.no_grad(), optimized_execution(False):
            for again in (
                torch.jit.script(lifted),
                torch.jit.trace(lifted, given, check_trace=False),
            ):
                torch.testing.assert_close(again(more), model(more), rtol=1e-5, atol=1e-6)

    def test_can_be_quantized_and_exported(self, name: str, how: How) -> None:
        model = net(name)
        given, more = net_input(name), net_input(name, 5)
        lifted = lifted_net(name, how).graph_module
        mapping = get_default_qconfig_mapping("x86")
        # torch's int8 kernel for it gives another answer each time on processors without VNNI
        mapping.set_object_type(nn.ConvTranspose2d, None)
        prepared = prepare_fx(copy.deepcopy(lifted), mapping, (given,))
        prepared(more)
        quantized = convert_fx(prepared)
        with torch.no_grad():
            noise = quantized(more) - model(more)
            ratio = model(more).pow(2).mean() / noise.pow(2).mean()
            assert 10 * torch.log10(ratio) > 20  # dB
            expected = quantized(more)
        with torch.no_grad(), optimized_execution(False):
            for again in (
                torch.jit.script(quantized),
                torch.jit.trace(quantized, given, check_trace=False),
            ):
                torch.testing.assert_close(again(more), expected)


@pytest.mark.parametrize("how", HOWS)
def test_verification_finds_the_axes_that_vary(how: How) -> None:
    report = lift(
        export(net("small_cnn"), [net_input("small_cnn")], how), [net_input("small_cnn")]
    ).report
    assert report.dynamic_dims == {"image": [0, 2, 3]}
    assert report.max_relative_error <= 1e-5
    assert report.islands == []
    assert report.operators["aten::relu"] == 3
    assert report.to_dict()["parameters"] == sum(p.numel() for p in net("small_cnn").parameters())


@pytest.mark.parametrize("how", HOWS)
def test_a_whole_net_agrees_when_verified(how: How) -> None:
    model, given = zoo.mobilenet_v2(), net_input("mobilenet_v2", batch=1)
    lifted = lift(export(model, [given], how), [given])
    assert lifted.report.max_relative_error <= 1e-5
    assert lifted.graph_module.state_dict().keys() == model.state_dict().keys()


def test_keeps_the_names_of_the_arguments() -> None:
    given = net_input("small_cnn")
    lifted = lift(export(net("small_cnn"), [given], "trace"), [given], verify=False)
    names = [node.target for node in lifted.graph_module.graph.nodes if node.op == "placeholder"]
    assert names == ["image"]
