from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import Settings, WorkerSettings
from workers import memory
from workers.memory import cgroup_limits, memory_per_job


def settings(memory_bytes: int) -> Settings:
    settings = Settings()
    settings.__dict__["worker"] = WorkerSettings(memory_bytes=memory_bytes)
    return settings


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """A group `outer/inner`, which /proc/self/cgroup names."""
    (tmp_path / "own").write_text("1:cpu:/old\n0::/outer/inner\n")
    group = tmp_path / "root" / "outer" / "inner"
    group.mkdir(parents=True)
    return group


def limits(group: Path) -> list[int]:
    root = group.parent.parent
    return cgroup_limits(root, root.parent / "own")


def test_slots_share_three_quarters_of_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 8000)
    assert memory_per_job(settings(0), slots=1) == 6000
    assert memory_per_job(settings(0), slots=3) == 2000
    assert memory_per_job(settings(5000), slots=3) == 5000


def test_the_narrowest_group_around_us_counts(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text("4096\n")
    assert limits(group) == [4096]
    (group / "memory.max").write_text("8192\n")
    assert sorted(limits(group)) == [4096, 8192]
    monkeypatch.setattr(memory, "_CGROUPS", group.parent.parent)
    monkeypatch.setattr(memory, "_OWN_CGROUP", group.parent.parent.parent / "own")
    assert memory.available_bytes() == 4096


def test_in_a_container_the_mount_is_our_group(group: Path) -> None:
    root = group.parent.parent
    (root.parent / "own").write_text("0::/\n")
    (root / "memory.max").write_text("4096\n")
    assert limits(group) == [4096]


def test_without_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_limits(tmp_path, tmp_path / "absent") == []
    assert memory.available_bytes() > 2**20
