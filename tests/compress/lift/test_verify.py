from __future__ import annotations

import math

import pytest
import torch

from compress.lift.compare import relative_error
from compress.lift.oracle import clean_message


def test_relative_error_is_the_largest_difference_over_the_largest_output() -> None:
    expected = torch.tensor([1.0, -4.0, 2.0])
    actual = torch.tensor([1.0, -4.0, 2.1])
    assert math.isclose(relative_error(actual, expected), 0.1 / 4.0, rel_tol=1e-5)
    assert relative_error({"a": [actual, expected]}, {"a": [expected, expected]}) > 0.02
    assert relative_error(expected.clone(), expected) == 0.0


@pytest.mark.parametrize(
    "actual",
    [
        torch.ones(4),  # another shape
        torch.ones(3, dtype=torch.float64),  # another type
        torch.tensor([1.0, 1.0, math.nan]),
        torch.tensor([1.0, 1.0, math.inf]),
        [torch.ones(3)],
        None,
        RuntimeError("raised"),
    ],
)
def test_what_cannot_be_compared_is_infinitely_far(actual: object) -> None:
    assert relative_error(actual, torch.ones(3)) == math.inf


def test_nan_and_infinity_equal_themselves() -> None:
    same = torch.tensor([math.nan, math.inf, 1.0])
    assert relative_error(same.clone(), same) == 0.0


def test_integers_must_be_equal() -> None:
    assert relative_error(torch.tensor([1, 2]), torch.tensor([1, 3])) == math.inf
    assert relative_error(3, 4) == math.inf
    assert relative_error(3, 3) == 0.0


def test_a_torchscript_trace_is_cut_down_to_the_models_own_words() -> None:
    error = RuntimeError(
        "The following operation failed in the TorchScript interpreter.\n"
        'Traceback of TorchScript, serialized code (most recent call last):\n  File "code/x.py"\n'
        "    raise\nRuntimeError: need 3 channels: got 2\n"
    )
    assert clean_message(error) == "need 3 channels: got 2"
    assert clean_message(ValueError("just so")) == "just so"
