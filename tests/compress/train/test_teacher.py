"""A teacher that remembers says what it would say anew."""

from __future__ import annotations

import copy
import errno
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from compress.data import Dataset
from compress.errors import ModelFailed
from compress.lift import lift
from compress.spec.training import TrainingConfig
from compress.train.data import TrainingData
from compress.train.objective import Answers
from compress.train.teacher import Teacher
from compress.train.teaching import teach
from tests.compress.sinks import Recorder
from tests.compress.train import runs

CONFIG = TrainingConfig(batch_size=48)


def graph() -> fx.GraphModule:
    pixels = torch.rand(4, 1, 8, 8)
    traced = torch.jit.trace(runs.net(seed=3).eval(), pixels)
    return lift(traced, [pixels], verify=False).graph_module


def taught(tmp_path: Path, config: TrainingConfig = CONFIG, **more: Any) -> TrainingData:
    return teach(
        runs.digit_data(), Teacher(graph(), ["0"]), config,
        device=runs.CPU, scratch=tmp_path, progress=runs.started(more.get("sink", Recorder())),
    )  # fmt: skip


def test_each_sample_is_answered_once_and_recalled_as_answered(tmp_path: Path) -> None:
    data = taught(tmp_path)
    assert data.teacher is not None
    assert data.teacher.remembers
    indices = np.sort(np.concatenate([data.validation[:5], data.training[100:110]]))
    batch = data.reader().read(indices, with_answers=True)
    anew = data.teacher.answer(batch.inputs)
    assert batch.answers is not None
    torch.testing.assert_close(batch.answers.output, anew.output)
    torch.testing.assert_close(batch.answers.features["0"], anew.features["0"])
    with torch.no_grad():
        torch.testing.assert_close(anew.output, runs.net(seed=3).eval()(batch.inputs[0]))


def test_where_samples_change_only_those_kept_back_are_remembered(tmp_path: Path) -> None:
    data = taught(tmp_path, TrainingConfig(augment=("noise",)))
    reader = data.reader()
    assert reader.read(data.validation, with_answers=True).answers is not None
    assert reader.read(data.training[:9], with_answers=True).answers is None


class Contrastive(nn.Module):
    """Compares each sample with the others of its batch, as CLIP does."""

    def __init__(self, *, keeps_shape: bool) -> None:
        super().__init__()
        self.mix = nn.Linear(64, 10)
        self.keeps_shape = keeps_shape

    def forward(self, x: Tensor) -> Tensor:
        rows = self.mix(x.flatten(1))
        return rows - rows.mean(0) if self.keeps_shape else rows @ rows.t()


@pytest.mark.parametrize("keeps_shape", [False, True])
def test_answers_that_hang_on_other_samples_of_a_batch_are_not_remembered(
    keeps_shape: bool, tmp_path: Path
) -> None:
    pixels = torch.rand(4, 1, 8, 8)
    scripted = torch.jit.script(Contrastive(keeps_shape=keeps_shape).eval())
    teacher = Teacher(lift(scripted, [pixels], verify=False).graph_module)
    data = teach(
        runs.digit_data(), teacher, CONFIG,
        device=runs.CPU, scratch=tmp_path, progress=runs.started(Recorder()),
    )  # fmt: skip
    assert data.teacher is not None
    assert not data.teacher.remembers
    batch = data.reader().read(data.training[:6], with_answers=True)
    assert batch.answers is None


def test_a_disk_that_is_too_small_makes_it_answer_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    sink = Recorder()
    data = taught(tmp_path, sink=sink)
    assert data.teacher is not None
    assert not data.teacher.remembers
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_gets_its_room_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(self: Teacher, inputs: list[Any]) -> Answers:
        if (tmp_path / "answers-0.f32").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(self, inputs)

    whole = Teacher.answer
    monkeypatch.setattr(Teacher, "answer", answer)
    data = taught(tmp_path)
    assert data.teacher is not None
    assert not data.teacher.remembers
    assert list(tmp_path.iterdir()) == []


class Sorted(nn.Module):
    """Answers with one row for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(0, keepdim=True)


def test_answers_that_are_not_one_for_each_sample_are_not_remembered(tmp_path: Path) -> None:
    lifted = lift(torch.jit.script(Sorted().eval()), [torch.randn(4, 6)], verify=False)
    data = teach(
        TrainingData.split(runs.rows(), 0.1, 0), Teacher(lifted.graph_module), CONFIG,
        device=runs.CPU, scratch=tmp_path, progress=runs.started(Recorder()),
    )  # fmt: skip
    assert data.teacher is not None
    assert not data.teacher.remembers


def test_a_sample_that_the_teacher_refuses_is_told(tmp_path: Path) -> None:
    ids = np.zeros((40, 5), "i8")
    model = nn.Sequential(nn.Embedding(4, 6), nn.Flatten(), nn.Linear(30, 3)).eval()
    lifted = lift(torch.jit.trace(model, torch.from_numpy(ids[:2])), [torch.from_numpy(ids[:2])])
    for sample in (0, 39):  # the first ones tell how to compute
        wrong = ids.copy()
        wrong[sample] = 9
        data = TrainingData.split(Dataset([wrong], ["input"]), 0.1, 0)
        teacher = Teacher(copy.deepcopy(lifted.graph_module))
        with pytest.raises(ModelFailed, match=r"The teacher does not run on some.*out of range"):
            teach(
                data, teacher, CONFIG, device=runs.CPU, scratch=tmp_path,
                progress=runs.started(Recorder()),
            )  # fmt: skip
