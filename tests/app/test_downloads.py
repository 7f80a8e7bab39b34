"""Parts of a file, and tags that save sending what a client has."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from tests.app import samples
from tests.app.samples import upload


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [("bytes=0-9", 0, 10), ("bytes=100-", 100, None), ("bytes=-7", -7, None),
     ("bytes=5-99999999", 5, None), ("bytes=-99999999", 0, None)],
)  # fmt: skip
def test_ranges(client: TestClient, wanted: str, start: int, end: int | None) -> None:
    content = samples.traced_cnn()
    model = upload(client, "models", content)
    answer = client.get(f"/v1/models/{model['id']}/content", headers={"Range": wanted})
    assert answer.status_code == 206
    assert answer.content == content[start:end]
    first = len(content) + start if start < 0 else start
    assert answer.headers["content-range"] == (
        f"bytes {first}-{first + len(answer.content) - 1}/{len(content)}"
    )


@pytest.mark.parametrize("wanted", ["bytes=99999999-", "bytes=-0", "bytes=0-1,3-4"])
def test_ranges_that_cannot_be_had(client: TestClient, wanted: str) -> None:
    model = upload(client, "models", samples.traced_cnn())
    answer = client.get(f"/v1/models/{model['id']}/content", headers={"Range": wanted})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{model['size_bytes']}"


@pytest.mark.parametrize("wanted", ["bytes=9-3", "bytes=-", "bytes=a-b", "lines=0-1", "bytes"])
def test_ranges_without_meaning_are_ignored(client: TestClient, wanted: str) -> None:
    model = upload(client, "models", samples.traced_cnn())
    answer = client.get(f"/v1/models/{model['id']}/content", headers={"Range": wanted})
    assert answer.status_code == 200
    assert len(answer.content) == model["size_bytes"]


def test_tags_save_downloads(client: TestClient) -> None:
    model = upload(client, "models", samples.traced_cnn())
    url = f"/v1/models/{model['id']}/content"
    tag = client.get(url).headers["etag"]
    assert tag == f'"{model["sha256"]}"'
    for given in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer = client.get(url, headers={"If-None-Match": given})
        assert (answer.status_code, answer.content) == (304, b"")
    assert client.get(url, headers={"If-None-Match": '"other"'}).status_code == 200
    same = {"Range": "bytes=0-0", "If-Range": tag}
    assert client.get(url, headers=same).status_code == 206
    other = {"Range": "bytes=0-0", "If-Range": '"other"'}
    assert client.get(url, headers=other).status_code == 200


def test_json_answers_have_tags_too(client: TestClient) -> None:
    model = upload(client, "models", samples.traced_cnn())
    for url in (f"/v1/models/{model['id']}", "/v1/models", "/v1/methods"):
        tag = client.get(url).headers["etag"]
        assert client.get(url, headers={"If-None-Match": tag}).status_code == 304
