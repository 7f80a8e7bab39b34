"""Unfinished uploads do not stay for ever."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from sqlalchemy import update
from starlette.testclient import TestClient

from app.db import utc_now
from app.settings import Settings
from app.state import Services
from app.uploads.expiry import remove_expired, remove_orphans
from app.uploads.tables import PartialUpload
from tests.app.samples import files_in
from tests.app.uploads.test_tus import TUS, begin, send, upload_id
from tests.databases import both_databases


def let_expire(services: Services, path: str) -> None:
    with services.database.write() as session:
        session.execute(
            update(PartialUpload)
            .where(PartialUpload.id == upload_id(path))
            .values(expires_at=utc_now() - timedelta(seconds=1))
        )


@both_databases
def test_what_has_expired_is_gone_and_then_removed(
    client: TestClient, services: Services, settings: Settings
) -> None:
    old, fresh = begin(client, 10), begin(client, 10)
    send(client, old, 0, b"01234")
    let_expire(services, old)
    assert client.head(old, headers=TUS).status_code == 410
    assert send(client, old, 5, b"56789").json()["code"] == "upload_expired"
    assert remove_expired(services.database, services.store) == 1
    assert [path.name for path in files_in(settings)] == [upload_id(fresh)]
    assert client.head(old, headers=TUS).status_code == 404
    assert client.head(fresh, headers=TUS).status_code == 200


def test_one_that_is_being_written_is_spared(client: TestClient, services: Services) -> None:
    path = begin(client, 10)
    let_expire(services, path)
    with services.store.open_part(upload_id(path)):
        assert remove_expired(services.database, services.store) == 0
    assert remove_expired(services.database, services.store) == 1


def test_parts_that_no_row_knows_are_removed_once_they_are_old(
    client: TestClient, services: Services, settings: Settings
) -> None:
    known = upload_id(begin(client, 10))
    services.store.create_part("upl_orphan")
    assert remove_orphans(services.database, services.store) == 0
    folder: Path = settings.data_dir / "blobs/parts"
    for name in (known, "upl_orphan"):
        os.utime(folder / name, (0, 0))
    assert remove_orphans(services.database, services.store) == 1
    assert [path.name for path in folder.iterdir()] == [known]
