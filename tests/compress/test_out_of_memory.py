"""A lack of memory is known under all its names, and nothing else is taken for it."""

from __future__ import annotations

import errno

import pytest

from compress.errors import ModelFailed
from compress.out_of_memory import lacks_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory", "/tmp/x"),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not create a memory object"),
        RuntimeError("can't start new thread"),
        RuntimeError("std::bad_alloc"),
    ],
)  # fmt: skip
def test_names_of_it(error: BaseException) -> None:
    assert lacks_memory(error)
    outer = ModelFailed("The model itself failed.")
    outer.__cause__ = error
    assert lacks_memory(outer)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("could not create a primitive descriptor for a convolution"),
        ModelFailed("mat1 and mat2 shapes cannot be multiplied"),
        None,
    ],
)
def test_other_errors(error: BaseException | None) -> None:
    assert not lacks_memory(error)
