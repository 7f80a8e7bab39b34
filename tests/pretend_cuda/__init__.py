"""A CUDA device that is the processor in disguise, for the tests marked `gpu`.

    make test-pretend-cuda

Few machines have a GPU, and much of what can go wrong on one is not its kernels: a tensor left
behind on the processor, a step that waits for a number, a checkpoint read to the wrong place. With
this plugin PyTorch finds a device `cuda:0` whose memory is the processor's. Operators compute
there, so figures are right; tensors of two devices do not mix; what makes the host wait is an error
where that is forbidden. It says nothing of CUDA's kernels, nor of time.

The extension must be loaded before torch is, hence as a plugin: `-p tests.pretend_cuda`. It takes a
C++ compiler, and what torch 2.13's headers say.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).parent / "device.cpp"
_BUILD = Path(__file__).parents[2] / "build" / "pretend_cuda"


def _load() -> Any:
    """Compile the extension, unless that is done, and load it."""
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    assert "torch" not in sys.modules, "torch was loaded before: use -p tests.pretend_cuda"
    root = Path(torch.origin).parent
    version = (root / "version.py").read_bytes() + sys.version.encode()
    digest = hashlib.sha256(_SOURCE.read_bytes() + version).hexdigest()[:16]
    library = _BUILD / digest / "device.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        include = [root / "include", root / "include/torch/csrc/api/include"]
        subprocess.run(
            ["c++", "-std=c++20", "-shared", "-fPIC", "-w", str(_SOURCE), "-o", str(library),
             *(f"-I{folder}" for folder in (*include, sysconfig.get_path("include"))),
             f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"],
            check=True,
        )  # fmt: skip
    spec = importlib.util.spec_from_file_location("device", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_device = _load()

import torch  # noqa: E402 - after the device


class _Stream:
    """Work is done at once, so there is nothing to wait for."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, other: _Stream) -> None:
        pass


class _Event:
    def __init__(self, **_: Any) -> None:
        self._at_s = 0.0

    def record(self) -> None:
        self._at_s = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: _Event) -> float:
        return 1e3 * (end._at_s - self._at_s)


@contextmanager
def _on_stream(stream: _Stream) -> Iterator[None]:
    yield


_deepcopy = torch.Tensor.__deepcopy__


def _copied(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """Copy as `copy.deepcopy` does; storages in Python know no device that was not built in."""
    if tensor.device.type != "cuda" or id(tensor) in memo:
        return _deepcopy(tensor, memo)  # type: ignore[no-any-return]
    copy = tensor.detach().clone(memory_format=torch.preserve_format)
    if isinstance(tensor, torch.nn.Parameter):
        copy = torch.nn.Parameter(copy, tensor.requires_grad)
    memo[id(tensor)] = copy
    return copy


def _disguise() -> None:
    """Put in place what of `torch.cuda` a build without CUDA lacks, and Tersor uses."""
    cuda: Any = torch.cuda
    for name, value in {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "is_bf16_supported": True, "get_device_name": "processor in disguise",
        "memory_allocated": 0, "max_memory_allocated": 1 << 20, "mem_get_info": (1 << 32, 1 << 33),
        "_lazy_init": None, "synchronize": None, "empty_cache": None, "manual_seed": None,
        "manual_seed_all": None, "reset_peak_memory_stats": None, "current_stream": _Stream(),
    }.items():  # fmt: skip
        setattr(cuda, name, lambda *_, value=value, **__: value)
    cuda.Stream, cuda.Event, cuda.stream = _Stream, _Event, _on_stream
    cuda.get_rng_state = lambda *_: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    cuda.set_sync_debug_mode = lambda mode: _device.forbid_waiting(mode in (2, "error"))
    torch.Tensor.__deepcopy__ = _copied  # type: ignore[method-assign]
    torch.Tensor.record_stream = lambda self, stream: None  # type: ignore[method-assign]
    torch._C._jit_set_texpr_fuser_enabled(False)  # it would compile for CUDA


_disguise()
