"""The runtimes that files of each format need, each warmed up with a model of a few numbers."""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from torch import nn

from compress.spec import Format

# an ONNX file by hand: y = Relu(x), float32 [1]; IR version 8, operators of version 13
_ONNX_RELU = bytes.fromhex(
    "08083a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08"
    "080112040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)


def warm_up(format: Format, threads: int) -> None:
    """Import what runs a format, and run something small in it."""
    torch.set_num_threads(threads)
    with torch.no_grad():
        _WARM[format](threads)


def _warm_torchscript(_threads: int) -> None:
    # scripted, since torch.jit.trace would import a second's worth of what no file needs
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(_SmallNet().eval()), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)  # type: ignore[no-untyped-call]
    for _ in range(3):  # the JIT profiles, then compiles
        loaded(_small_input())


def _warm_pt2(_threads: int) -> None:
    exported = torch.export.export(_SmallNet().eval(), (_small_input(),))
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    buffer.seek(0)
    torch.export.load(buffer).module()(_small_input())


def _warm_onnx(_threads: int) -> None:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_ONNX_RELU, options, ["CPUExecutionProvider"])
    session.run(None, {"x": np.zeros(1, np.float32)})


def _warm_openvino(_threads: int) -> None:
    import numpy as np
    import openvino
    from openvino import opset13

    given = opset13.parameter([1], np.float32)
    model = openvino.Model([opset13.relu(given)], [given])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1})
    compiled(np.zeros(1, np.float32))


class _SmallNet(nn.Module):
    """Of plain functions: torch's own layers are not always scriptable once others are imported."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(2, 1, 3, 3))
        self.weight = nn.Parameter(torch.ones(2, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.conv2d(x, self.kernel)).flatten(1) @ self.weight.t()


def _small_input() -> torch.Tensor:
    return torch.zeros(1, 1, 4, 4)


_WARM: dict[Format, Callable[[int], None]] = {
    "torchscript": _warm_torchscript,
    "pt2": _warm_pt2,
    "onnx": _warm_onnx,
    "openvino": _warm_openvino,
}
