"""How a model is computed is chosen by rule, and left out where the model does not take it."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from compress.spec.training import TrainingConfig
from compress.train import machine
from compress.train.machine import bring_home, choose_machine, pick_device, steady
from tests.compress.sinks import Recorder
from tests.compress.train import runs

IMAGES = torch.rand(4, 1, 8, 8)


class Viewing(nn.Module):
    """Views images as rows, which pixel by pixel they cannot be."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(108, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.head(x.view(x.size(0), -1))


def choose(model: nn.Module, **config: object) -> machine.Machine:
    return choose_machine(model, [IMAGES], TrainingConfig(**config), runs.CPU)  # type: ignore[arg-type]


def test_images_lie_pixel_by_pixel_where_the_model_takes_it() -> None:
    assert choose(runs.net()).channels_last
    images = torch.rand(4, 3, 8, 8)
    assert not choose_machine(Viewing(), [images], TrainingConfig(), runs.CPU).channels_last
    assert not choose(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))).channels_last
    assert choose(runs.net().requires_grad_(False)).channels_last  # a teacher


def test_choosing_leaves_the_model_and_the_random_numbers_as_they_were() -> None:
    model = runs.net(dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    choose(model, amp="bf16")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bfloat16_is_for_processors_that_are_made_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa, expected in ((["avx2"], False), (["avx512_bf16"], True), (["amx_bf16"], True)):
        known = machine.read_environment(1)
        monkeypatch.setattr(
            machine,
            "read_environment",
            lambda threads, isa=isa, known=known: type(known)(**{**vars(known), "isa": isa}),
        )
        assert choose(runs.net(), amp="auto").bf16 is expected
        monkeypatch.undo()
    assert choose(runs.net(), amp="bf16").bf16
    assert not choose(runs.net(), amp="off").bf16


def test_what_has_no_kernel_in_bfloat16_is_computed_in_float32() -> None:
    class Filling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            filled = torch.zeros(4, 8)
            filled[torch.arange(4)] = self.layer(x).mean((1, 2))
            return filled

    assert not choose(Filling(), amp="bf16").bf16


def test_convolutions_in_groups_stay_in_float32_on_a_processor() -> None:
    given: dict[str, torch.dtype] = {}

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Conv2d(4, 4, 3)
            self.depthwise = nn.Conv2d(4, 4, 3, groups=4, padding="same", padding_mode="reflect")
            self.kernel = nn.Parameter(torch.rand(4, 2, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.dense(x)
            given["dense"] = x.dtype
            x = self.depthwise(x)
            given["depthwise"] = x.dtype
            x = torch.conv2d(self.dense(x), self.kernel, groups=2)
            given["two groups"] = x.dtype
            return self.dense(x)

    block = Block()
    with machine.Machine(runs.CPU, bf16=True).computing():
        last = block(torch.rand(2, 4, 12, 12))
    last.float().sum().backward()  # type: ignore[no-untyped-call]
    half, whole = torch.bfloat16, torch.float32
    assert given == {"dense": half, "depthwise": whole, "two groups": whole}
    assert last.dtype == half
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_a_layer_of_grey_images_hands_them_on_as_they_are_to_lie() -> None:
    conv = nn.Conv2d(1, 8, 3)
    for layout in (torch.channels_last, torch.contiguous_format):
        way = machine.Machine(runs.CPU, channels_last=layout is torch.channels_last)
        way.place(conv)
        (images,) = way.arrange([torch.rand(4, 1, 9, 9)])
        assert conv(images).is_contiguous(memory_format=layout)
        assert torch.equal(*way.arrange([images, images.clone()]))


def test_a_model_comes_home_as_files_have_it() -> None:
    model = runs.net()
    choose(model).place(model)
    assert not model[0].weight.is_contiguous() or model[0].weight.shape[1] == 1
    bring_home(model)
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_settings_of_torch_are_as_before_when_training_ends() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with steady(runs.CPU):
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() is before


def test_what_does_not_run_on_the_gpu_is_trained_on_the_processor_and_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "_works", lambda model, inputs, where: model == "good")

    def picked(asked: Literal["auto", "cpu", "cuda"], *models: Any) -> tuple[str, list[str]]:
        sink = Recorder()
        return pick_device(asked, models, [IMAGES], runs.started(sink)).type, sink.warnings

    assert picked("auto", "good", "good") == ("cuda", [])
    assert picked("cpu", "bad") == ("cpu", [])
    device, warnings = picked("auto", "good", "bad")
    assert (device, len(warnings)) == ("cpu", 1)
    assert picked("cuda", "bad") == ("cuda", [])
