"""A checkpoint is whole or as good as none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.train.checkpoint import CheckpointFile, fingerprint

STATE = {"model": {"w": torch.arange(3.0)}, "step": 7, "curve": [{"loss": 0.5, "accuracy": None}]}


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    CheckpointFile(tmp_path, "distill", "a").save(STATE)
    file = CheckpointFile(tmp_path, "distill", "a")
    found = file.load()
    assert found is not None
    assert torch.equal(found["model"]["w"], STATE["model"]["w"])  # type: ignore[index]
    assert (found["step"], found["curve"]) == (7, STATE["curve"])
    assert [path.name for path in tmp_path.iterdir()] == ["distill.checkpoint"]
    assert CheckpointFile(tmp_path, "finetune", "a").load() is None
    assert CheckpointFile(None, "distill", "a").load() is None


@pytest.mark.parametrize("damage", ["cut", "junk", "empty", "pickle"])
def test_a_broken_file_is_none(tmp_path: Path, damage: str) -> None:
    CheckpointFile(tmp_path, "distill", "a").save(STATE)
    path = tmp_path / "distill.checkpoint"
    whole = path.read_bytes()
    if damage == "pickle":
        torch.save({"version": 1, "fingerprint": "a", "state": Path("x")}, path)
    else:
        broken = {"cut": whole[: len(whole) // 2], "junk": b"junk" * 100, "empty": b""}
        path.write_bytes(broken[damage])
    file = CheckpointFile(tmp_path, "distill", "a")
    assert file.load() is None
    assert file.refused is not None
    assert "nothing can be read" in file.refused


def test_another_runs_file_is_none(tmp_path: Path) -> None:
    CheckpointFile(tmp_path, "distill", fingerprint(1, "x")).save(STATE)
    file = CheckpointFile(tmp_path, "distill", fingerprint(2, "x"))
    assert file.load() is None
    assert file.refused is not None
    assert "others" in file.refused


def test_a_write_that_is_cut_off_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = CheckpointFile(tmp_path, "distill", "a")
    file.save(STATE)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        file.save({**STATE, "step": 8})
    found = CheckpointFile(tmp_path, "distill", "a").load()
    assert found is not None
    assert found["step"] == 7
