from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress.errors import BadSignature, InvalidModel, ModelFailed
from compress.lift import forward_arguments, lift, load_model
from compress.spec.arguments import ForwardArgument
from tests.compress.lift.exported import export, net, net_input


class Several(nn.Module):
    def forward(self, image: Tensor, mask: Tensor | None = None, scale: float = 2.0) -> Tensor:
        return image * scale if mask is None else image * mask


def test_a_saved_model_comes_back_in_eval_mode(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.jit.save(torch.jit.script(net("mlp").half().train()), path)
    module = load_model(path)
    assert not module.training
    assert {value.dtype for value in module.parameters()} == {torch.float16}


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 truncated"])
def test_what_is_not_torchscript_is_refused_without_its_path(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "secret-folder.pt"
    path.write_bytes(content)
    with pytest.raises(InvalidModel) as refused:
        load_model(path)
    assert "secret-folder" not in refused.value.message
    assert "torch.jit.save" in refused.value.message


def test_a_truncated_file_and_a_plain_checkpoint_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    torch.jit.save(torch.jit.script(net("mlp")), whole)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(whole.read_bytes()[:-500])
    checkpoint = tmp_path / "checkpoint.pt"
    torch.save(net("mlp").state_dict(), checkpoint)
    for path in (cut, checkpoint):
        with pytest.raises(InvalidModel):
            load_model(path)


class NoForward(nn.Module):
    @torch.jit.export
    def predict(self, x: Tensor) -> Tensor:
        return x


def test_a_model_without_forward_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.jit.save(torch.jit.script(NoForward()), path)
    with pytest.raises(BadSignature, match="no forward"):
        load_model(path)


def test_arguments_are_listed_without_self() -> None:
    assert forward_arguments(export(Several(), [], "script")) == [
        ForwardArgument(name="image", type="Tensor", has_default=False),
        ForwardArgument(name="mask", type="Optional[Tensor]", has_default=True),
        ForwardArgument(name="scale", type="float", has_default=True, default=2.0),
    ]


@pytest.mark.parametrize(
    ("count", "message"), [(0, "takes 1-3 inputs"), (4, "4 were given"), (3, "'scale'")]
)
def test_inputs_that_do_not_fit_forward_are_refused(count: int, message: str) -> None:
    module = export(Several(), [], "script")
    with pytest.raises(BadSignature, match=message):
        lift(module, [torch.ones(2, 2)] * count)


def test_the_models_own_complaint_is_passed_on_without_code_or_paths() -> None:
    module = export(net("mlp"), [net_input("mlp")], "trace")
    with pytest.raises(ModelFailed) as failed:
        lift(module, [torch.randn(2, 15)])
    assert "mat1 and mat2 shapes cannot be multiplied" in failed.value.message
    assert "\n" not in failed.value.message
    assert ".py" not in failed.value.message
