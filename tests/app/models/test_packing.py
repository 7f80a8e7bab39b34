from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient

from app.archives import open_archive
from app.models.packing import _central, repacked
from app.models.scan import scan_model
from app.storage import LocalBlobStore
from app.zip_directory import STORED, Entry, _read_central
from tests.app import samples


def zipped_by_another_program(content: bytes) -> bytes:
    """The same entries with folders, times, comments and foreign fields."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        new.mkdir("archive")
        for name in old.namelist():
            info = zipfile.ZipInfo(name, date_time=(2024, 5, 17, 1, 2, 4))
            info.extra = b"UT\x05\x00\x01abcd"
            info.comment = b"made by hand"
            new.writestr(info, old.read(name))
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "blobs")


def pack(content: bytes, store: LocalBlobStore, tmp_path: Path) -> bytes:
    path = tmp_path / "given"
    path.write_bytes(content)
    with repacked(path, store) as staged:
        staged.finish()
        return staged.path.read_bytes()


def test_what_torch_wrote_is_canonical(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    for content in (samples.scripted_cnn(), samples.traced_cnn(), samples.structured()):
        path.write_bytes(content)
        assert scan_model(path).is_canonical


def test_foreign_bytes_are_gone_and_the_model_is_the_same(
    store: LocalBlobStore, tmp_path: Path
) -> None:
    content = zipped_by_another_program(samples.scripted_cnn())
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    assert not scan_model(path).is_canonical
    packed = pack(content, store, tmp_path)
    assert b"made by hand" not in packed
    assert b"abcd" not in packed
    path.write_bytes(packed)
    assert scan_model(path).is_canonical
    x = torch.rand(2, 1, 8, 8)
    original = torch.jit.load(io.BytesIO(samples.scripted_cnn()))
    torch.testing.assert_close(torch.jit.load(io.BytesIO(packed))(x), original(x), rtol=0, atol=0)


def test_packing_is_stable_and_stores_aligned(store: LocalBlobStore, tmp_path: Path) -> None:
    once = pack(zipped_by_another_program(samples.scripted_cnn()), store, tmp_path)
    assert pack(once, store, tmp_path) == once
    assert pack(samples.scripted_cnn(), store, tmp_path) == once
    path = tmp_path / "m"
    path.write_bytes(once)
    with open_archive(path, "model") as archive:
        assert {entry.method for entry in archive.entries} == {STORED}
        assert {entry.start % 64 for entry in archive.entries} == {0}
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_sizes_beyond_32_bits_are_told_in_64() -> None:
    huge = Entry("archive/data/0", STORED, 7, 5 * 2**30, 5 * 2**30, 0)
    (read,) = _read_central(_central(huge, 6 * 2**30))
    assert (read.size_bytes, read.packed_bytes, read.header) == (5 * 2**30, 5 * 2**30, 6 * 2**30)
    (read,) = _read_central(_central(replace(huge, size_bytes=9, packed_bytes=9), 6 * 2**30))
    assert (read.size_bytes, read.header) == (9, 6 * 2**30)


def test_the_service_keeps_and_serves_the_packed_file(client: TestClient) -> None:
    given = zipped_by_another_program(samples.scripted_cnn())
    model = samples.upload(client, "models", given, sha256=samples.sha256(given))
    kept = client.get(f"/v1/models/{model['id']}/content").content
    assert kept != given
    assert model["sha256"] == hashlib.sha256(kept).hexdigest()
    assert model["size_bytes"] == len(kept)
    assert torch.jit.load(io.BytesIO(kept))(torch.rand(1, 1, 8, 8)).shape == (1, 10)


def test_the_service_keeps_torchs_own_file_as_it_is(client: TestClient) -> None:
    given = samples.scripted_cnn()
    model = samples.upload(client, "models", given)
    assert model["sha256"] == samples.sha256(given)
    assert client.get(f"/v1/models/{model['id']}/content").content == given
