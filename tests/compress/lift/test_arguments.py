"""Arguments beyond one tensor: structures, numbers, defaults, texts; and what is checked."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from compress.errors import BadSignature
from compress.export.flatten import flatten
from compress.lift import Lifted, lift
from tests.compress.lift.exported import export

GIVEN = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))


class Pair(NamedTuple):
    sum: Tensor
    last: Tensor


class Structures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(
        self,
        named: dict[str, Tensor],
        several: list[Tensor],
        pair: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        times: int = 3,
        shift: bool = True,
        mode: str = "plain",
    ) -> Pair:
        out = self.mix(named["u"]) + several[0] * len(several) + pair[1] * times
        if mask is not None:
            out = out * mask
        if shift:
            out = out + 1
        if mode == "plain":
            out = out * 2
        return Pair(out, pair[0])


STRUCTURES = [{"u": GIVEN}, [GIVEN, GIVEN + 1], (GIVEN, GIVEN * 2)]


def written(lifted: Lifted) -> torch.jit.ScriptModule:
    scripted = torch.jit.script(flatten(copy.deepcopy(lifted.graph_module)).eval())
    return export(scripted, [], "script")


@pytest.mark.parametrize(
    "more", [[], [GIVEN], [None, 5], [GIVEN, 4, False], [None, 3, True, "other"]]
)
def test_structures_numbers_and_texts_go_in_and_named_tuples_come_out(more: list[object]) -> None:
    model = Structures().eval()
    given = [*STRUCTURES, *more]
    lifted = lift(export(model, given, "script"), given)
    loaded = written(lifted)
    expected = model(*given)
    for output in (lifted.graph_module(*given), loaded(*given)):
        assert output._fields == ("sum", "last")
        for mine, right in zip(output, expected, strict=True):
            torch.testing.assert_close(mine, right)
    names = [argument.name for argument in loaded._c._get_method("forward").schema.arguments]
    assert names == ["self", "named", "several", "pair", "mask", "times", "shift", "mode"]


def test_what_was_fixed_by_the_example_is_said_and_checked() -> None:
    given = [*STRUCTURES, None, 3, True]
    lifted = lift(export(Structures().eval(), given, "script"), given)
    assert lifted.report.guards == ["mask is None", "mode == 'plain'", "shift"]
    loaded = written(lifted)
    for model in (lifted.graph_module, loaded):
        model(*STRUCTURES, None, 8)  # a number that decides nothing stays free
        for wrong, told in (
            ([GIVEN], "mask is None"),
            ([None, 3, False], "shift"),
            ([None, 3, True, "other"], "mode == 'plain'"),
        ):
            with pytest.raises((RuntimeError, torch.jit.Error), match=f"holds only where {told}"):
                model(*STRUCTURES, *wrong)


class Rates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Linear(4, 2)
        self.high = nn.Linear(4, 2)

    def forward(self, x: Tensor, sample_rate: int) -> Tensor:
        if sample_rate == 16000:
            return self.high(x)
        return self.low(x)


def test_a_number_that_decides_is_a_guard() -> None:
    report = lift(export(Rates(), [GIVEN, 16000], "script"), [GIVEN, 16000]).report
    assert report.guards == ["sample_rate == 16000"]
    assert report.parameters_lifted == report.parameters_unused == 10
    assert report.parameters_by_module == {"high": 10}
    report = lift(export(Rates(), [GIVEN, 8000], "script"), [GIVEN, 8000]).report
    assert report.guards == ["sample_rate != 16000"]


@pytest.mark.parametrize(
    ("given", "told"),
    [([GIVEN], "takes 2 inputs"), ([GIVEN, GIVEN], "'sample_rate'"), ([3, 3], "'x'"),
     ([None, 3], "'x'")],
)  # fmt: skip
def test_values_of_another_kind_are_refused(given: list[object], told: str) -> None:
    with pytest.raises(BadSignature, match=told):
        lift(export(Rates(), [GIVEN, 16000], "script"), given)


class Optionals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(
        self,
        x: Tensor,
        more: list[Tensor] | None = None,
        times: int | None = None,
        shift: float | None = None,
    ) -> Tensor:
        x = self.mix(x)
        if more is not None:
            x = x + more[0]
        if times is not None:
            x = x * times
        if shift is not None:
            x = x + shift
        return x


@pytest.mark.parametrize("more", [[], [[GIVEN]], [[GIVEN], 3], [None, 3, 0.5]])
def test_optional_lists_and_numbers(more: list[object]) -> None:
    model = Optionals().eval()
    lifted = lift(export(model, [GIVEN, *more], "script"), [GIVEN, *more])
    loaded = written(lifted)
    expected = model(GIVEN, *more)
    torch.testing.assert_close(lifted.graph_module(GIVEN, *more), expected)
    torch.testing.assert_close(loaded(GIVEN, *more), expected)
