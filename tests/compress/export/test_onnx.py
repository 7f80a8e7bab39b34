"""Real ONNX files, run in ONNX Runtime as anybody would."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compress.errors import ExportFailed
from compress.export import Plan, export
from compress.export.onnx import export_onnx
from compress.measure.size import sha256
from tests.compress.export.plans import Net, image_plan, images, plan_of

pytestmark = pytest.mark.slow


def session(path: Path, optimized: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return image_plan(tmp_path_factory.mktemp("plan"), "int8")


@pytest.fixture(scope="module")
def file(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export("onnx", plan, tmp_path_factory.mktemp("files")).path


def test_a_file_runs_at_sizes_it_was_not_exported_with(plan: Plan, file: Path) -> None:
    assert file.name == "model.int8.onnx"
    running = session(file)
    for batch, side in ((1, 16), (2, 16), (7, 16), (3, 24)):
        data = images(batch, side, seed=9)
        (found,) = running.run(["output"], {"image": data.numpy()})
        with torch.no_grad():
            wanted = plan.graph_module(data).numpy()
        assert found.shape == wanted.shape
        assert np.square(found - wanted).sum() < 10**-2 * np.square(wanted).sum()


def test_runtimes_find_integer_kernels_for_all_of_it(file: Path, tmp_path: Path) -> None:
    session(file, tmp_path / "optimized.onnx")
    nodes = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert nodes["QLinearConv"] == 4
    assert nodes["QGemm"] == 1
    assert nodes["QLinearAdd"] == 2  # the residual, and the one of hardswish
    assert nodes["QLinearMul"] == 2
    assert nodes["QLinearGlobalAveragePool"] == 2
    assert nodes["QLinearSigmoid"] == 1
    assert nodes["QuantizeLinear"] == nodes["DequantizeLinear"] == 1  # at the borders


def test_weights_lie_in_the_file_as_int8_with_the_plans_scales(plan: Plan, file: Path) -> None:
    graph = onnx.load(file).graph
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    widened = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
    products = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    layers = ("first", "second", "gate", "wide", "head")
    for name in layers:
        weight = plan.graph_module.get_submodule(name).weight()
        node = next(
            widened[each.input[1]]
            for each in products
            if stored[widened[each.input[1]].input[0]].shape == tuple(weight.shape)
            and (stored[widened[each.input[1]].input[0]] == weight.int_repr().numpy()).all()
        )
        assert stored[node.input[0]].dtype == np.int8
        assert np.array_equal(stored[node.input[1]], weight.q_per_channel_scales().float().numpy())
        assert {a.name: a.i for a in node.attribute}["axis"] == 0
    floats = [v for v in stored.values() if v.dtype == np.float32 and v.size > 64]
    assert not floats


def test_a_file_says_where_it_came_from_and_nothing_of_this_machine(plan: Plan, file: Path) -> None:
    model = onnx.load(file)
    notes = {each.key: each.value for each in model.metadata_props}
    assert notes["tersor.model_sha256"] == sha256(plan.original)
    assert notes["tersor.version"]
    assert notes["tersor.precision"] == "int8"
    onnx.checker.check_model(model, full_check=True)
    assert str(Path(torch.__file__).parent).encode() not in file.read_bytes()
    assert b"site-packages" not in file.read_bytes()


class Nested(nn.Module):
    """Named arguments, one in a dict; nested outputs; an output called like an input."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(4, 8)

    def forward(self, input: Tensor, rest: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        joined = torch.relu(self.left(input)) + self.right(rest["other"])
        return joined, {"sum": joined.sum(1), "both": joined * 2}


def test_names_and_structure_are_kept(tmp_path: Path) -> None:
    probes: Any = [[torch.randn(batch, 6), {"other": torch.randn(batch, 4)}] for batch in (1, 3)]
    plan = plan_of(Nested(), tmp_path, "int8", probes, script=True)
    running = session(export("onnx", plan, tmp_path).path)
    assert [each.name for each in running.get_inputs()] == ["input", "rest.other"]
    names = [each.name for each in running.get_outputs()]
    assert names == ["output_0", "output_1.sum", "output_1.both"]
    assert all(isinstance(each.shape[0], str) for each in running.get_inputs())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_arguments_and_outputs_keep_the_originals_element_type(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    model, probes = nn.Sequential(nn.Linear(6, 5)), [[torch.randn(1, 6)], [torch.randn(3, 6)]]
    plan = plan_of(model, tmp_path, "int8", probes, dtype=dtype)
    running = session(export("onnx", plan, tmp_path).path)
    given = probes[1][0].to(dtype).numpy()
    (found,) = running.run(None, {running.get_inputs()[0].name: given})
    assert found.dtype == given.dtype


def test_half_weights_lie_in_the_file_in_half(tmp_path: Path) -> None:
    plan = image_plan(tmp_path, "fp16")
    file = export("onnx", plan, tmp_path).path
    stored = onnx.load(file).graph.initializer
    large = [each for each in stored if np.prod(each.dims) >= 64]
    assert {each.data_type for each in large} == {onnx.TensorProto.FLOAT16}
    weights = sum(parameter.numel() for parameter in Net().parameters())
    assert file.stat().st_size < 2 * weights + 15_000  # the rest is the graph
    (found,) = session(file).run(None, {"image": images(2).numpy()})
    assert found.dtype == np.float32


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.layer = nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.table(tokens))[0])


def test_a_recurrent_layer_is_one_operator_for_any_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tagger()
    probes = [[torch.randint(20, (batch, 9))] for batch in (1, 3)]
    plan = plan_of(model, tmp_path, "fp32", probes)
    file = export("onnx", plan, tmp_path).path
    assert Counter(n.op_type for n in onnx.load(file).graph.node)["LSTM"] == 2
    tokens = torch.randint(20, (2, 31))
    (found,) = session(file).run(None, {"tokens": tokens.numpy()})
    with torch.no_grad():
        assert np.allclose(found, model(tokens).numpy(), atol=1e-5)


class Searching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        while bool(x.abs().max() > 1.0):
            x = x / 2
        return x


def test_a_loop_on_data_is_refused_with_its_reason(tmp_path: Path) -> None:
    probes = [[torch.randn(batch, 4) * 5] for batch in (1, 3)]
    plan = plan_of(Searching(), tmp_path, "fp32", probes, script=True)
    with pytest.raises(ExportFailed, match=r"TorchScript, which ONNX cannot hold.*'torchscript'"):
        export("onnx", plan, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original.pt"]


def test_a_file_that_answers_differently_does_not_count(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = sys.modules[export_onnx.__module__]
    write = exporter.to_reference

    def spoiled(*args: Any) -> Any:
        reference = write(*args)
        next(v for v in reference.buffers() if v.numel() > 100).zero_()
        return reference

    monkeypatch.setattr(exporter, "to_reference", spoiled)
    with pytest.raises(ExportFailed, match="differs from the model in memory"):
        export_onnx(plan, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
