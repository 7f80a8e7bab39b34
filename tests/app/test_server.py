"""The server as a process: memory while files stream, clients that hang up, when it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app import samples
from tests.app.server import Server, admin, environment, serve, wait_until

pytestmark = pytest.mark.slow  # each starts a server process of its own

BOUNDARY = b"tersor-test"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server") / "data") as server:
        yield server


STALL_S = 0.8


@pytest.fixture(scope="module")
def stalling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that gives up a stalled body early, and writes its log as JSON."""
    folder = tmp_path_factory.mktemp("stalling") / "data"
    settings = {"TERSOR_LIMIT_UPLOAD_STALL_S": str(STALL_S), "TERSOR_LOG_FORMAT": "json"}
    with serve(folder, **settings) as server:
        yield server


def multipart_head(name: str = "x") -> bytes:
    return (
        b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="name"\r\n\r\n'
        + name.encode() + b"\r\n--" + BOUNDARY
        + b'\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    )  # fmt: skip


def multipart_tail() -> bytes:
    return b"\r\n--" + BOUNDARY + b"--\r\n"


def large_dataset(size_bytes: int) -> Iterator[bytes]:
    """Yield a safetensors file of that many bytes of data, without ever holding it."""
    header = b'{"input":{"dtype":"U8","shape":[%d,1],"data_offsets":[0,%d]}}' % (
        size_bytes,
        size_bytes,
    )
    yield struct.pack("<Q", len(header)) + header
    block = os.urandom(2**20)
    for _ in range(size_bytes // 2**20):
        yield block


def body(size_bytes: int) -> Iterator[bytes]:
    yield multipart_head()
    yield from large_dataset(size_bytes)
    yield multipart_tail()


def test_memory_stays_flat_while_files_stream_in_and_out(server: Server) -> None:
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
    with server.client() as client:
        # the first upload loads what is loaded late
        assert client.post("/v1/datasets", content=body(2**20), headers=kind).status_code == 201
        before_bytes = server.memory_bytes()
        size_bytes = 256 * 2**20
        answer = client.post("/v1/datasets", content=body(size_bytes), headers=kind)
        assert answer.status_code == 201, answer.text
        assert answer.json()["samples"] == size_bytes
        digest = hashlib.sha256()
        with client.stream("GET", f"/v1/datasets/{answer.json()['id']}/content") as download:
            for chunk in download.iter_bytes():
                digest.update(chunk)
        assert digest.hexdigest() == answer.json()["sha256"]
        assert client.delete(f"/v1/datasets/{answer.json()['id']}").status_code == 204
    assert server.memory_bytes("VmHWM") < before_bytes + 32 * 2**20
    assert server.memory_bytes("VmHWM") < 200 * 2**20


@pytest.mark.parametrize("how", ["close", "reset", "half the length"])
def test_a_client_that_hangs_up_leaves_nothing(server: Server, how: str) -> None:
    before = set(server.stored_files())
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
            + server.key.encode()
            + b"\r\nContent-Type: multipart/form-data; boundary=" + BOUNDARY
            + b"\r\nContent-Length: 100000000\r\n\r\n" + multipart_head()
        )  # fmt: skip
        connection.sendall(os.urandom(3 * 2**20))
        wait_until(lambda: set(server.stored_files()) - before)
        if how == "reset":
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        elif how == "half the length":
            connection.shutdown(socket.SHUT_WR)
            time.sleep(0.2)
    wait_until(lambda: set(server.stored_files()) == before)
    with server.client() as client:
        assert client.get("/v1/models").json()["data"] == []
    assert "unexpected error" not in server.log.read_text()


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=" + BOUNDARY.decode(), "json"])
def test_a_body_that_stalls_is_given_up_and_leaves_nothing(stalling: Server, kind: str) -> None:
    is_upload = kind.startswith("multipart")
    path, kind = ("models", kind) if is_upload else ("jobs", "application/json")
    before = set(stalling.stored_files())
    with socket.create_connection(("127.0.0.1", stalling.port)) as connection:
        connection.settimeout(10)
        connection.sendall(
            f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stalling.key}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: 1000000\r\n\r\n".encode()
        )
        for part in (multipart_head(), *[b" " * 100_000] * 2):
            connection.sendall(part)
            time.sleep(STALL_S * 0.6)  # in all longer than the limit: slow is not stalled
        if is_upload:
            assert set(stalling.stored_files()) - before
        answer = b""
        while chunk := connection.recv(65536):  # until the server closes it
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"content-type: application/problem+json" in head.lower()
    assert json.loads(body)["code"] == "upload_stalled"
    assert set(stalling.stored_files()) == before
    with stalling.client() as client:
        assert client.get("/v1/models").json()["data"] == []
    assert "unexpected error" not in stalling.log.read_text()


def test_a_slow_upload_and_a_waiting_client_block_nobody(server: Server) -> None:
    with server.client() as client:
        model = samples.upload(client, "models", samples.traced_cnn())  # type: ignore[arg-type]
        content = samples.npz(input=samples.images())
        data = samples.upload(client, "datasets", content)  # type: ignore[arg-type]
        fields = {
            "method": "ptq", "model_id": model["id"], "calibration": {"dataset_id": data["id"]}
        }  # fmt: skip
        job = client.post("/v1/jobs", json=fields).json()

        def wait() -> None:
            with server.client() as waiting:
                waiting.get(job["urls"]["self"], headers={"Prefer": "wait=30"})

        waiters = [threading.Thread(target=wait) for _ in range(60)]
        for waiter in waiters:
            waiter.start()
        time.sleep(0.5)
        began_s = time.monotonic()
        for _ in range(20):
            assert client.get(job["urls"]["self"]).status_code == 200
        assert time.monotonic() - began_s < 5
        client.post(job["urls"]["cancel"])
        for waiter in waiters:
            waiter.join(10)
            assert not waiter.is_alive()
        client.delete(job["urls"]["self"])
        client.delete(f"/v1/models/{model['id']}")


def test_equal_uploads_and_removals_at_once_never_lose_a_file(server: Server) -> None:
    content = samples.scripted_cnn()
    faults: list[str] = []

    def come_and_go() -> None:
        with server.client() as client:
            for _ in range(6):
                model = samples.upload(client, "models", content)  # type: ignore[arg-type]
                answer = client.get(f"/v1/models/{model['id']}/content")
                if answer.content != content:
                    faults.append(answer.text[:200])
                client.delete(f"/v1/models/{model['id']}")

    threads = [threading.Thread(target=come_and_go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert not [path for path in server.stored_files() if samples.sha256(content) in path.name]


def test_the_log_is_json_and_names_the_request(stalling: Server) -> None:
    with stalling.client() as client:
        client.get("/v1/system", headers={"X-Request-Id": "find-me"})
    wait_until(lambda: "find-me" in stalling.log.read_text())
    lines = [json.loads(line) for line in stalling.log.read_text().splitlines()]
    found = next(line for line in lines if line.get("request_id") == "find-me")
    assert (found["message"], found["status"]) == ("GET /v1/system", 200)
    assert stalling.key not in stalling.log.read_text()


def run_app(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_it_refuses_an_open_address_without_a_key(tmp_path: Path) -> None:
    env = environment(tmp_path / "data")
    admin(env, "migrate")
    done = run_app(env, "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert "no key" in done.stderr
    assert "Traceback" not in done.stderr
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        done = subprocess.run(
            [sys.executable, "-m", "app", "--fd", str(listener.fileno())],
            env=env, pass_fds=[listener.fileno()], capture_output=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2


def test_it_refuses_a_database_without_the_schema(tmp_path: Path) -> None:
    done = run_app(environment(tmp_path / "data"), "--port", "0")
    assert done.returncode == 2
    assert "app.admin migrate" in done.stderr


def test_it_stops_soon_though_clients_wait(tmp_path: Path) -> None:
    with serve(tmp_path / "data") as server:
        with server.client() as client:
            model = samples.upload(client, "models", samples.traced_cnn())  # type: ignore[arg-type]
            content = samples.npz(input=samples.images())
            data = samples.upload(client, "datasets", content)  # type: ignore[arg-type]
            fields = {
                "method": "ptq", "model_id": model["id"],
                "calibration": {"dataset_id": data["id"]},
            }  # fmt: skip
            job = client.post("/v1/jobs", json=fields).json()
        waiting = subprocess.Popen(
            [sys.executable, "-c",
             "import httpx, sys; httpx.get(sys.argv[1], timeout=60, headers="
             "{'Prefer': 'wait=50', 'Authorization': 'Bearer ' + sys.argv[2]})",
             server.url + job["urls"]["self"], server.key],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(1.5)
        server.process.send_signal(signal.SIGTERM)
        began_s = time.monotonic()
        server.process.wait(20)
        assert time.monotonic() - began_s < 4  # uvicorn alone would wait 5 s for the client
        waiting.wait(20)


def test_importing_the_app_leaves_torch_unloaded() -> None:
    code = (
        "import sys, app.main, app.__main__, app.admin; app.main.create_app(); "
        "print(sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'torch', 'numpy', 'workers', 'tersor'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
