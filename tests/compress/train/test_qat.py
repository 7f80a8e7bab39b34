from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compress.data import Dataset
from compress.errors import InvalidSpec, LabelMismatch, ModelFailed
from compress.export import Plan, export
from compress.lift import Lifted, lift
from compress.pipeline import preflight
from compress.progress import Progress
from compress.quantize.qat import prepare_qat
from compress.quantize.qat_modules import RoundedValue, RoundedWeight
from compress.result import Inputs
from compress.spec import EngineSpec, Metric, QatConfig
from compress.train.data import TrainingData
from compress.train.qat import QatOutcome, Schedule, train_quantized, try_quantized
from tests.compress import digits
from tests.compress.sinks import Recorder
from tests.compress.train import runs

PIXELS, LABELS, HELD, HELD_LABELS = digits.images()


class Depthwise(nn.Module):
    """A small separable net whose channels differ in size, as MobileNets' do."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, 2, 1, groups=width, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(image)))
        x = torch.relu(self.depthwise_norm(self.depthwise(x)))
        x = torch.relu(self.pointwise_norm(self.pointwise(x)))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))

    def spread(self, octaves: float) -> None:
        """Make channels larger and smaller, and undo it behind, so that answers stay the same."""
        sizes = torch.linspace(-octaves, octaves, len(self.stem_norm.weight)).exp2()
        sizes = sizes[torch.randperm(len(sizes), generator=torch.Generator().manual_seed(0))]
        with torch.no_grad():
            for norm in (self.stem_norm, self.depthwise_norm):
                norm.weight.mul_(sizes)
                norm.bias.mul_(sizes)
            self.depthwise.weight.div_(sizes.view(-1, 1, 1, 1))
            self.pointwise.weight.div_(sizes.view(1, -1, 1, 1))


@pytest.fixture(scope="module")
def depthwise() -> Depthwise:
    """Trained: right on more than nine of ten."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Depthwise()
    digits.train(net, epochs=15, rate=1e-2)
    net.spread(3)
    return net


def lifted_net(net: nn.Module) -> Lifted:
    return lift(torch.jit.trace(net.eval(), PIXELS[:2]), [PIXELS[:2]])


def calibration() -> Iterator[list[Tensor]]:
    yield from ([part] for part in PIXELS[:128].split(32))


def run(
    net: nn.Module,
    folder: Path,
    *,
    labels: bool = True,
    samples: int = len(PIXELS),
    sink: Recorder | None = None,
    checkpoints: Path | None = None,
    metric: Metric | None = "top1",
    **config: Any,
) -> QatOutcome:
    ids = LABELS[:samples].numpy() if labels else None
    dataset = Dataset([PIXELS[:samples].numpy()], ["input"], ids)
    settings = QatConfig(**config)
    return train_quantized(
        EngineSpec(method="qat", config=settings), settings, lifted_net(net),
        TrainingData.split(dataset, settings.validation_fraction, 0), calibration,
        [PIXELS[:3]], [[PIXELS[:1]]], metric=metric, device=runs.CPU, checkpoints=checkpoints,
        scratch=folder, progress=Progress(sink or Recorder(), "trains"),
    )  # fmt: skip


def accuracy(model: Any) -> float:
    with torch.no_grad():
        return 100 * float((model(HELD).argmax(1) == HELD_LABELS).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "labels", "share"), [("task", True, 0.8), ("both", True, 0.8), ("distill", False, 0.6)]
)
@pytest.mark.parametrize("numbers", [{"granularity": "per_tensor"}, {"weight_dtype": "int4"}])
def test_it_wins_back_what_rounding_lost(
    depthwise: Depthwise,
    tmp_path: Path,
    loss: str,
    labels: bool,
    share: float,
    numbers: dict[str, Any],
) -> None:
    outcome = run(
        depthwise, tmp_path, labels=labels, loss=loss, epochs=12, learning_rate=2e-3, **numbers
    )
    before, after = accuracy(outcome.before), accuracy(outcome.quantized.graph_module)
    best = accuracy(depthwise)
    assert best - before >= 3
    assert after - before >= share * (best - before)


@pytest.mark.slow
def test_the_file_is_as_right_as_training_said(depthwise: Depthwise, tmp_path: Path) -> None:
    outcome = run(
        depthwise, tmp_path, samples=400, loss="both", epochs=2, granularity="per_tensor",
        validation_fraction=0.5, learning_rate=1e-3,
    )  # fmt: skip
    original = tmp_path / "original.pt"
    torch.jit.trace(depthwise, PIXELS[:2]).save(str(original))
    plan = Plan(
        graph_module=outcome.quantized.graph_module, original=original,
        probes=[[PIXELS[:1]], [PIXELS[:3]]], precision="int8", freeze=True,
        dynamic_dims={"image": [0]},
    )  # fmt: skip
    data = Dataset([PIXELS[:400].numpy()], ["input"], LABELS[:400].numpy())
    kept_back = torch.from_numpy(TrainingData.split(data, 0.5, 0).validation)
    images, labels = PIXELS[kept_back], LABELS[kept_back]
    for kind in ("torchscript", "onnx"):
        file = export(kind, plan, tmp_path).path  # type: ignore[arg-type]
        if kind == "torchscript":
            loaded = torch.jit.load(str(file))
            answers = loaded(images)
        else:
            session = onnxruntime.InferenceSession(str(file))
            (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
            answers = torch.from_numpy(found)
        right = float((answers.argmax(1) == labels).float().mean())
        allowed = 1e-6 if kind == "torchscript" else 0.011  # its kernels break ties otherwise
        assert abs(right - outcome.trained.final["accuracy"]) < allowed


class Killed(Exception):
    """Stands in for a kill."""


class Killer(Recorder):
    """Ends a run at its third figures."""

    seen = 0

    def event(
        self, type: str, message: str, data: Mapping[str, Any] | None = None, level: str = "info"
    ) -> None:
        super().event(type, message, data, level)
        self.seen += type == "metrics"
        if self.seen == 3:
            raise Killed


@pytest.mark.slow
def test_a_run_that_was_ended_goes_on_to_the_same_scales_and_weights(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "samples": 96, "epochs": 5, "batch_size": 32, "learning_rate": 1e-3,
        "checkpoint_every_s": 1e-6,
    }  # fmt: skip
    whole = run(runs.net(), tmp_path, **settings)
    with pytest.raises(Killed):
        run(runs.net(), tmp_path, checkpoints=tmp_path, sink=Killer(), **settings)
    rest = run(runs.net(), tmp_path, checkpoints=tmp_path, **settings)
    assert rest.trained.resumed_from
    with torch.no_grad():
        answers = [each.quantized.graph_module(HELD) for each in (whole, rest)]
    assert torch.equal(*answers)
    for ours, theirs in zip(
        whole.quantized.graph_module.state_dict().values(),
        rest.quantized.graph_module.state_dict().values(),
        strict=True,
    ):
        assert not isinstance(ours, Tensor) or ours.is_quantized or torch.equal(ours, theirs)


def test_labels_that_the_loss_needs_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(LabelMismatch, match="Loss 'task' needs labels"):
        run(runs.net(), tmp_path, labels=False, loss="task", epochs=1)


def test_a_preflight_refuses_what_the_job_would(tmp_path: Path) -> None:
    torch.jit.trace(runs.net().eval(), PIXELS[:2]).save(tmp_path / "m.pt")
    np.savez(tmp_path / "d.npz", input=PIXELS[:80].numpy())
    files = Inputs(model=tmp_path / "m.pt", training=tmp_path / "d.npz")
    for settings, error in (
        (QatConfig(loss="task"), LabelMismatch),
        (QatConfig(batch_size=80), InvalidSpec),
    ):
        with pytest.raises(error):
            preflight(EngineSpec(method="qat", config=settings), files, Recorder())


def test_samples_that_the_model_refuses_are_told(tmp_path: Path) -> None:
    ids = torch.zeros(40, 5, dtype=torch.int64)
    net = nn.Sequential(nn.Embedding(4, 6), nn.Flatten(), nn.Linear(30, 3)).eval()
    settings = QatConfig(epochs=1, batch_size=8)
    with pytest.raises(ModelFailed, match=r"ranges are found on: .*ids that it does not know"):
        train_quantized(
            EngineSpec(method="qat", config=settings), settings,
            lift(torch.jit.trace(net, ids[:2]), [ids[:2]]),
            TrainingData.split(Dataset([ids.numpy()], ["input"]), 0.1, 0), lambda: [[ids + 9]],
            [ids[:3]], [[ids[:1]]], metric=None, device=runs.CPU, checkpoints=None,
            scratch=tmp_path, progress=Progress(Recorder(), "trains"),
        )  # fmt: skip


def test_it_tells_of_its_stages_and_needs_no_labels(tmp_path: Path) -> None:
    sink = Recorder()
    outcome = run(runs.net(), tmp_path, labels=False, samples=128, epochs=1, sink=sink)
    assert sink.stages == ["calibrate", "train", "convert"]
    assert outcome.trained.final["accuracy"] is None
    assert outcome.trained.curve[0]["parts"].keys() == {"teacher"}
    assert {layer.precision for layer in outcome.quantized.layers} == {"int8"}


def test_answers_that_are_no_classes_are_compared_by_distance(tmp_path: Path) -> None:
    outcome = run(
        runs.net(), tmp_path, labels=False, samples=128, steps=1, learning_rate=1e-9,
        validation_fraction=0.0, metric="mse",
    )  # fmt: skip
    with torch.no_grad():
        teacher = runs.net().eval()
        rounded = outcome.before  # whose norm is frozen from the first of one step
        data = TrainingData.split(Dataset([PIXELS[:128].numpy()], ["input"]), 0.0, 0)
        (indices,) = data.order(0, 1, 64)
        batch = PIXELS[torch.from_numpy(indices)]
        wanted = (rounded(batch) - teacher(batch)).square().mean()
    assert outcome.trained.final["loss"] == pytest.approx(float(wanted), rel=1e-4)


def test_a_preflight_names_what_the_job_will_make() -> None:
    settings = QatConfig(weight_dtype="int4", overrides={"0": "fp32"})
    tried = try_quantized(EngineSpec(config=settings), settings, lifted_net(runs.net()), [HELD[:1]])
    assert [layer.precision for layer in tried.layers] == ["fp32", "int4"]


class Counted:
    """Calibration batches; knows how often they were read."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self) -> Sequence[Sequence[Tensor]]:
        self.reads += 1
        return [[PIXELS[:16]]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "norms_until", "ranges_until"),
    [
        ({"epochs": 10}, 20, 30),
        ({"steps": 8}, 4, 6),
        ({"epochs": 10, "freeze_batch_norm_after": 0.5, "freeze_observers_after": 2}, 2, 8),
        ({"epochs": 1, "freeze_batch_norm_after": 0, "freeze_observers_after": 0}, 0, 0),
    ],
)
def test_norms_and_ranges_are_live_at_first_and_then_stay(
    config: dict[str, Any], norms_until: int, ranges_until: int
) -> None:
    settings = QatConfig(**config)
    model = prepare_qat(
        lifted_net(runs.net()).graph_module, [PIXELS[:2]], [[PIXELS[:16]]], settings
    )
    (norm,) = (m for m in model.module.modules() if isinstance(m, nn.BatchNorm2d))
    factors = [m.factor for m in model.module.modules() if isinstance(m, RoundedWeight)]
    batches = Counted()
    schedule = Schedule(model, settings, 4, batches)
    for step in range((settings.epochs or 2) * 4):
        model.module.train()
        schedule(step, step / 4)
        assert model.module.training
        assert norm.training == (step < norms_until)
        assert all(factor.requires_grad == (step < ranges_until) for factor in factors)
    assert batches.reads == min(10, ranges_until)


def test_ranges_are_found_anew_for_weights_that_have_changed() -> None:
    settings = QatConfig(epochs=10)
    graph_module = lifted_net(runs.net()).graph_module
    model = prepare_qat(graph_module, [PIXELS[:2]], [[PIXELS[:16]]], settings)
    before = [float(m.scale) for m in model.module.modules() if isinstance(m, RoundedValue)]
    with torch.no_grad():
        for name, value in model.module.named_parameters():
            if ".norm." in name:
                value.mul_(2)
    model.module.train()
    model.freeze_batch_norm()
    model.module(PIXELS[:16])  # steps of the weights follow
    schedule = Schedule(model, settings, 4, lambda: [[PIXELS[:16]]])
    for step in range(4):
        schedule(step, step / 4)
    after = [float(m.scale) for m in model.module.modules() if isinstance(m, RoundedValue)]
    assert after[0] == before[0]  # of the images
    assert np.allclose(after[1], 2 * before[1], rtol=0.1)
