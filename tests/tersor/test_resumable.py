"""Large files go by tus: on after a cut, a killed command and a killed service."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import tersor
from app.db import migrate
from app.settings import Settings
from tersor import Client, resumable
from tersor.upload_notes import UploadNote
from tests.app.conftest import make_key
from tests.tersor.conftest import Command, Server

MIB = 2**20
PIECE_BYTES = MIB
SIZE_BYTES = 6 * MIB


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable, "FROM_BYTES", 2 * MIB)
    monkeypatch.setattr(resumable, "_PIECE_BYTES", PIECE_BYTES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A dataset of six MiB, and random: storing it twice would show."""
    path = tmp_path / "large.safetensors"
    count = SIZE_BYTES - 200
    header = b'{"input":{"dtype":"U8","shape":[%d,1],"data_offsets":[0,%d]}}' % (count, count)
    path.write_bytes(struct.pack("<Q", len(header)) + header + os.urandom(count))
    return path


class Line(httpx.BaseTransport):
    """A real connection: notes requests, and breaks in the middle of the pieces given."""

    def __init__(self, *broken: int) -> None:
        self.real = httpx.HTTPTransport()
        self.asked: list[tuple[str, str]] = []
        self.offsets: list[int] = []
        self.broken = broken

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.method, request.url.path))
        if request.method == "PATCH":
            self.offsets.append(int(request.headers["Upload-Offset"]))
            if len(self.offsets) - 1 in self.broken:
                request.stream = Torn(request.stream)
        return self.real.handle_request(request)


class Torn(httpx.SyncByteStream):
    def __init__(self, whole: object) -> None:
        assert isinstance(whole, httpx.SyncByteStream)
        self.whole = whole

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.whole:
            yield chunk[: len(chunk) // 2]
            raise httpx.WriteError("cut")


def client_over(server: Server, line: Line) -> Client:
    return Client(server.url, server.key, transport=line, sleep=lambda _seconds: None)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def unfinished(server: Server) -> list[dict[str, object]]:
    header = {"Authorization": f"Bearer {server.key}"}
    answer = httpx.get(f"{server.url}/v1/uploads", headers=header, trust_env=False)
    found: list[dict[str, object]] = answer.json()["data"]
    return found


def test_a_large_file_goes_in_pieces_and_tells_how_far_it_is(server: Server, file: Path) -> None:
    line = Line()
    steps: list[int] = []
    with client_over(server, line) as client:
        made = client.datasets.upload(
            file, "big", labels={"a": "b"}, progress=lambda done, total: steps.append(done)
        )
    assert (made.name, made.sha256, made.labels) == ("big", digest(file), {"a": "b"})
    assert line.offsets == [number * PIECE_BYTES for number in range(6)]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, file.stat().st_size)
    assert unfinished(server) == []
    assert UploadNote(server.url, file).read() is None


def test_a_small_file_goes_in_one_request(server: Server, dataset_file: Path) -> None:
    line = Line()
    with client_over(server, line) as client:
        client.datasets.upload(dataset_file)
    assert line.asked == [("POST", "/v1/datasets")]


def test_after_a_cut_only_what_is_missing_is_sent(server: Server, file: Path) -> None:
    line = Line(2, 4)
    with client_over(server, line) as client:
        made = client.datasets.upload(file)
    assert made.sha256 == digest(file)
    assert line.asked.count(("POST", "/v1/uploads")) == 1
    assert line.offsets.count(0) == 1
    assert min(line.offsets[3:]) >= 2 * PIECE_BYTES


def interrupt() -> None:
    raise KeyboardInterrupt


def test_the_command_goes_on_where_a_killed_one_was(
    server: Server, tersor: Command, file: Path
) -> None:
    code = f"""
import sys, time
from tersor import Client, resumable
resumable.FROM_BYTES, resumable._PIECE_BYTES = {2 * MIB}, {PIECE_BYTES}
def hold(done, total):
    if done == 3 * {PIECE_BYTES}:
        print("half", flush=True)
        time.sleep(60)
Client({server.url!r}, {server.key!r}).datasets.upload({str(file)!r}, progress=hold)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"half\n"
        killed.kill()
    assert len(unfinished(server)) == 1
    steps: list[int] = []
    with client_over(server, line := Line()) as client, pytest.raises(KeyboardInterrupt):
        client.datasets.upload(file, progress=lambda done, total: steps.append(done) or interrupt())
    assert steps[0] >= 2 * PIECE_BYTES  # the third was on its way
    assert ("POST", "/v1/uploads") not in line.asked
    assert tersor.json("datasets", "upload", file)["sha256"] == digest(file)
    assert unfinished(server) == []  # it became the dataset


def test_an_interrupted_command_says_that_it_can_go_on(
    server: Server, tersor: Command, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(resumable, "_send_piece", lambda *_: interrupt())
        told = tersor("datasets", "upload", file, status=130).stderr
    assert "the same command goes on from there" in told
    tersor("datasets", "upload", file)
    assert unfinished(server) == []


def test_of_a_file_that_changed_meanwhile_nothing_old_is_used(
    server: Server, client: Client, file: Path
) -> None:
    def change(done: int, total: int) -> None:
        if done == 2 * PIECE_BYTES:
            with file.open("r+b") as open_file:
                open_file.seek(PIECE_BYTES // 2)  # in what was sent
                open_file.write(b"new")
            os.utime(file, (1, 1))

    with pytest.raises(tersor.FileChanged):
        client.datasets.upload(file, progress=change)
    [waiting] = unfinished(server)
    assert client.datasets.upload(file).sha256 == digest(file)
    header = {"Authorization": f"Bearer {server.key}", "Tus-Resumable": "1.0.0"}
    httpx.delete(f"{server.url}/v1/uploads/{waiting['id']}", headers=header, trust_env=False)


def test_a_noted_upload_that_is_gone_is_begun_anew(
    server: Server, client: Client, file: Path
) -> None:
    UploadNote(server.url, file).write("upl_00000000000000000000000000")
    assert client.datasets.upload(file).sha256 == digest(file)


def test_an_upload_whose_last_answer_was_lost_makes_one_dataset(
    server: Server, client: Client, file: Path
) -> None:
    line = Line()
    with client_over(server, line) as other:
        first = other.datasets.upload(file)
    upload_id = next(path for method, path in line.asked if method == "HEAD").rpartition("/")[2]
    UploadNote(server.url, file).write(upload_id)  # as if killed before it was removed
    assert client.datasets.upload(file) == first
    UploadNote(server.url, file).write(upload_id)
    renamed = client.datasets.upload(file, "another name")
    assert (renamed.name, renamed.id != first.id) == ("another name", True)


def test_a_refused_file_leaves_nothing_behind(
    server: Server, client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "no.pt"
    path.write_bytes(os.urandom(3 * MIB))
    with pytest.raises(tersor.Unprocessable, match="not_a_zip"):
        client.models.upload(path)
    assert unfinished(server) == []
    assert UploadNote(server.url, path).read() is None


def test_two_at_once_both_succeed(server: Server, client: Client, file: Path) -> None:
    made: list[tersor.Dataset] = []

    def interfere(done: int, total: int) -> None:
        if done == 3 * PIECE_BYTES and not made:
            made.append(client.datasets.upload(file))

    own = client.datasets.upload(file, progress=interfere)
    assert own.sha256 == made[0].sha256 == digest(file)


def test_where_no_note_can_be_written_it_works_all_the_same(
    client: Client, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    assert client.datasets.upload(file).sha256 == digest(file)


class Restartable:
    """A service that can be killed and started again behind one address."""

    def __init__(self, data_dir: Path) -> None:
        settings = Settings(data_dir=data_dir)
        migrate(settings)
        self.key = make_key(settings, "default").token
        self.environment = {**os.environ, "TERSOR_DATA_DIR": str(data_dir)}
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.start()

    def start(self) -> None:
        fd = self.listener.fileno()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app", "--fd", str(fd)],
            env=self.environment, pass_fds=[fd], stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Restartable]:
    service = Restartable(tmp_path / "data")
    yield service
    service.kill()
    service.listener.close()


@pytest.mark.faults
def test_an_upload_outlives_a_service_that_is_killed_in_the_middle(
    service: Restartable, file: Path
) -> None:
    steps: list[int] = []

    def strike(done: int, total: int) -> None:
        steps.append(done)
        if done == 4 * PIECE_BYTES and steps.count(done) == 1:
            service.kill()
            service.start()

    with Client(service.url, service.key) as client:
        made = client.datasets.upload(file, progress=strike)
    assert made.sha256 == digest(file)
    after = steps[steps.index(4 * PIECE_BYTES) + 1 :]
    assert min(after) >= 3 * PIECE_BYTES  # pieces that were answered are kept
