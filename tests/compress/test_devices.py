"""Devices are found or refused, and models move with all that names one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from compress.devices import CPU, device_of, find_device, from_processor, move
from compress.errors import DeviceUnavailable
from compress.lift import lift, load_model


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


class Packed(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        return pad_packed_sequence(packed, batch_first=True)[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_lengths_of_packed_sequences_are_the_processors(tmp_path: Path) -> None:
    given = torch.rand(2, 5, 3), torch.tensor([5, 2])
    torch.jit.script(Packed()).save(str(tmp_path / "model.pt"))
    expected = Packed()(*given)
    there = [each.cuda() for each in given]
    device = torch.device("cuda")
    assert torch.equal(load_model(tmp_path / "model.pt", device)(*there).cpu(), expected)
    lifted = lift(load_model(tmp_path / "model.pt"), list(given)).graph_module
    for _ in range(2):
        move(lifted, device)
        assert torch.equal(lifted(*there).cpu(), expected)
    move(lifted, CPU)
    assert torch.equal(lifted(*given), expected)
