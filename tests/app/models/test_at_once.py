"""Uploads and removals of the same model at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from app.settings import Settings
from tests.app import samples
from tests.app.samples import files_in, upload
from tests.databases import both_databases


@both_databases
def test_removals_at_once_agree_on_one(client: TestClient) -> None:
    for _ in range(3):
        model = upload(client, "models", samples.traced_cnn())
        with ThreadPoolExecutor(6) as pool:
            statuses = [
                answer.status_code
                for answer in pool.map(client.delete, [f"/v1/models/{model['id']}"] * 6)
            ]
        assert sorted(statuses) == [204] + [404] * 5


@pytest.mark.slow
@both_databases
def test_uploads_and_removals_of_equal_bytes_at_once(
    client: TestClient, settings: Settings
) -> None:
    content = samples.scripted_cnn()

    def come_and_go(_: int) -> bool:
        model = upload(client, "models", content)
        whole = client.get(f"/v1/models/{model['id']}/content").content == content
        return whole and client.delete(f"/v1/models/{model['id']}").status_code == 204

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(come_and_go, range(24)))
    assert files_in(settings) == []
