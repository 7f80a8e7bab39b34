"""The disk of everything is full: the API says so, keeps answering, and recovers by itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.app import samples
from tests.app.server import serve
from tests.faults.disks import small_disk

pytestmark = pytest.mark.faults

TUS = {"Tus-Resumable": "1.0.0"}
PIECE = {**TUS, "Content-Type": "application/offset+octet-stream"}


@pytest.fixture
def full_soon(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "data", 24) as folder:
        yield folder


def test_a_full_disk_is_said_and_forgotten_once_there_is_room(full_soon: Path) -> None:
    content = samples.traced_cnn()
    with serve(full_soon) as server, server.client() as client:
        made = client.post(
            "/v1/models", files={"file": ("f", content)}, data={"name": "before"}
        ).json()
        size_bytes = 4 * 2**20
        begun = client.post("/v1/uploads", headers={**TUS, "Upload-Length": str(size_bytes)})
        upload = begun.headers["location"]
        stored = server.stored_files()

        filler = full_soon / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * 4096)
        assert shutil.disk_usage(full_soon).free < 4096

        large = {"file": ("f", b"\0" * 2**20)}
        for _ in range(3):
            refused = client.post("/v1/models", files=large, data={"name": "x"})
            assert (refused.status_code, refused.json()["code"]) == (507, "storage_full")
            piece = client.patch(
                upload, headers={**PIECE, "Upload-Offset": "0"}, content=b"\1" * size_bytes
            )
            assert (piece.status_code, piece.json()["code"]) == (507, "storage_full")
        # with no room for its log, the database takes no row either
        key = client.post("/v1/keys", json={"name": "k" * 200})
        assert key.status_code == 201 or key.json()["code"] == "database_full"
        assert client.get("/healthz").status_code == 200
        assert client.get(f"/v1/models/{made['id']}/content").content == content
        assert client.head(upload, headers=TUS).headers["upload-offset"] == "0"

        filler.unlink()
        again = client.patch(
            upload, headers={**PIECE, "Upload-Offset": "0"}, content=b"\1" * size_bytes
        )
        assert (again.status_code, again.headers["upload-offset"]) == (204, str(size_bytes))
        client.delete(upload, headers=TUS)
        after = client.post("/v1/models", files={"file": ("f", content)}, data={"name": "after"})
        assert after.status_code == 201
        assert client.post("/v1/keys", json={}).status_code == 201
        # the same content, and nothing half written
        assert sorted(path.name for path in server.stored_files()) == sorted(
            path.name for path in stored if "parts" not in path.parts
        )
        assert "unexpected error" not in server.log.read_text()
