"""A file larger than memory is read through little of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.data import open_dataset
from compress.train import rows
from compress.train.rows import RowReader


def test_rows_come_as_models_eat_them() -> None:
    arrays = {
        "double": np.arange(12.0).reshape(6, 2),
        "half": np.arange(6, dtype="f2"),
        "swapped": np.arange(6, dtype=">i4"),
        "ids": np.arange(6, dtype="u1"),
    }
    found = RowReader(arrays).read(np.array([1, 4]))
    assert {name: value.dtype for name, value in found.items()} == {
        "double": torch.float32, "half": torch.float32, "swapped": torch.int32, "ids": torch.uint8,
    }  # fmt: skip
    assert found["double"].tolist() == [[2, 3], [8, 9]]
    assert found["swapped"].tolist() == [1, 4]
    found["double"][0] = 7  # a copy: the arrays are others'
    assert arrays["double"][1].tolist() == [2, 3]


_READ = """
import sys
import numpy as np
from compress.train.rows import RowReader

def resident_bytes():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])

mapped = np.load(sys.argv[1], mmap_mode="r")
reader = RowReader({"input": mapped})
order = np.random.default_rng(0).permutation(len(mapped))
before, most = resident_bytes(), 0
for start in range(0, len(order), 64):
    reader.read(np.sort(order[start : start + 64]))
    most = max(most, resident_bytes())
print(most - before)
"""


@pytest.mark.slow
def test_reading_all_of_a_large_file_keeps_little_of_it(tmp_path: Path) -> None:
    path, size_bytes = tmp_path / "large.npy", 1 << 30
    made = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=(size_bytes >> 14, 1 << 12)
    )
    del made  # a hole, that reads as zeros
    ran = subprocess.run(
        [sys.executable, "-c", _READ, str(path)], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) < 0.03 * size_bytes


@pytest.mark.parametrize("dtype", ["f4", "f2", ">i8", "u1"])
def test_rows_of_large_files_are_those_of_their_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(rows, "_MAPPED_BYTES", 0)
    values = np.random.default_rng(0).integers(0, 99, (50, 3, 2)).astype(dtype)
    np.savez(tmp_path / "d.npz", input=values, label=values[:, 0, 0])
    dataset = open_dataset(tmp_path / "d.npz", tmp_path)
    assert dataset.label is not None
    reader = RowReader({"input": dataset.inputs[0], "label": dataset.label})
    indices = np.array([0, 7, 8, 49])
    found = reader.read(indices)
    assert found["input"].tolist() == values[indices].tolist()
    assert found["label"].tolist() == values[indices, 0, 0].tolist()
    assert np.array_equal(reader.slice("input", 40, 60), values[40:])
    assert len(reader.slice("label", 50, 60)) == 0


def test_a_file_that_is_cut_short_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_MAPPED_BYTES", 0)
    np.save(tmp_path / "d.npy", np.zeros((50, 1000)))
    reader = RowReader({"input": np.load(tmp_path / "d.npy", mmap_mode="r")})
    with (tmp_path / "d.npy").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(OSError, match="became shorter"):
        reader.read(np.array([40]))
