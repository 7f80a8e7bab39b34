"""Distillation as a job: teacher and student as files, or the student cut out of the teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.errors import (
    BadTrainingData,
    CompressError,
    InputsUnknown,
    InvalidModel,
    InvalidSpec,
    LabelMismatch,
    NothingToTrain,
    StudentMismatch,
)
from compress.pipeline import preflight, run
from compress.result import Inputs
from compress.spec import DistillConfig, EngineSpec
from tests.compress import digits
from tests.compress.sinks import out_dir
from tests.compress.train import runs

pytestmark = pytest.mark.slow

STUDENT: dict[str, Any] = {"student_model_id": "student"}


def student() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10)
        )


@pytest.fixture
def files(tmp_path: Path) -> Inputs:
    """A trained teacher, a fresh student, 640 samples to learn from, and others to judge by."""
    pixels, labels, held, held_labels = digits.images()
    torch.jit.trace(digits.trained(), pixels[:3]).save(str(tmp_path / "t.pt"))
    torch.jit.trace(student().eval(), pixels[:3]).save(str(tmp_path / "s.pt"))
    np.savez(tmp_path / "train.npz", input=pixels[:640].numpy(), label=labels[:640].numpy())
    np.savez(tmp_path / "e.npz", input=held.numpy(), label=held_labels.numpy())
    return Inputs(
        model=tmp_path / "t.pt",
        student=tmp_path / "s.pt",
        training=tmp_path / "train.npz",
        evaluation=tmp_path / "e.npz",
    )


def spec(**config: Any) -> EngineSpec:
    return EngineSpec(method="distill", config=DistillConfig(**config))


def test_a_student_learns_and_becomes_a_file(files: Inputs, tmp_path: Path) -> None:
    sink = runs.Listener()
    asked = spec(**STUDENT, epochs=12, learning_rate=1e-2, finetune_epochs=2)
    result = run(asked, files, sink, out_dir(tmp_path))
    assert sink.stages == ["load", "lift", "train", "convert", "export", "evaluate", "benchmark"]
    assert sink.fractions == sorted(sink.fractions)
    (artifact,) = result.artifacts
    assert (artifact.name, artifact.precision) == ("model.fp32.torchscript.pt", "fp32")
    assert artifact.quality is not None
    told = result.training
    assert told is not None
    assert told["teacher"] == json.loads(json.dumps(vars(result.baseline.quality)))
    assert told["student_before"]["value"] < 0.3
    assert told["student_after"]["value"] > 0.93
    assert told["student_after"]["value"] == artifact.quality.value
    assert (told["epochs"], told["steps"]) == (14, 14 * 9)
    assert [row["phase"] for row in told["curve"]] == ["distill"] * 12 + ["finetune"] * 2
    assert told["final"] in told["curve"]
    assert told["resumed_from_step"] is None
    assert told["parameters"]["student"] == 64 * 24 + 24 + 48 + 24 * 10 + 10
    assert told["images_per_s"] > 0
    assert {data["phase"] for data in sink.figures} == {"distill", "finetune"}
    assert result.provenance["student_sha256"] is not None
    assert len(result.provenance["dataset_sha256"]) == 2
    # the figures are those of the file, loaded with plain torch
    _, _, held, label = digits.images()
    loaded = torch.jit.load(str(tmp_path / "out" / artifact.name))
    hits = (loaded(held).argmax(1) == label).float().mean()
    assert artifact.quality.value == pytest.approx(float(hits), abs=1e-6)
    assert all(parameter.is_contiguous() for parameter in loaded.parameters())


def test_the_same_seed_gives_the_same_student(files: Inputs, tmp_path: Path) -> None:
    def weights(folder: str) -> dict[str, Tensor]:
        asked = spec(**STUDENT, epochs=2, augment=("noise",))
        run(asked, files, runs.Listener(), out_dir(tmp_path / folder))
        path = tmp_path / folder / "out" / "model.fp32.torchscript.pt"
        return dict(torch.jit.load(str(path)).state_dict())

    first, second = weights("first"), weights("second")
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_student_cut_out_of_its_teacher_is_smaller_and_nearly_as_good(
    files: Inputs, tmp_path: Path
) -> None:
    asked = spec(prune=0.5, epochs=6, learning_rate=3e-3, feature_layers={"conv2": "conv2"})
    told = preflight(asked, replace(files, student=None), runs.Listener())
    result = run(asked, replace(files, student=None), runs.Listener(), out_dir(tmp_path))
    (artifact,) = result.artifacts
    assert artifact.compression_ratio > 2.5
    assert told["estimated_size_bytes"] < told["size_bytes"]
    assert artifact.quality is not None
    assert artifact.quality.drop is not None
    assert artifact.quality.drop < 0.05
    assert result.training is not None
    assert result.training["pruned"]["parameters_after"] == result.training["parameters"]["student"]
    assert set(result.training["curve"][0]["parts"]) == {"teacher", "labels", "features"}


def test_without_labels_the_teacher_is_enough(files: Inputs, tmp_path: Path) -> None:
    pixels, _, _, _ = digits.images()
    np.savez(tmp_path / "bare.npz", input=pixels[:640].numpy())
    bare = replace(files, training=tmp_path / "bare.npz", evaluation=None)
    asked = spec(**STUDENT, epochs=10, learning_rate=1e-2)
    result = run(asked, bare, runs.Listener(), out_dir(tmp_path))
    quality = result.artifacts[0].quality
    assert quality is not None
    assert quality.metric == "agreement"
    assert quality.value > 0.9
    assert result.training is not None
    assert set(result.training["final"]["parts"]) == {"teacher"}
    with pytest.raises(LabelMismatch, match="finetune_epochs goes by labels alone"):
        run(spec(**STUDENT, finetune_epochs=1), bare, runs.Listener(), out_dir(tmp_path / "other"))
    with pytest.raises(LabelMismatch, match="finetune_epochs goes by labels alone"):
        preflight(spec(**STUDENT, finetune_epochs=1), bare, runs.Listener())


def test_a_regression_learns_by_squared_distance(files: Inputs, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1)).eval()
        small = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).eval()
        inputs = torch.randn(256, 4)
        target = teacher(inputs).detach()
    torch.jit.script(teacher).save(str(tmp_path / "t.pt"))
    torch.jit.script(small).save(str(tmp_path / "s.pt"))
    np.savez(tmp_path / "train.npz", input=inputs.numpy(), label=target.numpy())
    given = replace(files, evaluation=tmp_path / "train.npz")
    asked = spec(**STUDENT, loss="mse", epochs=30, learning_rate=1e-2)
    told = run(asked, given, runs.Listener(), out_dir(tmp_path)).training
    assert told is not None
    assert told["student_after"]["metric"] == "mse"
    assert told["student_after"]["value"] < 0.3 * told["student_before"]["value"]
    assert told["final"]["accuracy"] is None
    with pytest.raises(InvalidSpec, match=r"\[1, 1\] have none; use loss 'mse'"):
        preflight(spec(**STUDENT), given, runs.Listener())


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = student()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        answer = self.net(x)
        return answer, answer


class Named(nn.Module):
    """Answers twice, under names in one order or the other."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.net, self.turned = student(), turned

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        answer = self.net(x)
        if self.turned:
            return {"aux": answer, "cls": answer}
        return {"cls": answer, "aux": answer}


def scripted(model: nn.Module, path: Path) -> None:
    torch.jit.script(model.eval()).save(str(path))


@pytest.mark.parametrize(
    ("model", "error", "told"),
    [
        (nn.Sequential(student(), nn.Linear(10, 7)), StudentMismatch, r"\[\d, 10\].*\[\d, 7\]"),
        (Doubled(), StudentMismatch, r"\[\d, 10\].*\[\d, 10\], \[\d, 10\]"),
        (nn.Linear(3, 10), StudentMismatch, r"inputs of shape \[\d, 1, 8, 8\]; it says"),
        (nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10)), NothingToTrain, "no parameter"),
    ],
)
def test_a_student_that_does_not_fit_is_told_before_training(
    files: Inputs, tmp_path: Path, model: nn.Module, error: type[CompressError], told: str
) -> None:
    scripted(model, tmp_path / "s.pt")
    sink = runs.Listener()
    with pytest.raises(error, match=told):
        run(spec(**STUDENT, epochs=1), files, sink, out_dir(tmp_path))
    assert sink.figures == []
    with pytest.raises(error, match=told):
        preflight(spec(**STUDENT, epochs=1), files, runs.Listener())


def test_outputs_of_other_names_are_not_learned_one_from_another(
    files: Inputs, tmp_path: Path
) -> None:
    scripted(Named(turned=False), tmp_path / "t.pt")
    scripted(Named(turned=True), tmp_path / "s.pt")
    named = replace(files, model=tmp_path / "t.pt", student=tmp_path / "s.pt")
    with pytest.raises(StudentMismatch, match="dict of cls, aux, the student with one of aux, cls"):
        preflight(spec(**STUDENT, epochs=1), named, runs.Listener())


def test_other_faults_have_their_codes(files: Inputs, tmp_path: Path) -> None:
    def refused(error: type[CompressError], match: str, given: Inputs, **config: Any) -> None:
        with pytest.raises(error, match=match):
            run(spec(**STUDENT, epochs=1, **config), given, runs.Listener(), out_dir(tmp_path))

    refused(InputsUnknown, "give a training dataset", replace(files, training=None))
    (tmp_path / "junk.pt").write_bytes(b"junk")
    refused(InvalidModel, "Of the student: ", replace(files, student=tmp_path / "junk.pt"))
    refused(InvalidSpec, "batch_size 4096 is larger", files, batch_size=4096)
    refused(InvalidSpec, "no layer 'conv9'.*: conv", files, feature_layers={"conv9": "1"})
    pixels, labels, _, _ = digits.images()
    broken = pixels[:640].numpy().copy()
    broken[123] = np.nan
    np.savez(tmp_path / "nan.npz", input=broken, label=labels[:640].numpy())
    refused(BadTrainingData, "'input', sample 123", replace(files, training=tmp_path / "nan.npz"))
    labels = labels[:640].clone()
    labels[77] = 12
    np.savez(tmp_path / "label.npz", input=pixels[:640].numpy(), label=labels.numpy())
    wrong = replace(files, training=tmp_path / "label.npz")
    refused(LabelMismatch, "Label 12 of training sample 77", wrong)
    with pytest.raises(LabelMismatch, match="Label 12 of training sample 77"):
        preflight(spec(**STUDENT), wrong, runs.Listener())


def test_a_job_goes_on_from_its_checkpoints(files: Inputs, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    asked = spec(**STUDENT, epochs=2, finetune_epochs=1)
    given = replace(files, checkpoints=kept)
    first = run(asked, given, runs.Listener(), out_dir(tmp_path / "1")).training
    again = run(asked, given, runs.Listener(), out_dir(tmp_path / "2")).training
    assert first is not None
    assert again is not None
    assert again["resumed_from_step"] == first["steps"] == 27
    assert again["student_after"] == first["student_after"]
    assert again["curve"] == first["curve"]


class Tagger(nn.Module):
    """A class for each token, of a dict of tokens and mask."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, width)
        self.reads = nn.GRU(width, width, batch_first=True)
        self.says = nn.Linear(width, 5)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.embed(batch["ids"]) * batch["mask"].unsqueeze(2)
        return self.says(self.reads(x)[0])


def test_every_token_is_taught_and_padding_is_not(files: Inputs, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 12, (200, 7))
    label = np.where(generator.random((200, 7)) < 0.3, -100, ids % 5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scripted(Tagger(24), tmp_path / "t.pt")
        scripted(Tagger(12), tmp_path / "s.pt")
    arrays = {"input_0.ids": ids, "input_0.mask": np.ones((200, 7), "f4")}
    np.savez(tmp_path / "train.npz", **arrays, label=label)
    np.savez(tmp_path / "e.npz", **arrays, label=ids % 5)
    asked = spec(**STUDENT, epochs=15, learning_rate=2e-2, alpha=0.0, batch_size=32)
    told = run(asked, files, runs.Listener(), out_dir(tmp_path)).training
    assert told is not None
    assert told["student_after"]["value"] > 0.95
    assert told["final"]["accuracy"] > 0.95
    assert set(told["final"]["parts"]) == {"labels"}  # the teacher knows nothing
