"""The reference graph: its numbers by formula, and against torch's int8 kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import fx, nn

from compress.export import qdq
from compress.export.qdq import Dialect
from compress.export.recurrent import is_plain
from compress.export.reference import to_reference
from compress.quantize import quantize_static
from compress.spec import PtqConfig
from tests.compress.export.plans import image_plan, images

DIALECTS = [qdq.ONNX, qdq.OPENVINO, qdq.TORCH]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_linear_is_what_the_formula_says(dialect: Dialect) -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(8, 4)).eval(), torch.randn(64, 8)
    int8 = quantize_static(
        fx.symbolic_trace(model), [data], [[data]], PtqConfig(observer="minmax"), full_range=False
    ).graph_module
    layer = int8.get_submodule("0")
    quantizing = next(n for n in int8.graph.nodes if n.target is torch.quantize_per_tensor)
    scale, zero_point = (float(getattr(int8, str(arg.target))) for arg in quantizing.args[1:3])
    weight, bias = layer.weight(), layer.bias().detach().numpy()
    rows = weight.int_repr().numpy().astype(np.float64)
    row_scales = weight.q_per_channel_scales().numpy()[:, None]

    x = data.numpy().astype(np.float64)
    q = np.clip(np.rint(x / scale) + zero_point, 0, 255) - zero_point
    y = (q * scale) @ (rows * row_scales).T + bias
    out = np.clip(np.rint(y / layer.scale) + layer.zero_point, 0, 255) - layer.zero_point
    expected = out * layer.scale

    with torch.no_grad():
        found = to_reference(int8, [data], dialect)(data).numpy()
    steps = np.abs(found - expected) / layer.scale
    assert steps.max() <= 1 + 1e-4  # a tie may fall to either side
    assert (steps > 0.5).mean() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_net_comes_out_as_in_int8_but_for_last_bits(dialect: Dialect, tmp_path: Path) -> None:
    int8 = image_plan(tmp_path, "int8").graph_module
    data = images(4, seed=7)
    reference = to_reference(int8, [images(2)], dialect)
    assert not any(value.is_quantized for value in reference.state_dict().values())
    with torch.no_grad():
        wanted, found = int8(data), reference(data)
    noise = float((wanted - found).square().sum() / wanted.square().sum())
    assert noise < 10**-2.5


def test_a_float_graph_stays_bit_for_bit(tmp_path: Path) -> None:
    plan = image_plan(tmp_path, "fp32")
    with torch.no_grad():
        data = images(5)
        reference = to_reference(plan.graph_module, [images(2)], qdq.TORCH)
        assert torch.equal(reference(data), plan.graph_module(data))


def test_blocks_of_a_row_are_widened_each_by_its_scale() -> None:
    q = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=torch.int8)
    scale, zero_point = torch.tensor([[1.0, 10.0], [2.0, 0.5]]), torch.tensor([[0, 1], [5, 0]])
    wanted = [[1, 2, 20, 30], [0, 2, 3.5, 4]]
    assert qdq.widened(q, scale, zero_point.to(torch.int8), 1).tolist() == wanted


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_recurrent_layers_in_onnx_order_compute_the_same(
    kind: type[nn.RNNBase], bidirectional: bool, batch_first: bool
) -> None:
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = kind(
                5, 6, num_layers=2, bidirectional=bidirectional, batch_first=batch_first
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)[0]

    model, data = Model().eval(), torch.randn(4, 3, 5)
    assert is_plain(model.layer)
    graph_module = fx.symbolic_trace(model)
    reference = to_reference(graph_module, [data], qdq.ONNX)
    assert not any(isinstance(module, nn.RNNBase) for module in reference.modules())
    other = torch.randn(7, 2, 5)
    with torch.no_grad():
        assert torch.allclose(reference(other), model(other), atol=1e-6)
