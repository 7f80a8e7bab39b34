from __future__ import annotations

import errno
import io
from typing import Any

import pytest
import torch

from app.errors import StorageFull
from compress.errors import NothingToCompress, ShapeMismatch
from workers.failures import crashed, describe, ending, timed_out


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (ShapeMismatch("give [n, 3]"), "shape_mismatch", False),
        (NothingToCompress("no layer"), "nothing_to_compress", False),
        (MemoryError(), "out_of_memory", False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
         "out_of_memory", False),
        (RuntimeError("std::bad_alloc"), "out_of_memory", False),
        (OSError(errno.ENOSPC, "No space left"), "storage_full", True),
        (OSError(errno.EDQUOT, "Quota"), "storage_full", True),
        (StorageFull("full"), "storage_full", True),
        (OSError(errno.EFBIG, "File too large"), "output_too_large", False),
        (RuntimeError("at /srv/secret/path.py"), "internal_error", False),
        (KeyError("x"), "internal_error", False),
    ],
)  # fmt: skip
def test_each_exception_has_its_code(error: Exception, code: str, retryable: bool) -> None:
    failure = describe(error)
    assert (failure.code, failure.retryable) == (code, retryable)


class FullDisk(io.BytesIO):
    """Takes a kilobyte."""

    def write(self, content: Any) -> int:
        if self.tell() + len(content) > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content)


def test_a_full_disk_is_known_in_what_torch_makes_of_it() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.save({"weights": torch.zeros(100_000)}, FullDisk())
    assert describe(raised.value).code == "storage_full"


def test_the_engines_own_words_reach_the_user() -> None:
    assert describe(ShapeMismatch("give [n, 3]")).message == "give [n, 3]"


def test_an_unknown_exceptions_words_do_not() -> None:
    failure = describe(RuntimeError("at /srv/secret/path.py"))
    assert "/srv" not in failure.message


def test_a_failure_keeps_the_first_stage_it_was_given() -> None:
    failure = timed_out(5).at("calibrate").at("store")
    assert failure.to_dict() == {
        "code": "timeout", "message": failure.message, "stage": "calibrate", "retryable": False,
        "details": None,
    }  # fmt: skip
    assert "5" in failure.message


def test_an_end_is_told_in_words() -> None:
    assert ending(-11) == "signal SIGSEGV"
    assert ending(3) == "exit status 3"
    assert ending(-64) == "signal SIGRTMAX"
    assert ending(None) == "lost"
    assert "3 times" in crashed(-11, 3).message
