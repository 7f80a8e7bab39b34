"""A run that is killed with SIGKILL, and started again, ends as one that nobody disturbed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.spec.training import TrainingConfig
from tests.compress.sinks import Recorder
from tests.compress.train import runs


def start(folder: Path, name: str) -> subprocess.Popen[str]:
    (folder / name).mkdir(exist_ok=True)
    arguments = [folder / name, folder / f"{name}-scratch", folder / f"{name}.pt"]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.compress.train.killed", *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_at(process: subprocess.Popen[str], fraction: float) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if float(line) >= fraction:
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()


def ended(process: subprocess.Popen[str], folder: Path, name: str) -> dict[str, Any]:
    process.communicate(timeout=120)
    assert process.returncode == 0
    return dict(torch.load(folder / f"{name}.pt", weights_only=True))


@pytest.mark.slow
def test_killed_twice_it_ends_with_equal_weights(tmp_path: Path) -> None:
    undisturbed = ended(start(tmp_path, "calm"), tmp_path, "calm")
    assert undisturbed["resumed_from"] is None
    # progress of the whole job; training is 0.05 to 0.85 of it
    kill_at(start(tmp_path, "killed"), 0.30)
    kill_at(start(tmp_path, "killed"), 0.60)
    killed = ended(start(tmp_path, "killed"), tmp_path, "killed")
    assert killed["resumed_from"] > 0
    assert killed["curve"] == undisturbed["curve"]
    for name, value in undisturbed["model"].items():
        assert torch.equal(killed["model"][name], value), name


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    config = TrainingConfig(epochs=3, batch_size=32)

    def trained() -> tuple[Any, dict[str, Any]]:
        model = runs.net()
        return runs.train(
            model, runs.digit_data(), config, checkpoints=tmp_path
        ), model.state_dict()

    first, weights = trained()
    again, same = trained()
    assert (first.resumed_from, again.resumed_from) == (None, 27)
    assert again.final == first.final
    assert again.curve == first.curve
    assert all(torch.equal(value, same[name]) for name, value in weights.items())


def test_a_broken_checkpoint_means_starting_anew_with_a_warning(tmp_path: Path) -> None:
    config = TrainingConfig(epochs=2, batch_size=32)
    expected = runs.net()
    runs.train(expected, runs.digit_data(), config)
    (tmp_path / "distill.checkpoint").write_bytes(b"torn")
    model, sink = runs.net(), Recorder()
    trained = runs.train(model, runs.digit_data(), config, checkpoints=tmp_path, sink=sink)
    assert trained.resumed_from is None
    assert any("checkpoint cannot be used" in warning for warning in sink.warnings)
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_other_data_or_settings_start_anew(tmp_path: Path) -> None:
    config = TrainingConfig(epochs=2, batch_size=32)
    runs.train(runs.net(), runs.digit_data(), config, checkpoints=tmp_path)
    others = [
        (runs.net(seed=1), runs.digit_data(), config),
        (runs.net(), runs.digit_data(256), config),
        (runs.net(), runs.digit_data(), TrainingConfig(epochs=3, batch_size=32)),
    ]
    for model, data, settings in others:
        assert runs.train(model, data, settings, checkpoints=tmp_path).resumed_from is None
