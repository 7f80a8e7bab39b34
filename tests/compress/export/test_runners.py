"""Files of all formats, called like the original."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from compress.errors import ExportFailed
from compress.export import SUFFIXES, export, open_artifact
from compress.export.signature import read_signature
from compress.measure.outputs import output_tensors, same_structure
from compress.spec import Format
from tests.compress.export.plans import plan_of

pytestmark = pytest.mark.slow

FORMATS: list[Format] = list(SUFFIXES)


class Answer(NamedTuple):
    scores: Tensor
    parts: list[Tensor]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(
        self, pair: tuple[Tensor, Tensor], more: dict[str, Tensor], scale: float = 2.0
    ) -> Answer:
        y = self.layer(pair[0] + pair[1])
        return Answer(y * scale, [y + more["shift"], y.argmax(1)])


def arguments(batch: int) -> list[Any]:
    make = torch.Generator().manual_seed(batch)
    pair = tuple(torch.randn(batch, 6, generator=make) for _ in range(2))
    return [pair, {"shift": torch.randn(batch, 8, generator=make)}, 2.0]


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_called_like_the_original(format: Format, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plan = plan_of(Model(), tmp_path, "fp32", [arguments(2), arguments(3)], script=True)
    run = open_artifact(export(format, plan, tmp_path).path, format, 1)
    original = torch.jit.load(str(plan.original))
    for batch in (1, 5):
        with torch.no_grad():
            wanted = original(*arguments(batch))
        found = run(*arguments(batch))
        assert same_structure(wanted, found)
        assert type(found).__name__ == "Answer"
        for left, right in zip(output_tensors(wanted), output_tensors(found), strict=True):
            assert torch.allclose(left, right, atol=1e-5)


def test_answers_do_not_change_when_the_file_is_called_again(tmp_path: Path) -> None:
    plan = plan_of(Model(), tmp_path, "fp32", [arguments(2), arguments(3)], script=True)
    for format in ("onnx", "openvino"):
        run = open_artifact(export(format, plan, tmp_path).path, format, 1)
        first = run(*arguments(4)).scores
        kept = first.clone()
        given = arguments(4)
        run((given[0][0] + 1, given[0][1]), *given[1:])
        assert torch.equal(first, kept)


@pytest.mark.parametrize("format", ["torchscript", "onnx", "openvino", "pt2"])
def test_a_broken_file_is_no_crash(format: Format, tmp_path: Path) -> None:
    path = tmp_path / f"model.{SUFFIXES[format]}"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ExportFailed, match="load"):
        open_artifact(path, format, 1)


def test_names_of_outputs() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    for output, names in (
        (one, ["output"]),
        ((one, two), ["output_0", "output_1"]),
        ({"logits": one, "x": two}, ["logits", "output.x"]),
        ([one, {"a": two}, None], ["output_0", "output_1.a"]),
        (Answer(one, [two]), ["scores", "parts.0"]),
    ):
        signature = read_signature(["x"], [one], output)
        assert list(signature.outputs) == names
        again = type(signature).from_json(signature.to_json())
        assert same_structure(again.rebuild(output_tensors(output)), output)


def test_importing_the_formats_loads_no_runtime() -> None:
    code = (
        "import sys, compress.export\n"
        "found = {'onnx', 'onnxscript', 'onnx_ir', 'onnxruntime', 'openvino'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
