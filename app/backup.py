"""Backup of a running service, and its restore into an empty one.

The database is copied as of one moment; then every file that it refers to is linked, or copied
where links cannot reach. Files never change under their key, so only one that was deleted meanwhile
can be missing: then the database is copied anew.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.engine import URL, make_url

from app.db import Database, create_database_engine, migrate, utc_now
from app.settings import DatabaseSettings, Settings
from app.storage import BlobStore, content_key, open_store
from app.storage_gc import list_referenced
from app.version import VERSION

_MANIFEST = "manifest.json"
_SQLITE, _POSTGRESQL = "tersor.db", "tersor.dump"
_TRIES = 5


class BackupError(Exception):
    """It cannot be done; the message says why."""


def back_up(settings: Settings, folder: Path) -> dict[str, Any]:
    """Write a backup into an empty folder; return its manifest.

    Raises:
        BackupError: The folder holds something, or a tool is missing.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any(folder.iterdir()):
        raise BackupError(f"{folder} is not empty: a backup wants a folder of its own.")
    store = open_store(settings.storage_url)
    blobs = folder / "blobs"
    missing: set[str] = set()
    for _ in range(_TRIES):
        keys = _copy_database(settings, folder)
        before, missing = missing, _copy_files(store, keys, blobs)
        if not missing - before:  # what is missing twice was lost before
            break
    sizes = [path.stat().st_size for path in blobs.rglob("*") if path.is_file()]
    manifest = {
        "version": VERSION,
        "created_at": utc_now().isoformat(),
        "database": make_url(settings.database_url).get_backend_name(),
        "files": len(sizes),
        "bytes": sum(sizes),
        "missing": sorted(missing),
    }
    _sync(folder)
    # last: a folder without it is no backup
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2))
    return manifest


def restore(settings: Settings, folder: Path) -> dict[str, Any]:
    """Put a backup into an empty service, and bring it to this version's schema.

    Raises:
        BackupError: It is no whole backup, of another kind of database, or the service holds
            something.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise BackupError(f"{folder} is no whole backup: {error}.") from error
    url = make_url(settings.database_url)
    if manifest["database"] != url.get_backend_name():
        raise BackupError(
            f"The backup is of {manifest['database']}, the service uses {url.get_backend_name()}."
        )
    store = open_store(settings.storage_url)
    if any(store.list_files()) or _holds_tables(settings):
        raise BackupError("The service is not empty: restore into a new data folder or database.")
    for path in sorted((folder / "blobs").rglob("*")):
        if path.is_file():
            key = path.relative_to(folder / "blobs").as_posix()
            _, sha256 = store.put_file(path, key)
            if key.startswith("sha256/") and key != content_key(sha256):
                raise BackupError(f"{path} is damaged: its content is not what its name says.")
    if url.get_backend_name() == "sqlite":
        _copy_sqlite(folder / _SQLITE, Path(str(url.database)))
    else:
        _run_tool("pg_restore", ["--no-owner", "--exit-on-error"], url, [str(folder / _POSTGRESQL)])
    migrate(settings)
    return manifest


def _copy_database(settings: Settings, folder: Path) -> list[str]:
    """Copy the database; return the keys that it refers to at that moment."""
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        copy = folder / _SQLITE
        copy.unlink(missing_ok=True)
        _copy_sqlite(Path(str(url.database)), copy)
        own = settings.model_copy()
        own.__dict__["database"] = DatabaseSettings(url=f"sqlite:///{copy}")
        with closing(Database(own)) as database, database.read() as session:
            keys = list_referenced(session)
        with closing(sqlite3.connect(copy)) as plain:
            plain.execute("PRAGMA journal_mode=DELETE")  # one file, with nothing beside it
        return keys
    with closing(Database(settings)) as database, database.read() as session:
        connection = session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        snapshot = connection.exec_driver_sql("SELECT pg_export_snapshot()").scalar_one()
        target = ["--format=custom", f"--file={folder / _POSTGRESQL}", f"--snapshot={snapshot}"]
        # whoever idles in a transaction for long is ended, and the dump may take its time
        connection.exec_driver_sql("SET idle_in_transaction_session_timeout = 0")
        _run_tool("pg_dump", target, url, [])
        return list_referenced(session)


def _copy_sqlite(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (
        closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as origin,
        closing(sqlite3.connect(target)) as copy,
    ):
        origin.backup(copy)
    target.chmod(0o600)


def _copy_files(store: BlobStore, keys: Iterable[str], blobs: Path) -> set[str]:
    """Link or copy what is not there yet; return the keys that are gone."""
    blobs.mkdir(exist_ok=True, mode=0o700)
    missing = set()
    for key in keys:
        target = blobs / key
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            store.fetch(key, target)
        except FileNotFoundError:
            missing.add(key)
    return missing


def _run_tool(name: str, options: Sequence[str], url: URL, arguments: Sequence[str]) -> None:
    if shutil.which(name) is None:
        raise BackupError(f"{name} is not installed; it comes with PostgreSQL's client programs.")
    # the password is not for the list of processes
    plain = url.set(drivername="postgresql", password=None)
    done = subprocess.run(
        [name, *options, f"--dbname={plain.render_as_string()}", *arguments],
        env={**os.environ, **({"PGPASSWORD": str(url.password)} if url.password else {})},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise BackupError(f"{name} failed: {done.stderr.strip()}")


def _holds_tables(settings: Settings) -> bool:
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        return Path(str(url.database)).exists()
    engine = create_database_engine(settings)
    try:
        return bool(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.parent == folder:
            with path.open("rb") as file:
                os.fsync(file.fileno())
