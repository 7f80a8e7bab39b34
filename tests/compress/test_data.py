from __future__ import annotations

import json
import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.data import open_dataset
from compress.errors import (
    BadCalibrationData,
    BadEvaluationData,
    BadSignature,
    CompressError,
    EmptyDataset,
    InvalidDataset,
    LabelMismatch,
    ObjectArrays,
    ShapeMismatch,
)
from compress.spec.arguments import ForwardArgument


def save_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    codes = {"float32": "F32", "float64": "F64", "int64": "I64", "float16": "F16"}
    header, blob = {}, b""
    for name, array in tensors.items():
        data = array.tobytes()
        header[name] = {
            "dtype": codes[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(blob), len(blob) + len(data)],
        }
        blob += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob)
    return path


def images(samples: int = 7) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(samples, 3, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("kind", ["stored", "deflated", "safetensors"])
def test_every_format_gives_the_same_samples(tmp_path: Path, kind: str) -> None:
    array, label = images(), np.arange(7)
    path = tmp_path / "data"
    if kind == "safetensors":
        save_safetensors(path, {"input": array, "label": label})
    else:
        save = np.savez if kind == "stored" else np.savez_compressed
        with path.open("wb") as file:
            save(file, input=array, label=label)
    dataset = open_dataset(path, tmp_path)
    assert dataset.samples == 7
    assert dataset.names == ["input"]
    batches = list(dataset.batches(3))
    assert [batch[0].shape[0] for batch, _ in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([batch[0] for batch, _ in batches]), torch.from_numpy(array))
    assert torch.equal(torch.cat([b for _, b in batches if b is not None]), torch.arange(7))


def test_stored_and_unpacked_arrays_are_maps_not_copies(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        path = tmp_path / f"{save.__name__}.npz"
        save(path, input=images())
        assert isinstance(open_dataset(path, tmp_path).inputs[0], np.memmap)


def test_fortran_order_and_big_endian_read_right(tmp_path: Path) -> None:
    array = np.asfortranarray(images().astype(">f8"))
    np.savez(tmp_path / "d.npz", input=array)
    [batch], _ = next(open_dataset(tmp_path / "d.npz", tmp_path).batches(7))
    assert torch.equal(batch, torch.from_numpy(array.astype("<f4").copy()))


def test_limit_cuts_the_last_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", input=images())
    sizes = [b[0].shape[0] for b, _ in open_dataset(tmp_path / "d.npz", tmp_path).batches(4, 6)]
    assert sizes == [4, 2]


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_other_floats_become_float32_and_integers_stay(tmp_path: Path, dtype: str) -> None:
    np.savez(tmp_path / "d.npz", input_0=images().astype(dtype), input_1=np.arange(7, dtype="i4"))
    dataset = open_dataset(tmp_path / "d.npz", tmp_path)
    assert [t.dtype for t in dataset.sample(0, 2)] == [torch.float32, torch.int32]


def test_numbered_inputs_sort_by_number_not_by_text(tmp_path: Path) -> None:
    arrays = {f"input_{i}": np.full((2,), float(i)) for i in range(12)}
    np.savez(tmp_path / "d.npz", **dict(reversed(arrays.items())))
    dataset = open_dataset(tmp_path / "d.npz", tmp_path)
    assert [float(t[0]) for t in dataset.sample(0, 1)] == [float(i) for i in range(12)]


@pytest.mark.parametrize(
    ("arrays", "error", "told"),
    [
        ({}, EmptyDataset, "no arrays"),
        ({"input": np.zeros((0, 3))}, EmptyDataset, "no samples"),
        ({"input": np.zeros((4, 3)), "label": np.zeros(3)}, LabelMismatch, "4 samples but 3"),
        (
            {"input_0": np.zeros((4, 3)), "input_1": np.zeros((5, 3))},
            ShapeMismatch,
            "input_1 has 5",
        ),
        ({"input_0": np.zeros(4), "input_0.a": np.zeros(4)}, InvalidDataset, "part of it"),
        ({"input.a": np.zeros(4), "input.b": np.zeros(5)}, ShapeMismatch, "input.b has 5"),
        ({"input": np.zeros(4), "input_0": np.zeros(4)}, InvalidDataset, "either"),
        ({"input": np.zeros(4), "labels": np.zeros(4)}, InvalidDataset, "did you mean 'label'"),
        ({"input": np.array(["a", "b"])}, InvalidDataset, "element type"),
        ({"input": np.float32(3)}, InvalidDataset, "scalar"),
        ({"input": np.array([{"a": 1}], dtype=object)}, ObjectArrays, "pickled"),
    ],
)
def test_bad_datasets_are_named_for_what_they_are(
    tmp_path: Path, arrays: dict[str, np.ndarray], error: type[CompressError], told: str
) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(error, match=told):
        open_dataset(tmp_path / "d.npz", tmp_path)


class Trap:
    """Unpickling it leaves a mark."""

    mark = ""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (Path.mkdir, (Path(self.mark),))  # type: ignore[return-value]


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    Trap.mark = str(tmp_path / "mark")
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "d.npz", input=np.array([Trap()], dtype=object))
        with pytest.raises(ObjectArrays):
            open_dataset(tmp_path / "d.npz", tmp_path)
        assert not (tmp_path / "mark").exists()
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("input.npy", pickle.dumps(Trap()))
    with pytest.raises(InvalidDataset):
        open_dataset(tmp_path / "d.npz", tmp_path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_truncated_and_flipped_files_raise_only_our_errors(tmp_path: Path, save: object) -> None:
    path = tmp_path / "d.npz"
    save(path, input=images(), label=np.arange(7))  # type: ignore[operator]
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for trial in range(150):
        data = bytearray(whole)
        if trial % 2:
            del data[int(random.integers(len(data))) :]
        else:
            data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
        path.write_bytes(data)
        with suppress(CompressError):
            open_dataset(path, tmp_path).sample(0, 7)


def test_damaged_safetensors_raise_invalid_dataset(tmp_path: Path) -> None:
    path = save_safetensors(tmp_path / "d", {"input": images()})
    whole = path.read_bytes()
    for data in (b"", b"abc", whole[:-1], whole[:20], b"\xff" * 8 + whole[8:]):
        path.write_bytes(data)
        with pytest.raises(InvalidDataset):
            open_dataset(path, tmp_path)


def test_bad_calibration_samples_are_named(tmp_path: Path) -> None:
    array = images()
    array[4, 1, 2, 2] = np.nan
    np.savez(tmp_path / "d.npz", input=array)
    dataset = open_dataset(tmp_path / "d.npz", tmp_path)
    dataset.check_calibration(4)
    with pytest.raises(BadCalibrationData, match="'input', sample 4"):
        dataset.check_calibration(5)


def test_a_state_of_zeros_beside_real_samples_calibrates(tmp_path: Path) -> None:
    arrays = {"input_0": images(), "input_1.h": np.zeros((7, 4)), "input_1.c": np.ones((7, 4))}
    np.savez(tmp_path / "d.npz", **arrays)
    open_dataset(tmp_path / "d.npz", tmp_path).check_calibration(7)
    np.savez(tmp_path / "d.npz", **{**arrays, "input_0": np.ones((7, 3))})
    with pytest.raises(BadCalibrationData, match="'input_0' is constant"):
        open_dataset(tmp_path / "d.npz", tmp_path).check_calibration(7)


def takes(*types: str) -> list[ForwardArgument]:
    return [
        ForwardArgument(name=name, type=kind, has_default=kind.startswith("Optional"))
        for name, kind in zip("abcdef", types, strict=False)
    ]


def test_bound_arrays_fill_the_arguments_of_forward(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "d.npz",
        **{
            "input_0": images(),
            "input_2.0.x": np.arange(7.0),
            "input_2.1": np.arange(7),
            "input_3": np.full(7, 16000),
            "input_4": np.full(7, 0.5, "f2"),
            "input_5": np.ones(7, bool),
            "label": np.arange(7),
        },
    )
    dataset = open_dataset(tmp_path / "d.npz", tmp_path)
    bound = dataset.bind(
        takes(
            "Tensor", "Optional[Tensor]", "Tuple[Dict[str, Tensor], Tensor]", "int", "float", "bool"
        )
    )
    [(batch, label)] = bound.batches(4, 3)
    assert label is not None
    image, missing, (words, ids), rate, scale, flag = batch
    assert (image.shape, missing, ids.tolist()) == ((3, 3, 4, 4), None, [0, 1, 2])
    assert (words["x"].tolist(), words["x"].dtype) == ([0, 1, 2], torch.float32)
    assert [rate, scale, flag] == [16000, 0.5, True]
    assert [type(number) for number in (rate, scale, flag)] == [int, float, bool]
    bound.check_calibration(7)


@pytest.mark.parametrize(
    ("kinds", "arrays", "error", "told"),
    [
        (("int",), {"input": np.array([1, 1, 2])}, ShapeMismatch, "1 and, in sample 2, 2"),
        (("int",), {"input": np.ones(3)}, ShapeMismatch, "a Python int"),
        (("Tensor", "str"), {"input_0": np.ones(3), "input_1": np.ones(3)}, BadSignature, "'b'"),
        (("Tensor", "Tensor"), {"input": np.ones(3)}, ShapeMismatch, "'b' takes input_1"),
    ],
)
def test_arrays_that_forward_does_not_take(
    kinds: tuple[str, ...],
    arrays: dict[str, np.ndarray],
    error: type[CompressError],
    told: str,
    tmp_path: Path,
) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(error, match=told):
        open_dataset(tmp_path / "d.npz", tmp_path).bind(takes(*kinds))


def test_nan_in_evaluation_data_is_found_and_an_infinite_mask_is_not(tmp_path: Path) -> None:
    array = images()
    array[0, 0, 0, 0] = -np.inf
    target = np.zeros((len(array), 3), "f4")
    np.savez(tmp_path / "d.npz", input=array, label=target)
    open_dataset(tmp_path / "d.npz", tmp_path).check_evaluation()
    array[4, 0, 0, 0] = np.nan
    np.savez(tmp_path / "d.npz", input=array)
    with pytest.raises(BadEvaluationData, match="'input', sample 4"):
        open_dataset(tmp_path / "d.npz", tmp_path).check_evaluation()
    target[2, 1] = np.inf
    np.savez(tmp_path / "d.npz", input=images(), label=target)
    with pytest.raises(BadEvaluationData, match="'label', sample 2"):
        open_dataset(tmp_path / "d.npz", tmp_path).check_evaluation()


def test_constant_calibration_is_refused_but_one_black_image_is_not(tmp_path: Path) -> None:
    array = images()
    array[0] = 0
    np.savez(tmp_path / "d.npz", input=array)
    open_dataset(tmp_path / "d.npz", tmp_path).check_calibration(7)
    np.savez(tmp_path / "d.npz", input=np.ones_like(array))
    with pytest.raises(BadCalibrationData, match="constant"):
        open_dataset(tmp_path / "d.npz", tmp_path).check_calibration(7)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"input": np.where(np.arange(12).reshape(6, 2) == 7, np.inf, 1.0)}, "'input', sample 3,"),
        ({"input_0": images(), "input_1": images() * np.nan}, "'input_1', sample 0,"),
        ({"input": np.geomspace(1, 1e39, 6).reshape(3, 2)}, "'input', sample 2, .*float32"),
        ({"input": np.zeros((4, 0), np.float32)}, "'input' holds no values in samples 0 to 3"),
        ({"input": np.full((4, 2), 3, np.int64)}, "'input' is constant: .* all hold 3"),
        (
            {"input_0": np.ones((4, 2), np.int64), "input_1": np.zeros((4, 2), np.float32)},
            "'input_1' is constant: .* all hold 0",
        ),
    ],
)
def test_calibration_that_gives_no_ranges_is_told_by_array_and_sample(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(BadCalibrationData, match=message):
        open_dataset(tmp_path / "d.npz", tmp_path).check_calibration(7)


@pytest.mark.parametrize(
    "arrays",
    [
        {"input_0": np.zeros((4, 2), np.float32), "input_1": np.arange(8).reshape(4, 2)},
        {"input_0": images(4), "input_1": np.ones((4, 2), bool)},
        {"input_0": images(4), "input_1": np.zeros((4, 0), np.float32)},
        {"input": images(1)},
    ],
    ids=["a state of zeros beside ids", "a mask", "an empty state", "one sample"],
)
def test_calibration_that_varies_somewhere_is_taken(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    open_dataset(tmp_path / "d.npz", tmp_path).check_calibration(7)
