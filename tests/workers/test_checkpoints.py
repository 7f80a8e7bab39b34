"""What an attempt finds of those before it, and what is left once a job has ended."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.settings import Settings
from workers.checkpoints import checkpoints_folder, remove_checkpoints, take_over
from workers.lease import Claim


def claim(fence: int, job_id: str = "job_a") -> Claim:
    return Claim(job_id, "prj", "job", "qat", "cpu", {}, "mdl", 60, fence, fence)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def test_each_attempt_gets_the_files_of_the_one_before_in_a_folder_of_its_own(
    settings: Settings,
) -> None:
    first = take_over(settings, claim(1))
    assert list(first.iterdir()) == []
    assert first.stat().st_mode & 0o777 == 0o700
    (first / "distill.checkpoint").write_text("one")
    (first / "distill.checkpoint.part").write_text("half")
    second = take_over(settings, claim(3))  # an attempt in between left nothing
    assert [path.name for path in second.iterdir()] == ["distill.checkpoint"]
    assert not first.exists()
    (second / "distill.checkpoint").write_text("two")
    third = take_over(settings, claim(4))
    assert (third / "distill.checkpoint").read_text() == "two"
    assert take_over(settings, claim(4)) == third
    assert (third / "distill.checkpoint").read_text() == "two"


def test_a_process_that_was_given_up_tears_nothing(settings: Settings) -> None:
    first = take_over(settings, claim(1))
    (first / "a.checkpoint").write_text("whole")
    with (first / "a.checkpoint.part").open("w") as file:  # it is at its next one
        second = take_over(settings, claim(2))
        file.write("torn")
    with pytest.raises(FileNotFoundError):
        (first / "a.checkpoint.part").replace(first / "a.checkpoint")
    assert (second / "a.checkpoint").read_text() == "whole"
    assert len(list(second.iterdir())) == 1


def test_only_plain_files_are_taken_over(settings: Settings, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the server")
    first = take_over(settings, claim(1))
    (first / "link").symlink_to(secret)
    (first / "folder").mkdir()
    os.mkfifo(first / "pipe")
    (first / "file").write_text("fine")
    second = take_over(settings, claim(2))
    assert [path.name for path in second.iterdir()] == ["file"]
    assert secret.read_text() == "of the server"


def test_a_jobs_checkpoints_are_removed_and_no_others(settings: Settings) -> None:
    for job_id in ("job_a", "job_b"):
        (take_over(settings, claim(1, job_id)) / "x").write_text("x")
    remove_checkpoints(settings, "job_a")
    remove_checkpoints(settings, "job_a")
    assert [path.name for path in checkpoints_folder(settings).iterdir()] == ["job_b"]
