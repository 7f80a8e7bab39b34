from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.benchmark import Contender, load_and_run
from compress.measure.memory import ForkedProcess, MemoryProbe, NotMeasured
from compress.spec import Format
from tests.compress.measure.memory_jobs import ends_itself, fills, never_ends, prints, raises
from workers.sandbox import Confinement, Limits, lock_down

pytestmark = pytest.mark.slow

MIB = 2**20


@pytest.fixture(scope="module")
def probe() -> Iterator[MemoryProbe]:
    with MemoryProbe() as started:
        yield started


def linear(folder: Path, features: int) -> Path:
    """A model whose weights take features x features x 4 bytes."""
    path = folder / f"linear{features}.pt"
    net = nn.Linear(features, features, bias=False).eval()
    torch.jit.trace(net, torch.zeros(1, features)).save(str(path))
    return path


def peak_of(probe: MemoryProbe, path: Path, features: int, format: Format | None = None) -> int:
    work = partial(load_and_run, Contender(path, format, 1), [torch.zeros(1, features)])
    return probe.peak_bytes(format or "torchscript", 1, work)


def test_weights_show_as_what_they_take(probe: MemoryProbe, tmp_path: Path) -> None:
    small = peak_of(probe, linear(tmp_path, 1024), 1024)
    large = peak_of(probe, linear(tmp_path, 5120), 5120)
    assert large - small == pytest.approx(96 * MIB, abs=2 * MIB)
    assert small == pytest.approx(4 * MIB, abs=2 * MIB)


def test_the_figure_is_the_same_again_and_by_every_way_to_load(
    probe: MemoryProbe, tmp_path: Path
) -> None:
    path = linear(tmp_path, 2048)
    peaks = [peak_of(probe, path, 2048, format) for format in (None, None, "torchscript")]
    assert max(peaks) - min(peaks) <= MIB


def test_what_was_freed_before_the_end_counts(probe: MemoryProbe) -> None:
    peak = probe.peak_bytes("torchscript", 1, partial(fills, 80 * MIB))
    assert peak == pytest.approx(80 * MIB, abs=2 * MIB)


@pytest.mark.parametrize("format", ["torchscript", "onnx", "pt2"])
def test_every_runtime_warms_up(probe: MemoryProbe, format: Format) -> None:
    peak = probe.peak_bytes(format, 1, partial(fills, 30 * MIB))
    assert peak == pytest.approx(30 * MIB, abs=2 * MIB)


def test_files_that_fail_say_why_and_the_next_is_measured(probe: MemoryProbe) -> None:
    with pytest.raises(NotMeasured, match="ValueError: no such luck"):
        probe.peak_bytes("torchscript", 1, raises)
    with pytest.raises(NotMeasured, match="ended with status -9"):
        probe.peak_bytes("torchscript", 1, ends_itself)
    with pytest.raises(NotMeasured, match="longer than 0"):
        probe.peak_bytes("torchscript", 1, never_ends, limit_s=0.5)
    assert probe.peak_bytes("torchscript", 1, prints) < MIB


def test_it_ends_with_its_block_and_leaves_nothing_behind() -> None:
    with MemoryProbe() as started:
        started.wait()
        pid = started._process.pid
    assert not Path(f"/proc/{pid}").exists()


def test_a_measuring_process_that_dies_is_told() -> None:
    with MemoryProbe() as started:
        started.wait()
        started._process.kill()
        started._process.wait()
        with pytest.raises(NotMeasured, match="gone"):
            started.peak_bytes("torchscript", 1, prints)


def test_it_works_behind_the_walls_of_a_job(tmp_path: Path) -> None:
    path = linear(tmp_path, 2048)
    limits = Limits(memory_bytes=2**31, cpu_s=120, file_bytes=2**24)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.environ.clear()
            os.environ.update(HOME=str(tmp_path), PATH="/usr/bin:/bin")
            os.chdir(tmp_path)
            inside = Confinement(limits=limits, readable=(tmp_path,))
            server = ForkedProcess(
                confine=lambda: lock_down(Confinement(limits=limits, forks=True)),
                confine_copy=lambda: lock_down(inside),
            )
            walls = lock_down(inside)
            with MemoryProbe(server) as inner:
                told = f"{walls['seccomp']} {peak_of(inner, path, 2048)}"
            os.write(write, told.encode())
            status = 0
        except BaseException:
            traceback.print_exc()  # nothing may lead back into the tests
        finally:
            os._exit(status)
    os.close(write)
    content = os.read(read, 100)
    os.close(read)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    walls, peak = content.decode().split()
    assert walls == "True"
    assert int(peak) == pytest.approx(16 * MIB, abs=2 * MIB)
