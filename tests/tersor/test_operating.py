"""`tersor backup`, `restore` and `gc`, on real data folders."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from app import storage_gc
from app.admin import run
from app.db import migrate
from app.settings import Settings
from app.storage import content_key, open_store
from tests.app.conftest import make_key
from tests.tersor.conftest import Command

pytestmark = pytest.mark.slow


@pytest.fixture
def beside() -> Command:
    """The command on the service's machine; it needs neither address nor key."""
    return Command()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """The folder of a service that holds a key, and a file that belongs to nothing."""
    settings = Settings(data_dir=tmp_path / "data")
    migrate(settings)
    make_key(settings, "default")
    store = open_store(settings.storage_url)
    source = tmp_path / "source"
    source.write_bytes(b"x" * 2048)
    store.put_file(source, "jobs/job_gone/1/m.pt")
    return settings.data_dir


def left_over(data_dir: Path) -> Path:
    return data_dir / "blobs" / "jobs" / "job_gone" / "1" / "m.pt"


def test_a_backup_is_restored_into_another_folder(
    beside: Command, data_dir: Path, tmp_path: Path
) -> None:
    made = beside.json("backup", tmp_path / "backup", "--data-dir", data_dir)
    assert (made["files"], made["missing"]) == (0, [])
    beside.environment["TERSOR_DATA_DIR"] = str(tmp_path / "fresh")
    told = beside("restore", tmp_path / "backup").stdout
    assert told == f"restored {tmp_path / 'backup'}: 0 files, 0 B\n"
    assert (tmp_path / "fresh" / "tersor.db").stat().st_size > 0
    refused = beside("restore", tmp_path / "backup", status=3).stderr
    assert refused.startswith("administration_failed: The service is not empty")
    assert len(refused.splitlines()) == 1


def test_young_files_are_left_alone(beside: Command, data_dir: Path) -> None:
    looked = beside("gc", "--dry-run", "--data-dir", data_dir).stdout
    assert looked == "would delete 0 files, 0 B\n"
    assert beside.json("gc", "--data-dir", data_dir)["deleted"] is True
    assert left_over(data_dir).exists()


def test_garbage_is_listed_by_a_dry_run_and_then_deleted(
    beside: Command, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # an hour later, which only this process can be told: the kernel dates files
    monkeypatch.setattr("app.storage_gc.look", partial(storage_gc.look, young_s=0))
    settings = Settings(data_dir=data_dir)
    monkeypatch.setattr(
        "tersor.administration.run_admin", lambda _, *arguments: run(arguments, settings)
    )
    looked = beside("gc", "--dry-run", "--data-dir", data_dir).stdout
    assert looked == "jobs/job_gone/1/m.pt\nwould delete 1 file, 2.0 KiB\n"
    assert left_over(data_dir).exists()
    removed = beside.json("gc", "--data-dir", data_dir)
    assert removed == {
        "deleted": True, "bytes": 2048, "garbage": ["jobs/job_gone/1/m.pt"], "missing": [],
    }  # fmt: skip
    assert not left_over(data_dir).exists()


@pytest.mark.parametrize("arguments", [("gc",), ("backup", "there")])
def test_a_mistyped_data_folder_is_refused_and_not_made(
    beside: Command, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    told = beside(*arguments, "--data-dir", tmp_path / "typo", status=2).stderr
    assert told.startswith("no_service_here: ")
    assert not (tmp_path / "typo").exists()
    assert not (tmp_path / "there").exists()


def test_files_that_are_lost_are_named(beside: Command, data_dir: Path, tmp_path: Path) -> None:
    digest = "e" * 64
    with closing(sqlite3.connect(data_dir / "tersor.db")) as database, database:
        database.execute("INSERT INTO blobs VALUES (?, 1, '2026-01-01 00:00:00')", (digest,))
        database.execute(
            "INSERT INTO datasets SELECT 'dst_1', id, 'd', 'npz', 1, ?, 1, '[]', 0, '{}', "
            "'2026-01-01 00:00:00' FROM projects",
            (digest,),
        )
    done = beside("backup", tmp_path / "backup", "--data-dir", data_dir)
    assert done.stderr == f"missing: {content_key(digest)}\n"


def test_a_light_client_starts_no_service(beside: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tersor.administration.importlib.util.find_spec", lambda _name: None)
    told = beside("up", status=1).stderr
    assert told.startswith("cannot start: fastapi is not installed")


def test_a_light_client_says_what_to_install(
    beside: Command, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tersor.administration._PACKAGES", ("a_package_that_is_not_there",))
    told = beside("gc", "--data-dir", data_dir, status=2).stderr
    assert told.startswith("server_not_installed: a_package_that_is_not_there is not installed")
    assert 'pip install "tersor[server]"' in told
