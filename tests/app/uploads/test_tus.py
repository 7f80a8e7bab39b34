"""What tus 1.0.0 says that a server does (https://tus.io/protocols/resumable-upload)."""

from __future__ import annotations

import base64
import hashlib
from email.utils import parsedate_to_datetime

import pytest
from httpx import Response
from starlette.testclient import TestClient

from app.db import utc_now
from app.settings import Settings
from app.state import Services
from tests.app import samples
from tests.app.conftest import Key, make_key
from tests.app.samples import files_in
from tests.databases import both_databases

TUS = {"Tus-Resumable": "1.0.0"}
PIECE = {**TUS, "Content-Type": "application/offset+octet-stream"}
LENGTH = {**TUS, "Upload-Length": "5"}


def begin(client: TestClient, size_bytes: int, **headers: str) -> str:
    """Return the path of a new upload."""
    answer = client.post(
        "/v1/uploads", headers={**TUS, "Upload-Length": str(size_bytes), **headers}
    )
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


def send(client: TestClient, path: str, offset: int, piece: bytes, **headers: str) -> Response:
    return client.patch(
        path, content=piece, headers={**PIECE, "Upload-Offset": str(offset), **headers}
    )


def upload_id(path: str) -> str:
    return path.rpartition("/")[2]


def checksum(piece: bytes, algorithm: str = "sha1") -> dict[str, str]:
    digest = base64.b64encode(hashlib.new(algorithm, piece).digest()).decode()
    return {"Upload-Checksum": f"{algorithm} {digest}"}


@both_databases
def test_a_model_comes_in_pieces(client: TestClient, settings: Settings) -> None:
    content = samples.traced_cnn()
    path = begin(client, len(content), **{"Upload-Metadata": "filename bsO2LnB0,empty"})
    middle = len(content) // 2
    answer = send(client, path, 0, content[:middle])
    assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(middle))
    assert parsedate_to_datetime(answer.headers["upload-expires"]) > utc_now()
    early = client.post("/v1/models", json={"upload_id": upload_id(path), "name": "net"})
    assert (early.status_code, early.json()["code"]) == (422, "upload_incomplete")

    asked = client.head(path, headers=TUS)
    assert asked.headers["upload-offset"] == str(middle)
    assert asked.headers["upload-length"] == str(len(content))
    assert asked.headers["upload-metadata"] == "filename bsO2LnB0,empty"
    assert asked.headers["cache-control"] == "no-store"
    assert asked.headers["tus-resumable"] == "1.0.0"
    assert client.get(path).json()["metadata"] == {"filename": "nö.pt", "empty": ""}

    assert send(client, path, middle, content[middle:]).status_code == 204
    made = client.post(
        "/v1/models",
        json={
            "upload_id": upload_id(path), "name": "net", "sha256": samples.sha256(content),
            "labels": {"a": "b"}, "inputs": [{"name": "image", "shape": ["batch", 1, 8, 8]}],
        },
    )  # fmt: skip
    assert made.status_code == 201, made.text
    assert made.json()["sha256"] == samples.sha256(content)
    assert made.json()["labels"] == {"a": "b"}
    assert client.get(f"/v1/models/{made.json()['id']}/content").content == content
    assert client.head(path, headers=TUS).status_code == 404
    assert len(files_in(settings)) == 1
    again = client.post("/v1/models", json={"upload_id": upload_id(path), "name": "net"})
    assert (again.status_code, again.json()["code"]) == (422, "upload_not_found")


def test_a_dataset_comes_with_its_creation(client: TestClient) -> None:
    content = samples.npz(input=samples.images())
    answer = client.post(
        "/v1/uploads", content=content, headers={**PIECE, "Upload-Length": str(len(content))}
    )
    assert answer.headers["upload-offset"] == str(len(content))
    assert answer.json()["complete"] is True
    made = client.post("/v1/datasets", json={"upload_id": answer.json()["id"], "name": "d"})
    assert (made.status_code, made.json()["samples"]) == (201, 12)
    assert client.get("/v1/uploads").json()["data"] == []


def test_what_is_refused_can_be_put_to_another_use(client: TestClient, settings: Settings) -> None:
    content = samples.npz(input=samples.images())
    path = begin(client, len(content))
    send(client, path, 0, content)
    refused = client.post("/v1/models", json={"upload_id": upload_id(path), "name": "d"})
    assert (refused.status_code, refused.json()["code"]) == (422, "not_torchscript")
    wrong = {"upload_id": upload_id(path), "name": "d", "sha256": "0" * 64}
    assert client.post("/v1/datasets", json=wrong).json()["code"] == "sha256_mismatch"
    assert len(files_in(settings)) == 1
    made = client.post("/v1/datasets", json={"upload_id": upload_id(path), "name": "d"})
    assert made.status_code == 201


def test_the_server_tells_what_it_speaks(client: TestClient, settings: Settings) -> None:
    answer = client.options("/v1/uploads")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert answer.headers["tus-extension"] == (
        "creation,creation-with-upload,termination,checksum,expiration"
    )
    assert answer.headers["tus-max-size"] == str(settings.limits.upload_bytes)
    assert "sha1" in answer.headers["tus-checksum-algorithm"].split(",")


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 412, "unsupported_tus_version"),
        ({"Tus-Resumable": "0.2.2", "Upload-Length": "5"}, 412, "unsupported_tus_version"),
        (TUS, 400, "bad_tus_header"),
        ({**TUS, "Upload-Length": "-1"}, 400, "bad_tus_header"),
        ({**TUS, "Upload-Length": "1e3"}, 400, "bad_tus_header"),
        ({**TUS, "Upload-Length": "9" * 30}, 400, "bad_tus_header"),
        ({**TUS, "Upload-Length": str(2**26 + 1)}, 413, "too_large"),
        ({**LENGTH, "Upload-Metadata": "a ?"}, 400, "bad_tus_header"),
        ({**LENGTH, "Upload-Metadata": "a AA==,a AA=="}, 400, "bad_tus_header"),
        ({**LENGTH, "Upload-Metadata": "a AA=="}, 400, "bad_tus_header"),
        ({**LENGTH, "Upload-Checksum": "sha1 AA"}, 400, "unsupported_checksum"),
        ({**LENGTH, "Upload-Checksum": "crc9 AA=="}, 400, "unsupported_checksum"),
    ],
)  # fmt: skip
def test_a_creation_that_does_not_fit_begins_nothing(
    client: TestClient, settings: Settings, headers: dict[str, str], status: int, code: str
) -> None:
    answer = client.post("/v1/uploads", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["tus-resumable"] == "1.0.0"
    assert client.get("/v1/uploads").json()["data"] == []
    assert files_in(settings) == []


def test_a_piece_that_does_not_fit_changes_nothing(client: TestClient) -> None:
    path = begin(client, 10)
    send(client, path, 0, b"01234")
    for offset, headers, status, code in (
        (4, {}, 409, "offset_mismatch"),
        (6, {}, 409, "offset_mismatch"),
        (5, {"Content-Type": "application/octet-stream"}, 415, "unsupported_media_type"),
        (5, {"Tus-Resumable": "2.0.0"}, 412, "unsupported_tus_version"),
    ):
        answer = send(client, path, offset, b"567", **headers)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert send(client, path, 5, b"567890").json()["code"] == "too_large"
    assert client.head(path, headers=TUS).headers["upload-offset"] == "5"


def test_a_damaged_piece_does_not_count(client: TestClient, services: Services) -> None:
    path = begin(client, 10)
    assert send(client, path, 0, b"01234", **checksum(b"01234")).status_code == 204
    damaged = send(client, path, 5, b"56x89", **checksum(b"56789"))
    assert (damaged.status_code, damaged.json()["code"]) == (460, "checksum_mismatch")
    assert client.head(path, headers=TUS).headers["upload-offset"] == "5"
    assert send(client, path, 5, b"56789", **checksum(b"56789", "sha256")).status_code == 204
    with services.store.stage_part(upload_id(path)) as staged:
        assert staged.path.read_bytes() == b"0123456789"


def test_more_bytes_than_announced_are_refused(client: TestClient) -> None:
    path = begin(client, 3)
    pieces = iter([b"01", b"23"])  # sent in chunks: no Content-Length tells
    answer = client.patch(path, content=pieces, headers={**PIECE, "Upload-Offset": "0"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert int(client.head(path, headers=TUS).headers["upload-offset"]) <= 3


def test_bytes_that_were_written_but_not_saved_are_written_anew(
    client: TestClient, services: Services
) -> None:
    path = begin(client, 6)
    send(client, path, 0, b"012")
    with services.store.open_part(upload_id(path)) as part:
        part.cut(3)
        part.write(b"xx")  # the server died before it could say so in the row
    assert client.head(path, headers=TUS).headers["upload-offset"] == "3"
    send(client, path, 3, b"345")
    with services.store.stage_part(upload_id(path)) as staged:
        assert staged.path.read_bytes() == b"012345"


def test_an_upload_can_be_given_up(client: TestClient, settings: Settings) -> None:
    path = begin(client, 10)
    send(client, path, 0, b"01234")
    assert client.delete(path, headers=TUS).status_code == 204
    assert files_in(settings) == []
    assert client.head(path, headers=TUS).status_code == 404
    assert client.delete(path, headers=TUS).status_code == 404


def test_another_method_may_be_meant_by_a_post(client: TestClient) -> None:
    path = begin(client, 3)
    override = {**PIECE, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    assert client.post(path, content=b"012", headers=override).status_code == 204


def test_an_upload_that_somebody_else_holds_is_locked(
    client: TestClient, services: Services
) -> None:
    path = begin(client, 3)
    with services.store.open_part(upload_id(path)):  # as another process of the server would
        for answer in (send(client, path, 0, b"012"), client.delete(path, headers=TUS)):
            assert (answer.status_code, answer.json()["code"]) == (423, "upload_locked")
            assert answer.headers["retry-after"]
    assert send(client, path, 0, b"012").status_code == 204


def test_an_empty_upload_is_whole_at_once(client: TestClient) -> None:
    path = begin(client, 0)
    assert client.get(path).json()["complete"] is True
    answer = client.post("/v1/models", json={"upload_id": upload_id(path), "name": "x"})
    assert answer.json()["code"] == "not_a_zip"


def test_no_other_project_and_no_reader_touches_it(
    client: TestClient, stranger: dict[str, str], settings: Settings
) -> None:
    path = begin(client, 3)
    assert client.head(path, headers={**TUS, **stranger}).status_code == 404
    assert send(client, path, 0, b"012", **stranger).status_code == 404
    assert client.delete(path, headers=stranger).status_code == 404
    body = {"upload_id": upload_id(path), "name": "x"}
    assert client.post("/v1/models", json=body, headers=stranger).json()["code"] == (
        "upload_not_found"
    )
    reader: Key = make_key(settings, "default", ("read",))
    assert client.head(path, headers=reader.header).status_code == 200
    assert send(client, path, 0, b"012", **reader.header).status_code == 403
    assert client.head(path, headers=TUS).headers["upload-offset"] == "0"


def test_a_file_larger_than_the_disk_is_refused_at_once(
    client: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(services.store), "free_bytes", lambda _store: 100)
    answer = client.post("/v1/uploads", headers={**TUS, "Upload-Length": "101"})
    assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
