from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from app.datasets.scan import DatasetFacts, scan_dataset
from app.errors import Unprocessable
from tests.app import samples

LIMIT = 2**20


def scan(folder: Path, content: bytes, limit_bytes: int = LIMIT) -> DatasetFacts:
    path = folder / "d"
    path.write_bytes(content)
    return scan_dataset(path, limit_bytes)


def refusal(folder: Path, content: bytes, limit_bytes: int = LIMIT) -> Unprocessable:
    with pytest.raises(Unprocessable) as caught:
        scan(folder, content, limit_bytes)
    assert str(folder) not in caught.value.detail
    return caught.value


def packed(entries: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def header_only(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def tensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("make", [samples.npz, samples.safetensors])
def test_arrays_come_in_the_order_of_forward_with_the_label_last(make: Any, tmp_path: Path) -> None:
    facts = scan(
        tmp_path,
        make(
            label=np.zeros(5, np.int64),
            input_1=np.zeros((5, 2), np.float16),
            input_0=np.zeros((5, 3, 4), np.float32),
        ),
    )
    assert facts.samples == 5
    assert facts.has_labels
    assert facts.arrays == [
        {"name": "input_0", "dtype": "float32", "shape": [5, 3, 4]},
        {"name": "input_1", "dtype": "float16", "shape": [5, 2]},
        {"name": "label", "dtype": "int64", "shape": [5]},
    ]


@pytest.mark.parametrize("make", [samples.npz, samples.safetensors])
def test_parts_of_arguments_come_in_order_and_gaps_are_left_to_the_model(
    make: Any, tmp_path: Path
) -> None:
    names = ["input_0.b", "input_0.a.10", "input_0.a.9", "input_3"]
    facts = scan(tmp_path, make(**{name: np.zeros((5, 2), np.float32) for name in names}))
    assert [array["name"] for array in facts.arrays] == [
        "input_0.a.9", "input_0.a.10", "input_0.b", "input_3",
    ]  # fmt: skip


def test_more_arrays_than_any_model_takes(tmp_path: Path) -> None:
    arrays = {f"input.{index}": np.zeros(1, np.int8) for index in range(1001)}
    assert refusal(tmp_path, samples.safetensors(**arrays)).code == "invalid_dataset"


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?"])
@pytest.mark.parametrize("make", [samples.npz, samples.safetensors])
def test_every_element_type_that_models_take(make: Any, dtype: str, tmp_path: Path) -> None:
    facts = scan(tmp_path, make(input=np.zeros((3, 2), dtype)))
    assert facts.arrays[0]["dtype"] == np.dtype(dtype).name
    assert not facts.has_labels


def test_compressed_and_fortran_ordered_npz(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, input=np.asfortranarray(np.ones((4, 6), np.float32)))
    assert scan(tmp_path, buffer.getvalue()).samples == 4


@pytest.mark.parametrize(
    "array", [np.zeros(3, "c8"), np.zeros(3, "U4"), np.zeros(3, ">f4"), np.zeros(3, "M8[s]"),
              np.zeros(3, "u8"), np.zeros(3, [("a", "f4")])],
)  # fmt: skip
def test_other_element_types_are_named(array: np.ndarray[Any, Any], tmp_path: Path) -> None:
    error = refusal(tmp_path, packed([("input.npy", npy(array))]))
    assert error.code == "unsupported_dtype"
    assert error.errors[0].pointer == "/file/input"


def test_pickled_objects_are_refused_unread(tmp_path: Path) -> None:
    content = packed([("input.npy", npy(np.array([{"a": 1}, None], dtype=object)))])
    assert refusal(tmp_path, content).code in ("object_arrays_not_allowed", "corrupt_entry")


def test_pickled_objects_are_named_as_such(tmp_path: Path) -> None:
    array = np.empty(2, dtype=object)
    error = refusal(tmp_path, packed([("input.npy", npy(array))]))
    assert error.code == "object_arrays_not_allowed"


def test_claims_are_checked_before_bytes_are_read(tmp_path: Path) -> None:
    shape = (2**20, 2**20)
    entries = [("input.npy", header_only(shape))]
    assert refusal(tmp_path, packed(entries)).code == "dataset_too_large"
    entry = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 2**42]}
    assert refusal(tmp_path, tensors({"input": entry})).code == "dataset_too_large"


def test_a_compression_bomb_stops_at_the_limit(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, input=np.zeros((2**12, 2**10), np.float32))
    assert len(buffer.getvalue()) < LIMIT
    assert refusal(tmp_path, buffer.getvalue()).code == "dataset_too_large"
    assert scan(tmp_path, buffer.getvalue(), 2**24).samples == 2**12


@pytest.mark.parametrize("make", [samples.npz, samples.safetensors])
@pytest.mark.parametrize(
    ("shapes", "code", "named"),
    [
        ({"input": (3, 2), "label": (4,)}, "label_mismatch", "label"),
        ({"input_0": (3, 2), "input_1": (4, 2)}, "shape_mismatch", "input_1"),
        ({"input": (0, 2)}, "empty_dataset", "input"),
        ({"input": ()}, "shape_mismatch", "input"),
        ({"input": (3,), "label": ()}, "shape_mismatch", "label"),
        ({"image": (3, 2)}, "unknown_array", "image"),
        ({"input_01": (3, 2)}, "unknown_array", "input_01"),
        ({"input_0.": (3, 2)}, "unknown_array", "input_0."),
        ({"input_0.a b": (3, 2)}, "unknown_array", "input_0.a b"),
        ({"input" + ".a" * 9: (3, 2)}, "unknown_array", "input" + ".a" * 9),
        ({"input.a": (3, 2), "input.b": (4, 2)}, "shape_mismatch", "input.b"),
        ({"input": (3, 2), "input_0": (3, 2)}, "duplicate_array", "input"),
        ({"input.a": (3, 2), "input_0.b": (3, 2)}, "duplicate_array", "input.a"),
        ({"input_0": (3, 2), "input_0.a": (3, 2)}, "duplicate_array", "input_0"),
        ({"input.a": (3, 2), "input.a.0.b": (3, 2)}, "duplicate_array", "input.a"),
    ],
)
def test_the_array_at_fault_is_named(
    make: Any, shapes: dict[str, tuple[int, ...]], code: str, named: str, tmp_path: Path
) -> None:
    content = make(**{name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    error = refusal(tmp_path, content)
    assert error.code == code
    assert error.errors[0].pointer == f"/file/{named}"


@pytest.mark.parametrize("make", [samples.npz, samples.safetensors])
def test_labels_alone_are_no_dataset(make: Any, tmp_path: Path) -> None:
    assert refusal(tmp_path, make(label=np.zeros(3))).code == "empty_dataset"


def test_a_name_twice_in_a_zip(tmp_path: Path) -> None:
    entry = ("input.npy", npy(np.zeros(3, np.float32)))
    with pytest.warns(UserWarning, match="Duplicate"):
        content = packed([entry, entry])
    assert refusal(tmp_path, content).code == "duplicate_array"


def test_a_name_twice_in_safetensors(tmp_path: Path) -> None:
    entry = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    content = tensors(f'{{"input":{entry},"input":{entry}}}'.encode(), b"x")
    assert refusal(tmp_path, content).code == "duplicate_array"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"hello, world" * 9, "neither"),
        (b"\x93NUMPY\x01\x00", ".npz"),
        (packed([("notes.txt", b"x")]), "notes.txt"),
        (samples.scripted_cnn(), "/v1/models"),
    ],
)
def test_what_is_no_dataset_is_told_what_one_is(content: bytes, word: str, tmp_path: Path) -> None:
    error = refusal(tmp_path, content)
    assert error.code == "invalid_dataset"
    assert word in error.detail


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_files(share: float, tmp_path: Path) -> None:
    arrays = {"input": samples.images(), "label": samples.labels()}
    content = samples.npz(**arrays)
    assert refusal(tmp_path, content[: int(len(content) * share)]).code == "corrupt_archive"
    content = samples.safetensors(**arrays)
    assert refusal(tmp_path, content[: int(len(content) * share)]).code == "invalid_safetensors"


def test_a_flipped_bit_is_caught_by_its_checksum(tmp_path: Path) -> None:
    content = bytearray(samples.npz(input=samples.images()))
    content[1000] ^= 1
    assert refusal(tmp_path, bytes(content)).code == "corrupt_entry"


@pytest.mark.parametrize("extra", [b"", b"x" * 5])
def test_data_that_is_shorter_or_longer_than_the_header_says(extra: bytes, tmp_path: Path) -> None:
    content = packed([("input.npy", header_only((3,)) + extra)])
    assert refusal(tmp_path, content).code == "corrupt_entry"


@pytest.mark.parametrize("shape", [(-1, 3), (3, -2)])
def test_negative_lengths(shape: tuple[int, ...], tmp_path: Path) -> None:
    assert refusal(tmp_path, packed([("input.npy", header_only(shape))])).code in (
        "shape_mismatch",
        "corrupt_entry",
    )


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**62) + b'{"a":1}',
        tensors(b"{" * 5000),
        tensors(b'{"a":' * 30000),
        tensors(b"{}x"),
        tensors({"input": [1]}),
        tensors({"input": {"dtype": "U8", "shape": [1.5], "data_offsets": [0, 1]}}, b"x"),
        tensors({"input": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"x"),
        tensors({"input": {"dtype": "U8", "shape": [2], "data_offsets": [0, 1]}}, b"x"),
        tensors({"input": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, b"xy"),
        tensors({"input": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"xy"),
        tensors(
            {
                "input_0": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
                "input_1": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]},
            },
            b"xyz",
        ),
    ],
)
def test_broken_safetensors(content: bytes, tmp_path: Path) -> None:
    assert refusal(tmp_path, content).code == "invalid_safetensors"


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("make", [samples.npz, samples.safetensors])
def test_random_damage_ends_in_a_code_or_in_facts(make: Any, seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    content = bytearray(make(input=samples.images(4), label=samples.labels(4)))
    for _ in range(random.randint(1, 6)):
        # mostly where the headers are
        content[random.randrange(200 if random.random() < 0.7 else len(content))] = (
            random.randrange(256)
        )
    refused: Unprocessable | None = None
    try:
        assert scan(tmp_path, bytes(content)).samples >= 1
    except Unprocessable as error:
        refused = error
    assert refused is None or str(tmp_path) not in refused.detail
