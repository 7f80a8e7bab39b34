"""Dynamic and weight-only graphs in formats that do not know torch's packed weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from compress.export import Plan, export, open_artifact
from compress.quantize.dynamic import quantize_dynamic
from compress.quantize.weight_only import quantize_weight_only
from compress.spec import Format, PtqConfig
from tests.compress.export.plans import plan_of

pytestmark = pytest.mark.slow


class Reader(nn.Module):
    """A table, recurrent layers of both kinds and a cell, linears of two and three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 96)
        self.lstm = nn.LSTM(96, 40, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(80, 64)
        self.cell = nn.LSTMCell(64, 64)
        self.wide = nn.Linear(64, 72)
        self.head = nn.Linear(72, 8)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.lstm(self.table(tokens))[0].transpose(0, 1)
        x = torch.relu(self.wide(self.gru(x)[0]))
        hidden, memory = self.cell(x[0, :, :64])
        return self.head(x), hidden + memory


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    torch.manual_seed(0)
    probes = [[torch.randint(50, (batch, 7))] for batch in (2, 3)]
    return plan_of(Reader(), tmp_path_factory.mktemp("plan"), "fp32", probes, script=True)


def stored(plan: Plan, kind: str) -> Plan:
    if kind == "dynamic":
        config = PtqConfig(mode="dynamic")
        made: Any = quantize_dynamic(
            plan.graph_module, config, example_inputs=list(plan.probes[-1])
        )
        return replace(plan, graph_module=made.graph_module, precision="int8")
    config = PtqConfig(mode="weight_only", weight_dtype=kind, granularity="per_group")
    return replace(
        plan, graph_module=quantize_weight_only(plan.graph_module, config).graph_module,
        precision=kind,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["dynamic", "int8", "int4"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def made(plan: Plan, kind: str) -> Plan:
    return stored(plan, kind)


@pytest.fixture(scope="module")
def onnx_file(made: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export("onnx", made, tmp_path_factory.mktemp("onnx")).path


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_they_answer_as_in_torch_for_any_batch_and_length(
    plan: Plan, made: Plan, onnx_file: Path, format: Format, tmp_path: Path
) -> None:
    path = onnx_file if format == "onnx" else export(format, made, tmp_path).path
    run = open_artifact(path, format, 1)
    original = torch.jit.load(str(plan.original))
    for batch, length in ((1, 7), (5, 7), (2, 19)):
        tokens = torch.randint(50, (batch, length))
        with torch.no_grad():
            wanted, kept = original(tokens), made.graph_module(tokens)
        for exact, mine, found in zip(wanted, kept, run(tokens), strict=True):
            noise = [float((each - exact).square().sum()) for each in (mine, found)]
            assert found.shape == exact.shape
            assert noise[1] < 1.5 * noise[0] + 1e-9


def test_their_weights_lie_in_onnx_as_integers(kind: str, onnx_file: Path) -> None:
    model = onnx.load(onnx_file)
    floats = [
        each.name
        for each in model.graph.initializer
        if each.data_type == onnx.TensorProto.FLOAT and np.prod(each.dims) > 2000
    ]
    assert not floats
    parameters = sum(parameter.numel() for parameter in Reader().parameters())
    bytes_each = 0.5 if kind == "int4" else 1.0
    assert onnx_file.stat().st_size < parameters * bytes_each * 1.7 + 30_000
    nodes = Counter(node.op_type for node in model.graph.node)
    assert nodes["LSTM"] == 3
    assert nodes["GRU"] == 1
    if kind == "dynamic":
        assert nodes["MatMulInteger"] == nodes["DynamicQuantizeLinear"] == 2


@pytest.mark.parametrize("recipe", ["dynamic", "int8"])
def test_pt2_holds_them_where_nothing_is_recurrent(recipe: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(30, 64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 9))
    probes = [[torch.randint(30, (batch, 4))] for batch in (2, 3)]
    plan = stored(plan_of(model, tmp_path, "fp32", probes), recipe)
    run = open_artifact(export("pt2", plan, tmp_path).path, "pt2", 1)
    tokens = torch.randint(30, (7, 4))
    with torch.no_grad():
        wanted, mine = model(tokens), plan.graph_module(tokens)
    noise = [float((each - wanted).square().sum()) for each in (mine, run(tokens))]
    assert noise[1] < 1.5 * noise[0]
