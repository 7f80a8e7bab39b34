"""What lies where a builtin function once lay is no builtin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.jit import _builtins

from compress.export.builtins import forget_builtins_


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.widths = [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, self.widths)


def test_a_value_at_the_address_of_a_function_that_is_gone_is_scripted() -> None:
    torch.ops.aten.manual_seed  # noqa: B018 - torch looks an operator up when it is named
    model = Padded()
    # as after the operator got another overload, and the list its old function's address
    _builtins._register_builtin(model.widths, "aten::manual_seed")
    with pytest.raises(RuntimeError, match="builtin cannot be used as a value"):
        torch.jit.script(model)
    forget_builtins_()
    assert torch.jit.script(model)(torch.zeros(3)).shape == (6,)


def test_operators_are_scripted_afterwards_as_before() -> None:
    class Called(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.ops.aten.relu(torch.sigmoid(x))
            return torch.ops.quantized_decomposed.quantize_per_tensor(
                x, 0.1, 0, -128, 127, torch.int8
            )

    before = torch.jit.script(Called())(torch.ones(2))
    forget_builtins_()
    assert torch.equal(torch.jit.script(Called())(torch.ones(2)), before)
