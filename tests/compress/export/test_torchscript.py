from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from compress.errors import ExportFailed
from compress.export.archive import extra_file_names, repack
from compress.export.torchscript import export_torchscript
from compress.quantize import quantize_static, to_float32, to_half
from compress.spec import PtqConfig
from tests.compress import zoo

EXTRA = {"labels.txt": "cat\ndog", "meta/raw.bin": b"\xff\x00\x01"}


def original_file(folder: Path, model: nn.Module, *data: Tensor) -> Path:
    path = folder / "original.pt"
    torch.jit.save(torch.jit.trace(model, data, strict=False), str(path), _extra_files=EXTRA)
    return path


def int8(model: nn.Module, *data: Tensor) -> fx.GraphModule:
    graph_module = fx.symbolic_trace(model.eval())
    return quantize_static(graph_module, data, [data], PtqConfig(), full_range=False).graph_module


def test_an_int8_file_runs_with_plain_torch_at_every_batch_size(tmp_path: Path) -> None:
    model, data = zoo.small_cnn(), torch.randn(8, 1, 8, 8)
    original = original_file(tmp_path, model, data)
    quantized = int8(model, data)
    target = tmp_path / "out.pt"
    export_torchscript(quantized, original, target, [[data[:1]], [data[:3]]], freeze=True)
    loaded = torch.jit.load(str(target))
    for samples in (1, 2, 8, 17):
        other = torch.randn(samples, 1, 8, 8)
        assert torch.equal(loaded(other), quantized(other))
    # drops in: argument by name, eval and no_grad as before
    assert torch.equal(loaded.eval()(image=data), quantized(data))
    assert target.stat().st_size * 2.5 < original.stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original.pt", "out.pt"]


def test_extra_files_come_along(tmp_path: Path) -> None:
    model, data = zoo.mlp(), torch.randn(4, 16)
    original = original_file(tmp_path, model, data)
    export_torchscript(int8(model, data), original, tmp_path / "o.pt", [[data]], freeze=True)
    files = dict.fromkeys(EXTRA, "")
    torch.jit.load(str(tmp_path / "o.pt"), _extra_files=files)
    assert sorted(extra_file_names(tmp_path / "o.pt")) == sorted(EXTRA)
    assert {n: c if isinstance(c, bytes) else c.encode() for n, c in files.items()} == {
        "labels.txt": b"cat\ndog",
        "meta/raw.bin": b"\xff\x00\x01",
    }


class Pair(nn.Module):
    """Several inputs, nested outputs, and an argument named as a Python builtin."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(4, 8)
        self.score = nn.Linear(8, 3)

    def forward(self, input: Tensor, other: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        joined = torch.relu(self.left(input)) + self.right(other)
        return joined, {"logits": self.score(joined), "joined": joined * 2}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "fp16", "fp32"])
def test_several_inputs_and_nested_outputs_keep_their_names(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    model, data = Pair(), [torch.randn(5, 6), torch.randn(5, 4)]
    original = tmp_path / "original.pt"
    torch.jit.script(model).save(str(original))
    graph_module = fx.symbolic_trace(model)
    if kind == "int8":
        graph_module = int8(model, *data)
    else:
        graph_module = (to_half if kind == "fp16" else to_float32)(graph_module).graph_module
    export_torchscript(graph_module, original, tmp_path / "o.pt", [data], freeze=kind == "int8")
    loaded = torch.jit.load(str(tmp_path / "o.pt"))
    joined, named = loaded(other=data[1], input=data[0])
    assert joined.shape == (5, 8)
    assert list(named) == ["logits", "joined"]
    with torch.no_grad():
        assert torch.allclose(named["logits"], model(*data)[1]["logits"], atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_arguments_and_outputs_keep_the_originals_element_type(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    model, data = zoo.mlp(), torch.randn(4, 16)
    original = original_file(tmp_path, model, data)
    target = tmp_path / "o.pt"
    export_torchscript(int8(model, data), original, target, [[data]], dtype=dtype, freeze=True)
    answer = torch.jit.load(str(target))(data.to(dtype))
    assert answer.dtype == dtype
    with torch.no_grad():
        assert torch.allclose(answer.float(), model(data), atol=0.05)


def test_half_weights_lie_in_the_file_in_half(tmp_path: Path) -> None:
    model, data = zoo.mlp(), torch.randn(4, 16)
    original = original_file(tmp_path, model, data)
    half = to_half(fx.symbolic_trace(model)).graph_module
    export_torchscript(half, original, tmp_path / "o.pt", [[data]], freeze=False)
    loaded = torch.jit.load(str(tmp_path / "o.pt"))
    assert {p.dtype for p in loaded.parameters()} == {torch.float16}
    assert loaded(data).dtype == torch.float32


def test_infinite_constants_and_overloads_survive(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            y = torch.ops.aten.masked_fill.Scalar(y, y < 0, float("-inf"))
            return torch.ops.aten.add.Tensor(torch.softmax(y, 1), x)

    model, data = Masked(), torch.randn(4, 6)
    original = original_file(tmp_path, model, data)
    export_torchscript(int8(model, data), original, tmp_path / "o.pt", [[data]], freeze=True)
    assert torch.jit.load(str(tmp_path / "o.pt"))(data).isfinite().any()


def test_equal_models_give_equal_weights_byte_for_byte(tmp_path: Path) -> None:
    model, data = zoo.small_cnn(), torch.randn(4, 1, 8, 8)
    original = original_file(tmp_path, model, data)
    found = []
    for name in ("a.pt", "b.pt"):
        export_torchscript(int8(model, data), original, tmp_path / name, [[data]], freeze=True)
        with zipfile.ZipFile(tmp_path / name) as archive:
            # class names count up within one process, so code is left out
            found.append({n: archive.read(n) for n in archive.namelist() if "constants/" in n})
    assert found[0]
    assert found[0] == found[1]


def test_a_file_that_differs_when_loaded_is_refused_and_removed(tmp_path: Path) -> None:
    """A graph whose answer depends on how often it ran cannot match its own file."""
    root, graph = nn.Module(), fx.Graph()
    root.register_buffer("count", torch.zeros(1))
    x, count = graph.placeholder("x"), graph.get_attr("count")
    graph.output(graph.call_method("add", (x, graph.call_method("add_", (count, 1.0)))))
    drifting, data = fx.GraphModule(root, graph), torch.randn(3, 4)
    original = original_file(tmp_path, zoo.mlp(), torch.randn(1, 16))
    with pytest.raises(ExportFailed, match="differs from the model in memory"):
        export_torchscript(drifting, original, tmp_path / "o.pt", [[data]], freeze=False)
    assert [path.name for path in tmp_path.iterdir()] == ["original.pt"]


def test_repacking_drops_the_debug_map_and_stores_weights_plainly(tmp_path: Path) -> None:
    source = original_file(tmp_path, zoo.small_cnn(), torch.randn(1, 1, 8, 8))
    repack(source, tmp_path / "slim.pt")
    with zipfile.ZipFile(tmp_path / "slim.pt") as archive:
        names = {entry.filename: entry.compress_type for entry in archive.infolist()}
    assert not any(name.endswith(".debug_pkl") for name in names)
    assert all(kind == zipfile.ZIP_STORED for name, kind in names.items() if "/code/" not in name)
    data = torch.randn(2, 1, 8, 8)
    assert torch.equal(
        torch.jit.load(str(tmp_path / "slim.pt"))(data), torch.jit.load(str(source))(data)
    )
