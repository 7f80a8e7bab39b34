"""HEAD answers as GET does, without the body."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from app.state import Services
from app.storage import content_key
from tests.app import samples


@pytest.fixture
def model(client: TestClient) -> dict[str, Any]:
    return samples.upload(client, "models", samples.traced_cnn())


def test_a_resource_tells_its_headers(client: TestClient, model: dict[str, Any]) -> None:
    for path in (f"/v1/models/{model['id']}", "/v1/models", "/v1/system", "/healthz"):
        answer, whole = client.head(path), client.get(path)
        assert (answer.status_code, answer.content) == (200, b"")
        for name in ("content-type", "etag", "content-length"):
            assert answer.headers.get(name) == whole.headers.get(name), (path, name)


def test_content_tells_its_size_and_tag(client: TestClient, model: dict[str, Any]) -> None:
    url = f"/v1/models/{model['id']}/content"
    answer, whole = client.head(url), client.get(url)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(model["size_bytes"])
    assert answer.headers["accept-ranges"] == "bytes"
    for name in ("etag", "repr-digest", "content-disposition", "content-type"):
        assert answer.headers[name] == whole.headers[name]


def test_ranges_are_for_get_alone_and_tags_for_both(
    client: TestClient, model: dict[str, Any]
) -> None:
    url = f"/v1/models/{model['id']}/content"
    part = client.head(url, headers={"Range": "bytes=0-9"})
    assert (part.status_code, part.headers["content-length"]) == (200, str(model["size_bytes"]))
    known = client.head(url, headers={"If-None-Match": part.headers["etag"]})
    assert known.status_code == 304


def test_content_is_not_read(
    client: TestClient, model: dict[str, Any], services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    read = services.store.read

    def note(key: str, start: int = 0, length: int | None = None) -> Any:
        asked.append(length)
        return read(key, start, length)

    monkeypatch.setattr(services.store, "read", note)
    client.head(f"/v1/models/{model['id']}/content")
    assert asked == [1]


def test_errors_are_those_of_get(
    client: TestClient, model: dict[str, Any], services: Services
) -> None:
    assert client.head("/v1/models/mdl_nope").status_code == 404
    assert client.head("/v1/models", headers={"Authorization": "x"}).status_code == 401
    assert client.head(f"/v1/jobs/{model['id']}/cancel").status_code == 405
    services.store.delete(content_key(model["sha256"]))
    url = f"/v1/models/{model['id']}/content"
    assert client.get(url).status_code == client.head(url).status_code == 500
