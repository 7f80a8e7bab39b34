"""Uploads and downloads against the real application: streamed, verified, resumed."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

import tersor
from tersor import Client
from tersor.downloads import safe_file_name
from tersor.uploads import FileUpload
from tests.tersor.conftest import Server


class Cut(httpx.BaseTransport):
    """A real connection that breaks after some bytes of each download, `times` times."""

    def __init__(self, after_bytes: int, times: int = 10**6) -> None:
        self.real = httpx.HTTPTransport()
        self.after_bytes = after_bytes
        self.times = times
        self.ranges: list[str | None] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self.real.handle_request(request)
        if not request.url.path.endswith("/content"):
            return response
        self.ranges.append(request.headers.get("Range"))
        if self.times <= 0:
            return response
        self.times -= 1
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_CutStream(response, self.after_bytes),
        )


class _CutStream(httpx.SyncByteStream):
    def __init__(self, response: httpx.Response, after_bytes: int) -> None:
        self.response = response
        self.after_bytes = after_bytes

    def __iter__(self) -> Iterator[bytes]:
        left = self.after_bytes
        for chunk in self.response.iter_raw():
            if len(chunk) >= left:
                yield chunk[:left]
                raise httpx.ReadError("cut")
            left -= len(chunk)
            yield chunk

    def close(self) -> None:
        self.response.close()


def cut_client(server: Server, cut: Cut) -> Client:
    return Client(server.url, server.key, transport=cut, sleep=lambda _seconds: None)


def test_a_model_is_uploaded_listed_read_back_and_removed(
    client: Client, model_file: Path, tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []
    model = client.models.upload(
        model_file,
        labels={"team": "vision"},
        progress=lambda done, total: steps.append((done, total)),
    )
    size_bytes = model_file.stat().st_size
    assert steps[-1] == (size_bytes, size_bytes)
    assert (model.name, model.size_bytes) == ("net.pt", size_bytes)
    assert model.sha256 == hashlib.sha256(model_file.read_bytes()).hexdigest()
    assert model.labels == {"team": "vision"}
    assert model.created_at is not None
    assert model.created_at.tzinfo is not None
    assert client.models.get(model.id) == model
    assert model in list(client.models.list())
    saved = client.models.download(model.id, tmp_path)
    assert saved == tmp_path / "net.pt"
    assert saved.read_bytes() == model_file.read_bytes()
    client.models.delete(model.id)
    with pytest.raises(tersor.NotFound):
        client.models.get(model.id)


def test_declared_inputs_arrive(client: Client, model_file: Path) -> None:
    shape = {"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}
    model = client.models.upload(model_file, "with shapes", inputs=[shape])
    assert model.inputs is not None
    assert [dict(each) for each in model.inputs] == [{**shape, "value": None}]


def test_a_dataset_tells_its_arrays(client: Client, dataset_file: Path) -> None:
    dataset = client.datasets.upload(dataset_file, "digits")
    assert (dataset.samples, dataset.has_labels) == (12, True)
    assert [(a.name, a.dtype, a.shape[0]) for a in dataset.arrays] == [
        ("input", "float32", 12),
        ("label", "int64", 12),
    ]


def test_arrays_become_a_dataset(client: Client) -> None:
    images = np.zeros((5, 1, 8, 8), np.float32)
    dataset = client.datasets.from_arrays("zeros", input=images, label=np.arange(5))
    assert (dataset.name, dataset.samples) == ("zeros", 5)


def test_arrays_of_objects_are_refused_before_anything_is_sent(client: Client) -> None:
    with pytest.raises(tersor.ConfigurationError, match="object_arrays_not_allowed"):
        client.datasets.from_arrays(input=np.array([{}, {}]))


def test_what_is_no_model_is_refused_with_the_code_of_the_service(
    client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "no.pt"
    path.write_bytes(b"not a zip")
    with pytest.raises(tersor.Unprocessable) as caught:
        client.models.upload(path)
    assert caught.value.code == "not_a_zip"


def test_a_missing_file_is_told_plainly(client: Client, tmp_path: Path) -> None:
    with pytest.raises(tersor.ConfigurationError, match="no file"):
        client.models.upload(tmp_path / "absent.pt")


def test_a_file_that_grows_while_it_is_sent_is_not_sent_as_if_whole(tmp_path: Path) -> None:
    path = tmp_path / "growing"
    path.write_bytes(b"a" * 10)
    body = FileUpload(path, {"name": "x"})
    path.write_bytes(b"a" * 11)
    with pytest.raises(tersor.FileChanged):
        list(body)


def test_the_declared_length_is_that_of_the_body(tmp_path: Path) -> None:
    path = tmp_path / 'odd "name"\r\n.pt'
    path.write_bytes(b"x" * 3_000_000)
    body = FileUpload(path, {"name": "Zoë", "labels": "{}"})
    content = b"".join(body)
    assert str(len(content)) == body.headers["Content-Length"]
    assert b'filename="odd %22name%22%0D%0A.pt"' in content


def test_an_upload_takes_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(200 * 2**20)
    tracemalloc.start()
    sent = sum(len(chunk) for chunk in FileUpload(path, {}))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sent > 200 * 2**20
    assert peak_bytes < 10 * 2**20


def test_a_download_that_is_cut_again_and_again_goes_on_where_it_stopped(
    server: Server, client: Client, model_file: Path, tmp_path: Path
) -> None:
    model = client.models.upload(model_file)
    cut = Cut(after_bytes=model.size_bytes // 5)
    target = tmp_path / "back.pt"
    cut_client(server, cut).models.download(model.id, target)
    assert target.read_bytes() == model_file.read_bytes()
    step = model.size_bytes // 5
    assert cut.ranges[:3] == [None, f"bytes={step}-", f"bytes={2 * step}-"]
    assert list(tmp_path.glob(".*part")) == []


def test_a_download_goes_on_in_another_process(
    server: Server, client: Client, model_file: Path, tmp_path: Path
) -> None:
    model = client.models.upload(model_file)
    target = tmp_path / "back.pt"
    part = tmp_path / f".back.pt.{model.sha256[:16]}.part"
    part.write_bytes(model_file.read_bytes()[:1000])
    cut = Cut(after_bytes=0, times=0)
    cut_client(server, cut).models.download(model.id, target)
    assert cut.ranges == ["bytes=1000-"]
    assert target.read_bytes() == model_file.read_bytes()


def test_what_was_left_damaged_is_fetched_again_from_the_start(
    client: Client, model_file: Path, tmp_path: Path
) -> None:
    model = client.models.upload(model_file)
    (tmp_path / f".back.pt.{model.sha256[:16]}.part").write_bytes(b"rubbish")
    client.models.download(model.id, tmp_path / "back.pt")
    assert (tmp_path / "back.pt").read_bytes() == model_file.read_bytes()


def test_a_download_without_a_byte_gained_is_given_up_and_leaves_no_file(
    server: Server, client: Client, model_file: Path, tmp_path: Path
) -> None:
    model = client.models.upload(model_file)
    with pytest.raises(tersor.TransportError, match="cut again and again"):
        cut_client(server, Cut(after_bytes=0)).models.download(model.id, tmp_path / "back.pt")
    assert not (tmp_path / "back.pt").exists()


def test_other_bytes_than_the_stored_ones_are_not_kept(
    client: Client, model_file: Path, tmp_path: Path
) -> None:
    content = model_file.read_bytes()
    model = {"id": "mdl_1", "name": "m", "sha256": "0" * 64, "size_bytes": len(content)}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/content"):
            return httpx.Response(200, stream=httpx.ByteStream(content))
        return httpx.Response(200, json=model)

    liar = Client("http://service", transport=httpx.MockTransport(answer))
    with pytest.raises(tersor.DigestMismatch):
        liar.models.download("mdl_1", tmp_path / "back.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "_.._etc_passwd"), ("..", "art_1"), ("", "art_1"),
        (".hidden", "hidden"), ("model.int8.pt", "model.int8.pt"), ("a\x00b\n", "a_b_"),
    ],
)  # fmt: skip
def test_a_name_from_the_service_stays_inside_the_folder(name: str, safe: str) -> None:
    assert safe_file_name(name, "art_1") == safe
