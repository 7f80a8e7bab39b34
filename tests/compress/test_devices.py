"""Devices are found or refused, and models move with all that names one."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from compress.devices import CPU, device_of, find_device, from_processor, move
from compress.errors import DeviceUnavailable


def test_devices_that_lifted_code_names_move_with_the_model() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = graph.call_function(torch.zeros, (3,), {"device": torch.device("meta")})
    graph.output(graph.call_function(torch.add, (x, made)))
    model = fx.GraphModule(nn.Module(), graph)
    move(model, CPU)
    assert model(torch.ones(3)).tolist() == [1, 1, 1]


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto").type == "cpu"
    with pytest.raises(DeviceUnavailable, match="No CUDA device"):
        find_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto").type == "cuda"
    assert find_device("cpu").type == "cpu"
    assert device_of("cuda").type == "cuda"
    assert device_of("x86") == CPU


def test_a_model_elsewhere_is_given_and_answers_tensors_of_the_processor() -> None:
    meta = torch.device("meta")
    seen: list[torch.device] = []

    def run(inputs: dict[str, torch.Tensor], times: int) -> tuple[torch.Tensor]:
        seen.append(inputs["x"].device)
        return (torch.ones(2) * times,)

    answer = from_processor(run, meta)({"x": torch.ones(2)}, 3)
    assert seen == [meta]
    assert answer[0].tolist() == [3, 3]
    assert from_processor(run, CPU) is run
