from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.errors import RateLimited
from app.limits.rate import RateLimiter
from tests.app.conftest import Key
from tests.app.limits.test_quota import limit


def count_allowed(limiters: list[RateLimiter], project_id: str, per_s: int, asked: int) -> int:
    allowed = 0
    for number in range(asked):
        try:
            limiters[number % len(limiters)].check(project_id, per_s)
            allowed += 1
        except RateLimited:
            pass
    return allowed


def test_two_processes_share_one_count(broker_url: str) -> None:
    both = [RateLimiter(broker_url), RateLimiter(broker_url)]
    began_s = time.monotonic()
    allowed = count_allowed(both, "prj_a", 20, 60)
    assert 20 <= allowed <= 20 * (1 + time.monotonic() - began_s) + 1
    assert count_allowed(both, "prj_b", 20, 5) == 5  # another project's own


@pytest.mark.slow
def test_after_a_pause_there_is_room_again(broker_url: str) -> None:
    limiter = RateLimiter(broker_url)
    assert count_allowed([limiter], "prj_a", 5, 20) < 20
    time.sleep(2.0)
    assert count_allowed([limiter], "prj_a", 5, 5) == 5


def test_without_a_broker_each_process_counts_for_itself_and_at_once(tmp_path: Path) -> None:
    limiter = RateLimiter(f"redis+socket://{tmp_path}/nobody")
    began_s = time.monotonic()
    assert 20 <= count_allowed([limiter], "prj_a", 20, 60) < 60
    assert time.monotonic() - began_s < 1.0


def test_too_many_requests_are_told_when_to_come_back(client: TestClient, key: Key) -> None:
    limit(client, key, requests_per_s=5)
    answers = [client.get("/v1/methods") for _ in range(30)]
    refused = [each for each in answers if each.status_code == 429]
    assert refused
    assert {each.status_code for each in answers} == {200, 429}
    assert refused[0].json()["code"] == "rate_limited"
    assert int(refused[0].headers["retry-after"]) >= 1
    assert client.get("/healthz").status_code == 200


def test_a_frozen_broker_slows_no_request_for_long(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:  # takes connections, and never answers
        listener.bind(str(tmp_path / "s"))
        listener.listen(64)
        limiter = RateLimiter(f"redis+socket://{tmp_path}/s")
        began_s = time.monotonic()
        assert 20 <= count_allowed([limiter], "prj_a", 20, 60) < 60
        assert time.monotonic() - began_s < 2.0
