"""Resumable uploads against a real server: a stock client, cuts, a restart, memory."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tusclient.client import TusClient

from tests.app import samples
from tests.app.server import Server, serve, wait_until

pytestmark = pytest.mark.slow  # each starts a server process of its own

MIB = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("tus") / "data") as server:
        yield server


def tus_client(server: Server) -> TusClient:
    return TusClient(f"{server.url}/v1/uploads", headers={"Authorization": f"Bearer {server.key}"})


def dataset(size_bytes: int) -> bytes:
    header = b'{"input":{"dtype":"U8","shape":[%d,1],"data_offsets":[0,%d]}}' % (
        size_bytes, size_bytes,
    )  # fmt: skip
    return struct.pack("<Q", len(header)) + header + os.urandom(size_bytes)


def offset_of(server: Server, path: str) -> int:
    with server.client() as client:
        return int(client.get(path).headers["upload-offset"])


def begin_patch(server: Server, path: str, offset: int, length: int) -> socket.socket:
    """Open a PATCH that announces `length` bytes; the caller sends some of them."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(
        f"PATCH {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
        f"Tus-Resumable: 1.0.0\r\nUpload-Offset: {offset}\r\nContent-Length: {length}\r\n"
        "Content-Type: application/offset+octet-stream\r\n\r\n".encode()
    )
    return connection


def begin(server: Server, size_bytes: int) -> str:
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(size_bytes)}
    with server.client() as client:
        return client.post("/v1/uploads", headers=headers).headers["location"]


def make_dataset(server: Server, path: str) -> str:
    body = {"upload_id": path.rpartition("/")[2], "name": "d"}
    with server.client() as client:
        made = client.post("/v1/datasets", json=body)
    assert made.status_code == 201, made.text
    return str(made.json()["sha256"])


@pytest.mark.parametrize("upload_checksum", [False, True])
def test_a_stock_client_uploads_stops_and_resumes(server: Server, upload_checksum: bool) -> None:
    content = dataset(3 * MIB)
    first = tus_client(server).uploader(
        file_stream=io.BytesIO(content), chunk_size=MIB, metadata={"filename": "däta.npz"},
        upload_checksum=upload_checksum,
    )  # fmt: skip
    first.upload_chunk()
    second = tus_client(server).uploader(
        file_stream=io.BytesIO(content), url=first.url, chunk_size=MIB,
        upload_checksum=upload_checksum,
    )  # fmt: skip
    assert second.offset == MIB
    second.upload()
    path = first.url.removeprefix(server.url)
    assert make_dataset(server, path) == hashlib.sha256(content).hexdigest()


def test_what_arrived_before_a_cut_need_not_be_sent_again(server: Server) -> None:
    content = dataset(2 * MIB)
    path = begin(server, len(content))
    with begin_patch(server, path, 0, len(content)) as connection:
        connection.sendall(content[:700_000])
        time.sleep(0.2)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: offset_of(server, path) > 0)
    offset = offset_of(server, path)
    assert 0 < offset <= 700_000
    tus_client(server).uploader(
        file_stream=io.BytesIO(content), url=server.url + path, chunk_size=MIB
    ).upload()
    assert make_dataset(server, path) == hashlib.sha256(content).hexdigest()


def test_a_client_that_comes_back_takes_over_from_its_dead_connection(server: Server) -> None:
    content = dataset(2 * MIB)
    path = begin(server, len(content))
    with begin_patch(server, path, 0, len(content)) as dead:  # stays open, and says nothing more
        dead.sendall(content[:700_000])
        time.sleep(0.2)
        began_s = time.monotonic()
        uploader = tus_client(server).uploader(
            file_stream=io.BytesIO(content), url=server.url + path, chunk_size=MIB
        )
        assert uploader.offset > 0
        uploader.upload()
        assert time.monotonic() - began_s < 5
        dead.settimeout(10)
        assert dead.recv(100).startswith(b"HTTP/1.1 409")
    assert make_dataset(server, path) == hashlib.sha256(content).hexdigest()


def test_of_many_who_write_at_once_the_bytes_of_one_count(server: Server) -> None:
    content = dataset(MIB)
    path = begin(server, len(content))
    headers = {
        "Tus-Resumable": "1.0.0", "Upload-Offset": "0",
        "Content-Type": "application/offset+octet-stream",
    }  # fmt: skip

    def send(_number: int) -> int:
        with server.client() as client:
            return client.patch(path, content=content, headers=headers).status_code

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(send, range(4)))
    assert set(statuses) <= {204, 409, 423}
    uploader = tus_client(server).uploader(
        file_stream=io.BytesIO(content), url=server.url + path, chunk_size=MIB
    )
    uploader.upload()
    assert make_dataset(server, path) == hashlib.sha256(content).hexdigest()


def test_an_upload_goes_on_after_the_server_was_killed(tmp_path: Path) -> None:
    content = dataset(2 * MIB)
    with serve(tmp_path / "data") as server:
        uploader = tus_client(server).uploader(file_stream=io.BytesIO(content), chunk_size=MIB)
        uploader.upload_chunk()
        path = uploader.url.removeprefix(server.url)
        with begin_patch(server, path, MIB, MIB) as connection:
            connection.sendall(content[MIB : MIB + 100_000])
            time.sleep(0.2)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(10)
    with serve(tmp_path / "data") as server:
        assert offset_of(server, path) == MIB
        tus_client(server).uploader(file_stream=io.BytesIO(content), url=server.url + path).upload()
        assert make_dataset(server, path) == hashlib.sha256(content).hexdigest()
        assert len(server.stored_files()) == 1


def test_memory_stays_flat_with_several_large_uploads_at_once(server: Server) -> None:
    block = os.urandom(MIB)
    size_mib, at_once = 128, 4

    def upload(_number: int) -> None:
        path = begin(server, size_mib * MIB)
        with begin_patch(server, path, 0, size_mib * MIB) as connection:
            for _ in range(size_mib):
                connection.sendall(block)
            assert connection.recv(100).startswith(b"HTTP/1.1 204")
        with server.client() as client:
            client.delete(path)

    upload(0)
    before_bytes = server.memory_bytes()
    threads = [threading.Thread(target=upload, args=(number,)) for number in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.memory_bytes("VmHWM") - before_bytes < 60 * MIB
    assert "unexpected error" not in server.log.read_text()
    assert samples.sha256(block)
